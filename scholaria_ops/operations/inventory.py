"""What stands here and offsite, as retention needs it: described completely, or named as unreadable."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC
from pathlib import Path

from scholaria_ops.catalogue.head import Head
from scholaria_ops.catalogue.layout import MANIFEST, SET_PREFIX, SUMS, id_from_name
from scholaria_ops.catalogue.records import Record, parse
from scholaria_ops.catalogue.retention import Inventory, SetFacts
from scholaria_ops.catalogue.sets import Entry, Kind, held_because, proven_at
from scholaria_ops.errors import Refused, VerificationFailed
from scholaria_ops.operations.offsite import offsite_manifest
from scholaria_ops.operations.prune_state import Journal, PruneState, RemoteFacts, Seen
from scholaria_ops.operations.services import Services

#: Set id → the run that works on it.
InFlight = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Stock:
    """Both places at one look; ``seen`` is what to remember of it."""

    here: Inventory
    offsite: Inventory | None
    seen: Seen


def take_stock(services: Services, in_flight: InFlight, *, offsite: bool, afresh: bool = False) -> Stock:
    """Look at BACKUP_DIR and, if wanted and set, at the offsite place. ``afresh``: read every file itself, as removing asks for.

    Raises:
        Refused: BACKUP_DIR or its records cannot be read.
        OffsiteError, OffsiteUnavailable, AuthenticationFailed: the listing failed. It is whole or an error.
    """
    state = PruneState(services.catalogue.layout)
    seen, journal = state.seen(), state.journal()
    try:
        entries = services.catalogue.entries(afresh=afresh)
        target = services.offsite if offsite else None
        remote = {i: parse(data) for i, data in target.get_records(cancel=services.cancel).items()} if target else {}
        here = _here(services, entries, remote, in_flight, seen, _begun(journal, "here"))
        if target is None:
            return Stock(here, None, Seen(here=_names(entries), offsite=seen.offsite))
        there, known = _offsite(services, target.where, entries, remote, in_flight, seen, journal)
    except OSError as exc:
        raise Refused(
            f"{exc.filename or services.catalogue.layout.root} could not be read: {exc.strerror}",
            hint="Nothing is pruned while the catalogue cannot be read completely; mend the permissions or the disk.",
        ) from exc
    if there.sets and not here.sets and not seen.here:
        here = Inventory(
            here.sets,
            here.untouched,
            {"everything": f"no set stands in {services.catalogue.layout.root}, but some stand offsite"},
            here.unreadable,
        )
    return Stock(here, there, Seen(here=_names(entries), offsite={**seen.offsite, target.where: known}))


def _names(entries: Sequence[Entry]) -> tuple[str, ...]:
    """What is missed if it is gone at the next look. Damaged and old-style sets are the operator's to remove."""
    return tuple(e.name for e in entries if e.set is not None)


def _begun(journal: Journal | None, place: str) -> set[str]:
    """Names whose removal an unfinished prune began: they may be gone by us."""
    return {line.name for line in journal.removals if line.place == place} if journal else set()


def _here(
    services: Services,
    entries: Sequence[Entry],
    remote: Mapping[str, Sequence[Record]],
    in_flight: InFlight,
    seen: Seen,
    begun: set[str],
) -> Inventory:
    sets: list[SetFacts] = []
    untouched: dict[str, str] = {}
    unreadable: dict[str, str] = {}
    for entry in entries:
        services.cancel.check()
        if entry.unread:
            unreadable[entry.name] = entry.unread
        if entry.set is not None:
            sets.append(_facts_here(entry, remote, in_flight))
            continue
        untouched[entry.name] = f"{entry.kind}" + (f": {entry.reason}" if entry.reason else "")
        if not entry.unread and entry.kind is Kind.DAMAGED and (why := _cannot_read(entry.directory)):
            unreadable[entry.name] = why
    missing = dict.fromkeys(_missing(services, entries, seen, begun), "stood here at the last look")
    return Inventory(sets, untouched, missing, unreadable)


def missing_here(services: Services, entries: Sequence[Entry]) -> list[str]:
    """Sets that stood in BACKUP_DIR when a plan was last carried out, are gone, and were not removed by us.

    Raises:
        Refused: what was remembered cannot be read.
    """
    state = PruneState(services.catalogue.layout)
    return _missing(services, entries, state.seen(), _begun(state.journal(), "here"))


def _missing(services: Services, entries: Sequence[Entry], seen: Seen, begun: set[str]) -> list[str]:
    expected = set(seen.here) - {e.name for e in entries} - begun
    return sorted(name for name in expected if not _deleted(services, name, "here"))


def _facts_here(entry: Entry, remote: Mapping[str, Sequence[Record]], in_flight: InFlight) -> SetFacts:
    assert entry.set is not None  # noqa: S101 - the caller looked
    head = entry.set.head
    records = merged(entry.records, remote.get(head.id, ()))
    return SetFacts(
        id=head.id,
        name=entry.name,
        tier=head.tier,
        cut_at=head.cut_at.astimezone(UTC),
        size_bytes=head.size_bytes,
        counts=head.counts,
        partial=head.partial,
        verified=entry.verified_at is not None,
        proven_at=proven_at(records),
        held=held_because(records),
        in_flight=in_flight.get(head.id, ""),
        doubt=entry.unread or entry.doubt,
    )


def _offsite(
    services: Services,
    where: str,
    entries: Sequence[Entry],
    remote: Mapping[str, Sequence[Record]],
    in_flight: InFlight,
    seen: Seen,
    journal: Journal | None,
) -> tuple[Inventory, dict[str, RemoteFacts]]:
    assert services.offsite is not None  # noqa: S101 - the caller looked
    begun = _begun(journal, "offsite") if journal and journal.where.get("offsite") == where else set()
    known, local = seen.offsite.get(where, {}), {e.name: e for e in entries if e.set is not None}
    sets: list[SetFacts] = []
    untouched: dict[str, str] = {}
    facts: dict[str, RemoteFacts] = {}
    listed = services.offsite.list_sets(cancel=services.cancel)
    for one in listed:
        set_id = id_from_name(one.name)
        if set_id is None or not one.name.startswith(SET_PREFIX):
            untouched[one.name] = "not made by this product"
        elif not one.complete:
            if one.name not in begun:
                untouched[one.name] = "without a manifest: an upload that was never finished"
        else:
            try:
                found = known.get(one.name) or _remote_facts(services, set_id, local.get(one.name))
            except VerificationFailed as exc:
                untouched[one.name] = f"damaged: {exc.message}"
                continue
            facts[one.name] = found
            sets.append(_facts_there(services, set_id, one.name, one.size_bytes, found, remote.get(set_id, ()), in_flight))
    standing = {one.name for one in listed}
    expected = dict.fromkeys(known, "stood there at the last look")
    expected |= {e.name: "was shipped there" for e in entries if _shipped_to(e, where)}
    missing = {n: why for n, why in expected.items() if n not in standing | begun and not _deleted(services, n, "offsite")}
    return Inventory(sets, untouched, missing), facts


def _remote_facts(services: Services, set_id: str, local: Entry | None) -> RemoteFacts:
    head = local.set.head if local and local.set else Head.of(offsite_manifest(services, set_id))
    return RemoteFacts(tier=head.tier, cut_at=head.cut_at.astimezone(UTC), counts=dict(head.counts))


def _facts_there(
    services: Services, set_id: str, name: str, size: int, facts: RemoteFacts, remote: Sequence[Record], in_flight: InFlight
) -> SetFacts:
    known = services.catalogue.records.history(set_id)
    records = merged(known.records, remote)
    judged = [r for r in records if r.event == "verified"]
    return SetFacts(
        id=set_id,
        name=name,
        tier=facts.tier,
        cut_at=facts.cut_at,
        size_bytes=size,
        counts=facts.counts,
        verified=bool(judged) and judged[-1].detail.get("passed") is True,
        proven_at=proven_at(records),
        held=held_because(records),
        in_flight=in_flight.get(set_id, ""),
        doubt=known.doubt,
    )


def merged(*histories: Sequence[Record]) -> list[Record]:
    """Records from several places in the order of their time, each once."""
    found = {(r.at, r.event, r.by): r for history in histories for r in history}
    return sorted(found.values(), key=lambda r: r.at)


def _shipped_to(entry: Entry, where: str) -> bool:
    record = entry.last("shipped")
    if record is None or entry.offsite_at is None:
        return False
    address = where.partition(" at ")[0].rstrip("/")
    return str(record.detail.get("where", "")).rstrip("/") == f"{address}/{entry.name}"


def _deleted(services: Services, name: str, place: str) -> bool:
    """Whether the last word of the records about that copy is that we deleted it."""
    set_id = id_from_name(name)
    arrivals = {"sealed", "fetched"} if place == "here" else {"shipped"}
    last = ""
    for record in services.catalogue.records.of(set_id) if set_id else ():
        if record.event in arrivals:
            last = "there"
        elif record.event == "deleted" and record.detail.get("place") == place:
            last = "deleted"
    return last == "deleted"


def _cannot_read(directory: Path) -> str:
    """Why a damaged set could not even be looked at; empty if it was read and is plainly damaged."""
    try:
        os.listdir(directory)  # noqa: PTH208 - only whether it can be read is asked
        for name in (MANIFEST, SUMS):
            with (directory / name).open("rb") as source:
                source.read(1)
    except FileNotFoundError:
        return ""
    except OSError as exc:
        return exc.strerror or type(exc).__name__
    return ""
