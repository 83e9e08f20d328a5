"""`scholaria-ops restore`."""

from __future__ import annotations

import contextlib
import functools
import sys
from typing import Annotated, Any

import typer

from scholaria_ops.catalogue.evidence.base import STORE_NAMES
from scholaria_ops.catalogue.sets import Kind
from scholaria_ops.cli.common import JsonOption, SetArgument, component, loaded, run, services, when
from scholaria_ops.cli.main import app
from scholaria_ops.cli.output import emit_json, err, out, paused, plain, print_table, showing_progress
from scholaria_ops.errors import ConfigError, Refused, UsageError
from scholaria_ops.humane import human_bytes
from scholaria_ops.operations.restore.journal import Journal, Journals
from scholaria_ops.operations.restore.options import RestoreOptions
from scholaria_ops.operations.restore.plan import Plans, RestorePlan, plan_restore, refuse_objections
from scholaria_ops.operations.restore.report import TITLES, steps_of
from scholaria_ops.operations.services import Services
from scholaria_ops.profiles.scholaria import KEY_ACTIONS, KEY_CLASSES, KeyAction
from scholaria_ops.progress import Progress
from scholaria_ops.stores.live import Effect


@app.command()
def restore(
    reference: SetArgument = "latest",
    components: Annotated[
        list[str] | None, typer.Option("--component", help="postgres, redis or qdrant; may be given several times")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and its consequences; touch no live store")] = False,
    force: Annotated[bool, typer.Option("--force", help="Do not ask for confirmation; needed without a terminal")] = False,
    source: Annotated[str, typer.Option("--from", help="local or offsite: where the set is taken from")] = "local",
    no_safety: Annotated[bool, typer.Option("--no-safety", help="Take no pre_restore set of what is replaced")] = False,
    keys: Annotated[
        list[str] | None, typer.Option("--keys", help="CLASS=restore|drop|park for a class of Redis keys; may be given several times")
    ] = None,
    qdrant_in_place: Annotated[
        bool, typer.Option("--qdrant-in-place", help="Keep the plain name of a Qdrant collection instead of making it an alias")
    ] = False,
    accept_replication: Annotated[
        bool, typer.Option("--accept-replication", help="Restore although slots, publications, subscriptions or standbys exist")
    ] = False,
    undo: Annotated[bool, typer.Option("--undo", help="Go back to the state before the last restore")] = False,
    discard_old: Annotated[bool, typer.Option("--discard-old", help="Remove what restores have kept for --undo")] = False,
    recover: Annotated[bool, typer.Option("--recover", help="Take back or finish a restore that was cut off")] = False,
    give_up: Annotated[
        str, typer.Option("--give-up", metavar="ID", help="Close a restore that can never be settled; touches no store")
    ] = "",
    as_json: JsonOption = False,
) -> None:
    """Bring a set back into the live stores: planned, staged beside and compared, switched in a moment, reversible."""
    if sum((undo, discard_old, recover, bool(give_up))) > 1 or (dry_run and (discard_old or recover)):
        raise UsageError(
            "--dry-run, --undo, --discard-old, --recover and --give-up exclude each other",
            hint="Give one (or --undo or --give-up with --dry-run).",
        )
    if undo or discard_old or recover or give_up:
        given = {
            "SET": reference != "latest",
            "--component": components,
            "--keys": keys,
            "--from": source != "local",
            "--no-safety": no_safety,
            "--qdrant-in-place": qdrant_in_place,
            "--accept-replication": accept_replication,
        }
        _refuse_meaningless([name for name, value in given.items() if value])
    if give_up:
        _give_up(give_up, dry_run, force, as_json)
    elif recover:
        _recover(as_json)
    elif discard_old:
        _discard(force, as_json)
    elif undo:
        _undo(dry_run, force, as_json)
    else:
        options = RestoreOptions(
            components=tuple(component(c) for c in components or ()),
            safety=not no_safety,
            qdrant_in_place=qdrant_in_place,
            accept_replication=accept_replication,
            key_actions=dict(_key_action(k) for k in keys or ()),
        )
        _restore(reference, options, source, dry_run=dry_run, force=force, as_json=as_json)


def _refuse_meaningless(given: list[str]) -> None:
    """Whoever asks for one store must not get all of them."""
    if given:
        raise UsageError(
            f"{', '.join(given)} cannot be given with --undo, --discard-old, --recover or --give-up",
            hint="These speak of a whole restore, in all stores that it restored. Leave out what chooses among them.",
        )


def _key_action(text: str) -> tuple[str, KeyAction]:
    name, _, wanted = text.partition("=")
    known = {c.name for c in KEY_CLASSES}
    for action in KEY_ACTIONS:
        if action == wanted and name in known:
            return name, action
    raise UsageError(
        f"--keys {text!r} is not CLASS=ACTION", hint=f"Classes: {', '.join(sorted(known))}; actions: {', '.join(KEY_ACTIONS)}."
    )


def _restore(reference: str, options: RestoreOptions, source: str, *, dry_run: bool, force: bool, as_json: bool) -> None:
    from scholaria_ops.operations.restore.live import live_stores

    if reference in STORE_NAMES:
        raise UsageError(f"{reference!r} is a store, no set", hint=f"Repeat the option for each: --component … --component {reference}.")
    if source not in {"local", "offsite"}:
        raise ConfigError(f"source {source!r} does not exist", hint="Use local or offsite.")
    with showing_progress() as progress:
        here = services(progress)
        if not dry_run:
            _settled(here, progress)
        reference = _at_hand(here, reference) if source == "offsite" else _adopted(here, reference, options)
        # While the stores are looked at this thread imports what carrying the plan out takes.
        meanwhile = None if dry_run else functools.partial(loaded, "restore")
        plan = plan_restore(here, live_stores(here, options), reference, options, meanwhile=meanwhile)
    Plans(here.catalogue).show(plan)
    if not as_json:
        show_plan(plan, dry_run=dry_run)
    if dry_run:
        if as_json:
            emit_json("restore", {"executed": False, **plan_json(plan)})
        refuse_objections(plan)
        return
    refuse_objections(plan)
    _confirm(force, f"Type yes to restore {plan.set_id} into the live stores", as_json=as_json)
    from scholaria_ops.pipeline.origin import from_command_line

    with showing_progress() as progress, from_command_line(None if force else functools.partial(_confirmed_again, progress)):
        run_id = run("restore", config={"plan_of_restore": {"config": {"dry_run": False, "digest": plan.digest}}}, progress=progress)
    journal = next((j for j in Journals(here.catalogue.layout).all() if j.run_id == run_id), None)
    if as_json:
        emit_json(
            "restore",
            {"executed": True, **plan_json(plan), "run_id": run_id, "restore": journal.model_dump(mode="json") if journal else None},
        )
        return
    if journal:
        show_done(journal)
    out.print(f"run in Dagster: {run_id}", markup=False)


def show_done(journal: Journal) -> None:
    """What a restore did, with its figures."""
    times = ", ".join(f"{TITLES[n]} {s:.2f} s" for n, s in journal.lockout_s.items())
    out.print(f"[green]\\[OK][/] {journal.set_id} is served by {', '.join(TITLES[n] for n in journal.stores)}; compared with its evidence")
    out.print(f"[green]\\[OK][/] without service: {times}", highlight=False)
    seconds = journal.seconds
    fenced = f", writers stopped {seconds['fenced']:.1f} s" if seconds.get("fenced") else ""
    out.print(f"[green]\\[OK][/] restored in {seconds['restore']:.1f} s, after a safety set in {seconds['safety']:.1f} s{fenced}")
    if journal.correspondence:
        out.print(f"rows and points: {journal.correspondence}", markup=False)
    for warning in journal.warnings:
        out.print(f"[yellow]note[/] {plain(warning)}")
    for line in journal.kept:
        out.print(f"kept: {line}", markup=False)
    if journal.fresh_backup:
        out.print(f"a fresh backup was asked for: {journal.fresh_backup} (Dagster's daemon starts it)", markup=False)
    out.print("`scholaria-ops restore --undo` goes back; `scholaria-ops restore --discard-old` removes what is kept", markup=False)


def _settled(here: Services, progress: Progress) -> None:
    """Take back or finish a restore that was cut off: a plan made before that would not hold."""
    from scholaria_ops.operations.restore.live import live_stores
    from scholaria_ops.operations.restore.recover import recover_now

    if Journals(here.catalogue.layout).unfinished():
        for line in recover_now(here, live_stores(here, RestoreOptions())):
            progress.say(line)


def _at_hand(here: Services, reference: str) -> str:
    """The id of an offsite set that stands here now, sound."""
    from scholaria_ops.operations.offsite import at_hand

    return str(at_hand(here, reference).id)


def _adopted(here: Services, reference: str, options: RestoreOptions) -> str:
    """The set to restore: an old-style one is taken over first, which touches no live store."""
    from scholaria_ops.operations.adopt import AdoptOptions, adopt

    if reference == "latest" or (entry := here.catalogue.find(reference)).kind is not Kind.LEGACY:
        return reference
    here.progress.say(f"{entry.name} is an old-style set: it is made a regular one first")
    found = adopt(here, reference, AdoptOptions(components=options.components))
    if found.fresh:
        here.progress.say(f"{entry.name} is adopted, as {found.set.id} (held until you release it)")
    return found.set.id


def _confirm(force: bool, question: str, *, as_json: bool, look: str = "; --dry-run shows the plan") -> None:
    """Have ``question`` answered with yes. ``look``: how one sees what would be done, for whoever cannot be asked."""
    if force:
        return
    if as_json:
        raise Refused("--json asks no questions, for nobody has been shown anything", hint=f"Add --force if you mean it{look}.")
    if not sys.stdin.isatty():
        raise Refused("nobody is here to confirm", hint=f"Add --force if you mean it{look}.")
    answer = "no"
    with contextlib.suppress(typer.Abort):  # Ctrl-C, or the end of the input
        answer = typer.prompt(question, default="no", show_default=False)
    if answer != "yes":
        raise Refused("not confirmed", hint="Nothing was touched.")


def _confirmed_again(progress: Progress, why: str) -> bool:
    """Asked in the middle of a run, where what was agreed to turns out otherwise."""
    with paused(progress):
        err.print(f"[bold red]without a way back to what is served now[/] {plain(why)}")
        with contextlib.suppress(typer.Abort):
            return bool(typer.prompt("Type yes to restore all the same", default="no", show_default=False) == "yes")
    return False


def show_plan(plan: RestorePlan, *, dry_run: bool) -> None:
    """The plan as operators know it, then its consequences."""
    mark = "\\[DRY RUN] Would restore" if dry_run else "Will restore"
    of = f", the data of {plan.adopted.name}" if plan.adopted else ""
    out.print(f"set {plan.set_id} ({plan.tier}){of}, cut {when(plan.cut_at)}", markup=False)
    for name, store in plan.store_plans().items():
        out.print(f"{mark} {TITLES[name]} from: {plain(', '.join(plan.files_of(name)))} → {plain(store.target)}")
    out.print("")
    for number, step in enumerate(steps_of(plan), 1):
        out.print(f"{number:>3}. {step}", markup=False)
    effects = [(TITLES[n], e) for n, p in plan.store_plans().items() for e in p.effects] + [("all", e) for e in plan.effects]
    if effects:
        out.print("")
        print_table(["store", "", "what", "count", "detail"], [_effect_row(who, e) for who, e in effects], right=["count"])
    needs = [(TITLES[n], need) for n, p in plan.store_plans().items() for need in p.needs]
    if needs:
        out.print("")
        print_table(
            ["store", "needs", "for", "free"],
            [
                [
                    who,
                    human_bytes(n.needed_bytes),
                    plain(n.what),
                    human_bytes(n.free_bytes) if n.free_bytes is not None else "not known from here",
                ]
                for who, n in needs
            ],
            right=["needs"],
        )
    out.print("")
    for name, store in plan.store_plans().items():
        for warning in store.warnings:
            out.print(f"[yellow]note[/] {TITLES[name]}: {plain(warning)}")
    for name, why in plan.unsaved.items():
        out.print(f"[bold red]not saved[/] {TITLES[name]} cannot be saved before it is replaced: {plain(why)}")
    for who, objection in plan.all_objections:
        out.print(f"[bold red]against it[/] {plain(who)}: {plain(objection.message)} → {plain(objection.hint)}")
    out.print(
        f"expected: {plan.expected_s:.0f} s beside the running application"
        + (f" (by the restore {plan.measured_by}, measured here)" if plan.measured_by else "")
        + f", {plan.expected_lockout_s:.1f} s without service; "
        f"plan {plan.digest[:12]}, valid until {plan.valid_until:%H:%M} UTC",
        markup=False,
    )


_COLOURS = {"lost": "bold red", "revived": "yellow", "reused": "yellow", "parked": "yellow", "dropped": "yellow"}


def _effect_row(who: str, effect: Effect) -> list[str]:
    colour = _COLOURS.get(effect.kind)
    kind = f"[{colour}]{effect.kind}[/]" if colour else effect.kind
    return [who, kind, plain(effect.what), f"{effect.count:,}" if effect.count is not None else "", plain(effect.detail)]


def plan_json(plan: RestorePlan) -> dict[str, Any]:
    """Stable form of a plan."""
    return {
        "digest": plan.digest,
        "plan": plan.model_dump(mode="json"),
        "steps": list(steps_of(plan)),
        "objections": [{"store": who, **o.model_dump(mode="json")} for who, o in plan.all_objections],
        "expected_s": plan.expected_s,
        "expected_lockout_s": plan.expected_lockout_s,
    }


def _undo(dry_run: bool, force: bool, as_json: bool) -> None:
    from scholaria_ops.operations.restore.live import live_stores
    from scholaria_ops.operations.restore.undo import plan_undo, undo

    with showing_progress() as progress:
        here = services(progress)
        live = live_stores(here, RestoreOptions())
        if not dry_run:
            _settled(here, progress)
        plan = plan_undo(here, live)
    if not as_json:
        out.print(f"The restore {plan.restore_id} of the set {plan.set_id} would be undone in {', '.join(TITLES[n] for n in plan.stores)}.")
        effects = [(TITLES[n], e) for n, found in plan.effects.items() for e in found]
        if effects:
            print_table(["store", "", "what", "count", "detail"], [_effect_row(who, e) for who, e in effects], right=["count"])
        else:
            out.print("Nothing was written since.")
        for line in plan.fence:
            out.print(f"writers: {line}", markup=False)
    document = {"undo": plan.model_dump(mode="json"), "executed": not dry_run}
    if dry_run:
        if as_json:
            emit_json("restore", document)
        return
    _confirm(force, f"Type yes to undo the restore {plan.restore_id}", as_json=as_json)
    with showing_progress() as progress:
        lines = undo(services(progress), live, plan)
    if as_json:
        emit_json("restore", {**document, "lines": lines})
    for line in lines if not as_json else ():
        out.print(line, markup=False)


def _discard(force: bool, as_json: bool) -> None:
    from scholaria_ops.operations.restore.live import live_stores
    from scholaria_ops.operations.restore.undo import discard

    here = services()
    keeping = Journals(here.catalogue.layout).keeping()
    for journal in keeping if not as_json else ():
        out.print(f"{journal.id} ({journal.set_id}): {'; '.join(journal.kept) or 'files only'}", markup=False)
    if keeping:
        _confirm(force, "Type yes to remove what these restores have kept", as_json=as_json, look="")
    with showing_progress() as progress:
        done = discard(services(progress), live_stores(here, RestoreOptions()))
    left = [line for d in done for line in d.left]
    if as_json:
        emit_json("restore", {"discarded": [{"restore": d.restore_id, "lines": list(d.lines), "left": list(d.left)} for d in done]})
    elif left:
        for line in (line for d in done for line in d.lines):
            out.print(line, markup=False)
    else:
        err.print(
            f"what {len(done)} restore(s) kept is removed; they can no longer be undone" if done else "nothing was kept", markup=False
        )
    if left:
        raise Refused(f"not all of it is removed: {'; '.join(left)}", hint="All else that restores have kept is gone.")


def _recover(as_json: bool) -> None:
    from scholaria_ops.operations.restore.live import live_stores
    from scholaria_ops.operations.restore.recover import recover_now

    with showing_progress() as progress:
        here = services(progress)
        lines = recover_now(here, live_stores(here, RestoreOptions()))
    if as_json:
        emit_json("restore", {"recovered": lines})
        return
    for line in lines or ["no restore was cut off"]:
        out.print(line, markup=False)


def _give_up(restore_id: str, dry_run: bool, force: bool, as_json: bool) -> None:
    from scholaria_ops.operations.restore.give_up import give_up, plan_give_up
    from scholaria_ops.operations.restore.live import live_stores

    with showing_progress() as progress:
        here = services(progress)
        plan = plan_give_up(here, live_stores(here, RestoreOptions()), restore_id)
    for line in plan.lines if not as_json else ():
        out.print(line, markup=False)
    if not as_json:
        out.print(
            "Giving up closes the journal only: no store is touched, nothing is removed, and nothing of it can be undone or discarded."
        )
    document = {"give_up": plan.model_dump(mode="json"), "executed": not dry_run}
    if dry_run:
        if as_json:
            emit_json("restore", document)
        return
    _confirm(force, f"Type yes to give up the restore {plan.restore_id}", as_json=as_json)
    lines = give_up(here, plan)
    if as_json:
        emit_json("restore", {**document, "lines": lines})
    for line in lines if not as_json else ():
        out.print(line, markup=False)
