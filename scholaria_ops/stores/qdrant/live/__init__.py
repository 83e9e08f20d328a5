"""Restoring into a live Qdrant: beside, proven, then switched by alias, with a way back."""

from scholaria_ops.stores.qdrant.live.facts import kept_collections
from scholaria_ops.stores.qdrant.live.plan import QdrantPlan
from scholaria_ops.stores.qdrant.live.standing import traces
from scholaria_ops.stores.qdrant.live.store import QdrantLive

__all__ = ["QdrantLive", "QdrantPlan", "kept_collections", "traces"]
