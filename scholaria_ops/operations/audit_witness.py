"""Heads of the audit log that were written down elsewhere, and the comparison with them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from scholaria_ops.catalogue.audit import AuditReport, Head
from scholaria_ops.catalogue.records import Record, parse
from scholaria_ops.operations.offsite import target_of
from scholaria_ops.operations.services import Services


def verify_audit(services: Services, *, offsite: bool = False) -> AuditReport:
    """Walk the chain, and compare it with the heads that the records hold.

    Args:
        offsite: also with those that lie offsite, which nobody on this host can have rewritten unnoticed if the bucket keeps versions.

    Raises:
        AuditBroken: naming the first line, or the record, that does not fit.
        ConfigError, OffsiteError, OffsiteUnavailable: ``offsite`` was asked for and cannot be read.
    """
    records = services.catalogue.records
    witnesses = list(_heads({set_id: records.of(set_id) for set_id in records.ids()}, "here"))
    if offsite:
        target = target_of(services)
        found = target.get_records(cancel=services.cancel)
        witnesses += _heads({set_id: parse(data) for set_id, data in found.items()}, f"in {target.where}")
    return services.audit_log.verify(witnesses)


def _heads(records: Mapping[str, Iterable[Record]], place: str) -> Iterator[Head]:
    for set_id, history in sorted(records.items()):
        for record in history:
            seen_in = f"the record {record.event!r} of {set_id} {place} ({record.at:%Y-%m-%d %H:%M} UTC)"
            if head := Head.of(record.detail, set_id=set_id, seen_in=seen_in):
                yield head
