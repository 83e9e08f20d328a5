"""Prune: make a retention plan from what stands here and offsite, and carry out exactly that plan.

Executing takes nothing but a plan. Under the estate lock the plan is made again for the same instant; if any verdict differs,
nothing is removed. What is going to be removed is written down first, so that a killed prune is finished by the next one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from scholaria_ops.catalogue.commit import discard
from scholaria_ops.catalogue.layout import id_from_name
from scholaria_ops.catalogue.records import whoami
from scholaria_ops.catalogue.retention import Limits, Line, Place, Plan, Safety, make_plan
from scholaria_ops.catalogue.sets import held_because
from scholaria_ops.errors import OpsError, Refused
from scholaria_ops.operations.auditing import Audited
from scholaria_ops.operations.inventory import InFlight, take_stock
from scholaria_ops.operations.offsite import push_records, target_of
from scholaria_ops.operations.prune_state import Journal, PruneState, Seen
from scholaria_ops.operations.services import Services
from scholaria_ops.settings import Settings

#: A plan may seem to come from so far ahead: clocks are set back by little steps.
_STEP_BACK = timedelta(minutes=1)


def safety_of(settings: Settings) -> Safety:
    """The ages and minimum counts that the settings ask for; everything else is fixed."""

    def limits(days: int, minimum: int) -> Limits:
        return Limits(age=timedelta(days=days), minimum=minimum)

    return Safety(
        daily=limits(settings.daily_retention, settings.daily_minimum),
        weekly=limits(settings.weekly_retention, settings.weekly_minimum),
        monthly=limits(settings.monthly_retention, settings.monthly_minimum),
        manual=limits(settings.manual_retention, settings.manual_minimum),
        pre_restore=limits(settings.pre_restore_retention, 1),
        partial_age=timedelta(days=settings.partial_retention),
    )


def plan_prune(services: Services, in_flight: InFlight, *, offsite: bool = True) -> Plan:
    """What would be kept and removed now. Changes nothing.

    Args:
        in_flight: sets that a run works on, with the run.
        offsite: also look at the offsite place, if one is set.

    Raises:
        Refused, OffsiteError, OffsiteUnavailable, AuthenticationFailed: something could not be read; there is no plan then.
    """
    stock = take_stock(services, in_flight, offsite=offsite)
    return make_plan(stock.here, stock.offsite, now=services.now(), safety=safety_of(services.settings))


@dataclass
class Outcome:
    """What a prune did."""

    removed: list[Line] = field(default_factory=list)
    #: Removed by an earlier run that was killed, and only written down now.
    finished: list[str] = field(default_factory=list)
    #: Set → why it was left standing after all.
    spared: dict[str, str] = field(default_factory=dict)
    #: Ids of sets of which no copy is left in the places that were looked at.
    gone: list[str] = field(default_factory=list)

    @property
    def freed_bytes(self) -> int:
        return sum(line.size_bytes for line in self.removed)


def execute(services: Services, plan: Plan, in_flight: Callable[[], InFlight], *, run_id: str = "") -> Outcome:
    """Remove what the plan says, after finding under the lock that it still holds. Repeating it after a kill finishes the work.

    Raises:
        Refused: the plan refuses, is too old, or is not what would be planned now; nothing was removed.
        Busy: another run is at work.
        OffsiteError and its kin: a copy offsite could not be removed; the next run goes on there.
    """
    check_executable(services, plan)
    with (
        services.audited("prune", "", run_id=run_id, **_asked(plan)) as entry,
        services.locked(f"prune {plan.digest[:12]}", until=plan.made_at + plan.safety.plan_valid),
    ):
        check_executable(services, plan)  # it may have expired meanwhile
        return _execute(services, plan, in_flight, entry, run_id)


def prune_by_policy(services: Services, in_flight: Callable[[], InFlight], *, run_id: str = "") -> tuple[Plan, Outcome]:
    """Make a plan and carry it out, all under the lock: whatever happened while the lock was waited for is in the plan.

    Raises:
        As :func:`plan_prune` and :func:`execute` do.
    """
    with services.locked("retention"):
        plan = plan_prune(services, in_flight())
        check_executable(services, plan)
        with services.audited("prune", "", run_id=run_id, **_asked(plan)) as entry:
            return plan, _execute(services, plan, in_flight, entry, run_id)


def _asked(plan: Plan) -> dict[str, Any]:
    return {"plan": plan.digest, "to_remove": [f"{line.place}: {line.name}" for line in plan.removals]}


def _execute(services: Services, plan: Plan, in_flight: Callable[[], InFlight], entry: Audited, run_id: str) -> Outcome:
    state = PruneState(services.catalogue.layout)
    finished, leftovers = _finish_earlier(services, state, offsite="offsite" in plan.places, run_id=run_id)
    outcome = Outcome(finished=finished)
    stock = take_stock(services, in_flight(), offsite="offsite" in plan.places, afresh=True)
    fresh = make_plan(stock.here, stock.offsite, now=plan.made_at, safety=safety_of(services.settings))
    if fresh.substance != plan.substance:
        raise Refused(f"things have changed since the plan was made: {_difference(plan, fresh)}", hint="Make a new plan and read it.")
    if plan.removals or leftovers:
        state.begin(_journal(services, plan, (*leftovers, *plan.removals)))
    for line in plan.removals:
        _remove(services, line, plan, outcome, run_id)
    state.remember(_without(stock.seen, outcome.removed))
    if leftovers:
        state.begin(_journal(services, plan, leftovers))
    else:
        state.finish()
    outcome.gone = _gone(plan, outcome)
    entry.note(plan=plan.digest, removed=len(outcome.removed), freed_bytes=outcome.freed_bytes, spared=outcome.spared)
    return outcome


def check_executable(services: Services, plan: Plan) -> None:
    """Raise :class:`Refused` if the plan refuses to be carried out, or is not of now."""
    if plan.refusals:
        raise Refused(
            "nothing is removed:\n" + "\n".join(f"  {r.message}" for r in plan.refusals), hint=" ".join(r.hint for r in plan.refusals)
        )
    age = services.now() - plan.made_at
    if not -_STEP_BACK <= age <= plan.safety.plan_valid:
        raise Refused(f"the plan is of {plan.made_at:%Y-%m-%d %H:%M:%S} UTC and has expired", hint="Make a new plan and read it.")


def accept_missing(services: Services, why: str, *, run_id: str = "", offsite: bool = True) -> list[str]:
    """Write down that sets which are gone from here or offsite were meant to go; returns their names. Pruning works again then."""
    with services.locked("prune: accept missing sets"):
        stock = take_stock(services, {}, offsite=offsite, afresh=True)
        accepted = []
        places: tuple[tuple[Place, dict[str, str]], ...] = (
            ("here", dict(stock.here.missing)),
            ("offsite", dict(stock.offsite.missing) if stock.offsite else {}),
        )
        for place, missing in places:
            for name in sorted(missing):
                set_id = id_from_name(name)
                if set_id:
                    services.catalogue.records.append(
                        set_id, "deleted", run_id=run_id, place=place, rule="found missing", reason=why or "accepted as meant"
                    )
                    services.audit("prune", set_id, "done", run_id=run_id, place=place, accepted_as_meant=why)
                    accepted.append(f"{place}: {name}")
        PruneState(services.catalogue.layout).remember(stock.seen)
        return accepted


def _journal(services: Services, plan: Plan, removals: tuple[Line, ...]) -> Journal:
    where: dict[Place, str] = {"here": str(services.catalogue.layout.root)}
    if services.offsite:
        where["offsite"] = services.offsite.where
    return Journal(plan=plan.digest, begun_at=services.now(), by=whoami(), where=where, removals=removals)


def _without(seen: Seen, removed: list[Line]) -> Seen:
    gone = {(line.place, line.name) for line in removed}
    return Seen(
        here=tuple(n for n in seen.here if ("here", n) not in gone),
        offsite={w: {n: f for n, f in known.items() if ("offsite", n) not in gone} for w, known in seen.offsite.items()},
    )


def _difference(plan: Plan, fresh: Plan) -> str:
    changed = sorted(name for _, name, _, _ in plan.substance ^ fresh.substance if name)
    return f"{', '.join(dict.fromkeys(changed))}" if changed else "a refusal came or went"


def _finish_earlier(services: Services, state: PruneState, *, offsite: bool, run_id: str) -> tuple[list[str], tuple[Line, ...]]:
    """Write down what a killed prune had removed already, and remove the rest of what it had destroyed offsite.

    Sets that still stand whole are left to the plan: they may have been held since. Returns what was finished, and the lines of
    a place that is not looked at this time.
    """
    journal = state.journal()
    if journal is None:
        return [], ()
    target = services.offsite if offsite and services.offsite and journal.where.get("offsite") == services.offsite.where else None
    complete = {s.name: s.complete for s in target.list_sets(cancel=services.cancel)} if target else {}
    done: list[str] = []
    leftovers: list[Line] = []
    for line in journal.removals:
        if line.place == "offsite" and target is None:
            leftovers.append(line)
            continue
        if line.place == "here" and (services.catalogue.layout.root / line.name).exists():
            continue
        if line.place == "offsite" and target and line.name in complete:
            if complete[line.name]:
                continue
            target.delete_set(line.name, cancel=services.cancel)
        if not _written_down(services, line):
            _record(services, line, journal.plan, journal.where.get(line.place, ""), run_id)
            done.append(f"{line.place}: {line.name}")
            services.progress.say(f"{line.place}: {line.name} had been removed by a prune that was killed; written down now")
    return done, tuple(leftovers)


def _written_down(services: Services, line: Line) -> bool:
    arrivals = {"sealed", "fetched"} if line.place == "here" else {"shipped"}
    history = [r for r in services.catalogue.records.of(str(line.id)) if r.event in arrivals or r.event == "deleted"]
    relevant = [r for r in history if r.event in arrivals or r.detail.get("place") == line.place]
    return bool(relevant) and relevant[-1].event == "deleted"


def _remove(services: Services, line: Line, plan: Plan, outcome: Outcome, run_id: str) -> None:
    services.cancel.check()
    set_id = str(line.id)
    if held := held_because(services.catalogue.records.of(set_id)):
        outcome.spared[line.name] = held
        services.progress.say(f"{line.place}: {line.name} is held since the plan was made and stays: {held}")
        return
    if line.place == "here":
        where = str(services.catalogue.layout.root)
        discard(services.catalogue.layout, services.catalogue.layout.root / line.name)
    else:
        target = target_of(services)
        where = target.where
        _take_over_records(services, set_id)
        target.delete_set(line.name, cancel=services.cancel)
    services.progress.say(f"{line.place}: removed {line.name}: {line.rule}, {line.reason}")
    _record(services, line, plan.digest, where, run_id)
    outcome.removed.append(line)


def _take_over_records(services: Services, set_id: str) -> None:
    """Before records are pushed offsite, have all that lie there: pushing replaces them."""
    if not any(r.event in {"reserved", "sealed"} for r in services.catalogue.records.of(set_id)):
        services.catalogue.records.merge(set_id, target_of(services).get_records(cancel=services.cancel).get(set_id, b""))


def _record(services: Services, line: Line, digest: str, where: str, run_id: str) -> None:
    removed = {"place": line.place, "where": where, "rule": str(line.rule), "bytes": line.size_bytes, "plan": digest}
    services.audit("prune", str(line.id), "done", run_id=run_id, **removed)
    services.catalogue.records.append(
        str(line.id),
        "deleted",
        run_id=run_id,
        place=line.place,
        where=where,
        rule=str(line.rule),
        reason=line.reason,
        bytes=line.size_bytes,
        plan=digest[:12],
    )
    try:
        push_records(services, str(line.id))
    except OpsError as exc:
        # The record here is the truth; the copy beside the bucket's sets follows with the next thing that is learnt.
        services.log.warning("%s: its records could not be brought offsite: %s", line.id, exc)


def _gone(plan: Plan, outcome: Outcome) -> list[str]:
    removed = {(line.place, line.name) for line in outcome.removed}
    left = {line.id for line in plan.lines if line.id and (line.place, line.name) not in removed}
    return sorted({str(line.id) for line in outcome.removed} - left)
