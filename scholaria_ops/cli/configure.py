"""`scholaria-ops config` and `scholaria-ops check`."""

from __future__ import annotations

from typing import Any

from pydantic import SecretStr

from scholaria_ops.cli.common import JsonOption, services
from scholaria_ops.cli.main import app
from scholaria_ops.cli.output import emit_json, err, out, plain, print_table, showing_progress
from scholaria_ops.errors import OffsiteError, OpsError, Refused
from scholaria_ops.humane import human_bytes
from scholaria_ops.offsite.base import TargetFacts
from scholaria_ops.operations.preflight import Preflight
from scholaria_ops.operations.preflight import preflight as preflight_operation
from scholaria_ops.operations.services import Services
from scholaria_ops.settings import Settings, load_settings, variable_names


@app.command()
def config(as_json: JsonOption = False) -> None:
    """The settings in force, secrets masked, and where each comes from."""
    settings = load_settings()
    rows = [
        (variable_names(f)[0], _masked(getattr(settings, f)), settings.provenance[f], Settings.model_fields[f].description or "")
        for f in Settings.model_fields
    ]
    if as_json:
        emit_json("config", {"settings": [{"name": n, "value": v, "from": p, "description": d} for n, v, p, d in rows]})
        return
    for notice in settings.notices:
        err.print(f"note: {notice}", markup=False)
    print_table(["name", "value", "from"], [[n, plain(v) if v is not None else "–", plain(p)] for n, v, p, _ in rows])


def _masked(value: Any) -> str | None:
    if isinstance(value, SecretStr):
        return "********" if value.get_secret_value() else None
    return None if value is None or value == "" else str(value)


@app.command()
def check(as_json: JsonOption = False) -> None:
    """Ask all stores whether a backup would succeed, and say what is missing. Changes nothing."""
    with showing_progress() as progress:
        here = services(progress)
        here.check_directory()
        with here.context("check") as ctx:
            result = preflight_operation(here, ctx)
        place = _offsite(here)
    problems: list[OpsError] = [*result.refusals.values(), *([result.room] if result.room else [])]
    if isinstance(place, OpsError):
        problems.append(place)
    if as_json:
        emit_json("check", _json(result, problems))
    else:
        _print(result, problems)
        if isinstance(place, TargetFacts):
            out.print(f"[green]ready[/] offsite  {plain('; '.join(f'{k}: {v}' for k, v in place.details.items()))}")
    if problems:
        raise (
            problems[0]
            if len(problems) == 1
            else Refused(f"{len(problems)} things stand against a backup (above)", hint="Mend them and check again.")
        )


def _offsite(here: Services) -> TargetFacts | OpsError | None:
    """What the offsite place says, or why it cannot be used; None if none is set."""
    if here.offsite is None:
        return None
    try:
        return here.offsite.preflight(cancel=here.cancel)
    except OpsError as exc:
        return exc


def _print(result: Preflight, problems: list[OpsError]) -> None:
    for name, facts in result.facts.items():
        out.print(f"[green]ready[/] {name} {facts.server_version}", end="")
        out.print("")
        for label, value in facts.details.items():
            out.print(f"  {label}: {value}", markup=False)
        for warning in facts.warnings:
            out.print(f"  note: {warning}", markup=False)
    for problem in problems:
        out.print(f"[bold red]not ready[/] {problem.store or ('offsite' if isinstance(problem, OffsiteError) else 'here')}", end="")
        out.print(f"  {problem.message}", markup=False)
        if problem.hint:
            out.print(f"  → {problem.hint}", markup=False)
    # What a store that is not ready would need is in no sum.
    room = "how much a set needs is not known yet" if result.refusals else f"a set may need up to {human_bytes(result.expected_bytes)}"
    out.print(f"{room}; {human_bytes(result.free_bytes)} are free")


def _json(result: Preflight, problems: list[OpsError]) -> dict[str, Any]:
    return {
        "ready": not problems,
        "stores": [
            {"store": n, "ready": True, "server_version": f.server_version, "details": dict(f.details), "warnings": list(f.warnings)}
            for n, f in result.facts.items()
        ],
        "problems": [{"store": p.store, "code": p.code, "message": p.message, "hint": p.hint} for p in problems],
        "expected_bytes": result.expected_bytes,
        "free_bytes": result.free_bytes,
    }
