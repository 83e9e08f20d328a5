"""The live stores that a restore writes to, each with the type of its plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from scholaria_ops.catalogue.evidence.base import StoreName
from scholaria_ops.operations.restore.options import RestoreOptions
from scholaria_ops.operations.services import Services
from scholaria_ops.profiles.scholaria import COLLECTIONS
from scholaria_ops.stores.live import LiveStore, StorePlan
from scholaria_ops.stores.postgres.live import PostgresLive, PostgresPlan
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
            PostgresLive(settings.postgres_restore, jobs=settings.pg_restore_jobs, accept_replication=options.accept_replication),
            PostgresPlan,
        ),
        "redis": Live(RedisLive(settings.redis_restore, key_actions=options.key_actions), RedisPlan),
        "qdrant": Live(QdrantLive(settings.qdrant, in_place=options.qdrant_in_place, by_own_name=COLLECTIONS), QdrantPlan),
    }
