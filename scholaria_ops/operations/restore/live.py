"""The live stores that a restore writes to, each with the type of its plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from scholaria_ops.catalogue.evidence.base import StoreName
from scholaria_ops.operations.restore.journal import Journals
from scholaria_ops.operations.restore.options import RestoreOptions
from scholaria_ops.operations.services import Services
from scholaria_ops.profiles.scholaria import COLLECTIONS
from scholaria_ops.stores.live import LiveStore, StorePlan
from scholaria_ops.stores.postgres.live import PostgresLive, PostgresPlan, mark_of
from scholaria_ops.stores.qdrant.live import QdrantLive, QdrantPlan
from scholaria_ops.stores.redis.live import RedisLive, RedisPlan

AnyLive = LiveStore[Any, Any]


@dataclass(frozen=True, slots=True)
class Live:
    """A live store and the type that its plans are read back as."""

    store: AnyLive
    plan_type: type[StorePlan]


LiveStores = Mapping[StoreName, Live]


def live_stores(services: Services, options: RestoreOptions) -> LiveStores:
    """The live stores that the settings name, with what they may do. Connects to nothing yet."""
    settings = services.settings
    return {
        "postgres": Live(
            PostgresLive(
                settings.postgres_restore,
                jobs=settings.pg_restore_jobs,
                accept_replication=options.accept_replication,
                restored=_Earlier(Journals(services.catalogue.layout)),
            ),
            PostgresPlan,
        ),
        "redis": Live(RedisLive(settings.redis_restore, key_actions=options.key_actions), RedisPlan),
        "qdrant": Live(QdrantLive(settings.qdrant, in_place=options.qdrant_in_place, by_own_name=COLLECTIONS), QdrantPlan),
    }


@dataclass(frozen=True, slots=True)
class _Earlier:
    """Earlier restores, by their journals: whether the live database came from the very set that is to be restored again."""

    journals: Journals

    def __call__(self, *, identity: str, oid: int, set_id: str) -> int | None:
        marks = (
            mark_of(self.journals.notebook(j.id, "postgres"), identity=identity, oid=oid)
            for j in self.journals.all()
            if j.set_id == set_id and "postgres" in j.stores
        )
        return next((mark for mark in marks if mark is not None), None)
