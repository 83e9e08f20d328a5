"""Qdrant: snapshots over plain REST, evidence measured from the snapshots themselves."""

from scholaria_ops.stores.qdrant.inspect import CHECKS
from scholaria_ops.stores.qdrant.load import Recovered, has_nonce, recover_as, remove_nonce, write_nonce
from scholaria_ops.stores.qdrant.store import QdrantStore

__all__ = ["CHECKS", "QdrantStore", "Recovered", "has_nonce", "recover_as", "remove_nonce", "write_nonce"]
