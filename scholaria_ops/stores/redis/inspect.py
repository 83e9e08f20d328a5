"""Read an RDB artifact in full, load it, and compare it with the evidence, key for key."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from scholaria_ops.cancel import CancelToken
from scholaria_ops.catalogue.artifacts import Artifact
from scholaria_ops.catalogue.evidence.redis import RedisEvidence
from scholaria_ops.errors import ToolMissing, VerificationFailed
from scholaria_ops.stores.base import Check, Context
from scholaria_ops.stores.redis.artifact import Raw, read_header, unpack
from scholaria_ops.stores.redis.compare import compare
from scholaria_ops.stores.redis.measure import METHOD, Measure
from scholaria_ops.stores.redis.scratch import Scratch, UnreadableRdb
from scholaria_ops.stores.redis.take import measure
from scholaria_ops.stores.redis.windows import Windows

ARCHIVE = "redis: archive"
FORMAT = "redis: RDB format"
LOADS = "redis: loads"
CONTENT = "redis: content"


def inspect(directory: Path, artifacts: Sequence[Artifact], evidence: RedisEvidence, ctx: Context) -> list[Check]:
    """Checks of the one RDB artifact among ``artifacts``; the later ones are left out once an earlier one failed."""
    rdbs = [a for a in artifacts if a.kind == "rdb"]
    if len(rdbs) != 1:
        return [Check(ARCHIVE, False, f"the set names {len(rdbs)} RDB files, there must be one")]
    with ExitStack() as stack:
        scratch, lacking = _scratch(evidence, ctx, stack)
        checks = _outer(directory, rdbs[0], evidence, scratch, ctx)
        if not all(check.passed for check in checks):
            return checks
        if scratch is None:
            return [*checks, Check(LOADS, None, lacking), Check(CONTENT, None, lacking)]
        return [*checks, *_inner(scratch, evidence, ctx)]


def opened(directory: Path, artifact: Artifact, evidence: RedisEvidence, scratch: Scratch, found: Measure, ctx: Context) -> list[Check]:
    """The checks of :func:`inspect` for an artifact of which ``scratch`` has just loaded the RDB: its dump's.

    The file is uncompressed in full here: it holds the very RDB that was loaded and measured, by its SHA-256.
    """
    checks = _outer(directory, artifact, evidence, None, ctx)
    return [*checks, _loads(scratch, found.total), _content(evidence, found, scratch)] if all(c.passed for c in checks) else checks


def _scratch(evidence: RedisEvidence, ctx: Context, stack: ExitStack) -> tuple[Scratch | None, str]:
    """A scratch server that can judge this set, or why there is none."""
    try:
        ctx.tools.require_redis()
    except ToolMissing as exc:
        return None, f"needs a redis-server: {exc.message}. {exc.hint}"
    scratch = stack.enter_context(Scratch(ctx, databases=_databases(evidence)))
    readable = scratch.rdb_version
    if evidence.rdb_version > readable:
        return None, (
            f"needs a redis-server that reads RDB version {evidence.rdb_version} (the source was {evidence.server_version}); "
            f"redis-server {scratch.version} here reads up to {readable}"
        )
    if evidence.method != METHOD:
        return None, f"was measured by {evidence.method!r}, which this version of the product does not know (it knows {METHOD!r})"
    return scratch, ""


def _databases(evidence: RedisEvidence) -> int | None:
    return max(evidence.databases, *evidence.per_database(), 0) + 1 if evidence.databases else None


def _outer(directory: Path, artifact: Artifact, evidence: RedisEvidence, scratch: Scratch | None, ctx: Context) -> list[Check]:
    """Uncompress in full (into the scratch server's directory, when there is one) and look at the RDB's outer parts."""
    raw = Raw()
    try:
        with ExitStack() as stack:
            write: Callable[[bytes], object] = stack.enter_context(scratch.spool()).write if scratch else _nowhere
            unpack_into(directory / artifact.path, raw, write, ctx.cancel)
    except (VerificationFailed, FileNotFoundError) as exc:
        return [Check(ARCHIVE, False, str(exc))]
    return [_archive(raw, artifact), _format(raw, evidence)]


def _nowhere(_: bytes) -> None:
    return


def unpack_into(path: Path, raw: Raw, write: Callable[[bytes], object], cancel: CancelToken) -> None:
    """Uncompress an artifact into ``write``, measuring what passes by. Raises VerificationFailed."""
    for block in unpack(path, cancel=cancel):
        raw.add(block)
        write(block)


def _archive(raw: Raw, artifact: Artifact) -> Check:
    if (raw.size, raw.sha256) != (artifact.raw_size_bytes, artifact.raw_sha256):
        return Check(
            ARCHIVE,
            False,
            f"{artifact.path} uncompresses to {raw.size:,} bytes with SHA-256 {raw.sha256}, expected {artifact.raw_size_bytes:,} bytes "
            f"with {artifact.raw_sha256}",
        )
    return Check(
        ARCHIVE, True, f"{artifact.path}: gunzip read all of it, the RDB is as long as it was and has its SHA-256", {"bytes": raw.size}
    )


def _format(raw: Raw, evidence: RedisEvidence) -> Check:
    try:
        header = read_header(raw.head)
    except VerificationFailed as exc:
        return Check(FORMAT, False, exc.message)
    problems = []
    if header.version != evidence.rdb_version:
        problems.append(f"version {header.version}, expected {evidence.rdb_version}")
    if not raw.whole:
        problems.append("it does not end as an RDB does")
    if raw.checksum != evidence.rdb_checksum:
        problems.append("its checksum was removed" if evidence.rdb_checksum else "it has a checksum where the source wrote none")
    if problems:
        return Check(FORMAT, False, "RDB: " + "; ".join(problems), {"rdb_version": header.version})
    checksum = "with a checksum" if raw.checksum else "without a checksum of its own (rdbchecksum no)"
    return Check(FORMAT, True, f"RDB version {header.version}, {checksum}", {"rdb_version": header.version})


def _inner(scratch: Scratch, evidence: RedisEvidence, ctx: Context) -> list[Check]:
    try:
        keys = scratch.load()
    except UnreadableRdb as exc:
        return [Check(LOADS, False, exc.message)]
    loads = _loads(scratch, keys)
    try:
        found = measure(scratch, Windows(evidence.window_origin), ctx, like=evidence, rules=())
    except VerificationFailed as exc:
        return [loads, Check(CONTENT, False, str(exc))]
    return [loads, _content(evidence, found, scratch)]


def _loads(scratch: Scratch, keys: int) -> Check:
    return Check(LOADS, True, f"redis-server {scratch.version} loaded {keys:,} keys", {"keys": keys, "seconds": scratch.seconds["load"]})


def _content(evidence: RedisEvidence, found: Measure, scratch: Scratch) -> Check:
    """Expired keys count too: the scratch server keeps them, so nothing is left to time."""
    functions = tuple(sorted(found.functions, key=lambda f: f.name))
    measured = evidence.model_copy(update={"keys": found.rows(), "functions": functions, "measured_with": scratch.version})
    differences = tuple(d for d in compare(evidence.model_copy(update={"expired_until": None}), measured))
    if differences:
        return Check(CONTENT, False, f"differs from the evidence: {differences[0]}", {"keys": found.total}, differences)
    return Check(
        CONTENT,
        True,
        f"{found.total:,} keys: every name, value and expiry as measured at the cut; {len(functions)} function libraries",
        {"keys": found.total, "functions": len(functions)},
    )
