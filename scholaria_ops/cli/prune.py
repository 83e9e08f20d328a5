"""`scholaria-ops prune`, `scholaria-ops hold` and `scholaria-ops release`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from scholaria_ops.catalogue.retention import Line, Plan, Rule
from scholaria_ops.cli.common import JsonOption, run, services, when
from scholaria_ops.cli.main import app
from scholaria_ops.cli.output import emit_json, err, out, plain, print_table
from scholaria_ops.errors import UsageError
from scholaria_ops.humane import human_bytes
from scholaria_ops.operations.prune_state import PruneState

WhyOption = Annotated[str, typer.Option("--why", help="The reason, for whoever asks in a year")]
HeldArgument = Annotated[str, typer.Argument(metavar="SET", help="`latest` (newest verified), or an id")]


@app.command()
def prune(
    apply: Annotated[bool, typer.Option("--apply", help="Remove what the plan says; without it the plan is only shown")] = False,
    here_only: Annotated[
        bool, typer.Option("--here-only", help="Leave the offsite copies alone, for example while the bucket is out")
    ] = False,
    accept_missing: Annotated[
        bool, typer.Option("--accept-missing", help="First write down that sets which are gone were meant to go (with --why)")
    ] = False,
    why: WhyOption = "",
    as_json: JsonOption = False,
) -> None:
    """Which sets retention would remove, here and offsite, and the rule that decides for each; with --apply, remove them."""
    from scholaria_ops.operations.prune import accept_missing as accept
    from scholaria_ops.operations.prune import check_executable, plan_prune
    from scholaria_ops.pipeline.retention import runs_in_flight
    from scholaria_ops.pipeline.runner import open_instance

    here = services()
    if accept_missing:
        if not why.strip():
            raise UsageError("--accept-missing needs --why", hint="Say who removed them and why.")
        for name in accept(here, why, offsite=not here_only):
            err.print(f"accepted as meant: {name}", markup=False)
    for notice in here.settings.notices:
        err.print(f"note: {notice}", markup=False)
    state = PruneState(here.catalogue.layout)
    with open_instance() as instance:
        plan = plan_prune(here, runs_in_flight(instance), offsite=not here_only)
    if not as_json:
        _show(plan, unfinished=state.journal() is not None)
    if not apply:
        if as_json:
            emit_json("prune", plan_json(plan))
        check_executable(here, plan)
        return
    check_executable(here, plan)
    state.show(plan)
    run_id = _applied(plan)
    if as_json:
        emit_json("prune", {**plan_json(plan), "applied": True, "run_id": run_id})
    else:
        out.print(f"removed {len(plan.removals)}, {human_bytes(plan.freed_bytes)} freed; run in Dagster: {run_id}")


def _applied(plan: Plan) -> str:
    from scholaria_ops.pipeline.origin import from_command_line

    with from_command_line():
        return run("retention", config={"retain": {"config": {"digest": plan.digest}}})


def _show(plan: Plan, *, unfinished: bool) -> None:
    if plan.lines:
        print_table(
            ["place", "set", "tier", "cut", "size", "verdict", "rule", "reason"], [_row(line) for line in plan.lines], right=["size"]
        )
    else:
        out.print("There are no sets.")
    for refusal in plan.refusals:
        out.print(f"[bold red]refused[/] {plain(refusal.message)}")
    if unfinished:
        out.print("[yellow]note[/] an earlier prune was cut off; the next --apply finishes it")
    if not plan.refusals:
        out.print(f"{len(plan.removals)} to remove, {human_bytes(plan.freed_bytes)}; plan {plan.digest[:12]}")


def _row(line: Line) -> list[str]:
    return [
        line.place,
        plain(line.id or line.name),
        line.tier or "–",
        when(line.cut_at),
        human_bytes(line.size_bytes) if line.rule is not Rule.UNTOUCHED else "–",
        "[bold red]remove[/]" if line.remove else "keep",
        str(line.rule),
        plain(line.reason),
    ]


def plan_json(plan: Plan) -> dict[str, Any]:
    """Stable form of a plan."""
    return {
        "digest": plan.digest,
        "made_at": plan.made_at,
        "applied": False,
        "places": list(plan.places),
        "lines": [line.model_dump(mode="json") for line in plan.lines],
        "refusals": [r.model_dump(mode="json") for r in plan.refusals],
        "to_remove": len(plan.removals),
        "to_free_bytes": plan.freed_bytes,
        "safety": plan.safety.model_dump(mode="json"),
    }


@app.command()
def hold(reference: HeldArgument, why: WhyOption, as_json: JsonOption = False) -> None:
    """Keep a set from being pruned, here and offsite, until it is released."""
    from scholaria_ops.operations.hold import hold as operation

    here = services()
    _told("hold", operation(here, reference, why).model_dump(mode="json"), _id(reference), as_json, "held")


@app.command()
def release(reference: HeldArgument, why: WhyOption, as_json: JsonOption = False) -> None:
    """Let retention decide about a held set again."""
    from scholaria_ops.operations.hold import release as operation

    here = services()
    _told("release", operation(here, reference, why).model_dump(mode="json"), _id(reference), as_json, "released")


def _id(reference: str) -> str:
    return str(services().catalogue.find(reference).id) if reference == "latest" else reference


def _told(command: str, record: dict[str, Any], set_id: str, as_json: bool, done: str) -> None:
    if as_json:
        emit_json(command, {"set": set_id, "record": record})
    else:
        out.print(f"{set_id}: {done}: {record['detail']['why']}", markup=False)
