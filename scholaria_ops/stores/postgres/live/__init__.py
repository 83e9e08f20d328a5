"""Restoring a live PostgreSQL database: plan, stage beside, switch, roll back, undo, discard.

``server`` and ``swap`` are the primitives, ``records`` what the notebook holds, the others a verb each.
"""

from scholaria_ops.stores.postgres.live.plan import PostgresPlan
from scholaria_ops.stores.postgres.live.records import mark_of
from scholaria_ops.stores.postgres.live.standing import traces
from scholaria_ops.stores.postgres.live.store import PostgresLive

__all__ = ["PostgresLive", "PostgresPlan", "mark_of", "traces"]
