"""`scholaria-ops audit`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from scholaria_ops.catalogue.audit import AuditReport, Entry
from scholaria_ops.catalogue.layout import check_id
from scholaria_ops.cli.common import JsonOption, services
from scholaria_ops.cli.main import app
from scholaria_ops.cli.output import emit_json, out, plain, print_table
from scholaria_ops.errors import UsageError

_COLOURS = {
    "failed": "[bold red]failed[/]",
    "refused": "[yellow]refused[/]",
    "cancelled": "[yellow]cancelled[/]",
    "torn": "[yellow]torn[/]",
}


@app.command()
def audit(
    verify: Annotated[bool, typer.Option("--verify", help="Walk the chain and compare it with the heads in the sets' records")] = False,
    offsite: Annotated[bool, typer.Option("--offsite", help="With --verify: compare it with the records in the bucket too")] = False,
    of_set: Annotated[str, typer.Option("--set", metavar="ID", help="Only entries of this set")] = "",
    last: Annotated[int, typer.Option(min=0, help="So many of the newest entries; 0 for all")] = 50,
    as_json: JsonOption = False,
) -> None:
    """Who did what to which set, and whether anybody changed that afterwards."""
    if offsite and not verify:
        raise UsageError("--offsite needs --verify", hint="`scholaria-ops audit --verify --offsite` compares the chain with the bucket.")
    here = services()
    if verify:
        from scholaria_ops.operations.audit_witness import verify_audit

        _verified(verify_audit(here, offsite=offsite), as_json)
        return
    wanted = check_id(of_set) if of_set else ""
    entries = [e for e in here.audit_log.entries() if not wanted or e.set == wanted]
    shown = entries[-last:] if last else entries
    if as_json:
        emit_json("audit", {"path": str(here.audit_log.path), "entries": [e.model_dump(mode="json") for e in shown]})
        return
    if not shown:
        out.print(f"{here.audit_log.path} holds nothing{f' of {wanted}' if wanted else ''} yet.", markup=False)
        return
    print_table(["no", "when (UTC)", "verb", "set", "outcome", "by", "how", "detail"], [_row(e) for e in shown], right=["no"])


def _row(entry: Entry) -> list[str]:
    return [
        str(entry.seq),
        f"{entry.at:%Y-%m-%d %H:%M:%S}",
        entry.verb,
        entry.set or "–",
        _COLOURS.get(entry.outcome, entry.outcome),
        plain(entry.by),
        plain(entry.how),
        plain(_brief(entry.detail)),
    ]


def _brief(detail: dict[str, Any]) -> str:
    return ", ".join(f"{k} {len(v) if isinstance(v, (list, dict)) else v}" for k, v in detail.items() if v not in ("", [], {}, None))


def _verified(report: AuditReport, as_json: bool) -> None:
    if as_json:
        content = {"verified": True, "count": report.entries, "head": report.head.as_detail(), "witnesses": report.witnesses}
        emit_json("audit", {**content, "foreign": report.foreign, "torn": list(report.torn)})
        return
    out.print(f"[green]intact[/] {report.entries} entries, none changed, removed or put in between")
    out.print(f"head {report.head.seq}: {report.head.sha256}")
    if report.witnesses:
        out.print(f"{report.witnesses} heads in the sets' records agree with it")
    else:
        out.print("[yellow]note[/] no record holds a head of it yet: a rewriting of the whole file would not be found")
    if report.foreign:
        out.print(f"[yellow]note[/] {report.foreign} heads are of another log: another machine's, or an earlier one of this machine")
    for line in report.torn:
        out.print(f"[yellow]note[/] {plain(line)}")
