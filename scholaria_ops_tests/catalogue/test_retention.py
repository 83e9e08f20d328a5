"""The rules of retention, one by one and over long histories. No directory is made: plans look at descriptions only."""

from __future__ import annotations

import dataclasses
import random
import time
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from scholaria_ops.catalogue.layout import label
from scholaria_ops.catalogue.manifest import TIERS, Tier
from scholaria_ops.catalogue.retention import (
    REMOVING,
    Inventory,
    Limits,
    Plan,
    Rule,
    Safety,
    SetFacts,
    anomaly,
    gap_limit,
    make_plan,
    reference_instant,
)

NOW = datetime(2026, 6, 15, 2, 10, tzinfo=UTC)
DAY = timedelta(days=1)
SAFETY = Safety()


def facts(age_days: float, tier: Tier = "daily", *, verified: bool = True, **more: object) -> SetFacts:
    """A set that was cut so many days before ``NOW``."""
    cut = NOW - age_days * DAY
    set_id = label(cut, UTC)
    prefix = "scholaria_partial_" if more.get("partial") else "scholaria_backup_"
    usual = SetFacts(set_id, f"{prefix}{set_id}", tier, cut, 1000, {"rows": 100, "keys": 100, "points": 100}, verified=verified)
    return replace(usual, **more)  # type: ignore[arg-type]


def dailies(count: int, **more: object) -> list[SetFacts]:
    return [facts(n, **more) for n in range(count)]  # type: ignore[arg-type]


def plan(sets: Iterable[SetFacts], *, now: datetime = NOW, safety: Safety = SAFETY, **more: object) -> Plan:
    return make_plan(Inventory(list(sets), **more), None, now=now, safety=safety)  # type: ignore[arg-type]


def rules(made: Plan) -> dict[str | None, Rule]:
    return {line.id: line.rule for line in made.lines}


def test_daily_sets_go_after_seven_days_and_the_others_after_their_own_time() -> None:
    sets = [*dailies(10), facts(29, "weekly"), facts(22, "weekly"), facts(31, "weekly"), facts(36, "weekly"), facts(364, "monthly")]
    made = plan(sets)
    gone = {line.id for line in made.removals}
    assert gone == {facts(n).id for n in (8, 9)} | {facts(31, "weekly").id, facts(36, "weekly").id}
    assert [line.cut_at for line in made.lines] == sorted(line.cut_at for line in made.lines if line.cut_at)
    assert all(line.rule in REMOVING and "stay" in line.reason for line in made.removals)
    assert made.freed_bytes == 4000


def test_minimum_counts_are_counted_in_verified_sets() -> None:
    sets = [*dailies(3, verified=False), *(facts(n) for n in range(10, 20))]
    sets.append(facts(0.5, "manual"))
    assert {i for i, r in rules(plan(sets)).items() if r in {Rule.NEWEST_VERIFIED, Rule.MINIMUM}} >= {facts(n).id for n in (10, 11, 12)}


@pytest.mark.parametrize(
    ("protection", "rule"),
    [
        ({"held": "audit"}, Rule.HELD),
        ({"in_flight": "run 1"}, Rule.IN_FLIGHT),
        ({"doubt": "a line"}, Rule.DOUBTFUL),
        ({"proven_at": NOW - 50 * DAY}, Rule.LAST_PROVEN),
    ],
)
def test_f70_a_protected_set_stays_at_any_age(protection: dict[str, object], rule: Rule) -> None:
    old = facts(300, **protection)  # type: ignore[arg-type]
    made = plan([old, *dailies(10)])
    assert rules(made)[old.id] is rule
    assert len(made.removals) == 2


def test_the_last_proven_by_time_of_proof_and_by_cut_both_stay() -> None:
    by_cut, by_proof = facts(40, proven_at=NOW - 40 * DAY), facts(60, proven_at=NOW - 2 * DAY)
    made = rules(plan([facts(80, proven_at=NOW - 70 * DAY), by_proof, by_cut, *dailies(8)]))
    assert (made[by_cut.id], made[by_proof.id]) == (Rule.LAST_PROVEN, Rule.LAST_PROVEN)
    assert made[facts(80).id] is Rule.EXPIRED


def test_partial_sets_stay_while_no_later_whole_one_is_verified() -> None:
    alone = [facts(20), facts(10, partial=True), facts(9, verified=False)]
    assert rules(plan(alone))[facts(10).id] is Rule.ONLY_COPY
    followed = [*dailies(8), facts(10, partial=True), facts(3, partial=True)]
    made = plan(followed)
    assert {line.rule for line in made.lines if "partial" in line.name} == {Rule.EXPIRED_PARTIAL, Rule.YOUNG}


def test_partial_sets_protect_nothing_and_count_for_nothing() -> None:
    whole = facts(100, "monthly")
    made = plan([whole, *dailies(4), *(facts(n + 0.1, "monthly", partial=True) for n in range(4))])
    assert rules(made)[whole.id] is Rule.NEWEST_VERIFIED


def test_the_newest_safety_set_stays_even_unverified_and_partial() -> None:
    newest, older = facts(50, "pre_restore", verified=False, partial=True), facts(60, "pre_restore")
    made = rules(plan([older, newest, *dailies(8)]))
    assert made[newest.id] is Rule.NEWEST_SAFETY_SET
    assert made[older.id] is Rule.NEWEST_VERIFIED, "it is also the newest verified of that tier"
    made = rules(plan([facts(70, "pre_restore"), older, newest, *dailies(8)]))
    assert made[facts(70).id] is Rule.EXPIRED_SAFETY_SET


def test_nothing_goes_while_nothing_is_verified() -> None:
    made = plan([facts(n, verified=False) for n in range(60)])
    assert made.removals == ()
    assert {line.rule for line in made.lines} == {Rule.NOTHING_VERIFIED}


def test_f67_old_style_damaged_and_stray_directories_are_named_and_never_touched() -> None:
    made = plan(dailies(10), untouched={"scholaria_backup_20200101_000000": "damaged: no manifest", "notes.txt": "stray"})
    named = {line.name: line for line in made.lines if line.rule is Rule.UNTOUCHED}
    assert named.keys() == {"scholaria_backup_20200101_000000", "notes.txt"}
    assert not any(line.remove for line in named.values())


@pytest.mark.parametrize(
    "trouble", [{"missing": {"scholaria_backup_x": "gone"}}, {"unreadable": {"scholaria_backup_x": "Permission denied"}}]
)
def test_f62_a_catalogue_that_shrank_or_cannot_be_read_stops_everything(trouble: dict[str, object]) -> None:
    assert plan(dailies(10)).removals
    made = plan(dailies(10), **trouble)  # type: ignore[arg-type]
    assert made.removals == ()
    assert [r.code for r in made.refusals] == ["shrunk" if "missing" in trouble else "unreadable"]
    assert "scholaria_backup_x" in made.refusals[0].message
    assert Rule.REFUSED in {line.rule for line in made.lines}


def test_f62_trouble_offsite_stops_removals_here_too() -> None:
    made = make_plan(Inventory(dailies(10)), Inventory(dailies(4), missing={"a": "gone"}), now=NOW, safety=SAFETY)
    assert made.removals == ()


@pytest.mark.parametrize("what", ["rows", "keys", "points", "bytes"])
def test_an_anomalously_small_newest_set_stops_everything(what: str) -> None:
    small = facts(0, size_bytes=400) if what == "bytes" else facts(0, counts={"rows": 100, "keys": 100, "points": 100, what: 49})
    made = plan([small, *(facts(n) for n in range(1, 12))])
    assert made.removals == ()
    assert [r.code for r in made.refusals] == ["anomaly"]
    assert small.id in made.refusals[0].message
    assert (what if what != "bytes" else "400 B") in made.refusals[0].message


def test_the_anomaly_is_judged_against_the_median_and_heals_by_itself() -> None:
    spike = [facts(1, counts={"rows": 10_000}), *(facts(n) for n in range(2, 9))]
    assert not anomaly([facts(0, counts={"rows": 60}), *spike], NOW, SAFETY)
    shrunk = [facts(n, counts={"rows": 10}) for n in range(5)] + [facts(n) for n in range(5, 12)]
    assert not anomaly(shrunk, NOW, SAFETY), "most recent sets agree with the newest"
    assert anomaly([facts(n, counts={"rows": 10}) for n in range(3)] + [facts(n) for n in range(3, 12)], NOW, SAFETY)
    assert not anomaly([facts(0, counts={"rows": 1}), facts(1), facts(2)], NOW, SAFETY), "too few to compare with"


def test_each_place_is_protected_by_itself() -> None:
    made = make_plan(Inventory(dailies(10)), Inventory([facts(100), facts(200), facts(40)]), now=NOW, safety=SAFETY)
    assert {line.name for line in made.removals if line.place == "offsite"} == set(), "three verified ones is the minimum"
    made = make_plan(Inventory(dailies(10)), Inventory([facts(n) for n in (40, 41, 42, 100, 200)]), now=NOW, safety=SAFETY)
    gone = {line.id for line in made.removals if line.place == "offsite"}
    assert gone == {facts(100).id, facts(200).id}, "what stands here neither protects nor ages what stands there"
    made = make_plan(Inventory(dailies(10)), Inventory(dailies(10)), now=NOW, safety=SAFETY)
    assert [line.place for line in made.removals] == ["here", "here", "offsite", "offsite"]


def test_f71_a_clock_that_jumps_ahead_removes_nothing_more() -> None:
    today = {line.name for line in plan(dailies(8)).removals}
    for days in (4, 30, 400, 4000):
        jumped = plan(dailies(8), now=NOW + days * DAY)
        assert {line.name for line in jumped.removals} <= today


def test_f71_sets_taken_while_the_clock_was_ahead_take_no_protection_away() -> None:
    ahead = [facts(-400), facts(-401), facts(-402)]
    made = plan([*ahead, *dailies(10)])
    assert {rules(made)[s.id] for s in ahead} == {Rule.FUTURE}
    assert {line.id for line in made.removals} == {facts(8).id, facts(9).id}
    assert rules(made)[facts(0).id] is Rule.NEWEST_VERIFIED


def test_f71_a_clock_set_back_removes_nothing_more() -> None:
    made = plan(dailies(40), now=NOW - 30 * DAY)
    assert {line.id for line in made.removals} == {facts(n).id for n in (38, 39)}


def test_after_an_outage_ages_count_again_once_three_days_stand_after_it() -> None:
    before = [facts(n) for n in range(30, 40)]
    assert {len(plan([*dailies(fresh), *before]).removals) for fresh in (1, 2)} == {2}, "as old as they were when it began"
    assert len(plan([*dailies(3), *before]).removals) == 10
    cuts = [NOW, NOW - DAY, NOW - 30 * DAY]
    assert reference_instant(cuts, NOW, Safety(clock_window=2)) == NOW - 30 * DAY
    assert reference_instant([*cuts, NOW - 2 * DAY], NOW, SAFETY) == NOW
    monthly_only = [NOW - n * 30 * DAY for n in range(1, 9)]
    assert reference_instant(monthly_only, NOW, SAFETY) == NOW, "whoever takes sets seldom has them aged all the same"
    assert reference_instant(monthly_only, NOW + 400 * DAY, SAFETY) == monthly_only[0]
    ahead_once = [NOW + 300 * DAY, *(NOW - n * DAY for n in range(9))]
    assert reference_instant(ahead_once, NOW + 900 * DAY, SAFETY) == NOW, "the relic of an earlier jump vouches for nothing"
    assert reference_instant([], NOW, SAFETY) == NOW


def test_f71_order_is_that_of_the_instants_across_a_change_of_the_clock() -> None:
    zone = ZoneInfo("Europe/Berlin")
    first = datetime(2025, 10, 26, 2, 30, tzinfo=zone)  # summer time
    second = first.replace(fold=1)  # an hour later, the same label on the wall
    sets = [replace(facts(0), id=label(t, zone), name=n, cut_at=t.astimezone(UTC)) for t, n in ((second, "a"), (first, "b"))]
    made = plan(sets, now=datetime(2025, 10, 27, tzinfo=UTC))
    assert [line.name for line in made.lines] == ["b", "a"]
    assert made.lines[-1].rule is Rule.NEWEST_VERIFIED


def test_a_plan_is_named_by_its_digest_and_survives_its_own_text() -> None:
    made = plan(dailies(10))
    assert Plan.model_validate_json(made.model_dump_json()).digest == made.digest
    assert plan(dailies(11)).digest != made.digest
    assert plan(dailies(10), safety=Safety(daily=Limits(age=8 * DAY, minimum=3))).digest != made.digest
    assert plan(dailies(10)).substance == made.substance
    with pytest.raises(ValidationError):
        made.safety = Safety()  # type: ignore[misc]


def test_ten_thousand_sets_are_planned_without_being_compared_pairwise() -> None:
    sets = [facts(n / 10) for n in range(10_000)]
    random.Random(7).shuffle(sets)
    began = time.process_time()
    made = plan(sets)
    assert time.process_time() - began < 20.0, "far below a second when quiet; comparing every pair would take minutes"
    assert len(made.removals) > 9_000


# Over long histories ---------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class World:
    """A site over 400 days: what stands, and what an independent reading of the promises demands."""

    chance: random.Random
    safety: Safety
    gaps: float
    bad: float
    sets: list[SetFacts] = dataclasses.field(default_factory=list)
    #: True instant of each cut, whatever the clock said.
    true_cut: dict[str, datetime] = dataclasses.field(default_factory=dict)
    removed: int = 0

    def live(self, days: int) -> None:
        start, skew, until, outage = datetime(2025, 1, 1, 2, 0, tzinfo=UTC), timedelta(0), 0, 0
        for day in range(days):
            true_now = start + day * DAY
            if day >= until and skew:
                skew = timedelta(0)
            elif day >= until and self.chance.random() < 0.01:
                skew = self._jump(true_now)
                until = day + self.chance.randint(1, 2)
            if day >= outage and self.chance.random() < 0.01:
                outage = day + self.chance.randint(2, 40)
            if day >= outage:
                self._take(true_now, skew)
            self._events(true_now)
            self._prune(true_now, skew)

    def _jump(self, true_now: datetime) -> timedelta:
        """A wrong clock for a day or two. Not twice to the same wrong time: three such days would look like three good ones."""
        skew = timedelta(days=self.chance.choice([-200, -30, -1, 5, 40, 900]) + self.chance.randint(0, 3))
        wrong = [s.cut_at for s in self.sets if s.cut_at != self.true_cut[s.name]]
        return timedelta(0) if any(abs(true_now + skew - cut) < 100 * DAY for cut in wrong) else skew

    def _take(self, true_now: datetime, skew: timedelta) -> None:
        wanted: list[Tier] = ["daily"]
        wanted += ["weekly"] if true_now.weekday() == 6 else []
        wanted += ["monthly"] if true_now.day == 1 else []
        wanted += [self.chance.choice(["manual", "pre_restore"])] if self.chance.random() < 0.05 else []
        for hour, tier in enumerate(wanted):
            if self.chance.random() < self.gaps:
                continue
            cut = true_now + timedelta(hours=hour)
            partial, bad = self.chance.random() < self.bad / 2, self.chance.random() < self.bad
            name = f"{'p' if partial else 's'}{cut:%Y%m%d%H}"
            self.sets.append(SetFacts(name, name, tier, cut + skew, 1000, partial=partial, verified=not partial and not bad))
            self.true_cut[name] = cut

    def _events(self, true_now: datetime) -> None:
        for index, one in enumerate(self.sets):
            roll = self.chance.random()
            if roll < 0.002:
                self.sets[index] = replace(one, held="" if one.held else "kept by hand")
            elif roll < 0.004:
                self.sets[index] = replace(one, verified=False)
            elif roll < 0.006 and one.verified:
                self.sets[index] = replace(one, proven_at=true_now + timedelta(seconds=index))

    def _prune(self, true_now: datetime, skew: timedelta) -> None:
        flying = {s.name for s in self.sets if self.chance.random() < 0.01}
        now_sets = [replace(s, in_flight="run") if s.name in flying else s for s in self.sets]
        clock = true_now + skew + timedelta(hours=6)
        gone = {line.name for line in plan(now_sets, now=clock, safety=self.safety).removals}
        self._promises(now_sets, gone, true_now + timedelta(hours=6), clock)
        self.sets = [s for s in self.sets if s.name not in gone]
        self.removed += len(gone)

    def _promises(self, sets: list[SetFacts], gone: set[str], true_now: datetime, clock: datetime) -> None:
        lost = [s for s in sets if s.name in gone]
        assert not [s for s in lost if s.held or s.in_flight]
        for tier in TIERS:
            good = sorted((s for s in sets if s.tier == tier and s.verified and not s.partial), key=lambda s: (s.cut_at, s.name))
            believed = [s for s in good if s.cut_at <= clock]
            for group in (good, believed):
                assert not group or group[-1].name not in gone, f"the newest verified {tier} set"
            kept = [s for s in believed if s.name not in gone]
            assert len(kept) >= min(self.safety.limits(tier).minimum, len(believed))
        proven = [s for s in sets if s.proven_at]
        if proven:
            assert max(proven, key=lambda s: s.proven_at or s.cut_at).name not in gone
            assert max(proven, key=lambda s: (s.cut_at, s.name)).name not in gone
        days = sorted(
            {s.cut_at.date(): s.cut_at for s in sets if s.verified and not s.partial and s.cut_at <= clock}.values(), reverse=True
        )
        slack = gap_limit(days, self.safety)
        for one in lost:
            if one.partial and one.tier != "pre_restore":
                assert any(s.verified and not s.partial and s.cut_at > one.cut_at for s in sets)
            # A clock that is wrong by less than the gap limit cannot be told from a right one; more never ages a set.
            limit = self.safety.partial_age if one.partial and one.tier != "pre_restore" else self.safety.limits(one.tier).age
            honest = one.cut_at == self.true_cut[one.name]
            if honest:
                assert true_now - self.true_cut[one.name] > limit - 2 * slack, f"{one.name} at {true_now}"


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 2**32),
    gaps=st.sampled_from([0.0, 0.05, 0.5]),
    bad=st.sampled_from([0.0, 0.1, 0.6]),
    daily=st.builds(Limits, age=st.integers(1, 20).map(lambda d: d * DAY), minimum=st.integers(1, 5)),
    weekly=st.builds(Limits, age=st.integers(1, 60).map(lambda d: d * DAY), minimum=st.integers(1, 5)),
)
def test_f70_f71_over_400_days_no_promise_is_ever_broken(seed: int, gaps: float, bad: float, daily: Limits, weekly: Limits) -> None:
    world = World(random.Random(seed), Safety(daily=daily, weekly=weekly), gaps, bad)
    world.live(400)


def test_f70_the_simulation_does_prune() -> None:
    world = World(random.Random(1), SAFETY, 0.05, 0.1)
    world.live(400)
    assert world.removed > 250
    assert len(world.sets) < 120


_ANY_SET = st.builds(
    facts,
    st.floats(-100, 800).map(lambda d: round(d, 3)),
    st.sampled_from(TIERS),
    verified=st.booleans(),
    partial=st.booleans(),
    held=st.sampled_from(["", "", "", "why"]),
    in_flight=st.sampled_from(["", "", "", "run"]),
    proven_at=st.one_of(st.none(), st.floats(0, 100).map(lambda d: NOW - d * DAY)),
)


@settings(max_examples=200, deadline=None)
@given(sets=st.lists(_ANY_SET, max_size=25, unique_by=lambda s: s.name), days=st.floats(0.1, 5000))
def test_f70_f71_for_any_catalogue_a_forward_jump_never_removes_more(sets: list[SetFacts], days: float) -> None:
    good = [s for s in sets if s.verified and not s.partial]
    # Sets ahead of the clock would be believed after the jump; without them only the clock differs.
    present = [s for s in sets if s.cut_at <= NOW]
    cuts = sorted({s.cut_at.date(): s.cut_at for s in good if s.cut_at <= NOW}.values(), reverse=True)
    jump = days * DAY + 2 * gap_limit(cuts, SAFETY)
    assert {line.name for line in plan(present, now=NOW + jump).removals} <= {line.name for line in plan(present).removals}
    gone = {line.name for line in plan(sets).removals}
    for tier in TIERS:
        of_tier = [s for s in good if s.tier == tier]
        assert not of_tier or max(of_tier, key=lambda s: (s.cut_at, s.name)).name not in gone
    if not good:
        assert not gone
