"""`scholaria-ops health`."""

from __future__ import annotations

import contextlib
from typing import Annotated

import typer

from scholaria_ops.cli.common import JsonOption, services, when
from scholaria_ops.cli.main import app
from scholaria_ops.cli.output import emit_json, out, plain, print_table
from scholaria_ops.errors import OpsError
from scholaria_ops.operations.health import CHECKS, HealthReport, Unhealthy, check_health
from scholaria_ops.operations.health.kept import report_json

_MARKS = {"ok": "[green]ok[/]", "warning": "[yellow]warning[/]", "critical": "[bold red]CRITICAL[/]"}


@app.command()
def health(
    strict: Annotated[bool, typer.Option(help="Also exit with 6 if there are warnings")] = False,
    as_json: JsonOption = False,
) -> None:
    """Look at everything that a backup and its return depend on. Exit code 6 if something must not stay so. Changes nothing."""
    from scholaria_ops.pipeline.dispatcher import DagsterDispatcher
    from scholaria_ops.pipeline.runner import open_instance

    here = services()
    with contextlib.ExitStack() as stack:
        try:
            instance = stack.enter_context(open_instance())
        except OpsError as exc:
            report = check_health(here, exc)
        else:
            report = check_health(here, DagsterDispatcher(instance, here.settings))
    if as_json:
        emit_json("health", report_json(report))
    else:
        print_report(report)
    try:
        report.raise_if_unhealthy(strict=strict)
    except Unhealthy as exc:
        wrong = sum(1 for _ in report.bad()) if strict else len(report.at_level("critical"))
        raise Unhealthy(f"{wrong} {'things are' if wrong > 1 else 'thing is'} wrong (above)", hint="docs/health.md tells of each.") from exc


def print_report(report: HealthReport) -> None:
    """Every check with its worst finding; what is not ok with all that is known."""
    rows = []
    for name in CHECKS:
        for finding in report.of(name) or ():
            rows.append([_MARKS[finding.level], name, plain(finding.what), when(finding.since) if finding.since else ""])
    print_table(["level", "check", "what", "since"], rows)
    steps = list(dict.fromkeys(f"{f.check}: {f.next_step}" for f in report.bad() if f.next_step))
    if steps:
        out.print("")
        for step in steps:
            out.print(f"→ {step}", markup=False)
    words = {"ok": "[green]healthy[/]", "warning": "[yellow]healthy, with warnings[/]", "critical": "[bold red]UNHEALTHY[/]"}
    out.print(f"\n{words[report.level]}: {len(report.findings)} findings in {report.seconds:.1f} s")
