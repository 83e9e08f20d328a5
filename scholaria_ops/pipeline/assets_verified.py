"""Sealed → verified. The asset yields its checks and then fails on a bad one: its cell turns red, offsite does not run."""

import re
from collections.abc import Iterable, Iterator, Mapping

import dagster as dg

from scholaria_ops.errors import ConfigError
from scholaria_ops.operations.verify import LEVELS, Finding, Level, VerifyReport, verify
from scholaria_ops.pipeline.assets_backup import SEALED, VERIFIED
from scholaria_ops.pipeline.assets_live import OWNERS
from scholaria_ops.pipeline.errors import as_failure
from scholaria_ops.pipeline.freshness import FRESHNESS
from scholaria_ops.pipeline.metadata import Metadata, table
from scholaria_ops.pipeline.partitions import BACKUPS
from scholaria_ops.pipeline.resources import Estate

_NOT_A_WORD = re.compile(r"[^a-z0-9]+")
#: Asset check → what it promises. One per thing that a verification looks at; see :func:`check_name`.
CHECKS: Mapping[str, str] = {
    "set_checksums": "Every byte of the set is what was sealed, and nothing was added.",
    "set_manifest": "The manifest is one of ours, of this set, and agrees with the checksums.",
    "postgres_archive": "pg_restore reads the dump to its end.",
    "postgres_rows": "Every table of the evidence is in the dump with exactly the rows that were counted.",
    "postgres_sequences": "Every sequence is in the dump with its value.",
    "postgres_objects": "Every constraint, index, trigger, view and function of the evidence is in the dump.",
    "postgres_content": "The rows and large objects are those that were written, by the digest of each table's data.",
    "postgres_schema": "Definitions, owners and grants are those that were written.",
    "postgres_roles": "The globals file creates every role that the dump needs.",
    "redis_archive": "gunzip reads the RDB to its end; it has the length and digest that it had.",
    "redis_rdb_format": "The RDB's header and checksum are sound.",
    "redis_loads": "A Redis server loads the RDB.",
    "redis_content": "Every key's name, value and expiry is as measured at the cut; functions too.",
    "qdrant_snapshot_structure": "Every snapshot file is whole.",
    "qdrant_snapshot_recovery": "A Qdrant server recovers every snapshot.",
    "qdrant_points": "Exact counts and the set of point ids agree.",
    "qdrant_payloads": "The payloads of all points agree.",
    "qdrant_vectors": "The vectors of all points agree.",
    "qdrant_configuration": "The configuration of every collection agrees.",
    "qdrant_payload_indexes": "The payload indexes agree.",
    "qdrant_sampled_points": "Sampled points agree, payload and vectors.",
    "qdrant_golden_searches": "Exact searches with vectors that are not stored points find the same points.",
    "qdrant_aliases": "Every alias stands for the collection that it stood for.",
}
#: Where a finding goes whose check has no name of its own here.
_FALLBACK: Mapping[str, str] = {
    "set": "set_checksums",
    "postgres": "postgres_archive",
    "redis": "redis_archive",
    "qdrant": "qdrant_snapshot_structure",
}


def check_name(finding: Finding) -> str:
    """The asset check that a finding belongs to: subject and name in the form that Dagster takes."""
    words = finding.check.name.removeprefix(f"{finding.subject}:").strip().lower()
    name = f"{finding.subject}_{_NOT_A_WORD.sub('_', words)}"
    return name if name in CHECKS else _FALLBACK[finding.subject]


class VerifyConfig(dg.Config):
    """``hash`` reads every byte; ``readable`` also opens every artifact in the store's own software."""

    level: str = "readable"


@dg.asset(
    key=VERIFIED,
    freshness_policy=FRESHNESS["verified"],
    deps=[SEALED],
    partitions_def=BACKUPS,
    group_name="backup",
    kinds={"file"},
    owners=OWNERS,
    check_specs=[dg.AssetCheckSpec(name, asset=VERIFIED, description=promise) for name, promise in CHECKS.items()],
    description="Every byte of the set compared with its checksums, every artifact opened and compared with its evidence.",
)
def verified(
    context: dg.AssetExecutionContext, config: VerifyConfig, estate: Estate
) -> Iterator[dg.MaterializeResult[None] | dg.AssetCheckResult]:
    with as_failure(), estate.services(context.log) as services:
        level = check_level(config.level)
        entry = services.catalogue.find(context.partition_key)
        report = verify(services, entry, level, run_id=context.run.run_id)
    yield from check_results(report)
    with as_failure():
        report.raise_if_failed()
    yield dg.MaterializeResult(asset_key=VERIFIED, metadata=report_metadata(report))


def check_level(value: str) -> Level:
    """The level that run config names; raises ConfigError for anything else."""
    for level in LEVELS:
        if level == value:
            return level
    raise ConfigError(f"verification level {value!r} does not exist", hint=f"Use one of: {', '.join(LEVELS)}.")


def check_results(report: VerifyReport) -> Iterator[dg.AssetCheckResult]:
    """One Dagster check result per declared check. What nobody here could judge is a warning, never a pass."""
    for name in CHECKS:
        findings = [f for f in report.findings if check_name(f) == name]
        yield _result(name, findings, report)


def _result(name: str, findings: list[Finding], report: VerifyReport) -> dg.AssetCheckResult:
    failed = [f for f in findings if f.check.passed is False]
    unjudged = [f for f in findings if f.check.passed is None]
    # A level that did not look, or a tool that is missing: not passed, and not an error either.
    known_good = bool(findings) and not failed and not unjudged
    looked = "; ".join(f.check.detail for f in failed or unjudged or findings)
    told = looked or f"not looked at by level {report.level}, or not reached because an earlier check failed"
    metadata: Metadata = {"level": report.level, "result": told}
    if len(findings) > 1:
        metadata["findings"] = table(_rows(findings))
    for finding in findings:
        metadata.update(finding.check.numbers)
    if differences := [d for f in findings for d in f.check.differences]:
        metadata["differences"] = table(
            {"what": d.what, "expected": d.expected, "found": d.found, "weight": d.severity} for d in differences
        )
    return dg.AssetCheckResult(
        asset_key=VERIFIED,
        check_name=name,
        passed=known_good,
        severity=dg.AssetCheckSeverity.ERROR if failed else dg.AssetCheckSeverity.WARN,
        metadata=metadata,
        description=told[:500],
    )


def _rows(findings: Iterable[Finding]) -> Iterator[dict[str, str | int | float | bool]]:
    words = {True: "passed", False: "FAILED", None: "not judged"}
    for finding in findings:
        yield {"check": finding.check.name, "result": words[finding.check.passed], "detail": finding.check.detail}


def report_metadata(report: VerifyReport) -> Metadata:
    """Numbers and the table of all checks."""
    return {
        "level": report.level,
        "size_bytes": report.bytes_read,
        "duration_s": round(report.seconds, 3),
        "throughput_mb_s": round(report.bytes_read / 1e6 / report.seconds, 3) if report.seconds > 0 else 0.0,
        "checks": table({"subject": f.subject, **row} for f, row in zip(report.findings, _rows(report.findings), strict=True)),
        "not_judged": len(report.unjudged),
        "path": dg.MetadataValue.path(str(report.directory)),
    }
