"""Load an artifact into a server that holds nothing: what a rehearsal does, with the code that production uses."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from scholaria_ops.catalogue.artifacts import Artifact
from scholaria_ops.catalogue.evidence.redis import RedisEvidence
from scholaria_ops.connections import RedisConnection
from scholaria_ops.errors import Refused, StoreError, VerificationFailed
from scholaria_ops.stores.base import Context, Loaded
from scholaria_ops.stores.redis.artifact import Raw, rdb_version
from scholaria_ops.stores.redis.info import ServerInfo, look, rdb_version_written_by
from scholaria_ops.stores.redis.inspect import unpack_into
from scholaria_ops.stores.redis.load import libraries, make_durable, restore_functions, stage_into, swap_in
from scholaria_ops.stores.redis.scratch import Scratch
from scholaria_ops.stores.redis.wire import connect


@contextmanager
def loaded_scratch(path: Path, artifact: Artifact, ctx: Context, *, databases: int | None) -> Iterator[Scratch]:
    """A scratch server that has loaded an artifact, whose digest is checked on the way.

    Raises:
        VerificationFailed: the artifact is damaged, or not the one that was recorded.
    """
    raw = Raw()
    with Scratch(ctx, databases=databases, label="redis-load") as scratch:
        began = time.monotonic()
        with scratch.spool() as spool:
            unpack_into(path, raw, spool.write, ctx.cancel)
        rdb_version(raw.head)
        if (raw.size, raw.sha256) != (artifact.raw_size_bytes, artifact.raw_sha256):
            raise VerificationFailed(f"{artifact.path} is not the file that was recorded: its RDB has SHA-256 {raw.sha256}", store="redis")
        scratch.seconds["unpack"] = time.monotonic() - began
        scratch.load()
        yield scratch


def load_into_empty(
    directory: Path,
    artifacts: Sequence[Artifact],
    evidence: RedisEvidence,
    target: RedisConnection,
    ctx: Context,
    *,
    timeout_s: float,
) -> Loaded:
    """Stage beside, swap in, restore functions, make durable; refuses a target that holds anything or is too old."""
    (artifact,) = [a for a in artifacts if a.kind == "rdb"]
    with connect(target, timeout_s=timeout_s, cancel=ctx.cancel) as wire:
        before = look(wire)
        refuse_target(before, evidence, wire.where)
    used = evidence.per_database()
    mapping = spare_databases(used, before)
    there = before.databases or 16
    with loaded_scratch(directory / artifact.path, artifact, ctx, databases=max(there, max(used, default=0) + 1)) as scratch:
        code = libraries(scratch)
        streams = sorted({row.db for row in evidence.keys if row.type == "stream"})
        try:
            staged = stage_into(target, scratch, mapping, ctx, timeout_s=timeout_s, streams_in=streams)
        except StoreError:
            _refuse_evictions(target, before, evidence, ctx, timeout_s=timeout_s)  # the likelier reason, if there were any
            raise
        seconds = {**scratch.seconds, **staged.seconds}
    seconds["swap"] = swap_in(target, mapping, ctx, timeout_s=timeout_s)
    restore_functions(target, code, ctx, timeout_s=timeout_s)
    seconds["durable"], warnings = make_durable(target, ctx, timeout_s=timeout_s)
    _refuse_evictions(target, before, evidence, ctx, timeout_s=timeout_s)
    return Loaded(seconds, (*staged.warnings, *warnings))


def _refuse_evictions(target: RedisConnection, before: ServerInfo, evidence: RedisEvidence, ctx: Context, *, timeout_s: float) -> None:
    with connect(target, timeout_s=timeout_s, cancel=ctx.cancel) as wire:
        evicted = look(wire, config=False).number("evicted_keys") - before.number("evicted_keys")
    if evicted > 0:
        raise StoreError(
            f"Redis at {target.where} evicted {evicted:,} keys while they were loaded: its maxmemory is too small",
            store="redis",
            hint=f"The data need about {evidence.used_memory_bytes:,} bytes.",
        )


def refuse_target(info: ServerInfo, evidence: RedisEvidence, where: str) -> None:
    """Raise unless that server is empty and can take this data set."""
    if info.keyspace:
        counts = ", ".join(f"database {db}: {keys:,} keys" for db, keys in info.keyspace.items())
        raise Refused(f"Redis at {where} is not empty ({counts})", store="redis", hint="Load into an empty server.")
    reads = rdb_version_written_by(info)
    if reads is not None and evidence.rdb_version > reads:
        raise Refused(
            f"the backup is of Redis {evidence.server_version} (RDB version {evidence.rdb_version}), "
            f"but {info.product} {info.version} at {where} reads RDB versions up to {reads}",
            store="redis",
            hint="Restore into a server at least as new as the source.",
        )
    highest = max(evidence.per_database(), default=0)
    if info.databases is not None and highest >= info.databases:
        raise Refused(
            f"the backup has keys in database {highest}, but Redis at {where} is configured for {info.databases} databases",
            store="redis",
            hint="Raise its setting 'databases'.",
        )
    limit = info.number("maxmemory")
    if limit and limit < evidence.used_memory_bytes:
        raise Refused(
            f"Redis at {where} has maxmemory {limit:,}, the data used {evidence.used_memory_bytes:,} bytes at the source",
            store="redis",
            hint="Raise maxmemory: with an eviction policy restored keys would vanish at once, without one the load would fail.",
        )


def spare_databases(used: Mapping[int, int], info: ServerInfo) -> dict[int, int]:
    """Where to stage each database: the highest ones that are free on both sides, or its own number if there are too few."""
    free = [db for db in range((info.databases or 16) - 1, -1, -1) if db not in used and db not in info.keyspace]
    if len(free) < len(used):
        return {db: db for db in used}
    return dict(zip(sorted(used), free, strict=False))
