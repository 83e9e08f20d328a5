"""Read old offsite copies back in full, so that rot is found while another copy still stands.

An upload is read back once, when it is made. After that a copy lies untouched for months; this reads those again whose last full
read-back is longest ago. A copy whose set still stands here is mended from it; any other damage is named.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from scholaria_ops.catalogue.layout import SUMS
from scholaria_ops.catalogue.records import Record
from scholaria_ops.catalogue.sets import Entry, Kind, parse_sums
from scholaria_ops.errors import OffsiteUnavailable, OpsError, Refused, UsageError, VerificationFailed
from scholaria_ops.operations.offsite import OffsiteSet, offsite_sets, push_records, ship, target_of
from scholaria_ops.operations.services import Services


@dataclass(frozen=True, slots=True)
class Reread:
    """What became of one copy. ``damage`` names what is wrong with it and could not be mended; empty if it is whole now."""

    set_id: str
    size_bytes: int
    mended: bool = False
    damage: str = ""


@dataclass
class RereadReport:
    """Every copy that was due, oldest read-back first."""

    at: datetime
    copies: list[Reread] = field(default_factory=list)
    not_due: int = 0

    @property
    def damaged(self) -> list[Reread]:
        return [c for c in self.copies if c.damage]

    @property
    def size_bytes(self) -> int:
        return sum(c.size_bytes for c in self.copies)

    def raise_if_damaged(self) -> None:
        """Raise :class:`VerificationFailed` naming every copy that is not whole."""
        if self.damaged:
            raise VerificationFailed(
                f"{len(self.damaged)} offsite copies are damaged: " + "; ".join(f"{c.set_id}: {c.damage}" for c in self.damaged),
                hint="Do not rely on these copies. Ship the set again from where it is whole; the other copies were read and are sound.",
            )


def last_read(records: Sequence[Record]) -> datetime | None:
    """When every byte of the offsite copy was last read back and found right; None if that never happened, or it rotted since."""
    read: datetime | None = None
    for record in records:
        if record.event == "shipped" and record.detail.get("confirmed_by") == "readback":
            read = record.at
        elif record.event == "reread":
            read = record.at if record.detail.get("passed") is True else None
        elif record.event == "deleted" and record.detail.get("place") == "offsite":
            read = None
    return read


def due(histories: Mapping[str, Sequence[Record]], now: datetime, after: timedelta) -> list[str]:
    """Ids whose copy was not read back within ``after``, the one that waits longest first."""
    read = {set_id: last_read(records) for set_id, records in histories.items()}
    waiting = {set_id: at for set_id, at in read.items() if at is None or now - at > after}
    return sorted(waiting, key=lambda i: (waiting[i].timestamp() if waiting[i] else 0.0, i))  # type: ignore[union-attr]


def standing_offsite(entries: Sequence[Entry]) -> dict[str, Sequence[Record]]:
    """Histories of the sets here that were shipped, by the records alone: asks no network."""
    return {str(e.id): e.records for e in entries if e.kind is Kind.SEALED and e.offsite_at is not None}


def reread(services: Services, *, run_id: str = "") -> RereadReport:
    """Read back every copy that is due, mend what can be mended, and write down the outcome of each.

    Raises:
        OffsiteError, OffsiteUnavailable, AuthenticationFailed: the bucket cannot be listed or read; what was read until then is recorded.
        ConfigError: there is no offsite place.
    """
    after = timedelta(days=services.settings.reread_after_days)
    there = {s.id: s for s in offsite_sets(services)}
    report = RereadReport(at=services.now())
    histories = {i: _merged(services, s) for i, s in there.items()}
    wanted = due(histories, report.at, after)
    report.not_due = len(there) - len(wanted)
    for set_id in wanted:
        services.cancel.check()
        try:
            report.copies.append(_one(services, there[set_id], run_id))
        except OffsiteUnavailable:
            raise
        except (VerificationFailed, UsageError) as exc:
            report.copies.append(Reread(set_id, there[set_id].size_bytes, damage=exc.message))
        last = report.copies[-1]
        services.progress.say(f"{set_id}: {last.damage or ('rotten files replaced' if last.mended else 'read back in full, sound')}")
        _write_down(services, last, run_id)
    return report


def _merged(services: Services, copy: OffsiteSet) -> Sequence[Record]:
    """The records of a copy from both places, in the order of their time."""
    here = services.catalogue.records.of(copy.id)
    known = {(r.at, r.event, r.by) for r in here}
    return sorted([*here, *(r for r in copy.records if (r.at, r.event, r.by) not in known)], key=lambda r: r.at)


def _one(services: Services, copy: OffsiteSet, run_id: str) -> Reread:
    try:
        entry = services.catalogue.find(copy.id)
        shipped = ship(services, entry, reread=True, run_id=run_id)
    except (UsageError, Refused):
        # It stands offsite only, or what stands here cannot mend anything.
        return _read_only(services, copy)
    return Reread(copy.id, shipped.report.size_bytes, mended=shipped.report.sent_bytes > 0)


def _read_only(services: Services, copy: OffsiteSet) -> Reread:
    """Compare every file with SHA256SUMS, and that with the record of the sealing."""
    target = target_of(services)
    data = target.read_small(copy.name, SUMS, cancel=services.cancel)
    sums = parse_sums(data, source=f"{target.where.rstrip('/')}/{copy.name}/{SUMS}")
    sealed = next((r for r in reversed(_merged(services, copy)) if r.event == "sealed"), None)
    expected = dict(sums)
    if sealed and sealed.detail.get("sums_sha256"):
        expected[SUMS] = str(sealed.detail["sums_sha256"])
    wrong = []
    listed = {f.path for f in target.list_files(copy.name, cancel=services.cancel)}
    for path, digest in sorted(expected.items()):
        if path not in listed:
            wrong.append(f"{path} is missing")
        elif target.read_back(copy.name, path, cancel=services.cancel, progress=services.progress).sha256 != digest:
            wrong.append(f"{path} is not what was shipped")
    return Reread(copy.id, copy.size_bytes, damage=", ".join(wrong))


def _write_down(services: Services, copy: Reread, run_id: str) -> None:
    if not services.catalogue.records.of(copy.set_id):
        # Pushing replaces what lies offsite, so all of it must be here first.
        services.catalogue.records.merge(copy.set_id, target_of(services).get_records(cancel=services.cancel).get(copy.set_id, b""))
    services.catalogue.records.append(
        copy.set_id,
        "reread",
        run_id=run_id,
        where=target_of(services).where,
        passed=not copy.damage,
        mended=copy.mended,
        damage=copy.damage,
        bytes=copy.size_bytes,
    )
    services.audit("reread", copy.set_id, "failed" if copy.damage else "done", run_id=run_id, mended=copy.mended, message=copy.damage)
    try:
        push_records(services, copy.set_id)
    except OpsError as exc:
        services.log.warning("%s: its records could not be brought offsite: %s", copy.set_id, exc)
