"""`scholaria-ops verify` and `scholaria-ops sync`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from scholaria_ops.catalogue.sets import Entry, Kind
from scholaria_ops.cli.common import JsonOption, SetArgument, run, services
from scholaria_ops.cli.main import app
from scholaria_ops.cli.output import emit_json, err, out, plain, print_table, showing_progress
from scholaria_ops.operations.offsite import offsite_sets
from scholaria_ops.operations.verify import VerifyReport
from scholaria_ops.operations.verify import verify as verify_operation

_MARKS = {True: "[green]passed[/]", False: "[bold red]FAILED[/]", None: "[yellow]not judged[/]"}


@app.command()
def verify(
    reference: SetArgument = "latest",
    level: Annotated[str, typer.Option(help="hash: every byte; readable: also opened in the stores' own software")] = "readable",
    as_json: JsonOption = False,
) -> None:
    """Check every byte of a set, and that the stores' own software reads it. Touches no live store."""
    from scholaria_ops.pipeline.assets_verified import check_level

    wanted = check_level(level)
    here = services()
    entry = here.catalogue.find(reference)
    if entry.kind is Kind.SEALED and entry.directory.parent.resolve() == here.catalogue.layout.root.resolve():
        _in_dagster(entry, level, as_json)
        return
    with showing_progress() as progress:
        report = verify_operation(services(progress), entry, wanted)
    if as_json:
        emit_json("verify", report_json(report))
    else:
        print_report(report)
    report.raise_if_failed()


def _in_dagster(entry: Entry, level: str, as_json: bool) -> None:
    records = services().catalogue.records
    before = len(records.of(str(entry.id)))
    run_id = ""
    try:
        run_id = run("verify", partition=entry.id, config={"backup__verified": {"config": {"level": level}}})
    finally:
        fresh = [r for r in records.of(str(entry.id))[before:] if r.event == "verified"]
        detail: dict[str, Any] = dict(fresh[-1].detail) if fresh else {}
        if as_json and fresh:
            shown = {key: detail.get(key) for key in ("level", "passed", "seconds", "bytes", "checks")}
            emit_json(
                "verify", {"set": entry.id, "directory": str(entry.directory), "at": fresh[-1].at, **shown, "run_id": fresh[-1].run_id}
            )
    if as_json:
        return
    out.print(f"{entry.id}: [green]verified[/] ({level}), {detail.get('bytes', 0):,} bytes in {detail.get('seconds', 0):.1f} s")
    for item in detail.get("unjudged", []):
        out.print(f"[yellow]not judged[/] {plain(item['check'])}: {plain(item['detail'])}")
    out.print(f"Run in Dagster: {run_id}")


def print_report(report: VerifyReport) -> None:
    """All checks of a verification as a table."""
    print_table(["check", "result", "detail"], [[plain(f.name), _MARKS[f.check.passed], plain(f.check.detail)] for f in report.findings])
    err.print(f"{report.bytes_read:,} bytes in {report.seconds:.1f} s")


def report_json(report: VerifyReport) -> dict[str, Any]:
    """Stable form of a verification's outcome."""
    return {
        "set": report.set_id,
        "directory": str(report.directory),
        "level": report.level,
        "passed": report.passed,
        "at": report.at,
        "seconds": round(report.seconds, 3),
        "bytes": report.bytes_read,
        "run_id": "",
        "checks": [
            {
                "subject": f.subject,
                "name": f.check.name,
                "passed": f.check.passed,
                "detail": f.check.detail,
                "numbers": dict(f.check.numbers),
            }
            for f in report.findings
        ],
    }


@app.command()
def sync(as_json: JsonOption = False) -> None:
    """Make Dagster's partition grid show what is on disk (after a move, or on a new machine)."""
    run_id = run("sync")
    here = services()
    entries = here.catalogue.entries()
    sealed = {e.id for e in entries if e.kind is Kind.SEALED}
    offsite = {s.id for s in offsite_sets(here)} if here.offsite else set()
    left_out = len(entries) - len(sealed)
    if as_json:
        emit_json("sync", {"run_id": run_id, "sealed": len(sealed), "offsite": len(offsite), "left_out": left_out})
        return
    shown = len(sealed | offsite)
    out.print(f"Dagster shows {shown} {'set' if shown == 1 else 'sets'}: {len(sealed)} here, {len(offsite)} offsite.")
    for set_id in sorted(offsite - {s for s in sealed if s}):
        out.print(f"{set_id} stands offsite only: bring it here with `scholaria-ops fetch {set_id}`.")
    if left_out:
        out.print(f"{left_out} other {'directory' if left_out == 1 else 'directories'} left out (`scholaria-ops list` says why).")
