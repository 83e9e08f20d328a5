"""`scholaria-ops rehearse`."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from scholaria_ops.catalogue.records import Record
from scholaria_ops.cli.common import JsonOption, SetArgument, run, services
from scholaria_ops.cli.main import app
from scholaria_ops.cli.output import emit_json, out
from scholaria_ops.errors import UsageError

_NAMES = {"postgres": "PostgreSQL", "redis": "Redis", "qdrant": "Qdrant"}


@app.command()
def rehearse(
    reference: SetArgument = "latest",
    source: Annotated[str, typer.Option("--from", help="local or offsite: where the set is taken from")] = "local",
    keep: Annotated[str, typer.Option(help="Leave the servers up for this long (30m, 2h) to look at them")] = "",
    as_json: JsonOption = False,
) -> None:
    """Restore a set into throw-away servers, compare it with what was measured, time it. Touches no live store."""
    from scholaria_ops.operations.offsite import offsite_id
    from scholaria_ops.pipeline.assets_rehearsal import check_source, parse_period

    here = services()
    where = check_source(source)
    parse_period(keep)
    set_id = offsite_id(here, reference) if where == "offsite" else here.catalogue.find(reference).id
    if set_id is None:
        raise UsageError(f"{reference} is no backup set", hint="`scholaria-ops list` shows all sets.")
    before = len(here.catalogue.records.of(set_id))
    try:
        run_id = run("rehearsal", partition=set_id, config={"rehearsal__restored": {"config": {"source": source, "keep": keep}}})
    finally:
        fresh = [r for r in here.catalogue.records.of(set_id)[before:] if r.event == "rehearsed"]
        if fresh and not as_json:
            print_proof(set_id, fresh[-1])
    if as_json:
        emit_json("rehearse", {"set": set_id, "run_id": run_id, "proof": fresh[-1].model_dump(mode="json") if fresh else None})


def print_proof(set_id: str, record: Record) -> None:
    """A rehearsal in the form that the operators' guide uses."""
    detail: dict[str, Any] = dict(record.detail)
    verdict = str(detail["verdict"])
    mark = {"proven": "[green]\\[OK][/]", "failed": "[bold red]\\[FAILED][/]"}.get(verdict, "[yellow]\\[UNPROVEN][/]")
    out.print(f"[green]\\[OK][/] Backup {set_id} taken from {'the offsite copy' if detail['source'] == 'offsite' else 'this disk'}")
    for name, store in dict(detail["stores"]).items():
        own = {"proven": "[green]\\[OK][/]", "failed": "[bold red]\\[FAILED][/]"}.get(store["verdict"], "[yellow]\\[UNPROVEN][/]")
        phases = ", ".join(f"{k} {v:.1f} s" for k, v in dict(store["seconds"]).items() if v >= 0.05)
        out.print(f"{own} {_NAMES[name]}: ", end="")
        out.print(f"{store['detail']} ({phases})", markup=False)
        for difference in store["differences"]:
            out.print(f"     {difference}", markup=False)
    word = {"proven": "All checks passed", "failed": "The set did not come back equal"}.get(verdict, "Not everything could be judged here")
    out.print(f"{mark} {word} in {_minutes(detail['rto_s'])} (RTO); the cut was {_minutes(detail['rpo_s'])} old (RPO)")
    if detail.get("kept_file") and Path(detail["kept_file"]).is_file():
        out.print(f"The servers stay up until {datetime.fromisoformat(detail['kept_until']):%Y-%m-%d %H:%M} UTC:", markup=False)
        out.print(Path(detail["kept_file"]).read_text(), markup=False)


def _minutes(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h {minutes}m" if hours else f"{minutes}m {rest}s"
