"""Take an RDB from a server and measure it: what a dump and a probe have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from scholaria_ops.catalogue.evidence.redis import RedisEvidence
from scholaria_ops.connections import RedisConnection
from scholaria_ops.errors import Refused, VerificationFailed
from scholaria_ops.stores.base import Context
from scholaria_ops.stores.redis.artifact import Raw, rdb_version, read_header
from scholaria_ops.stores.redis.info import ServerInfo, look
from scholaria_ops.stores.redis.measure import METHOD, Measure, Moves, prefixes_of
from scholaria_ops.stores.redis.scratch import Scratch
from scholaria_ops.stores.redis.sync import Form, NotStarted, Received, Replica, wait_for_children
from scholaria_ops.stores.redis.windows import Windows
from scholaria_ops.stores.redis.wire import connect

#: Windows begin at a multiple of this many seconds, so that two backups of one hour line up.
_ORIGIN_STEP = 300
_VERSION_BYTES = 9


@dataclass(frozen=True)
class Taken:
    """An RDB that has arrived whole in the scratch server's directory."""

    raw: Raw
    received: Received
    warnings: tuple[str, ...] = ()


class Intake:
    """Where the blocks of an RDB go: the scratch server's directory, the digest, and whoever else wants them."""

    def __init__(self, write: Sequence[Callable[[bytes], object]], *, readable: int, scratch_version: str, source_version: str) -> None:
        self.raw = Raw()
        self._write = tuple(write)
        self._readable = readable
        self._versions = (source_version, scratch_version)
        self._checked = False

    def __call__(self, block: bytes) -> None:
        self.raw.add(block)
        if not self._checked and self.raw.size >= _VERSION_BYTES:
            self._check()
        for write in self._write:
            write(block)

    def _check(self) -> None:
        """Stop at the first bytes of an RDB that the scratch server could not load in the end."""
        found = rdb_version(self.raw.head)
        if found > self._readable:
            raise too_new(found, self._versions[0], self._readable, self._versions[1])
        self._checked = True


def too_new(found: int, source_version: str, readable: int, scratch_version: str) -> Refused:
    """The refusal for an RDB that the local server cannot read."""
    return Refused(
        f"the server ({source_version}) writes RDB version {found}, but redis-server {scratch_version} here reads up to {readable}: "
        "a backup could not be proven",
        store="redis",
        hint="Install a redis-server here that is at least as new as the live one and name it in REDIS_SERVER.",
    )


def receive(
    connection: RedisConnection,
    form: Form,
    intake: Intake,
    ctx: Context,
    *,
    timeout_s: float,
    may_fall_back: bool,
    at_the_cut: Callable[[], None] = lambda: None,
) -> tuple[Received, tuple[str, ...]]:
    """Synchronise once; with ``may_fall_back`` a failed disk form is followed by the socket form."""
    try:
        with Replica(connection, form, timeout_s=timeout_s, cancel=ctx.cancel) as replica:
            at_the_cut()
            return replica.receive(intake), ()
    except NotStarted as exc:
        if not (may_fall_back and form == "disk" and intake.raw.size == 0):
            raise
        warning = f"{exc.message}; the RDB was then sent straight to the socket. The server may refuse writes until a BGSAVE succeeds"
    ctx.log.warning("%s", warning)
    with Replica(connection, "socket", timeout_s=timeout_s, cancel=ctx.cancel) as replica:
        return replica.receive(intake), (warning,)


def measure(
    scratch: Scratch,
    windows: Windows,
    ctx: Context,
    *,
    like: RedisEvidence | None,
    rules: Sequence[str],
    expired_before_ms: int = 0,
    renumber: Mapping[int, int] | None = None,
    moves: Moves | None = None,
) -> Measure:
    """Measure what a scratch server has loaded; ``like`` is the evidence that the result is to be compared with."""
    found = Measure(
        windows,
        prefixes=prefixes_of(like.keys) if like else None,
        rules=[rule.encode() for rule in (like.prefix_rules if like else rules)],
        renumber=renumber,
        expired_before_ms=expired_before_ms,
        moves=moves,
    )
    held = sum(scratch.keyspace().values())
    ctx.progress.start("redis: evidence", total=held, unit="keys")
    with scratch.commands() as file:
        found.read(file.blocks(), lambda keys: ctx.progress.advance("redis: evidence", keys))
    if found.total != held:
        raise VerificationFailed(
            f"the scratch Redis holds {held:,} keys but wrote {found.total:,}", store="redis", hint="The RDB is not what a Redis writes."
        )
    ctx.progress.finish("redis: evidence", f"{found.total:,} keys")
    return found


def origin_of(cut: datetime) -> int:
    return int(cut.timestamp()) // _ORIGIN_STEP * _ORIGIN_STEP


def build_evidence(
    taken: Taken,
    found: Measure,
    info: ServerInfo,
    scratch: Scratch,
    *,
    origin: int,
    rules: Sequence[str],
    acl: tuple[str, ...] | None,
    running: bool = False,
) -> RedisEvidence:
    """``running``: a running server was measured, in which keys go on expiring (a probe)."""
    header = read_header(taken.raw.head)
    received = taken.received
    return RedisEvidence(
        server_version=info.version,
        cut_at=received.cut_after,
        run_id=info.run_id,
        role="replica" if info.is_replica else "master",
        cut_uncertainty_s=received.uncertainty_s,
        form=received.form,
        rdb_version=header.version,
        rdb_checksum=taken.raw.checksum,
        rdb_aux=header.aux,
        method=METHOD,
        measured_with=scratch.version,
        window_origin=origin,
        prefix_rules=tuple(rules),
        # Keys expire by the server's clock, not by ours.
        expired_until=received.cut_before + timedelta(seconds=info.clock_ahead_s) if running else None,
        keys=found.rows(),
        expired_at_cut=found.expired,
        functions=tuple(sorted(found.functions, key=lambda f: f.name)),
        databases=info.databases,
        used_memory_bytes=info.number("used_memory"),
        maxmemory_bytes=info.number("maxmemory"),
        maxmemory_policy=info.info.get("maxmemory_policy", "unknown"),
        aof_enabled=info.aof,
        save_points=info.setting("save"),
        modules=info.modules,
        acl_users_not_kept=acl,
    )


def measure_running(
    connection: RedisConnection,
    evidence: RedisEvidence,
    ctx: Context,
    *,
    form: Form,
    timeout_s: float,
    renumber: Mapping[int, int] | None = None,
) -> RedisEvidence:
    """Measure a running server in the way ``evidence`` was measured: by its own RDB, in a scratch server.

    So nothing is asked of the server but SYNC, and DEBUG need not be allowed there. ``renumber`` reports a database
    under another number (staged ones under the numbers that they are staged for).
    """
    with connect(connection, timeout_s=timeout_s, cancel=ctx.cancel) as wire:
        info = look(wire)
    with Scratch(ctx, databases=info.databases, label="redis-probe") as scratch:
        with scratch.spool() as spool:
            wait_for_children(connection, patience_s=timeout_s, timeout_s=timeout_s, cancel=ctx.cancel)
            intake = Intake([spool.write], readable=scratch.rdb_version, scratch_version=scratch.version, source_version=info.version)
            received, warnings = receive(connection, form, intake, ctx, timeout_s=timeout_s, may_fall_back=True)
        scratch.load()
        origin = evidence.window_origin
        cut_ms = int(received.cut_after.timestamp() * 1000)
        found = measure(scratch, Windows(origin), ctx, like=evidence, rules=(), expired_before_ms=cut_ms, renumber=renumber)
        return build_evidence(
            Taken(intake.raw, received, warnings), found, info, scratch, origin=origin, rules=evidence.prefix_rules, acl=None, running=True
        )
