"""Bring a prepared dataset beside what is served, and prove what has arrived."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC, datetime

from scholaria_ops.catalogue.evidence.base import Difference
from scholaria_ops.catalogue.evidence.redis import RedisEvidence, RedisFunctionLibrary
from scholaria_ops.errors import Refused, StoreError, VerificationFailed
from scholaria_ops.stores.base import Context
from scholaria_ops.stores.redis import load
from scholaria_ops.stores.redis.compare import compare
from scholaria_ops.stores.redis.info import ServerInfo, look
from scholaria_ops.stores.redis.live.journal import STAGED, Crossing, Journal
from scholaria_ops.stores.redis.live.link import Link
from scholaria_ops.stores.redis.live.read_back import Undecided, compare_with_sent
from scholaria_ops.stores.redis.live.swap import forbid_eviction
from scholaria_ops.stores.redis.measure import Measure, Moves
from scholaria_ops.stores.redis.scratch import Scratch
from scholaria_ops.stores.redis.sync import choose_form, wait_for_children
from scholaria_ops.stores.redis.take import Intake, Taken, build_evidence, measure, receive
from scholaria_ops.stores.redis.windows import Windows
from scholaria_ops.stores.redis.wire import Wire

_SHOWN = 3


def prove(scratch: Scratch, evidence: RedisEvidence, ctx: Context, moves: Moves | None = None) -> RedisEvidence:
    """Compare what a scratch server has loaded with its evidence, expired keys included.

    Returns:
        The evidence of what it will hold once ``moves`` has come about.

    Raises:
        VerificationFailed: naming the first differences.
    """
    measure_ = measure(scratch, Windows(evidence.window_origin), ctx, like=evidence, rules=evidence.prefix_rules, moves=moves)
    found = _evidence_of(measure_, scratch, evidence)
    exact = evidence.model_copy(update={"expired_until": None})
    losses = [d for d in compare(exact, found.model_copy(update={"expired_until": None})) if d.severity == "loss"]
    if losses:
        raise VerificationFailed(
            f"the set's RDB is not what its evidence says: {'; '.join(map(str, losses[:_SHOWN]))}",
            store="redis",
            hint="Verify the set and restore another one; the live store was not touched.",
        )
    return found.model_copy(update={"keys": measure_.rows_after()})


def measured(scratch: Scratch, evidence: RedisEvidence, ctx: Context, *, like: RedisEvidence | None) -> RedisEvidence:
    """Evidence of what a scratch server holds now, laid out as ``evidence`` is."""
    found = measure(scratch, Windows(evidence.window_origin), ctx, like=like, rules=evidence.prefix_rules)
    return _evidence_of(found, scratch, evidence)


def _evidence_of(found: Measure, scratch: Scratch, evidence: RedisEvidence) -> RedisEvidence:
    update = {"keys": found.rows(), "functions": _sorted(found.functions), "measured_with": scratch.version}
    return evidence.model_copy(update=update)


def _sorted(functions: list[RedisFunctionLibrary]) -> tuple[RedisFunctionLibrary, ...]:
    return tuple(sorted(functions, key=lambda f: f.name))


def begin(wire: Wire, crossing: Crossing, journal: Journal) -> None:
    """Write down, mark the server, forbid eviction. From here on :func:`~.crossing.take_back` has something to do.

    Raises:
        Refused: a database that was to be used has keys by now. Nothing was changed.
    """
    taken = look(wire, config=False).keyspace.keys() & {crossing.ledger, *crossing.spares.values()}
    if taken:
        raise Refused(
            f"database(s) {sorted(taken)} of Redis at {wire.where} were empty when the restore was planned and are not any more",
            store="redis",
            hint="Plan again.",
        )
    journal.open(crossing)
    wire.call("SELECT", crossing.ledger)
    wire.call("SET", STAGED, crossing.marker(journal.restore_id))
    if crossing.policy:
        forbid_eviction(wire)


def send(
    link: Link, scratch: Scratch, crossing: Crossing, expected: RedisEvidence, ctx: Context
) -> tuple[dict[str, float], tuple[Difference, ...], tuple[str, ...]]:
    """Send what ``scratch`` holds into the spares, read it back, compare; returns seconds, notes and warnings.

    Raises:
        VerificationFailed: what has arrived is not what was sent.
        StoreError: the server refused a command, or evicted keys.
    """
    with link.wire(ctx) as wire:
        before = look(wire)
    streams = sorted({row.db for row in expected.keys if row.type == "stream"})
    staged = load.stage_into(link.connection, scratch, crossing.spares, ctx, timeout_s=link.timeout_s, streams_in=streams)
    began = time.monotonic()
    notes = _read_back(link, scratch, crossing, expected, ctx)
    with link.wire(ctx) as wire:
        _refuse_evictions(before, look(wire, config=False), link.where)
    seconds = {**staged.seconds, "prove": time.monotonic() - began}
    return seconds, notes, staged.warnings


def _read_back(link: Link, scratch: Scratch, crossing: Crossing, expected: RedisEvidence, ctx: Context) -> tuple[Difference, ...]:
    """Prove what has arrived: key by key, or where a key cannot be judged alone by measuring the target as a backup does."""
    numbers = {spare: served for served, spare in crossing.pairs}
    try:
        with link.wire(ctx) as wire:
            compare_with_sent(wire, scratch, numbers, ctx)
        return ()
    except Undecided as exc:
        ctx.log.info("redis: the staged copy is measured as a whole, because of key %r", exc.args[0])
    found = measure_part(link, expected, numbers, ctx)
    # Functions belong to no database: they come with the switch.
    differences = compare(expected, found.model_copy(update={"functions": expected.functions}))
    losses = [d for d in differences if d.severity == "loss"]
    if losses:
        raise VerificationFailed(
            f"what was staged on Redis at {link.where} is not what was sent: {'; '.join(map(str, losses[:_SHOWN]))}", store="redis"
        )
    return tuple(d for d in differences if "version" not in d.what)


def _refuse_evictions(before: ServerInfo, after: ServerInfo, where: str) -> None:
    evicted = after.number("evicted_keys") - before.number("evicted_keys")
    if evicted > 0:
        raise StoreError(
            f"Redis at {where} evicted {evicted:,} keys while the copy was staged: somebody changed its eviction policy",
            store="redis",
            hint="Plan again; its maxmemory must hold both copies.",
        )


def measure_part(
    link: Link,
    like: RedisEvidence,
    numbers: Mapping[int, int] | None,
    ctx: Context,
    *,
    without: frozenset[int] = frozenset(),
) -> RedisEvidence:
    """Evidence of some databases of a running server, taken by its own RDB.

    Args:
        numbers: database there → number to report; all others are left out. None: all, under their own numbers.
        without: databases to leave out.
    """
    with Scratch(ctx, databases=_databases(link, ctx), label="redis-read-back") as scratch:
        taken, info = receive_into(scratch, link, ctx)
        scratch.load()
        forget(scratch, {db for db in scratch.keyspace() if db in without or (numbers is not None and db not in numbers)})
        found = measure(
            scratch, Windows(like.window_origin), ctx, like=like, rules=(), renumber=numbers, expired_before_ms=int(time.time() * 1000)
        )
        return build_evidence(taken, found, info, scratch, origin=like.window_origin, rules=like.prefix_rules, acl=None, running=True)


def _databases(link: Link, ctx: Context) -> int | None:
    with link.wire(ctx) as wire:
        return look(wire).databases


def receive_into(scratch: Scratch, link: Link, ctx: Context) -> tuple[Taken, ServerInfo]:
    """Spool a running server's RDB into a scratch server's directory."""
    with link.wire(ctx) as wire:
        info = look(wire)
    wait_for_children(link.connection, patience_s=link.timeout_s, timeout_s=link.timeout_s, cancel=ctx.cancel)
    form, _ = choose_form(info, link.sync_mode)
    with scratch.spool() as spool:
        intake = Intake([spool.write], readable=scratch.rdb_version, scratch_version=scratch.version, source_version=info.version)
        received, warnings = receive(link.connection, form, intake, ctx, timeout_s=link.timeout_s, may_fall_back=link.sync_mode == "auto")
    return Taken(intake.raw, received, warnings), info


def forget(scratch: Scratch, databases: set[int]) -> None:
    """Empty databases of a scratch server."""
    for db in sorted(databases):
        scratch.wire.call("SELECT", db)
        scratch.wire.call("FLUSHDB", "ASYNC")


def as_of_now(evidence: RedisEvidence) -> RedisEvidence:
    """Evidence of data that are served from now on: keys that expire later are no loss."""
    return evidence.model_copy(update={"expired_until": datetime.now(UTC)})
