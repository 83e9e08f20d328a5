"""What a restore has left on a server, and what is served there: for people who have to decide by hand."""

from __future__ import annotations

from scholaria_ops.connections import QdrantConnection
from scholaria_ops.errors import StoreError, StoreUnavailable
from scholaria_ops.stores.base import Context
from scholaria_ops.stores.live import Notebook, Standing
from scholaria_ops.stores.qdrant.live import facts
from scholaria_ops.stores.qdrant.measure import aliases_of, collections_of, exact_count
from scholaria_ops.stores.qdrant.rest import Rest, at


def standing(connection: QdrantConnection, notebook: Notebook, ctx: Context) -> Standing:
    """See :meth:`scholaria_ops.stores.live.LiveStore.standing`."""
    begun = facts.read(notebook.read())
    if not begun.placed:
        return Standing(served=("this restore has not touched Qdrant",))
    with Rest(connection, cancel=ctx.cancel) as rest:
        live, aliases = set(collections_of(rest)), aliases_of(rest)

        def points(name: str) -> str:
            try:
                return f"{exact_count(rest, name):,} points"
            except StoreUnavailable:
                raise
            except StoreError:
                return "which does not answer"

        markers = {one.marker for one in begun.placed if one.marker}
        said = sorted({*begun.aliases_before, *begun.aliases_after, *(one.item.plain for one in begun.placed if one.item.plain)})
        served, reached = [], set()
        for name in said:
            target = aliases.get(name, name)
            reached.add(target)
            if target not in live:
                served.append(f"{name}: neither a collection nor an alias")
            elif name in aliases:
                served.append(f"alias {name} leads to {target}, {points(target)}")
            else:
                served.append(f"collection {name}, {points(name)}")
        ours = {*(name for one in begun.placed for name in one.names), *begun.superseded, *begun.meanwhile}
        aside = sorted((ours - reached) & live)
        left = [f"collection {name}, {points(name)}" for name in aside]
        by_hand = [f"DELETE {at(name)}, once nobody needs it" for name in aside]
        for marker in sorted(markers & aliases.keys()):
            left.append(f"alias {marker}: collection {aliases[marker]} is still what it was before the restore")
    return Standing(served=tuple(served), left=tuple(left), by_hand=tuple(by_hand))
