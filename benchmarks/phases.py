"""Where a run of ours spent its time, from what the product itself writes down: the manifest and the set's records."""

from __future__ import annotations

from datetime import datetime, timedelta

from benchmarks.measure import Ended
from scholaria_ops.catalogue.records import Event, Record, Records
from scholaria_ops.catalogue.sets import BackupSet

#: Until the last byte of the payload was accepted; files that were sent earlier are read back meanwhile.
SENDING = "sending"


def of_backup(backup_set: BackupSet, records: Records, ended: Ended) -> dict[str, float]:
    """Phases of ``scholaria-ops backup``; the three stores run side by side."""
    manifest = backup_set.manifest
    parts = dict(manifest.parts())
    sealed, verified = _last(records, manifest.id, "sealed"), _last(records, manifest.id, "verified")
    verify_s = float(verified.detail["seconds"])
    begun = min(part.started_at for part in parts.values())
    return {
        "start, Dagster, preflight": _between(ended.started_at, begun),
        **{f"∥ {name}": _between(part.started_at, part.finished_at) for name, part in parts.items()},
        "seal": _between(max(part.finished_at for part in parts.values()), sealed.at),
        "verify (readable)": verify_s,
        "Dagster, end": _between(verified.at + timedelta(seconds=verify_s), ended.ended_at),
    }


def of_rehearsal(set_id: str, records: Records, ended: Ended) -> dict[str, float]:
    """Phases of ``scholaria-ops rehearse``; the three stores run side by side."""
    record = _last(records, set_id, "rehearsed")
    if record.detail["verdict"] != "proven":
        raise AssertionError(f"the rehearsal's verdict is {record.detail['verdict']}: {record.detail}")
    found = {"start, Dagster": _between(ended.started_at, record.at), "hash": float(record.detail["fetch_s"])}
    for name, store in record.detail["stores"].items():
        found |= {f"∥ {name} {phase}": float(seconds) for phase, seconds in store["seconds"].items() if seconds >= 0.1}
    found["servers removed, Dagster, end"] = _between(record.at + timedelta(seconds=float(record.detail["rto_s"])), ended.ended_at)
    return found


def of_transfer(set_id: str, event: Event, records: Records, ended: Ended) -> dict[str, float]:
    """Phases of ``scholaria-ops ship`` (event ``shipped``) and ``fetch`` (event ``fetched``)."""
    record = _last(records, set_id, event)
    seconds = float(record.detail["seconds"])
    begun = record.at - timedelta(seconds=seconds)
    sending_s = float(record.detail.get("sending_s", 0.0))
    transfer = {SENDING: sending_s, "the last read back, commit": seconds - sending_s} if sending_s else {"transfer and proof": seconds}
    return {"start, Dagster": _between(ended.started_at, begun), **transfer, "Dagster, end": _between(record.at, ended.ended_at)}


def _last(records: Records, set_id: str, event: Event) -> Record:
    record = records.last(set_id, event)
    if record is None:
        raise AssertionError(f"the set {set_id} has no record of being {event}")
    return record


def _between(earlier: datetime, later: datetime) -> float:
    return (later - earlier).total_seconds()
