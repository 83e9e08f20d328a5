"""What a restore has left on a server, and what is served there: for people who have to decide by hand."""

from __future__ import annotations

from scholaria_ops.connections import QdrantConnection
from scholaria_ops.errors import StoreError, StoreUnavailable
from scholaria_ops.stores.base import Context
from scholaria_ops.stores.live import Notebook, Standing, Trace
from scholaria_ops.stores.qdrant.live import facts
from scholaria_ops.stores.qdrant.live.layout import word_of
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
            return _points(rest, name)

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


_BY_NAME = {
    "": "by its name what the restore loaded",
    "before": "by its name a copy of what was served before the restore",
    "after": "by its name a copy of what was served until it went back",
    "meanwhile": "by its name what was written under the old name meanwhile",
    "original": "its collection is still what it was before the restore",
}


def traces(connection: QdrantConnection, restore_id: str, ctx: Context) -> tuple[Trace, ...]:
    """Collections and aliases that a restore's id is in the name of, and the aliases that lead there. Changes nothing.

    Raises:
        OpsError: the server cannot be asked.
    """
    found = []
    with Rest(connection, cancel=ctx.cancel) as rest:
        for name in sorted(collections_of(rest)):
            if (word := word_of(name, restore_id)) is not None:
                found.append(Trace(f"collection {name}", f"{_points(rest, name)}: {_BY_NAME[word]}"))
        for alias, target in sorted(aliases_of(rest).items()):
            word = word_of(alias, restore_id)
            if word is not None or word_of(target, restore_id) is not None:
                found.append(Trace(f"alias {alias}", f"leads to {target}" + (f": {_BY_NAME[word]}" if word else "")))
    return tuple(found)


def _points(rest: Rest, name: str) -> str:
    try:
        return f"{exact_count(rest, name):,} points"
    except StoreUnavailable:
        raise
    except StoreError:
        return "which does not answer"
