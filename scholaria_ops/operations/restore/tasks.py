"""Queued tasks that refer to rows which do not exist once a restore is done.

A task names a row by its id. Which tasks count depends on what is restored: with Redis, those of the set's queues; without
it the live queue stays, and its tasks run on against a database that is older than they are.

When they are judged:

* Redis without PostgreSQL: in the plan, by looking the ids up in the live database, which stays.
* With PostgreSQL the database that will be served does not exist while the plan is made. The plan tells the tasks whose ids lie
  above the last one that the set's sequence had given out. Every task is looked up when the database is served, before the writers
  start.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from scholaria_ops.cancel import CancelToken
from scholaria_ops.catalogue.evidence.base import StoreName
from scholaria_ops.catalogue.evidence.postgres import PostgresEvidence
from scholaria_ops.connections import PostgresConnection
from scholaria_ops.errors import OpsError
from scholaria_ops.operations.restore.live import LiveStores
from scholaria_ops.profiles.scholaria import TASK_NAMED, TASK_UNNAMED, RowKind
from scholaria_ops.stores.base import Context
from scholaria_ops.stores.live import Effect, StorePlan
from scholaria_ops.stores.postgres.names import raw_parts
from scholaria_ops.stores.postgres.session import Session, open_session
from scholaria_ops.stores.redis.live import QueuedTask, RedisLive, RedisPlan

#: So many are named one by one.
_NAMED = 20


@dataclass(frozen=True, slots=True)
class Reference:
    """A task and a row that it speaks of."""

    task: QueuedTask
    kind: RowKind
    id: int

    def __str__(self) -> str:
        return f"{self.task.name} in {self.task.queue} refers to {self.kind.noun} {self.id}"


@dataclass(frozen=True, slots=True)
class Waiting:
    """The tasks that there will be after a restore. ``total`` may be more than are at hand."""

    tasks: tuple[QueuedTask, ...]
    total: int
    #: What becomes of them, for people.
    fate: str


def waiting(live: LiveStores, plans: Mapping[StoreName, StorePlan], ctx: Context) -> Waiting | None:
    """The tasks that count; None if none can come of this restore, or nobody knows.

    Raises:
        StoreUnavailable, AuthenticationFailed: the live queue stays, and cannot be read.
    """
    plan = plans.get("redis")
    if isinstance(plan, RedisPlan):
        action = plan.key_actions.get("celery", "restore")
        fates = {"park": "parked: it does not run by itself", "restore": "it will run"}
        return Waiting(plan.tasks, plan.tasks_total, fates[action]) if action in fates and plan.tasks_total else None
    store = live["redis"].store if "redis" in live else None
    if "postgres" not in plans or not isinstance(store, RedisLive):
        return None
    found = store.waiting_tasks(ctx)
    return Waiting(tuple(found), len(found), "the live queue stays: it will run") if found else None


def references(tasks: Iterable[QueuedTask]) -> Iterator[Reference]:
    """Every row that these tasks speak of, as the profile says."""
    for task in tasks:
        kinds = TASK_UNNAMED.get(task.name.rpartition(".")[2], ())
        for kind, number in zip(kinds, task.unnamed, strict=False):
            if number is not None:
                yield Reference(task, kind, number)
        for name, number in task.named.items():
            if name in TASK_NAMED:
                yield Reference(task, TASK_NAMED[name], number)


def without_row(connection: PostgresConnection, tasks: Iterable[QueuedTask], *, cancel: CancelToken | None = None) -> list[Reference]:
    """The references to rows that this database does not have. A table that it does not have at all is another application's.

    Raises:
        StoreError, StoreUnavailable: it cannot be read.
    """
    wanted: defaultdict[RowKind, list[Reference]] = defaultdict(list)
    for reference in references(tasks):
        wanted[reference.kind].append(reference)
    missing: list[Reference] = []
    if wanted:
        with open_session(connection, cancel=cancel) as session:
            for kind, found in wanted.items():
                there = _existing(session, kind, sorted({r.id for r in found}))
                missing += [r for r in found if there is not None and r.id not in there]
    return missing


def _existing(session: Session, kind: RowKind, ids: Sequence[int]) -> set[int] | None:
    """Which of the ids there are; None if there is no such table."""
    from psycopg.sql import SQL, Identifier

    if not session.rows("SELECT 1 WHERE to_regclass(%s) IS NOT NULL", (kind.table,)):
        return None
    query = SQL("SELECT {key}::bigint FROM {table} WHERE {key} = ANY (%s)").format(
        key=Identifier(kind.key), table=Identifier(*raw_parts(kind.table))
    )
    return {number for (number,) in session.rows(query, (list(ids),))}


def above_the_set(evidence: PostgresEvidence, tasks: Iterable[QueuedTask]) -> list[Reference]:
    """The references to ids that no sequence of the set had given out yet."""
    last = {name: value.last_value if value.is_called else value.last_value - 1 for name, value in evidence.sequences.items()}
    return [r for r in references(tasks) if r.kind.sequence in last and r.id > last[r.kind.sequence]]


def planned_effects(
    live: LiveStores,
    plans: Mapping[StoreName, StorePlan],
    evidence: PostgresEvidence | None,
    connection: PostgresConnection,
    ctx: Context,
) -> Iterator[Effect]:
    """What the plan can say of the tasks, and when the rest is judged. ``evidence`` is None where PostgreSQL is not restored."""
    try:
        found = waiting(live, plans, ctx)
        if found is None:
            return
        missing = above_the_set(evidence, found.tasks) if evidence else without_row(connection, found.tasks, cancel=ctx.cancel)
    except OpsError as exc:
        ctx.cancel.check()
        detail = f"not judged: {exc.message}"
        yield Effect(kind="note", what="tasks that refer to rows which will not exist", detail=detail)
        return
    if missing:
        yield Effect(kind="note", what="tasks that refer to rows which will not exist", count=len(missing), detail=_told(missing, found))
    if evidence:
        yield Effect(
            kind="note",
            what="queued tasks against rows",
            count=found.total,
            detail="of these the ids above the set's last one are told here; every one is looked up once the restored database is served, "
            "before the writers start",
        )
    if (unseen := found.total - len(found.tasks)) > 0:
        yield Effect(kind="note", what="queued tasks that were not judged", count=unseen, detail="only the first ones are read one by one")


def _told(missing: Sequence[Reference], found: Waiting) -> str:
    more = f"; and {len(missing) - _NAMED:,} more" if len(missing) > _NAMED else ""
    return "; ".join(str(r) for r in missing[:_NAMED]) + f"{more} ({found.fate})"


def report_lines(missing: Sequence[Reference], found: Waiting) -> Iterator[str]:
    """The lines of the report."""
    if missing:
        yield f"queued tasks refer to rows that do not exist now: {_told(missing, found)}"
