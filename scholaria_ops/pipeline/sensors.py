"""Sensors: what starts by itself. Each decides by a pure function; Dagster only asks and acts."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

import dagster as dg

from scholaria_ops.catalogue.ids import RESERVATION_VALID
from scholaria_ops.catalogue.records import Record, Records
from scholaria_ops.catalogue.sets import Catalogue
from scholaria_ops.operations.backup import STARTED_BY_SENSOR
from scholaria_ops.pipeline.partitions import add_partition, known_partitions
from scholaria_ops.pipeline.resources import Estate
from scholaria_ops.pipeline.set_jobs import backup_job


@dataclass(frozen=True, slots=True)
class Wanted:
    """A reserved id whose backup was not begun yet."""

    set_id: str
    tier: str
    note: str
    requested_by: str


def waiting(records: Mapping[str, Iterable[Record]], now: datetime) -> list[Wanted]:
    """Ids that `backup_now` or a restore reserved recently and that nothing has been recorded of since, oldest first."""
    found = []
    for set_id, history in records.items():
        events = list(history)
        if len(events) != 1 or events[0].event != "reserved" or now - events[0].at > RESERVATION_VALID:
            continue
        detail = events[0].detail
        if (asked := str(detail.get("requested_by"))) in STARTED_BY_SENSOR.values():
            found.append(Wanted(set_id, str(detail.get("tier", "manual")), str(detail.get("note", "")), asked))
    return sorted(found, key=lambda w: w.set_id)


@dg.sensor(
    name="requested_backups",
    job=backup_job,
    minimum_interval_seconds=5,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Starts the backup run of every id that `backup_now` has minted.",
)
def requested_backups(context: dg.SensorEvaluationContext, estate: Estate) -> dg.SensorResult | dg.SkipReason:
    settings = estate.settings()
    catalogue = Catalogue(settings.backup_dir)
    wanted = waiting(_recent(catalogue.records), datetime.now(settings.timezone))
    if not wanted:
        return dg.SkipReason("no backup was asked for")
    known = known_partitions(context.instance)
    for item in wanted:
        if item.set_id not in known:
            add_partition(context.instance, item.set_id)
    return dg.SensorResult(
        run_requests=[
            dg.RunRequest(
                run_key=item.set_id,
                partition_key=item.set_id,
                run_config={"ops": {"take_backup": {"config": {"tier": item.tier, "note": item.note, "requested_by": item.requested_by}}}},
                tags={"scholaria/tier": item.tier},
            )
            for item in wanted
        ]
    )


def _recent(records: Records) -> dict[str, list[Record]]:
    """Histories of the newest ids only: reservations that can still be waiting are the youngest of all."""
    return {set_id: records.of(set_id) for set_id in sorted(records.ids())[-50:]}


SENSORS = [requested_backups]
