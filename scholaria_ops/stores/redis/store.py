"""The Redis store: an exact RDB over the network, proven by loading it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

from scholaria_ops.catalogue.artifacts import Artifact
from scholaria_ops.catalogue.evidence.base import Difference, StoreName
from scholaria_ops.catalogue.evidence.redis import RedisEvidence
from scholaria_ops.connections import RedisConnection
from scholaria_ops.files import Written
from scholaria_ops.sandbox.redis import RedisServer
from scholaria_ops.stores.base import Check, Context, Dump, Facts, Loaded
from scholaria_ops.stores.redis.artifact import GzipWriter
from scholaria_ops.stores.redis.compare import compare
from scholaria_ops.stores.redis.info import ServerInfo, acl_users, look
from scholaria_ops.stores.redis.inspect import inspect, opened
from scholaria_ops.stores.redis.manual import manual_restore
from scholaria_ops.stores.redis.preflight import preflight, refuse_unfit
from scholaria_ops.stores.redis.restore import load_into_empty
from scholaria_ops.stores.redis.scratch import Scratch
from scholaria_ops.stores.redis.sync import Form, SyncMode, choose_form, wait_for_children
from scholaria_ops.stores.redis.take import Intake, Taken, build_evidence, measure, measure_running, origin_of, receive
from scholaria_ops.stores.redis.windows import Windows
from scholaria_ops.stores.redis.wire import connect

_DUMP = "redis: dump"


class RedisStore:
    """One Redis server, all its databases. Implements :class:`scholaria_ops.stores.base.Store`.

    Args:
        connection: the live server.
        sync_mode: how the server makes the RDB: ``auto`` (see :func:`choose_form`), ``socket`` or ``disk``.
        timeout_s: longest silence (seconds) of a living server. While it prepares an RDB it sends newlines.
        gzip_level: 0 to 3 (isal); 1 is the fastest (measured on embeddings and small keys: level 3 is 1 % smaller).
        prefix_rules: prefixes to count apart although no ``:`` ends them.
        busy_patience_s: how long to wait for a BGSAVE or AOF rewrite that the server is already at.
    """

    name: StoreName = "redis"

    def __init__(
        self,
        connection: RedisConnection,
        *,
        sync_mode: SyncMode = "auto",
        timeout_s: float = 60.0,
        gzip_level: int = 1,
        prefix_rules: Sequence[str] = (),
        busy_patience_s: float = 120.0,
    ) -> None:
        self._connection = connection
        self._mode: SyncMode = sync_mode
        self._timeout_s = timeout_s
        self._gzip_level = gzip_level
        self._rules = tuple(prefix_rules)
        self._busy_patience_s = busy_patience_s

    @property
    def where(self) -> str:
        return self._connection.where

    def preflight(self, ctx: Context) -> Facts:
        return preflight(self._connection, self._mode, ctx, timeout_s=self._timeout_s)

    def dump(self, into: Path, set_id: str, ctx: Context) -> Dump[RedisEvidence]:
        started_at = datetime.now(UTC)
        info, acl = self._look(ctx)
        form, _ = choose_form(info, self._mode)
        path = into / f"redis_{set_id}.rdb.gz"
        with ExitStack() as stack:
            scratch = stack.enter_context(Scratch(ctx, databases=info.databases))
            out = stack.enter_context(GzipWriter(path, level=self._gzip_level))
            taken = self._take(scratch, info, form, ctx, out)
            origin = origin_of(taken.received.cut_after)
            scratch.load()
            found = measure(
                scratch,
                Windows(origin),
                ctx,
                like=None,
                rules=self._rules,
                expired_before_ms=int(taken.received.cut_after.timestamp() * 1000),
            )
            evidence = build_evidence(taken, found, info, scratch, origin=origin, rules=self._rules, acl=acl)
            artifact = _artifact(out.finish(), taken)
            ctx.written(artifact)
            checks = opened(into, artifact, evidence, scratch, found, ctx)
        tools = {"redis-server": scratch.version}
        return Dump((artifact,), evidence, started_at, datetime.now(UTC), tools, taken.warnings, tuple(checks))

    def _look(self, ctx: Context) -> tuple[ServerInfo, tuple[str, ...] | None]:
        with connect(self._connection, timeout_s=self._timeout_s, cancel=ctx.cancel) as wire:
            info = look(wire)
            refuse_unfit(info, self.where)
            return info, acl_users(wire)

    def _take(self, scratch: Scratch, info: ServerInfo, form: Form, ctx: Context, out: GzipWriter) -> Taken:
        wait_for_children(self._connection, patience_s=self._busy_patience_s, timeout_s=self._timeout_s, cancel=ctx.cancel)
        ctx.progress.start(_DUMP)
        with scratch.spool() as spool:
            intake = Intake(
                [spool.write, out.write, lambda block: ctx.progress.advance(_DUMP, len(block))],
                readable=scratch.rdb_version,
                scratch_version=scratch.version,
                source_version=info.version,
            )
            received, warnings = receive(
                self._connection,
                form,
                intake,
                ctx,
                timeout_s=self._timeout_s,
                may_fall_back=self._mode == "auto",
                at_the_cut=ctx.at_the_cut,
            )
        ctx.progress.finish(_DUMP, f"{received.size:,} bytes by way of the {received.form}")
        return Taken(intake.raw, received, warnings)

    def inspect(self, directory: Path, artifacts: Sequence[Artifact], evidence: RedisEvidence, ctx: Context) -> list[Check]:
        return inspect(directory, artifacts, evidence, ctx)

    def load(self, directory: Path, artifacts: Sequence[Artifact], evidence: RedisEvidence, target: RedisServer, ctx: Context) -> Loaded:
        return load_into_empty(directory, artifacts, evidence, target.connection, ctx, timeout_s=self._timeout_s)

    def probe(self, target: RedisServer, evidence: RedisEvidence, ctx: Context) -> RedisEvidence:
        # A server of our own sandbox, which nobody else waits for: no delay, and no compression, which takes most of the
        # time of a save (measured: 114 MB in 0.7 s instead of 75 MB in 2.4 s).
        with connect(target.connection, timeout_s=self._timeout_s, cancel=ctx.cancel) as wire:
            wire.call("CONFIG", "SET", "repl-diskless-sync-delay", "0")
            wire.call("CONFIG", "SET", "rdbcompression", "no")
        return measure_running(target.connection, evidence, ctx, form="socket", timeout_s=self._timeout_s)

    def compare(self, expected: RedisEvidence, found: RedisEvidence) -> list[Difference]:
        return compare(expected, found)

    def reap(self, ctx: Context) -> list[str]:
        # A killed run leaves nothing on the server: its replica connection ends with it, and no file is ours there.
        # Scratch servers are reaped by the sandbox.
        return []

    def manual_restore(self, artifacts: Sequence[Artifact]) -> str:
        return manual_restore(artifacts)


def _artifact(written: Written, taken: Taken) -> Artifact:
    return Artifact(
        store="redis",
        kind="rdb",
        path=written.path.name,
        size_bytes=written.size,
        sha256=written.sha256,
        compression="gzip",
        raw_size_bytes=taken.raw.size,
        raw_sha256=taken.raw.sha256,
        subject="all databases",
    )
