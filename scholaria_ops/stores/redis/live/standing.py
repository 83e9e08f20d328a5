"""What a restore has left on a server, and what is served there: for people who have to decide by hand."""

from __future__ import annotations

from scholaria_ops.stores.base import Context
from scholaria_ops.stores.live import Notebook, Standing
from scholaria_ops.stores.redis.info import ServerInfo, look
from scholaria_ops.stores.redis.live.journal import STAGED, SWITCHED, Crossing, Journal, read_marker
from scholaria_ops.stores.redis.live.link import Link


def standing(link: Link, notebook: Notebook, ctx: Context) -> Standing:
    """See :meth:`scholaria_ops.stores.live.LiveStore.standing`."""
    journal = Journal(notebook)
    crossing = journal.crossing
    with link.wire(ctx) as wire:
        info = look(wire)
        marker = read_marker(wire, crossing.ledger) if crossing else None
    ours = {crossing.ledger, *crossing.spares.values()} if crossing else set()
    served = [f"database {db}: {keys:,} keys" for db, keys in sorted(info.keyspace.items()) if db not in ours]
    left: list[str] = []
    by_hand: list[str] = []
    if crossing:
        mine = marker is not None and (marker.restore, marker.crossing) == (journal.restore_id, crossing.number)
        side = ("what was served before" if marker.switched else "what was staged") if marker and mine else "whose is not known: no marker"
        for base, spare in crossing.pairs:
            if spare in info.keyspace:
                left.append(f"database {spare}: {info.keyspace[spare]:,} keys, {side} (for database {base})")
                by_hand.append(
                    f"compare database {spare} with database {base} (SWAPDB {base} {spare} exchanges them), then SELECT {spare}, FLUSHDB"
                )
        if marker:
            left.append(f"database {crossing.ledger}: the marker of the restore {marker.restore}")
            by_hand.append(f"SELECT {crossing.ledger}, DEL {STAGED} {SWITCHED}: until then no restore of this Redis begins")
        by_hand += _policy(info, crossing)
    return Standing(served=tuple(served) or (f"Redis at {link.where} holds nothing",), left=tuple(left), by_hand=tuple(by_hand))


def _policy(info: ServerInfo, crossing: Crossing) -> list[str]:
    if not crossing.policy or info.info.get("maxmemory_policy") != "noeviction":
        return []
    return [f"CONFIG SET maxmemory-policy {crossing.policy}: the restore has changed it to noeviction"]
