"""The disaster drill: this house is gone, and there is nothing but the settings and the bucket.

An empty BACKUP_DIR is made in scratch. Everything comes from offsite: the listing, the records, every manifest, the newest verified
set. It is sealed there as it would be on a new machine, and rehearsed from there in servers of our own. The catalogue here is
not looked at until the end, when the outcome is written down in it.
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass

from scholaria_ops.catalogue.ledger import Ledger
from scholaria_ops.catalogue.records import Records
from scholaria_ops.catalogue.sets import Catalogue
from scholaria_ops.errors import OpsError, UsageError, VerificationFailed
from scholaria_ops.operations.offsite import fetch, offsite_manifest, offsite_sets, push_records, target_of
from scholaria_ops.operations.rehearse import RehearsalReport, rehearse
from scholaria_ops.operations.services import Services


@dataclass(frozen=True, slots=True)
class DrillReport:
    """The outcome. ``rehearsal.rto_s`` runs from the first look at the bucket to all data compared."""

    rehearsal: RehearsalReport
    #: Complete sets that the bucket alone showed.
    found: int
    #: Id → why its manifest could not be read. A set that could not be brought back, though it is listed.
    unreadable: dict[str, str]

    def raise_if_unreadable(self) -> None:
        """Raise :class:`VerificationFailed` if a set in the bucket could not have been brought back."""
        if self.unreadable:
            raise VerificationFailed(
                f"{len(self.unreadable)} of {self.found} sets in the bucket have no manifest that can be read: "
                + "; ".join(f"{set_id}: {why}" for set_id, why in self.unreadable.items()),
                hint="Ship these sets again from where they are whole; the newest verified one was brought back as told.",
            )


def drill(services: Services, *, run_id: str = "") -> DrillReport:
    """Bring the newest verified set back from the bucket alone, into an empty environment, and compare it.

    Raises:
        ConfigError: there is no offsite place.
        UsageError: no verified set stands there.
        OffsiteError, OffsiteUnavailable, AuthenticationFailed, VerificationFailed: the bucket did not give the set back.
    """
    began, at = time.monotonic(), services.now()
    target_of(services)
    with services.context("drill") as ctx:
        root = ctx.scratch / "backups"
        there = dataclasses.replace(
            services,
            settings=services.settings.model_copy(update={"backup_dir": root, "scratch_dir": services.settings.scratch_root}),
            catalogue=Catalogue(root),
            ledger=Ledger(root / ".state" / "ledger.jsonl"),
        )
        there.check_directory()
        listed = offsite_sets(there)
        unreadable = _unreadable(there, [s.id for s in listed])
        verified = [s.id for s in listed if s.verified and s.id not in unreadable]
        if not verified:
            raise UsageError(f"no verified set can be read in {target_of(there).where}", hint="Ship one first.")
        entry = fetch(there, verified[-1], run_id=run_id)
        fetch_s = time.monotonic() - began
        report = rehearse(there, str(entry.id), run_id=run_id)
        report = dataclasses.replace(report, source="offsite", at=at, fetch_s=fetch_s, rto_s=time.monotonic() - began)
        _write_down(services, there.catalogue.records, report, run_id)
    return DrillReport(report, len(listed), unreadable)


def _unreadable(services: Services, ids: list[str]) -> dict[str, str]:
    found = {}
    for set_id in ids:
        try:
            offsite_manifest(services, set_id)
        except VerificationFailed as exc:
            found[set_id] = exc.message
    return found


def _write_down(services: Services, there: Records, report: RehearsalReport, run_id: str) -> None:
    """Take the rehearsal's record over into the catalogue here, as one that began at the bucket."""
    if not services.catalogue.records.of(report.set_id):
        services.catalogue.records.merge(report.set_id, target_of(services).get_records(cancel=services.cancel).get(report.set_id, b""))
    made = there.last(report.set_id, "rehearsed")
    detail = dict(made.detail) if made else {"verdict": report.verdict}
    timing = {"source": "offsite", "drill": True, "rto_s": round(report.rto_s, 3), "fetch_s": round(report.fetch_s, 3)}
    services.catalogue.records.append(report.set_id, "rehearsed", run_id=run_id, at=report.at, **{**detail, **timing})
    try:
        push_records(services, report.set_id)
    except OpsError as exc:
        services.log.warning("%s: its records could not be brought offsite: %s", report.set_id, exc)
