"""Verify a set: every byte of it (``hash``), or also that the stores' own software reads it (``readable``).

Nothing here touches a live store. The outcome is appended to the set's records with its time, good or bad.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, Protocol

from scholaria_ops.catalogue.evidence.base import StoreName
from scholaria_ops.catalogue.layout import MANIFEST, SUMS
from scholaria_ops.catalogue.manifest import Manifest
from scholaria_ops.catalogue.sets import Entry, Kind, expected_files, parse_sums
from scholaria_ops.errors import OpsError, UsageError, VerificationFailed
from scholaria_ops.files import Written, hash_file
from scholaria_ops.hashed import hash_unless_known
from scholaria_ops.operations.opened import Opened, recall
from scholaria_ops.operations.services import Services
from scholaria_ops.operations.verify_legacy import verify_legacy
from scholaria_ops.stores.base import Check, Context

Level = Literal["hash", "readable"]
LEVELS: tuple[Level, ...] = ("hash", "readable")
_MAX_SMALL_FILE = 64 << 20


class Hashing(Protocol):
    """How a file is hashed: :func:`hash_file`, or a way that may know the answer."""

    def __call__(self, path: Path, *, on_bytes: Callable[[int], None] | None = None) -> Written: ...


@dataclass(frozen=True, slots=True)
class Finding:
    """One check of a verification. ``subject`` is a store's name, or ``set`` for the whole."""

    subject: StoreName | Literal["set"]
    check: Check

    @property
    def name(self) -> str:
        return f"{self.subject}: {self.check.name.removeprefix(f'{self.subject}: ')}"


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """Outcome of one verification."""

    set_id: str
    directory: Path
    level: Level
    findings: tuple[Finding, ...]
    at: datetime
    seconds: float
    bytes_read: int
    #: Stores whose artifacts the run that made the set had opened before, and when; only their bytes were compared again.
    opened_before: Mapping[StoreName, datetime] = field(default_factory=dict)

    @property
    def failed(self) -> tuple[Finding, ...]:
        return tuple(f for f in self.findings if f.check.passed is False)

    @property
    def unjudged(self) -> tuple[Finding, ...]:
        return tuple(f for f in self.findings if f.check.passed is None)

    @property
    def passed(self) -> bool:
        """No check failed (some may not have been judged: see :attr:`unjudged`)."""
        return not self.failed

    def raise_if_failed(self) -> None:
        """Raise :class:`VerificationFailed` naming every failed check."""
        if self.failed:
            lines = "\n".join(f"  {f.name}: {f.check.detail}" for f in self.failed)
            raise VerificationFailed(
                f"the set {self.set_id} does not verify:\n{lines}",
                hint="Do not rely on this set; fetch it again from offsite, or use the next older verified one.",
            )


def verify(services: Services, entry: Entry, level: Level, *, run_id: str = "") -> VerifyReport:
    """Verify one set. A failed check is in the report, not an exception.

    The outcome is recorded, and the audit log tells of it, for sets of this catalogue only: one looked at elsewhere has both there.

    The run that made the set (by ``run_id``, in its own process) opens no artifact twice (see :mod:`.opened`), and reads
    none again that it read back for the sealing and that nobody has touched since (see :mod:`scholaria_ops.hashed`).

    Raises:
        UsageError: the entry is no set at all.
        Cancelled: told to stop; nothing was recorded.
    """
    if entry.kind is Kind.STRAY or entry.id is None:
        raise UsageError(f"{entry.directory} is no backup set: {entry.reason}")
    if not is_ours(services, entry):
        return _verify(services, entry, entry.id, level, run_id)
    with services.audited("verify", entry.id, run_id=run_id, level=level) as audited:
        report = _verify(services, entry, entry.id, level, run_id)
        _record(services, report, run_id)
        audited.note(bytes=report.bytes_read, checks=len(report.findings), not_judged=len(report.unjudged))
        if report.failed:
            audited.failed("; ".join(f"{f.name}: {f.check.detail}" for f in report.failed))
    return report


def _verify(services: Services, entry: Entry, set_id: str, level: Level, run_id: str) -> VerifyReport:
    began, at = time.monotonic(), services.now()
    before = recall(run_id, entry.directory) if run_id else {}
    with services.context(f"verify-{set_id}") as ctx:
        if entry.kind is Kind.LEGACY and entry.legacy:
            findings = [Finding(subject, check) for subject, check in verify_legacy(entry.legacy, level, ctx)]
            read = entry.legacy.size_bytes
        else:
            findings, read, before = _verify_set(services, entry, level, before, ctx)
    services.cancel.check()
    when = {name: opened.at for name, opened in before.items()}
    return VerifyReport(set_id, entry.directory, level, tuple(findings), at, time.monotonic() - began, read, when)


def _verify_set(
    services: Services, entry: Entry, level: Level, before: Mapping[StoreName, Opened], ctx: Context
) -> tuple[list[Finding], int, Mapping[StoreName, Opened]]:
    """Findings, bytes read, and what of ``before`` (see :mod:`.opened`) was used."""
    hashing: Hashing = hash_unless_known if before else hash_file
    findings, manifest, read = _hash_level(entry.directory, _sealed_digest(services, entry), ctx, hashing)
    if level != "readable":
        return findings, read, {}
    if manifest is None or any(f.check.passed is False for f in findings):
        # Never hand bytes to a store's tool that are not those we wrote: an archive can carry code.
        findings.append(Finding("set", Check("readable", None, "not opened, because the bytes are not those that were sealed")))
        return findings, read, {}
    before = {name: opened for name, opened in before.items() if opened.speaks_of(manifest.artifacts_of(name))}
    return findings + _readable_level(services, entry.directory, manifest, before, ctx), read, before


def hash_check(services: Services, entry: Entry, ctx: Context) -> None:
    """Compare every byte of a set with what was sealed, without recording it: for whoever is about to use the bytes.

    What this process has hashed a moment ago, and nobody has touched since, is not read again.

    Raises:
        VerificationFailed: naming every file that differs.
    """
    findings, _, read = _hash_level(entry.directory, _sealed_digest(services, entry), ctx, hash_unless_known)
    VerifyReport(str(entry.id), entry.directory, "hash", tuple(findings), services.now(), 0.0, read).raise_if_failed()


def _sealed_digest(services: Services, entry: Entry) -> str:
    sealed = services.catalogue.records.last(str(entry.id), "sealed") if is_ours(services, entry) else None
    return str(sealed.detail.get("sums_sha256", "")) if sealed else ""


def is_ours(services: Services, entry: Entry) -> bool:
    """Whether the set stands in this catalogue, which has records of it."""
    return entry.directory.parent.resolve() == services.catalogue.layout.root.resolve()


def _hash_level(
    directory: Path, sums_digest: str, ctx: Context, hashing: Hashing = hash_file
) -> tuple[list[Finding], Manifest | None, int]:
    """Every byte of the set against SHA256SUMS, that against its record, and the manifest against both."""
    sums_path = directory / SUMS
    try:
        if sums_path.stat().st_size > _MAX_SMALL_FILE:
            raise VerificationFailed(f"{SUMS} is far too large")
        data = sums_path.read_bytes()
        sums = parse_sums(data, source=SUMS)
    except FileNotFoundError:
        return [Finding("set", Check("checksums", False, f"{SUMS} is missing"))], None, 0
    except VerificationFailed as exc:
        return [Finding("set", Check("checksums", False, exc.message))], None, 0
    wrong = []
    own = hash_file(sums_path)
    if sums_digest and own.sha256 != sums_digest:
        wrong.append(f"{SUMS} is not the file that was sealed")
    found, read = _digests(directory, sums, ctx, hashing)
    wrong += list(_compare_sums(directory, sums, found))
    good = f"{len(sums)} files, {read:,} bytes as they were sealed"
    if hashing is not hash_file:
        good += "; what was read back a moment ago, and nobody has touched since, was not read again"
    findings = [Finding("set", Check("checksums", not wrong, "; ".join(wrong) or good))]
    manifest, manifest_findings = _manifest_agrees(directory, sums, found)
    return findings + manifest_findings, manifest, read + own.size


def _digests(directory: Path, sums: dict[str, str], ctx: Context, hashing: Hashing) -> tuple[dict[str, str], int]:
    paths = [p for p in sums if (directory / p).is_file() and not (directory / p).is_symlink()]
    ctx.progress.start("hash", total=sum((directory / p).stat().st_size for p in paths))

    def one(path: str) -> tuple[str, str, int]:
        ctx.cancel.check()
        written = hashing(directory / path, on_bytes=lambda n: _tick(ctx, n))
        return path, written.sha256, written.size

    # Hashing releases the interpreter's lock: two threads keep two cores busy.
    with ThreadPoolExecutor(max_workers=2, thread_name_prefix="hash") as pool:
        results = list(pool.map(one, paths))
    ctx.progress.finish("hash", f"{len(results)} files")
    return {path: digest for path, digest, _ in results}, sum(size for _, _, size in results)


def _tick(ctx: Context, amount: int) -> None:
    ctx.cancel.check()
    ctx.progress.advance("hash", amount)


def _compare_sums(directory: Path, sums: dict[str, str], found: dict[str, str]) -> Iterator[str]:
    for path, digest in sums.items():
        if path not in found:
            yield f"{path} is missing"
        elif found[path] != digest:
            yield f"{path} is not what was sealed (SHA-256 {found[path][:12]}… instead of {digest[:12]}…)"
    for present in sorted(directory.rglob("*")):
        relative = present.relative_to(directory).as_posix()
        if relative not in sums and relative != SUMS and (present.is_symlink() or not present.is_dir()):
            yield f"{relative} does not belong to the set"


def _manifest_agrees(directory: Path, sums: dict[str, str], found: dict[str, str]) -> tuple[Manifest | None, list[Finding]]:
    try:
        manifest = Manifest.read(directory / MANIFEST)
    except OpsError as exc:
        return None, [Finding("set", Check("manifest", False, exc.message))]
    wrong = [f"{p} is not covered by {SUMS}" for p in sorted(expected_files(manifest) - sums.keys())]
    wrong += [f"{p} is in {SUMS}, but not in the manifest" for p in sorted(sums.keys() - expected_files(manifest))]
    for artifact in manifest.artifacts:
        if artifact.path in found and found[artifact.path] != artifact.sha256:
            wrong.append(f"{artifact.path} differs from its digest in the manifest")
    name = directory.name.rpartition("_backup_")[2] if "_backup_" in directory.name else directory.name.rpartition("_partial_")[2]
    if manifest.id != name:
        wrong.append(f"the manifest is of set {manifest.id}")
    return manifest, [
        Finding("set", Check("manifest", not wrong, "; ".join(wrong) or f"format {manifest.format_version}, agrees with {SUMS}"))
    ]


def _readable_level(
    services: Services, directory: Path, manifest: Manifest, before: Mapping[StoreName, Opened], ctx: Context
) -> list[Finding]:
    def one(item: tuple[StoreName, Any]) -> list[Finding]:
        name, part = item
        if name in before:
            return [Finding(name, check) for check in before[name].checks]
        scratch = ctx.scratch / name
        scratch.mkdir(mode=0o700)
        checks = services.stores[name].inspect(directory, manifest.artifacts_of(name), part.evidence, replace(ctx, scratch=scratch))
        return [Finding(name, check) for check in checks]

    with ThreadPoolExecutor(max_workers=3, thread_name_prefix="inspect") as pool:
        return [finding for group in pool.map(one, manifest.parts()) for finding in group]


def _record(services: Services, report: VerifyReport, run_id: str) -> None:
    services.catalogue.records.append(
        report.set_id,
        "verified",
        run_id=run_id,
        at=report.at,
        level=report.level,
        passed=report.passed,
        seconds=round(report.seconds, 3),
        bytes=report.bytes_read,
        **({"opened_before": {name: at.isoformat() for name, at in report.opened_before.items()}} if report.opened_before else {}),
        checks=[
            {
                "subject": f.subject,
                "name": f.check.name,
                "passed": f.check.passed,
                "detail": f.check.detail,
                "numbers": dict(f.check.numbers),
            }
            for f in report.findings
        ],
        failed=[{"check": f.name, "detail": f.check.detail} for f in report.failed],
        unjudged=[{"check": f.name, "detail": f.check.detail} for f in report.unjudged],
    )
