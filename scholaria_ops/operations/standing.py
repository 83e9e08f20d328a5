"""Where we stand: what can be got back, how old it is, and what went wrong since. From the sets and records on this disk.

:func:`take_standing` looks; :func:`standing_of` decides and is pure. What could not be read is named in ``unread`` and makes the
standing incomplete: nothing that rests upon it may be taken for good news, nor for absence.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from scholaria_ops.catalogue.ids import RESERVATION_VALID
from scholaria_ops.catalogue.layout import SET_PREFIX
from scholaria_ops.catalogue.manifest import TIERS, Tier
from scholaria_ops.catalogue.records import Record
from scholaria_ops.catalogue.sets import Entry, Kind, held_because, passed_at, proven_at, shipped_at
from scholaria_ops.errors import Refused
from scholaria_ops.operations.forecast import DiskForecast, predict_next
from scholaria_ops.operations.services import Services

#: ``whole`` and ``partial`` sets stand on this disk; ``gone`` ones did, or were begun: only their records are left here.
Place = Literal["whole", "partial", "gone"]
What = Literal["backup", "verification", "rehearsal"]
KINDS: tuple[What, ...] = ("backup", "verification", "rehearsal")


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """One rehearsal. Times in seconds; None where it does not say."""

    id: str
    tier: Tier | None
    at: datetime
    verdict: str
    source: str
    rto_s: float | None
    rpo_s: float | None
    fetch_s: float | None
    #: Store → its RTO.
    stores: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class SetStanding:
    """One id: a set that stands here, stood here, or was never finished. ``cut_at`` is None for the last kind."""

    id: str
    name: str
    place: Place
    tier: Tier | None
    cut_at: datetime | None
    size_bytes: int | None
    duration_s: float | None
    counts: Mapping[str, int]
    #: Kind → ids of PostgreSQL and Qdrant that did not belong together when the set was taken; None if that was not measured.
    drift: Mapping[str, int] | None = None
    sealed_at: datetime | None = None
    verified_at: datetime | None = None
    verified_level: str = ""
    #: When the newest verification failed; None if it passed or there is none.
    broken_at: datetime | None = None
    offsite_at: datetime | None = None
    proven_at: datetime | None = None
    #: When the newest rehearsal that could judge found it different; None if it proved it or there is none.
    refuted_at: datetime | None = None
    held: str = ""
    rehearsals: Sequence[Rehearsal] = ()

    @property
    def whole(self) -> bool:
        """Whether it stands on this disk and holds all three stores."""
        return self.place == "whole"


@dataclass(frozen=True, slots=True)
class Mark:
    """The newest set (by its cut) that reached some rank."""

    id: str
    tier: Tier | None
    cut_at: datetime
    #: When it reached the rank.
    at: datetime
    #: Since the cut, in seconds: what would be lost. Negative if the cut lies ahead of the clock.
    age_s: float


@dataclass(frozen=True, slots=True)
class Failure:
    """One thing that went wrong and that no later success of its kind has answered."""

    what: What
    id: str
    tier: Tier | None
    at: datetime
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class TierStanding:
    """One tier, or all together. A mark is None if no set has the rank *among those that could be read*."""

    tier: Tier | None
    #: Whole sets on this disk, and their bytes.
    sets: int
    size_bytes: int
    sealed: Mark | None
    verified: Mark | None
    #: Also copies whose original here was pruned.
    offsite: Mark | None
    proven: Mark | None
    #: Since the last success of the same kind, oldest first.
    failures: Sequence[Failure]
    #: How often each kind ever failed, as far as records go back.
    failures_total: Mapping[What, int]
    last_rehearsal: Rehearsal | None


@dataclass(frozen=True, slots=True)
class Standing:
    """Everything at one instant."""

    now: datetime
    directory: Path
    tiers: Mapping[Tier, TierStanding]
    overall: TierStanding
    #: Every id in the order of cuts; ids without a cut come first.
    sets: Sequence[SetStanding]
    #: Everything that ever failed and is on record, oldest first, answered or not.
    failed: Sequence[Failure]
    disk: DiskForecast
    #: Name → why it could not be read.
    unread: Mapping[str, str]
    #: Name → what is wrong with it.
    damaged: Mapping[str, str]
    legacy: Sequence[str]
    stray: Sequence[str]

    @property
    def complete(self) -> bool:
        """Whether everything could be read."""
        return not self.unread

    @property
    def held(self) -> Mapping[str, str]:
        """Id → why, of every held set that stands here or offsite."""
        return {s.id: s.held for s in self.sets if s.held and (s.place != "gone" or s.offsite_at)}

    @property
    def broken(self) -> Sequence[SetStanding]:
        """Sets on this disk whose newest verification or rehearsal failed: not to be relied upon, whatever came after."""
        return [s for s in self.sets if s.place != "gone" and (s.broken_at or s.refuted_at)]

    @property
    def partial(self) -> Sequence[SetStanding]:
        return [s for s in self.sets if s.place == "partial"]

    @property
    def ahead_of_clock(self) -> Sequence[SetStanding]:
        """Sets whose cut lies in the future: the clock is wrong now, or was then."""
        return [s for s in self.sets if s.place != "gone" and s.cut_at and s.cut_at > self.now]

    @property
    def rehearsals(self) -> Sequence[Rehearsal]:
        """All on record, in the order in which they took place."""
        return sorted((r for s in self.sets for r in s.rehearsals), key=lambda r: r.at)


@dataclass(frozen=True, slots=True)
class Look:
    """What was found on the disk. ``histories``: records of ids of which no directory stands here."""

    directory: Path
    entries: Sequence[Entry]
    histories: Mapping[str, Sequence[Record]] = field(default_factory=dict)
    #: Id → why its records could not be read.
    unread: Mapping[str, str] = field(default_factory=dict)
    free_bytes: int | None = None
    total_bytes: int | None = None
    space_trouble: str = ""


def take_standing(services: Services) -> Standing:
    """Look at BACKUP_DIR and judge what is there now.

    Raises:
        Refused: the directory does not exist, or it or that of the records cannot be read. Single sets that cannot are in ``unread``.
    """
    return standing_of(look(services), services.now())


def look(services: Services) -> Look:
    """Sets, records and free space, as they are on the disk.

    Raises:
        Refused: as :func:`take_standing` says.
    """
    catalogue = services.catalogue
    if not catalogue.layout.root.is_dir():
        raise Refused(
            f"{catalogue.layout.root} does not exist", hint="Mount the disk it is on, or correct BACKUP_DIR. A first backup makes it."
        )
    survey = catalogue.survey()
    found = Look(catalogue.layout.root, survey.entries, survey.histories, survey.unread)
    try:
        usage = shutil.disk_usage(catalogue.layout.root)
    except OSError as exc:
        return replace(found, space_trouble=exc.strerror or type(exc).__name__)
    return replace(found, free_bytes=usage.free, total_bytes=usage.total)


def standing_of(found: Look, now: datetime) -> Standing:
    """What the found sets and records amount to at ``now`` (an aware instant)."""
    sets = [_standing_here(e) for e in found.entries if e.set is not None]
    sets += [_standing_gone(set_id, history) for set_id, history in found.histories.items() if history]
    sets.sort(key=lambda s: (s.cut_at or datetime.min.replace(tzinfo=UTC), s.name))
    failed = sorted(_failures(found, sets, now), key=lambda f: f.at)
    sizes = [s.size_bytes for s in sets if s.whole and s.size_bytes is not None and s.cut_at and s.cut_at <= now]
    return Standing(
        now=now,
        directory=found.directory,
        tiers={tier: _tier(tier, [s for s in sets if s.tier == tier], [f for f in failed if f.tier == tier], now) for tier in TIERS},
        overall=_tier(None, sets, failed, now),
        sets=sets,
        failed=failed,
        disk=DiskForecast(found.free_bytes, found.total_bytes, predict_next(sizes), len(sizes[-7:]), found.space_trouble),
        unread={**{e.name: e.unread for e in found.entries if e.unread}, **found.unread},
        damaged={e.name: e.reason for e in found.entries if e.kind is Kind.DAMAGED and not e.unread},
        legacy=[e.name for e in found.entries if e.kind is Kind.LEGACY],
        stray=[e.name for e in found.entries if e.kind is Kind.STRAY],
    )


def _standing_here(entry: Entry) -> SetStanding:
    assert entry.set is not None  # noqa: S101 - the caller looked
    head = entry.set.head
    return SetStanding(
        id=head.id,
        name=entry.name,
        place="partial" if head.partial else "whole",
        tier=head.tier,
        cut_at=head.cut_at.astimezone(UTC),
        size_bytes=head.size_bytes,
        duration_s=head.duration_s,
        counts=head.counts,
        drift=head.drift,
        sealed_at=head.finished_at.astimezone(UTC),
        **_learnt(head.id, head.tier, entry.records),
    )


def _standing_gone(set_id: str, history: Sequence[Record]) -> SetStanding:
    """What the records tell of a set that is not here. Older ones say less; what they do not say stays None."""
    said, tier = _said(history)
    sealed = next((r for r in history if r.event == "sealed"), None)
    return SetStanding(
        id=set_id,
        name=f"{SET_PREFIX}{set_id}",
        place="gone",
        tier=tier,
        cut_at=_instant(said.get("cut_at")) if sealed else None,
        size_bytes=_integer(said.get("size_bytes")),
        duration_s=_number(said.get("duration_s")),
        counts={str(k): v for k, v in dict(said.get("counts") or {}).items() if isinstance(v, int)},
        sealed_at=sealed.at if sealed and said.get("partial") is not True else None,
        **_learnt(set_id, tier, history),
    )


def _said(history: Sequence[Record]) -> tuple[dict[str, Any], Tier | None]:
    """What was written down when an id was reserved and sealed, and the tier that it names."""
    said: dict[str, Any] = {}
    for record in history:
        if record.event in {"reserved", "sealed"}:
            said.update(record.detail)
    return said, next((t for t in TIERS if t == said.get("tier")), None)


def _learnt(set_id: str, tier: Tier | None, records: Sequence[Record]) -> dict[str, Any]:
    verified = next((r for r in reversed(records) if r.event == "verified"), None)
    rehearsed = [r for r in records if r.event == "rehearsed"]
    judged = [r for r in rehearsed if r.detail.get("verdict") in {"proven", "failed"}]
    passed = passed_at(records)
    return {
        "verified_at": passed,
        "verified_level": str(verified.detail.get("level", "")) if verified and passed else "",
        "broken_at": verified.at if verified and not passed else None,
        "offsite_at": shipped_at(records),
        "proven_at": proven_at(records),
        "refuted_at": judged[-1].at if judged and judged[-1].detail["verdict"] == "failed" else None,
        "held": held_because(records),
        "rehearsals": tuple(_rehearsal(set_id, tier, r) for r in rehearsed),
    }


def _rehearsal(set_id: str, tier: Tier | None, record: Record) -> Rehearsal:
    detail = record.detail
    stores = {str(k): _number(dict(v).get("rto_s")) for k, v in dict(detail.get("stores") or {}).items()}
    return Rehearsal(
        id=set_id,
        tier=tier,
        at=record.at,
        verdict=str(detail.get("verdict", "")),
        source=str(detail.get("source", "")),
        rto_s=_number(detail.get("rto_s")),
        rpo_s=_number(detail.get("rpo_s")),
        fetch_s=_number(detail.get("fetch_s")),
        stores={name: seconds for name, seconds in stores.items() if seconds is not None},
    )


def _failures(found: Look, sets: Sequence[SetStanding], now: datetime) -> Iterable[Failure]:
    tiers = {s.id: s.tier for s in sets}
    sealed = {s.id for s in sets if s.sealed_at and s.place != "partial"}
    histories = {**found.histories, **{e.id: e.records for e in found.entries if e.id}}
    for set_id, history in histories.items():
        tier = tiers.get(set_id) or _said(history)[1]
        for record in history:
            if failure := _recorded_failure(set_id, tier, record):
                yield failure
        first = next(iter(history), None)
        ended = any(r.event in {"failed", "sealed", "fetched", "deleted"} for r in history)
        if first and first.event == "reserved" and not ended and set_id not in sealed and now - first.at > RESERVATION_VALID:
            yield Failure("backup", set_id, tier, first.at, "never_finished", "the run that took this id never came to an end")


def _recorded_failure(set_id: str, tier: Tier | None, record: Record) -> Failure | None:
    detail = record.detail
    if record.event == "failed":
        return Failure("backup", set_id, tier, record.at, str(detail.get("code", "")), str(detail.get("message", "")))
    if record.event == "verified" and detail.get("passed") is not True:
        wrong = "; ".join(f"{c.get('check')}: {c.get('detail')}" for c in detail.get("failed") or () if isinstance(c, Mapping))
        return Failure("verification", set_id, tier, record.at, "verification_failed", wrong)
    if record.event == "rehearsed" and detail.get("verdict") == "failed":
        stores = {k: v for k, v in dict(detail.get("stores") or {}).items() if isinstance(v, Mapping) and v.get("verdict") == "failed"}
        return Failure(
            "rehearsal", set_id, tier, record.at, "rehearsal_failed", "; ".join(f"{k}: {v.get('detail')}" for k, v in stores.items())
        )
    return None


def _tier(tier: Tier | None, sets: Sequence[SetStanding], failed: Sequence[Failure], now: datetime) -> TierStanding:
    here = [s for s in sets if s.whole]
    past = [s for s in sets if s.place != "partial" and s.sealed_at]
    successes: Mapping[What, datetime | None] = {
        "backup": max((s.sealed_at for s in past if s.sealed_at), default=None),
        "verification": max((s.verified_at for s in sets if s.verified_at and s.place != "partial"), default=None),
        "rehearsal": max((s.proven_at for s in sets if s.proven_at), default=None),
    }
    rehearsals = [r for s in sets for r in s.rehearsals]
    return TierStanding(
        tier=tier,
        sets=len(here),
        size_bytes=sum(s.size_bytes or 0 for s in here),
        sealed=_newest(((s, s.sealed_at) for s in here), now),
        verified=_newest(((s, s.verified_at) for s in here), now),
        offsite=_newest(((s, s.offsite_at) for s in sets if s.place != "partial"), now),
        proven=_newest(((s, s.proven_at) for s in here), now),
        failures=[f for f in failed if _unanswered(f, successes[f.what])],
        failures_total={what: sum(f.what == what for f in failed) for what in KINDS},
        last_rehearsal=max(rehearsals, key=lambda r: r.at, default=None),
    )


def _unanswered(failure: Failure, success: datetime | None) -> bool:
    return success is None or failure.at > success


def _newest(ranked: Iterable[tuple[SetStanding, datetime | None]], now: datetime) -> Mark | None:
    """The set of the latest cut; one ahead of the clock counts only if there is no other, so that it cannot hide an old age."""
    marks = [Mark(s.id, s.tier, s.cut_at, at, (now - s.cut_at) / timedelta(seconds=1)) for s, at in ranked if at and s.cut_at]
    believed = [m for m in marks if m.age_s >= 0]
    return max(believed or marks, key=lambda m: (m.cut_at, m.id), default=None)


def _instant(value: object) -> datetime | None:
    try:
        found = datetime.fromisoformat(str(value)) if value else None
    except ValueError:
        return None
    return found if found and found.tzinfo else None


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _integer(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
