"""What keeps watch by itself: schedules of health, rehearsals, the disaster drill and the re-reading of offsite copies.

A tick decides from what is written down here, never by asking the network, so that it neither hangs nor fails because a bucket
is away: the run that it starts does. None of these runs takes the lock of BACKUP_DIR, so none of them is in a backup's way.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property

import dagster as dg

from scholaria_ops.catalogue.sets import Catalogue, Entry, Kind
from scholaria_ops.operations.reread import standing_offsite
from scholaria_ops.pipeline.errors import as_failure
from scholaria_ops.pipeline.freshness import settings_in_force
from scholaria_ops.pipeline.partitions import add_partition
from scholaria_ops.pipeline.resources import Estate
from scholaria_ops.pipeline.schedules import late_by
from scholaria_ops.settings import Settings

_UNFINISHED = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
]
_NO_BUCKET = "no offsite place is set (BACKUP_S3_BUCKET): there is nothing to bring back"


class Look:
    """What a tick decides from; read when it is asked for, so that health is looked at even when nothing can be read."""

    def __init__(self, estate: Estate) -> None:
        self._estate = estate

    @cached_property
    def settings(self) -> Settings:
        return self._estate.settings()

    @cached_property
    def entries(self) -> Sequence[Entry]:
        return Catalogue(self.settings.backup_dir).entries()


def look_at_health(_look: Look) -> dg.RunRequest | str:
    """Every tick: what cannot be read is for the run to say, whose failure is told to people."""
    return dg.RunRequest()


def rehearse_here(look: Look) -> dg.RunRequest | str:
    """The monthly rehearsal: the newest verified set of this disk."""
    verified = [e for e in look.entries if e.kind is Kind.SEALED and e.verified_at]
    if not verified:
        return f"no verified set stands in {look.settings.backup_dir}: there is nothing to rehearse"
    return _rehearsal(verified[-1], "local")


def rehearse_offsite(look: Look) -> dg.RunRequest | str:
    """The half-yearly one: the newest verified set that stands offsite, taken from there."""
    if look.settings.s3_bucket is None:
        return _NO_BUCKET
    shipped = [e for e in look.entries if e.kind is Kind.SEALED and e.verified_at and e.offsite_at]
    return _rehearsal(shipped[-1], "offsite") if shipped else "no verified set was shipped: there is nothing to rehearse from offsite"


def _rehearsal(entry: Entry, source: str) -> dg.RunRequest:
    return dg.RunRequest(
        partition_key=entry.id,
        run_config={"ops": {"rehearsal__restored": {"config": {"source": source}}}},
        tags={"scholaria/tier": entry.set.head.tier if entry.set else "", "scholaria/source": source},
    )


def run_the_drill(look: Look) -> dg.RunRequest | str:
    """The quarterly drill; what is in the bucket is found out by its run."""
    if look.settings.s3_bucket is None:
        return _NO_BUCKET
    return dg.RunRequest() if standing_offsite(look.entries) else "no set was shipped: there is nothing to bring back"


def read_again(look: Look) -> dg.RunRequest | str:
    """The weekly look at which offsite copies are due; the run lists the bucket, which may hold more than this disk knows of."""
    if look.settings.s3_bucket is None:
        return _NO_BUCKET
    return dg.RunRequest()


@dataclass(frozen=True, slots=True)
class Upkeep:
    """One of the schedules. ``decide`` gives the run to start, or why there is none; ``late`` is how late a tick may be caught up."""

    name: str
    job_name: str
    setting: str
    late: timedelta
    purpose: str
    decide: Callable[[Look], dg.RunRequest | str]


UPKEEP = (
    Upkeep(
        "health", "health", "health_cron", timedelta(hours=1), "Looks at everything that a backup and its return depend on", look_at_health
    ),
    Upkeep(
        "monthly_rehearsal",
        "rehearsal",
        "rehearsal_cron",
        timedelta(days=7),
        "Restores the newest verified set here and compares it",
        rehearse_here,
    ),
    Upkeep(
        "offsite_rehearsal",
        "rehearsal",
        "offsite_rehearsal_cron",
        timedelta(days=14),
        "Restores a set from its offsite copy and compares it",
        rehearse_offsite,
    ),
    Upkeep(
        "quarterly_drill", "disaster_drill", "drill_cron", timedelta(days=14), "Brings all back from nothing but the bucket", run_the_drill
    ),
    Upkeep("weekly_reread", "reread_offsite", "reread_cron", timedelta(days=2), "Reads back the offsite copies that are due", read_again),
)


def make_upkeep(kind: Upkeep, settings: Settings, trouble: str = "") -> dg.ScheduleDefinition:
    """The schedule of one kind, on by default."""
    cron, zone = str(getattr(settings, kind.setting)), settings.backup_timezone
    description = f"{kind.purpose} ({cron}, {zone}). Late by more than {_span(kind.late)}, a tick is skipped."
    if trouble:
        description += f" DEFAULT TIMES ARE IN FORCE, because the settings could not be read when this was loaded: {trouble}"

    @dg.schedule(
        name=kind.name,
        job_name=kind.job_name,
        cron_schedule=cron,
        execution_timezone=zone,
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description=description,
    )
    def evaluate(context: dg.ScheduleEvaluationContext, estate: Estate) -> dg.RunRequest | dg.SkipReason:
        tick = context.scheduled_execution_time
        if late := late_by(tick, datetime.now(UTC), kind.late):
            return dg.SkipReason(f"{late} The next one comes by itself, or start the job `{kind.job_name}`.")
        if running := context.instance.get_runs(dg.RunsFilter(job_name=kind.job_name, statuses=_UNFINISHED), limit=1):
            return dg.SkipReason(f"run {running[0].run_id[:8]} of the job {kind.job_name} is not finished; one at a time")
        with as_failure():
            wanted = kind.decide(Look(estate))
        if isinstance(wanted, str):
            return dg.SkipReason(wanted)
        key = f"{kind.name}-{tick.astimezone(UTC):%Y%m%dT%H%M}Z"
        if wanted.partition_key:
            add_partition(context.instance, wanted.partition_key)
        return wanted._replace(run_key=key, tags={**wanted.tags, "scholaria/schedule": kind.name})

    return evaluate


def _span(period: timedelta) -> str:
    return f"{period.days} days" if period.days else f"{period / timedelta(hours=1):.0f} h"


_SETTINGS, _TROUBLE = settings_in_force()
UPKEEP_SCHEDULES = [make_upkeep(kind, _SETTINGS, _TROUBLE) for kind in UPKEEP]
