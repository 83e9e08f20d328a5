"""What was written since a switch: counted exactly from the digests that were written down then."""

from __future__ import annotations

from scholaria_ops.connections import QdrantConnection
from scholaria_ops.stores.base import Context
from scholaria_ops.stores.live import Effect, Notebook
from scholaria_ops.stores.qdrant.live import facts
from scholaria_ops.stores.qdrant.live.back import require_kept
from scholaria_ops.stores.qdrant.live.facts import Begun
from scholaria_ops.stores.qdrant.live.marks import load, note
from scholaria_ops.stores.qdrant.measure import collections_of
from scholaria_ops.stores.qdrant.rest import Rest


def later_writes(connection: QdrantConnection, notebook: Notebook, ctx: Context) -> tuple[Effect, ...]:
    """See :meth:`scholaria_ops.stores.live.LiveStore.later_writes`."""
    begun = facts.read(notebook.read())
    facts.require(begun, {"after", "before", "undoing"}, "looking for later writes")
    effects: list[Effect] = []
    with Rest(connection, cancel=ctx.cancel) as rest:
        if begun.state == "after":
            require_kept(rest, begun)
        live = set(collections_of(rest))
        for name in _served(begun):
            mark = begun.marks.get(name)
            if mark is None or name not in live:
                continue
            then = load(notebook.directory / mark.file, mark)
            found = note(rest, name, payloads=mark.payloads, vectors=mark.vectors).points.change_since(then.points)
            what = f"collection {name}: points"
            if found.new + found.changed:
                effects.append(
                    Effect(kind="lost", what=what, count=found.new + found.changed, detail=f"{found.new:,} new, {found.changed:,} changed")
                )
            if found.gone:
                effects.append(Effect(kind="note", what=f"{what} deleted since", count=found.gone))
            if not mark.vectors:
                effects.append(
                    Effect(
                        kind="note", what=f"collection {name}: vectors", detail="too many to compare: a vector changed alone is not seen"
                    )
                )
    return tuple(effects)


def _served(begun: Begun) -> list[str]:
    """Collections that are served now and may have been written to since they took that place."""
    if begun.state in {"after", "undoing"}:
        return sorted({one.served for one in begun.placed})
    return sorted({*begun.superseded, *(one.item.plain for one in begun.placed if one.item.case == "in_place")})
