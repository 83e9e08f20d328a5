"""Redis, restored live: staged in spare databases, exchanged in one transaction, kept as an RDB."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

from scholaria_ops.catalogue.evidence.base import StoreName
from scholaria_ops.catalogue.evidence.redis import RedisEvidence
from scholaria_ops.connections import RedisConnection
from scholaria_ops.errors import OpsError, Refused, StoreError, VerificationFailed
from scholaria_ops.profiles.scholaria import KeyAction
from scholaria_ops.stores.base import Context
from scholaria_ops.stores.live import Effect, Notebook, RolledBack, Source, Staged, Standing, Switched
from scholaria_ops.stores.redis.info import ServerInfo, look
from scholaria_ops.stores.redis.live import crossing as crossings
from scholaria_ops.stores.redis.live.budget import server_needs
from scholaria_ops.stores.redis.live.classes import Classes, Leaving, apply
from scholaria_ops.stores.redis.live.journal import Crossing, Journal, Kept
from scholaria_ops.stores.redis.live.keep import keys_of, opened
from scholaria_ops.stores.redis.live.later import later_writes
from scholaria_ops.stores.redis.live.link import Link
from scholaria_ops.stores.redis.live.plan import (
    RedisPlan,
    choose_databases,
    count_databases,
    make_plan,
    memory_of,
    over_budget,
    policy_to_change,
    too_few,
    unfit,
)
from scholaria_ops.stores.redis.live.staging import as_of_now, begin, measured, prove, send
from scholaria_ops.stores.redis.live.standing import standing
from scholaria_ops.stores.redis.live.swap import function_code
from scholaria_ops.stores.redis.live.tasks import QueuedTask, queued_tasks
from scholaria_ops.stores.redis.restore import loaded_scratch
from scholaria_ops.stores.redis.scratch import Scratch
from scholaria_ops.stores.redis.sync import SyncMode
from scholaria_ops.stores.redis.wire import Wire


class RedisLive:
    """One live Redis server, all its databases. Implements :class:`scholaria_ops.stores.live.LiveStore`.

    Args:
        connection: the live server, with a user that may do what ``RESTORE_RULES`` says.
        key_actions: what becomes of a class of keys, by the class' name, where it is not what the profile says.
        timeout_s: longest silence (seconds) of a living server.
        sync_mode: how the server makes an RDB for reading back (see :func:`scholaria_ops.stores.redis.sync.choose_form`).
    """

    name: StoreName = "redis"

    def __init__(
        self,
        connection: RedisConnection,
        *,
        key_actions: Mapping[str, KeyAction] | None = None,
        timeout_s: float = 60.0,
        sync_mode: SyncMode = "auto",
    ) -> None:
        self._classes = Classes(key_actions)
        self._link = Link(connection, timeout_s, sync_mode)

    def plan(self, source: Source[RedisEvidence], ctx: Context) -> RedisPlan:
        return make_plan(self._link, self._classes, source, ctx)

    def queued_tasks(self, source: Source[RedisEvidence], ctx: Context) -> list[QueuedTask]:
        """Every task that waits in the set's queues (a plan names the first thousand)."""
        (artifact,) = [a for a in source.artifacts if a.kind == "rdb"]
        databases = max(16, *source.evidence.per_database(), 0) + 1
        with loaded_scratch(source.directory / artifact.path, artifact, ctx, databases=databases) as scratch:
            return queued_tasks(scratch.wire, list(scratch.keyspace()), self._classes, ctx.cancel)

    def waiting_tasks(self, ctx: Context) -> list[QueuedTask]:
        """Every task that waits in the live server's queues now. Reads only."""
        with self._link.wire(ctx) as wire:
            return queued_tasks(wire, list(look(wire).keyspace), self._classes, ctx.cancel)

    def stage(self, plan: RedisPlan, source: Source[RedisEvidence], notebook: Notebook, ctx: Context) -> Staged:
        journal = Journal(notebook)
        crossings.refuse(plan.objections)
        self._refuse_a_second_restore(journal, ctx)
        (artifact,) = [a for a in source.artifacts if a.kind == "rdb"]
        with self._link.wire(ctx) as wire:
            databases = count_databases(wire, crossings.planned(wire, plan.identity))
        highest = max(source.evidence.per_database(), default=0)
        with loaded_scratch(source.directory / artifact.path, artifact, ctx, databases=max(databases, highest + 1)) as scratch:
            began = time.monotonic()
            classes = Classes(plan.key_actions)  # the plan's actions: they are what was confirmed
            left = prove(scratch, source.evidence, ctx, Leaving(classes, journal.restore_id))
            proved = time.monotonic()
            applied = apply(scratch, classes, journal.restore_id, ctx.cancel)
            crossing = Crossing(number=0, target=self._link.where, pairs=plan.pairs, ledger=plan.ledger, policy=plan.policy)
            seconds = {**scratch.seconds, "prove_set": proved - began, "classes": time.monotonic() - proved}
            if not applied.changed:
                left = source.evidence
            elif left.per_database() != scratch.keyspace():  # keys past their expiry have left it on that occasion
                left = measured(scratch, source.evidence, ctx, like=left)
            staged = self._stage(crossing, scratch, as_of_now(left), journal, ctx, identity=plan.identity)
        counts = dict(staged.counts)
        for verb, per_class in (("dropped", applied.dropped), ("parked", applied.parked)):
            for (name, _), n in per_class.items():
                counts[f"{verb} {name}"] = counts.get(f"{verb} {name}", 0) + n
        return replace(staged, seconds={**seconds, **staged.seconds}, counts=counts)

    def _refuse_a_second_restore(self, journal: Journal, ctx: Context) -> None:
        """One notebook, one restore; what a killed attempt at staging left is taken back."""
        crossing = journal.crossing
        if journal.completed or (crossing and (crossing.number or crossings.is_switched(self._link, crossing, journal, ctx))):
            raise Refused(
                f"restore {journal.restore_id} of Redis has been switched already", store="redis", hint="Undo it, or begin another."
            )
        crossings.take_back(self._link, journal, ctx)

    def _stage(
        self, crossing: Crossing, scratch: Scratch, expected: RedisEvidence, journal: Journal, ctx: Context, *, identity: str | None
    ) -> Staged:
        """Send what a scratch server holds (``expected``); on any failure the server is as it was before."""
        try:
            with self._link.wire(ctx) as wire:
                info = crossings.planned(wire, identity)
                self._refuse_unfit(wire, info, scratch)
                crossing = crossing.with_(
                    functions=journal.put_code(f"redis_functions_{crossing.number}.json", function_code(scratch.wire)),
                    expected=journal.put_evidence(f"redis_staged_{crossing.number}.json", expected),
                    served_keys=sum(info.keyspace.values()),
                )
                begin(wire, crossing, journal)
            seconds, notes, warnings = send(self._link, scratch, crossing, expected, ctx)
            journal.open(crossing.with_(staged=True))
        except BaseException as exc:
            self._clean_up(journal, ctx, exc)
            raise
        counts = {f"database {db}": n for db, n in expected.per_database().items()}
        return Staged(seconds, notes, {"keys": expected.total_keys, **counts}, warnings)

    def _refuse_unfit(self, wire: Wire, info: ServerInfo, scratch: Scratch) -> None:
        """Refuse a server that must not, or cannot, hold what ``scratch`` holds beside what it serves."""
        crossings.refuse(unfit(wire, info))
        crossings.refuse(over_budget(server_needs(self._link.connection, info, memory_of(scratch)), info))

    def _clean_up(self, journal: Journal, ctx: Context, cause: BaseException) -> None:
        """Take back what was begun; where that fails too, both reasons are told."""
        try:
            crossings.take_back(self._link, journal, ctx)
        except OpsError as exc:
            raise StoreError(
                f"{getattr(cause, 'message', cause)}; and what was staged could not be removed: {exc.message}",
                store="redis",
                hint="What is served was not touched. Mend the server, then roll back once more.",
            ) from cause

    def ready(self, plan: RedisPlan, notebook: Notebook, ctx: Context) -> None:
        """Raise Refused unless the server is still the one that was staged on; all else is done."""
        with self._link.wire(ctx) as wire:
            crossings.planned(wire, plan.identity)

    def switch(self, plan: RedisPlan, notebook: Notebook, ctx: Context) -> Switched:
        journal = Journal(notebook)
        crossing = journal.crossing
        if crossing is None:
            raise Refused("nothing was staged for this restore of Redis", store="redis", hint="Stage it first.")
        with self._link.wire(ctx) as wire:
            crossings.planned(wire, plan.identity)
        return crossings.switch(self._link, crossing, journal, ctx)

    def roll_back(self, notebook: Notebook, ctx: Context) -> RolledBack:
        journal = Journal(notebook)
        lines: list[str] = []
        crossing = journal.crossing
        if crossing is not None and crossings.is_over(self._link, crossing, journal, ctx):
            lines += crossings.finish(self._link, crossing, journal, ctx)
        elif crossing is not None and crossing.destination == "after":
            lines += crossings.take_back(self._link, journal, ctx)
        if journal.crossing is not None or journal.served == "after":
            self.undo(notebook, ctx)
            lines.append(f"Redis at {self._link.where} serves again what it served before, from what was kept")
        return RolledBack(lines)

    def finish(self, notebook: Notebook, ctx: Context) -> list[str]:
        journal = Journal(notebook)
        crossing = journal.crossing
        return crossings.finish(self._link, crossing, journal, ctx) if crossing is not None else []

    def later_writes(self, notebook: Notebook, ctx: Context) -> tuple[Effect, ...]:
        return later_writes(self._link, Journal(notebook), ctx)

    def undo(self, notebook: Notebook, ctx: Context) -> Switched:
        journal = Journal(notebook)
        crossing = journal.crossing
        if self._serves_before(crossing, journal, ctx):
            return Switched(0.0, {}, crossings.kept_lines(journal))
        if crossing is not None and (crossing.number == 0 or crossings.is_over(self._link, crossing, journal, ctx)):
            crossings.finish(self._link, crossing, journal, ctx)
            if crossing.number:  # this undo was killed at its very end
                return Switched(0.0, {}, crossings.kept_lines(journal))
            crossing = None
        if crossing is not None and not crossing.staged:
            crossings.take_back(self._link, journal, ctx)  # this undo was killed while it staged
            crossing = None
        if crossing is None:
            self._stage_kept(journal, ctx)
        began = time.monotonic()
        try:
            switched = crossings.switch(self._link, crossings.under_way(journal), journal, ctx)
        except BaseException:
            self._take_back_unswitched(journal, ctx)
            raise
        crossings.finish(self._link, crossings.under_way(journal), journal, ctx)
        seconds = {**switched.seconds, "keep": time.monotonic() - began}
        return replace(switched, seconds=seconds, kept=crossings.kept_lines(journal))

    def _serves_before(self, crossing: Crossing | None, journal: Journal, ctx: Context) -> bool:
        """Whether there is nothing to undo: never switched, or undone already."""
        if crossing is None:
            return journal.served == "before"
        if crossing.number:
            return False
        return not (crossings.is_switched(self._link, crossing, journal, ctx) or crossings.is_over(self._link, crossing, journal, ctx))

    def _take_back_unswitched(self, journal: Journal, ctx: Context) -> None:
        crossing = journal.crossing
        if crossing is not None and not crossings.is_switched(self._link, crossing, journal, ctx):
            crossings.take_back(self._link, journal, ctx)

    def check_undo(self, notebook: Notebook, ctx: Context) -> None:
        journal = Journal(notebook)
        if journal.crossing is not None or journal.served == "before":
            return  # under way already, or there is nothing to undo
        with self._opened_kept(journal, ctx) as (scratch, *_), self._link.wire(ctx) as wire:
            self._refuse_unfit(wire, look(wire), scratch)

    def _stage_kept(self, journal: Journal, ctx: Context) -> None:
        with self._opened_kept(journal, ctx) as (scratch, evidence, crossing):
            self._stage(crossing, scratch, as_of_now(evidence), journal, ctx, identity=None)

    @contextmanager
    def _opened_kept(self, journal: Journal, ctx: Context) -> Iterator[tuple[Scratch, RedisEvidence, Crossing]]:
        """A scratch server that holds what was kept, proven, and the crossing that would bring it back."""
        kept = journal.kept
        if kept is None:
            raise Refused(f"nothing is kept of what Redis at {self._link.where} served before", store="redis", hint="Was it discarded?")
        used = keys_of(kept, journal)
        with self._link.wire(ctx) as wire:
            info = look(wire)
            databases = count_databases(wire, info)
            pairs, ledger = choose_databases(used, info, databases)
            crossings.refuse(too_few(used, databases, ledger, wire.where))
        with opened(kept, journal, ctx, databases=databases) as scratch:
            evidence = self._evidence_of_kept(kept, scratch, journal, ctx)
            crossing = Crossing(
                number=journal.completed, target=self._link.where, pairs=pairs, ledger=ledger, policy=policy_to_change(info)
            )
            yield scratch, evidence, crossing

    def _evidence_of_kept(self, kept: Kept, scratch: Scratch, journal: Journal, ctx: Context) -> RedisEvidence:
        """What a scratch server has loaded from the very bytes that were kept; compared with its evidence, if that was taken then."""
        try:
            if kept.evidence:
                evidence = journal.get_evidence(kept.evidence)
                prove(scratch, evidence, ctx)
                return evidence
            if (loaded := scratch.keyspace()) != kept.keys:
                raise VerificationFailed(f"it holds {loaded} keys by database instead of {kept.keys}", store="redis")
        except VerificationFailed as exc:
            raise Refused(f"what was kept cannot be used: {exc.message}", store="redis", hint="Restore the safety set.") from exc
        # Laid out as the evidence of what is served, with which nothing else than keys and functions is taken over.
        return measured(scratch, journal.get_evidence(journal.baseline), ctx, like=None)

    def discard(self, notebook: Notebook, ctx: Context) -> list[str]:
        return crossings.discard(self._link, Journal(notebook), ctx)

    def standing(self, notebook: Notebook, ctx: Context) -> Standing:
        return standing(self._link, notebook, ctx)
