"""Retention as a plan: which sets stay, which go, and the rule that decided for each. Pure: no clock, no disk, no network.

The plan *is* the dry run. :func:`make_plan` looks at light-weight descriptions only, so that thousands of catalogues can be
tried in a test. ``docs/retention.md`` tells the rules to operators.
"""

from __future__ import annotations

import hashlib
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import cached_property
from itertools import pairwise
from typing import Literal

from pydantic import AwareDatetime

from scholaria_ops.catalogue.evidence.base import Model
from scholaria_ops.catalogue.manifest import TIERS, Tier
from scholaria_ops.humane import human_bytes

Place = Literal["here", "offsite"]
#: What of a set is compared with its predecessors before anything may be removed.
WATCHED = ("rows", "keys", "points", "bytes")


class Limits(Model):
    """How long sets of one tier stay, and how many verified ones stay whatever their age."""

    age: timedelta
    minimum: int


class Safety(Model):
    """Every age and every minimum count that deletion depends on. Immutable; a plan carries the one it was made with."""

    daily: Limits = Limits(age=timedelta(days=7), minimum=3)
    weekly: Limits = Limits(age=timedelta(days=30), minimum=2)
    monthly: Limits = Limits(age=timedelta(days=365), minimum=2)
    manual: Limits = Limits(age=timedelta(days=30), minimum=1)
    #: Sets taken before a restore: the way back. The newest ``minimum`` stay, verified or not, whole or not.
    pre_restore: Limits = Limits(age=timedelta(days=30), minimum=1)
    #: Partial sets stay this long, and longer while no later verified set stands.
    partial_age: timedelta = timedelta(days=7)
    #: A longer stretch without a verified set (an outage, a clock that jumped) ages nothing; where sets are taken more seldom, one
    #: that is twice as long as the median between the newest ``clock_window`` …
    clock_gap: timedelta = timedelta(days=3)
    clock_window: int = 10
    #: … until verified sets of this many different days stand after it.
    clock_witnesses: int = 3
    #: A cut further ahead of the clock than this is not believed.
    future_tolerance: timedelta = timedelta(minutes=10)
    #: Nothing is removed while the newest set has less than this share of the median of its predecessors …
    anomaly_share: float = 0.5
    #: … of which this many are looked at …
    anomaly_window: int = 7
    #: … provided that there are at least so many.
    anomaly_least: int = 3
    #: A plan is applied within this time or made anew.
    plan_valid: timedelta = timedelta(hours=1)

    def limits(self, tier: Tier) -> Limits:
        by_tier: Mapping[Tier, Limits] = {
            "daily": self.daily,
            "weekly": self.weekly,
            "monthly": self.monthly,
            "manual": self.manual,
            "pre_restore": self.pre_restore,
        }
        return by_tier[tier]


class Rule(StrEnum):
    """What decided about a set. In the order in which they are asked; the first that applies is named."""

    REFUSED = "plan refused"
    UNTOUCHED = "never touched"
    HELD = "held"
    IN_FLIGHT = "run in flight"
    DOUBTFUL = "records unreadable"
    FUTURE = "cut ahead of the clock"
    NOTHING_VERIFIED = "nothing verified"
    LAST_PROVEN = "last proven"
    NEWEST_VERIFIED = "newest verified of its tier"
    NEWEST_SAFETY_SET = "newest safety set"
    MINIMUM = "minimum count"
    ONLY_COPY = "no later verified set"
    YOUNG = "within retention"
    EXPIRED = "past retention"
    EXPIRED_PARTIAL = "partial, past retention"
    EXPIRED_SAFETY_SET = "safety set, past retention"


REMOVING = frozenset({Rule.EXPIRED, Rule.EXPIRED_PARTIAL, Rule.EXPIRED_SAFETY_SET})


@dataclass(frozen=True, slots=True)
class SetFacts:
    """What retention needs to know of one readable set. ``verified``: its newest verification passed."""

    id: str
    name: str
    tier: Tier
    cut_at: datetime
    size_bytes: int = 0
    counts: Mapping[str, int] = field(default_factory=dict)
    partial: bool = False
    verified: bool = False
    proven_at: datetime | None = None
    #: Why it is held; empty if it is not.
    held: str = ""
    #: The run that works on it; empty if none does.
    in_flight: str = ""
    #: Why its records cannot be relied upon; empty if they can.
    doubt: str = ""


@dataclass(frozen=True, slots=True)
class Inventory:
    """All that stands in one place, and what is wrong with the listing itself."""

    sets: Sequence[SetFacts] = ()
    #: Name → what it is: old-style, damaged and stray directories. Retention never touches them.
    untouched: Mapping[str, str] = field(default_factory=dict)
    #: Name → why: stood here at the last look, is gone, and nothing of ours removed it.
    missing: Mapping[str, str] = field(default_factory=dict)
    #: Name → why: it is there and could not be read.
    unreadable: Mapping[str, str] = field(default_factory=dict)


class Line(Model):
    """The verdict on one directory."""

    place: Place
    name: str
    id: str | None = None
    tier: str = ""
    cut_at: AwareDatetime | None = None
    size_bytes: int = 0
    remove: bool = False
    rule: Rule
    reason: str


class Refusal(Model):
    """Why nothing at all may be removed now."""

    code: Literal["unreadable", "shrunk", "anomaly"]
    message: str
    hint: str


class Plan(Model):
    """What would be kept and removed, made at one instant. Only a plan can be executed."""

    made_at: AwareDatetime
    safety: Safety
    places: tuple[Place, ...]
    lines: tuple[Line, ...]
    refusals: tuple[Refusal, ...] = ()

    @cached_property
    def removals(self) -> tuple[Line, ...]:
        """What goes, oldest cut first, copies here before copies offsite."""
        return tuple(line for line in self.lines if line.remove)

    @property
    def freed_bytes(self) -> int:
        return sum(line.size_bytes for line in self.removals)

    @cached_property
    def digest(self) -> str:
        """Names exactly this plan (SHA-256 in hexadecimal)."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()

    @cached_property
    def substance(self) -> frozenset[tuple[str, str, bool, str]]:
        """What must still be so when the plan is executed: every set with its verdict, and every refusal."""
        sets = {(ln.place, ln.name, ln.remove, str(ln.rule)) for ln in self.lines if ln.rule is not Rule.UNTOUCHED}
        return frozenset(sets | {("", r.code, False, r.message) for r in self.refusals})


def make_plan(here: Inventory, offsite: Inventory | None, *, now: datetime, safety: Safety) -> Plan:
    """Decide about every set in both places. Each place is judged by itself, so the protections hold in each.

    Args:
        here: what stands in BACKUP_DIR.
        offsite: what stands offsite; None if there is no such place or it is left alone this time.
        now: an aware instant.
    """
    places: dict[Place, Inventory] = {"here": here} if offsite is None else {"here": here, "offsite": offsite}
    refusals = tuple(_refusals(places, now, safety))
    lines: list[Line] = []
    for place, inventory in places.items():
        lines += (_refused(line) for line in _judge(place, inventory, now, safety)) if refusals else _judge(place, inventory, now, safety)
        lines += (Line(place=place, name=n, rule=Rule.UNTOUCHED, reason=why) for n, why in sorted(inventory.untouched.items()))
    return Plan(made_at=now, safety=safety, places=tuple(places), lines=tuple(lines), refusals=refusals)


def reference_instant(cuts: Iterable[datetime], now: datetime, safety: Safety) -> datetime:
    """The instant that ages are measured from: ``now``, as far as verified cuts vouch for it.

    A stretch longer than :func:`gap_limit` without a verified cut may be an outage, or a clock that jumped; which of the two
    cannot be known. It counts for nothing until verified cuts of ``clock_witnesses`` different days stand after it.
    """
    days = _days(cuts, now)
    limit = gap_limit(days, safety)
    upper = reference = now
    witnesses = 0
    for cut in days:
        if upper - cut > limit:
            reference, witnesses = cut, 0
        else:
            witnesses += 1
            if witnesses == safety.clock_witnesses:
                break
        upper = cut
    return reference


def gap_limit(days: Sequence[datetime], safety: Safety) -> timedelta:
    """How far apart verified cuts may lie (newest first) before the time between them is doubted: twice as far as they mostly do,
    and at least ``clock_gap``."""
    gaps = [(upper - lower).total_seconds() for upper, lower in pairwise(days[: safety.clock_window])]
    return max(safety.clock_gap, timedelta(seconds=2 * statistics.median(gaps))) if gaps else safety.clock_gap


def _days(cuts: Iterable[datetime], now: datetime) -> list[datetime]:
    """The newest cut of every day up to ``now``, newest first."""
    by_day: dict[object, datetime] = {}
    for cut in cuts:
        if cut <= now:
            day = cut.astimezone(UTC).date()
            by_day[day] = max(by_day.get(day, cut), cut)
    return sorted(by_day.values(), reverse=True)


def _refused(line: Line) -> Line:
    return line.model_copy(update={"remove": False, "rule": Rule.REFUSED, "reason": f"would go: {line.reason}"}) if line.remove else line


def _refusals(places: Mapping[Place, Inventory], now: datetime, safety: Safety) -> Iterator[Refusal]:
    for place, inventory in places.items():
        if inventory.unreadable:
            yield Refusal(
                code="unreadable",
                message=f"{place}: could not be read completely: {_some(inventory.unreadable)}",
                hint="Mend the permissions or the disk; what cannot be read may be the last good copy.",
            )
        if inventory.missing:
            yield Refusal(
                code="shrunk",
                message=f"{place}: {len(inventory.missing)} set(s) that stood there are gone, and not by us: {_some(inventory.missing)}",
                hint="Find out who removed them. If it was meant: `scholaria-ops prune --accept-missing`.",
            )
    whole = {s.id: s for inventory in reversed(list(places.values())) for s in inventory.sets if not s.partial}
    if found := anomaly(whole.values(), now, safety):
        yield Refusal(
            code="anomaly",
            message=found,
            hint="See whether data were lost before older sets go. If the change was meant, hold or remove nothing: pruning goes on "
            "by itself once most recent sets agree with it.",
        )


def _some(named: Mapping[str, str]) -> str:
    shown = [f"{name} ({why})" for name, why in sorted(named.items())[:5]]
    return ", ".join(shown) + (f" and {len(named) - 5} more" if len(named) > 5 else "")


def anomaly(sets: Iterable[SetFacts], now: datetime, safety: Safety) -> str:
    """What is anomalously small about the newest whole set, against the median of those before it; empty if nothing is."""
    ordered = _ordered(s for s in sets if s.cut_at <= now + safety.future_tolerance)
    newest, before = ordered[-1:], ordered[-1 - safety.anomaly_window : -1]
    if len(before) < safety.anomaly_least:
        return ""
    low = []
    for what in WATCHED:
        value, usual = _watched(newest[0], what), [v for v in (_watched(s, what) for s in before) if v is not None]
        if value is None or len(usual) < safety.anomaly_least:
            continue
        median = statistics.median(usual)
        if value < safety.anomaly_share * median:
            low.append(
                f"{human_bytes(value)} instead of {human_bytes(median)}" if what == "bytes" else f"{value:,} {what} of {median:,.0f}"
            )
    return f"the newest set {newest[0].id} is far smaller than the sets before it (median): {', '.join(low)}" if low else ""


def _watched(facts: SetFacts, what: str) -> int | None:
    return facts.size_bytes if what == "bytes" else facts.counts.get(what)


def _ordered(sets: Iterable[SetFacts]) -> list[SetFacts]:
    """By the instant of the cut; names decide only between equal ones."""
    return sorted(sets, key=lambda s: (s.cut_at, s.name))


def _judge(place: Place, inventory: Inventory, now: datetime, safety: Safety) -> Iterator[Line]:
    judge = _Judge(inventory.sets, now, safety)
    for facts in judge.ordered:
        rule, reason = judge.verdict(facts)
        yield Line(
            place=place,
            name=facts.name,
            id=facts.id,
            tier=facts.tier,
            cut_at=facts.cut_at,
            size_bytes=facts.size_bytes,
            remove=rule in REMOVING,
            rule=rule,
            reason=reason,
        )


class _Judge:
    """The rules for one place."""

    def __init__(self, sets: Sequence[SetFacts], now: datetime, safety: Safety) -> None:
        self.ordered = _ordered(sets)
        self._safety = safety
        self._horizon = now + safety.future_tolerance
        # A set with a cut ahead of the clock neither ages others nor takes a protection away from them.
        believed = [s for s in self.ordered if s.cut_at <= self._horizon]
        self._verified = [s for s in believed if s.verified and not s.partial]
        self._reference = reference_instant((s.cut_at for s in self._verified), now, safety)
        self._protected: dict[str, tuple[Rule, str]] = {}
        self._protect_proven()
        for tier in TIERS:
            self._protect_tier(tier, believed)

    def _protect(self, facts: SetFacts, rule: Rule, reason: str) -> None:
        self._protected.setdefault(facts.name, (rule, reason))

    def _protect_proven(self) -> None:
        proven = [s for s in self.ordered if s.proven_at is not None]
        if proven:
            # The one that was proven last, and the newest that was ever proven: the order of rehearsals is not that of cuts.
            latest = max(proven, key=lambda s: (s.proven_at or s.cut_at, s.cut_at))
            for facts in (latest, proven[-1]):
                self._protect(facts, Rule.LAST_PROVEN, "the last set here that a rehearsal proved")

    def _protect_tier(self, tier: Tier, believed: Sequence[SetFacts]) -> None:
        minimum = self._safety.limits(tier).minimum
        if tier == "pre_restore":
            for facts in [s for s in believed if s.tier == tier][-max(minimum, 1) :]:
                self._protect(facts, Rule.NEWEST_SAFETY_SET, "the way back from the last restore")
        verified = [s for s in self._verified if s.tier == tier]
        if verified:
            self._protect(verified[-1], Rule.NEWEST_VERIFIED, f"the newest verified {tier} set here")
        for facts in verified[-minimum:] if minimum else ():
            self._protect(facts, Rule.MINIMUM, f"one of the {minimum} newest verified {tier} sets")

    def verdict(self, facts: SetFacts) -> tuple[Rule, str]:
        """The first rule that applies, with its reason for people."""
        for rule, reason in ((Rule.HELD, facts.held), (Rule.IN_FLIGHT, facts.in_flight), (Rule.DOUBTFUL, facts.doubt)):
            if reason:
                return rule, reason
        if facts.cut_at > self._horizon:
            return Rule.FUTURE, "its cut lies ahead of the clock: the clock is wrong now, or was then"
        if not self._verified:
            return Rule.NOTHING_VERIFIED, "no whole set here is verified; verify one first"
        if facts.name in self._protected:
            return self._protected[facts.name]
        return self._by_age(facts)

    def _by_age(self, facts: SetFacts) -> tuple[Rule, str]:
        if facts.tier == "pre_restore":
            limit, what, gone = self._safety.pre_restore.age, "safety sets", Rule.EXPIRED_SAFETY_SET
        elif facts.partial:
            if self._verified[-1].cut_at <= facts.cut_at:
                return Rule.ONLY_COPY, "no later set is whole and verified"
            limit, what, gone = self._safety.partial_age, "partial sets", Rule.EXPIRED_PARTIAL
        else:
            limit, what, gone = self._safety.limits(facts.tier).age, f"{facts.tier} sets", Rule.EXPIRED
        age = self._reference - facts.cut_at
        told = f"{max(age / timedelta(days=1), 0.0):.1f} days old; {what} stay {limit / timedelta(days=1):g} days"
        return (gone, told) if age > limit else (Rule.YOUNG, told)
