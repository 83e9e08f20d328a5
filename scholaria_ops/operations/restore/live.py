"""The live stores that a restore writes to, each with the type of its plan."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from scholaria_ops.catalogue.evidence.base import StoreName
from scholaria_ops.errors import Refused
from scholaria_ops.operations.restore.journal import FileNotebook, Journals
from scholaria_ops.operations.restore.options import RestoreOptions
from scholaria_ops.operations.services import Services
from scholaria_ops.profiles.scholaria import COLLECTIONS
from scholaria_ops.stores.base import Context
from scholaria_ops.stores.live import LiveStore, StorePlan, Trace
from scholaria_ops.stores.postgres.live import PostgresLive, PostgresPlan, mark_of
from scholaria_ops.stores.postgres.live import traces as postgres_traces
from scholaria_ops.stores.qdrant.live import QdrantLive, QdrantPlan
from scholaria_ops.stores.qdrant.live import traces as qdrant_traces
from scholaria_ops.stores.redis.live import RedisLive, RedisPlan

AnyLive = LiveStore[Any, Any]


@dataclass(frozen=True, slots=True)
class Live:
    """A live store and the type that its plans are read back as.

    ``traces`` tells what is served there, and what looks like a restore's by its id, where its notebook is lost.
    """

    store: AnyLive
    plan_type: type[StorePlan]
    traces: Callable[[str, Context], tuple[Trace, ...]] = lambda _id, _ctx: ()


LiveStores = Mapping[StoreName, Live]


def live_stores(services: Services, options: RestoreOptions) -> LiveStores:
    """The live stores that the settings name, with what they may do. Connects to nothing yet."""
    settings = services.settings
    redis = RedisLive(settings.redis_restore, key_actions=options.key_actions)

    def redis_traces(restore_id: str, ctx: Context) -> tuple[Trace, ...]:
        """Redis' databases have no names: whose they are is not told without a notebook."""
        parts = (line.partition(": ") for line in redis.standing(FileNotebook(ctx.scratch / restore_id, "redis"), ctx).served)
        return tuple(Trace(what, detail) for what, _, detail in parts)

    return {
        "postgres": Live(
            PostgresLive(
                settings.postgres_restore,
                jobs=settings.pg_restore_jobs,
                accept_replication=options.accept_replication,
                restored=_Earlier(Journals(services.catalogue.layout)),
            ),
            PostgresPlan,
            lambda restore_id, ctx: postgres_traces(settings.postgres_restore, restore_id, ctx),
        ),
        "redis": Live(redis, RedisPlan, redis_traces),
        "qdrant": Live(
            QdrantLive(settings.qdrant, in_place=options.qdrant_in_place, by_own_name=COLLECTIONS),
            QdrantPlan,
            lambda restore_id, ctx: qdrant_traces(settings.qdrant, restore_id, ctx),
        ),
    }


@dataclass(frozen=True, slots=True)
class _Earlier:
    """Earlier restores, by their journals: whether the live database came from the very set that is to be restored again."""

    journals: Journals

    def __call__(self, *, identity: str, oid: int, set_id: str) -> int | None:
        for journal in self.journals.all():
            if journal.set_id == set_id and "postgres" in journal.stores:
                with contextlib.suppress(Refused):  # a lost notebook costs the plan time, no more: it compares all content then
                    if (mark := mark_of(self.journals.notebook(journal.id, "postgres"), identity=identity, oid=oid)) is not None:
                        return mark
        return None
