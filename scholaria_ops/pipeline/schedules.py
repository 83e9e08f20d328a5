"""The schedules of the three tiers: daily, weekly, monthly, in the operators' time zone.

They are made when the code location loads, and must not bring it down: with settings that cannot be read they fall back to the
defaults and say so. A tick mints the id of its set and starts its `backup` run; a tick that is evaluated twice gets the same id.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal

import dagster as dg

from scholaria_ops.catalogue.records import Record, Records
from scholaria_ops.operations.backup import BackupRequest, reserve
from scholaria_ops.operations.services import Services
from scholaria_ops.pipeline.errors import as_failure
from scholaria_ops.pipeline.freshness import settings_in_force
from scholaria_ops.pipeline.partitions import add_partition, known_partitions
from scholaria_ops.pipeline.resources import Estate
from scholaria_ops.settings import Settings

ScheduledTier = Literal["daily", "weekly", "monthly"]
SCHEDULED: tuple[ScheduledTier, ...] = ("daily", "weekly", "monthly")
#: A tick this late is a catch-up after an outage. Its set would show another time than the one it was meant for.
STALE_AFTER = timedelta(hours=6)
#: Ids looked at for a reservation that an earlier evaluation of the same tick made.
_RECENT = 50


@dataclass(frozen=True, slots=True)
class Timing:
    """Cron strings by tier and the zone they are read in; ``trouble`` says why they are not the operators' own, if so."""

    crons: Mapping[ScheduledTier, str]
    zone: str
    trouble: str = ""

    @classmethod
    def of(cls, settings: Settings, trouble: str = "") -> Timing:
        crons: dict[ScheduledTier, str] = {"daily": settings.daily_cron, "weekly": settings.weekly_cron, "monthly": settings.monthly_cron}
        return cls(crons, settings.backup_timezone, trouble)


def timing() -> Timing:
    """The timing that the settings ask for now, or the default one with the reason why they could not be read."""
    return Timing.of(*settings_in_force())


def late_by(due: datetime, now: datetime, at_most: timedelta) -> str:
    """How a tick that is later than ``at_most`` came to be, for people; empty if it is not."""
    late = now - due
    if late <= at_most:
        return ""
    return (
        f"this tick was due at {due:%Y-%m-%d %H:%M %Z}, {late / timedelta(hours=1):.1f} h ago: the machine or the daemon was not running."
    )


def stale(due: datetime, now: datetime) -> str:
    """Why a tick must not take a set any more; empty if it may."""
    late = late_by(due, now, STALE_AFTER)
    return late and (
        f"{late} A set tells the state of its own time, so a tick is caught up for {STALE_AFTER / timedelta(hours=1):.0f} h only; "
        "the next one comes by itself, or start `backup_now`."
    )


def reserved_for(requested_by: str, records: Mapping[str, Iterable[Record]]) -> str | None:
    """The id that an earlier evaluation of the same tick reserved, if it came that far."""
    for set_id, history in records.items():
        first = next(iter(history), None)
        if first and first.event == "reserved" and first.detail.get("requested_by") == requested_by:
            return set_id
    return None


def make_schedule(tier: ScheduledTier, wanted: Timing) -> dg.ScheduleDefinition:
    """The schedule of one tier, on by default."""
    cron, zone = wanted.crons[tier], wanted.zone
    description = f"Takes the {tier} set ({cron}, {zone}). Late by more than {STALE_AFTER / timedelta(hours=1):.0f} h, a tick is skipped."
    if wanted.trouble:
        description += f" DEFAULT TIMES ARE IN FORCE, because the settings could not be read when this was loaded: {wanted.trouble}"

    @dg.schedule(
        name=f"{tier}_backup",
        job_name="backup",
        cron_schedule=cron,
        execution_timezone=zone,
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description=description,
    )
    def evaluate(context: dg.ScheduleEvaluationContext, estate: Estate) -> dg.RunRequest | dg.SkipReason:
        due = context.scheduled_execution_time
        if reason := stale(due, datetime.now(UTC)):
            return dg.SkipReason(reason)
        with as_failure(), estate.services(context.log) as services:
            now = Timing.of(services.settings)
            if (now.crons[tier], now.zone) != (cron, zone):
                context.log.warning(
                    f"The settings say {now.crons[tier]} ({now.zone}) now, but loaded was {cron} ({zone}). Reload the code location."
                )
            set_id = _reserve(services, context.instance, tier, f"schedule {tier}_backup, due {due.astimezone(UTC):%Y-%m-%dT%H:%M}Z")
        return _request(set_id, tier, f"schedule {tier}_backup")

    return evaluate


def _reserve(services: Services, instance: dg.DagsterInstance, tier: ScheduledTier, requested_by: str) -> str:
    set_id = reserved_for(requested_by, _recent(services.catalogue.records))
    if set_id is None:
        set_id = reserve(services, BackupRequest(tier=tier, requested_by=requested_by), taken=known_partitions(instance))
    add_partition(instance, set_id)
    return set_id


def _request(set_id: str, tier: ScheduledTier, requested_by: str) -> dg.RunRequest:
    return dg.RunRequest(
        run_key=set_id,
        partition_key=set_id,
        run_config={"ops": {"take_backup": {"config": {"tier": tier, "requested_by": requested_by}}}},
        tags={"scholaria/tier": tier},
    )


def _recent(records: Records) -> dict[str, list[Record]]:
    return {set_id: records.of(set_id) for set_id in sorted(records.ids())[-_RECENT:]}


_TIMING = timing()
SCHEDULES = [make_schedule(tier, _TIMING) for tier in SCHEDULED]
