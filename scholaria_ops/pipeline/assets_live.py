"""The live stores: external assets, so that lineage begins at the data."""

from __future__ import annotations

import dagster as dg

from scholaria_ops.catalogue.evidence.base import STORE_NAMES, StoreName

OWNERS = ["team:operators"]

_KINDS: dict[StoreName, set[str]] = {"postgres": {"postgres"}, "redis": {"redis"}, "qdrant": {"qdrant"}}
_DESCRIPTIONS: dict[StoreName, str] = {
    "postgres": "The application's PostgreSQL database: users, topics, contexts, text chunks. Written by the application.",
    "redis": "The application's Redis server: sessions, embedding cache, Celery queue. Written by the application.",
    "qdrant": "The application's Qdrant server: one vector per text chunk. Written by the application.",
}


def live_key(store: StoreName) -> dg.AssetKey:
    return dg.AssetKey(["live", store])


LIVE = [
    dg.AssetSpec(live_key(name), group_name="live", kinds=_KINDS[name], owners=OWNERS, description=_DESCRIPTIONS[name])
    for name in STORE_NAMES
]
