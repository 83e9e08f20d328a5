"""Health in Dagster: one asset whose checks are the checks of health, looked at every six hours.

The report is materialized good or bad: its freshness says that somebody looked. What was found is in the checks, and a run that
found something critical fails, so that it is told to people.
"""

from collections.abc import Iterator

import dagster as dg
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

from scholaria_ops.operations.health import CHECKS, Finding, HealthReport, check_health
from scholaria_ops.operations.health.kept import keep_report
from scholaria_ops.pipeline.assets_live import OWNERS
from scholaria_ops.pipeline.dispatcher import DagsterDispatcher
from scholaria_ops.pipeline.errors import as_failure
from scholaria_ops.pipeline.freshness import FRESHNESS
from scholaria_ops.pipeline.metadata import Metadata, table
from scholaria_ops.pipeline.resources import Estate

HEALTH = dg.AssetKey(["health", "report"])
_SIGNS = {"ok": "✔", "warning": "⚠", "critical": "✖"}
_MARKS = {"ok": "ok", "warning": "⚠ warning", "critical": "✖ critical"}


@dg.asset(
    key=HEALTH,
    group_name="health",
    kinds={"file"},
    owners=OWNERS,
    freshness_policy=FRESHNESS["report"],
    check_specs=[dg.AssetCheckSpec(name, asset=HEALTH, description=promise) for name, promise in CHECKS.items()],
    description="Everything that a backup and its return depend on, looked at: room, ages, stores, bucket, daemon, schedules.",
)
def health_report(context: dg.AssetExecutionContext, estate: Estate) -> Iterator[dg.MaterializeResult[None] | dg.AssetCheckResult]:
    with as_failure(), estate.services(context.log) as services:
        report = check_health(services, DagsterDispatcher(context.instance, services.settings))
        keep_report(services, report)
    for finding in report.bad():
        (context.log.error if finding.level == "critical" else context.log.warning)("%s: %s", finding.check, finding.what)
    yield from check_results(report)
    yield dg.MaterializeResult(asset_key=HEALTH, metadata=health_metadata(report))
    with as_failure():
        report.raise_if_unhealthy()


def check_results(report: HealthReport) -> Iterator[dg.AssetCheckResult]:
    """One Dagster check result per check: red for critical, yellow for a warning."""
    for name in CHECKS:
        findings = report.of(name)
        # A check that said nothing was not made: that is no good news.
        level = findings[0].level if findings else "warning"
        said = "; ".join(f.what for f in findings if f.level == level) or "not looked at"
        yield dg.AssetCheckResult(
            asset_key=HEALTH,
            check_name=name,
            passed=level == "ok",
            severity=dg.AssetCheckSeverity.ERROR if level == "critical" else dg.AssetCheckSeverity.WARN,
            description=said[:500],
            metadata=_check_metadata(findings),
        )


def _check_metadata(findings: list[Finding]) -> Metadata:
    numbers = {key: value for f in reversed(findings) for key, value in f.numbers.items()}
    steps = list(dict.fromkeys(f.next_step for f in findings if f.next_step and f.level != "ok"))
    return {
        **({"next step": " · ".join(steps)} if steps else {}),
        **({"findings": table(_row(f) for f in findings)} if len(findings) > 1 else {}),
        **numbers,
    }


def _row(finding: Finding) -> dict[str, str | int | float | bool]:
    since = f" (since {finding.since:%Y-%m-%d %H:%M} UTC)" if finding.since and finding.level != "ok" else ""
    return {"check": f"{_SIGNS[finding.level]} {finding.check}", "what": f"{finding.what}{since}", "next step": finding.next_step}


def health_metadata(report: HealthReport) -> Metadata:
    """A summary for people, all findings as a table, and the numbers that plot."""
    bad = list(report.bad())
    numbers = {key: float(value) for f in report.findings for key, value in f.numbers.items() if key in _PLOTTED}
    return {
        "summary": dg.MetadataValue.md(summary(report)),
        "level": report.level,
        "critical": len(report.at_level("critical")),
        "warnings": len(report.at_level("warning")),
        "findings": table(_row(f) for f in [*bad, *report.at_level("ok")]),
        "duration_s": round(report.seconds, 3),
        **numbers,
    }


#: Numbers that keep one key and one type for ever.
_PLOTTED = frozenset({"daily_age_s", "weekly_age_s", "monthly_age_s", "proof_age_s", "free_bytes", "next_set_bytes"})


def summary(report: HealthReport) -> str:
    """What is wrong and what to do, in Markdown."""
    bad = list(report.bad())
    if not bad:
        return f"### Healthy\n\nAll {len(CHECKS)} checks are ok."
    lines = [f"### {'Unhealthy' if report.level == 'critical' else 'Healthy, with warnings'}", ""]
    for finding in bad:
        since = f" (since {finding.since:%Y-%m-%d %H:%M} UTC)" if finding.since else ""
        lines.append(
            f"* **{_MARKS[finding.level]} · {finding.check}**: {finding.what}{since}"
            + (f"  \n  → {finding.next_step}" if finding.next_step else "")
        )
    return "\n".join(lines)


health_job: UnresolvedAssetJobDefinition = dg.define_asset_job(
    "health",
    selection=dg.AssetSelection.assets(HEALTH),
    executor_def=dg.in_process_executor,
    tags={"dagster/max_runtime": "1800"},
    description="Look at everything that a backup and its return depend on. Fails if something must not stay so. Changes nothing.",
)
