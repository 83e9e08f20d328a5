"""Minting of set ids. An id is reserved on disk before anybody uses it, and never given out twice."""

from __future__ import annotations

from datetime import datetime, timedelta, tzinfo

from scholaria_ops.catalogue.layout import check_id, label, label_instant, next_label
from scholaria_ops.catalogue.records import Records
from scholaria_ops.catalogue.sets import Catalogue
from scholaria_ops.errors import Refused

#: A reserved id must be backed up within this time: later, its name would tell the wrong hour.
RESERVATION_VALID = timedelta(hours=6)


def mint(catalogue: Catalogue, zone: tzinfo, now: datetime, *, taken: frozenset[str] = frozenset(), **detail: str) -> str:
    """Reserve the id of ``now``, or of the next second that is free. Needs no lock: reserving is one atomic creation.

    Args:
        catalogue: whose ids are in use.
        zone: the configured time zone.
        now: an aware instant.
        taken: ids known elsewhere (Dagster's partitions), which may outlive this disk.
        detail: what the reservation record says (tier, note, who asked).
    """
    used = catalogue.used_ids() | taken
    candidate = label(now, zone)
    while candidate in used or not catalogue.records.reserve(candidate, **detail):
        candidate = next_label(candidate)
    return candidate


def check_usable(records: Records, set_id: str, zone: tzinfo, now: datetime) -> None:
    """Refuse an id whose time is long past (or far ahead): a set's name must tell when it was taken."""
    reserved = records.last(check_id(set_id), "reserved")
    instant = reserved.at if reserved else label_instant(set_id, zone)
    if abs(now - instant) > RESERVATION_VALID:
        raise Refused(
            f"{set_id} is not sealed and its time is {abs(now - instant)} away; a set's id tells when it was taken",
            hint="Start a new backup (`scholaria-ops backup`, or the job backup_now) instead of running an old partition again.",
        )
