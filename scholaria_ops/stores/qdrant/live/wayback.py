"""The way back from a plain-named collection: a copy of it beside, as exact as can be told.

A collection cannot be renamed, so what a plain name stands for can be kept only as a copy. It is made while the
application may still be writing, and made again before any store is switched if anybody may have written since: the
server's count of writing requests says so where it tells one, and the exact count and the fingerprint of the ids are
compared besides. At the switch itself, when other stores serve the set already, it is looked at only.
"""

from __future__ import annotations

from scholaria_ops.stores.base import Context
from scholaria_ops.stores.live import Notebook
from scholaria_ops.stores.qdrant.live import facts
from scholaria_ops.stores.qdrant.live.copies import copy, present, remove_collection, writes_counted
from scholaria_ops.stores.qdrant.live.facts import Begun, Placed
from scholaria_ops.stores.qdrant.live.marks import note, readable
from scholaria_ops.stores.qdrant.rest import Rest

#: Times the copy is made again before it is said that somebody keeps writing.
_ATTEMPTS = 3


def copy_beside(rest: Rest, begun: Begun, one: Placed, notebook: Notebook, ctx: Context, *, timeout_s: float) -> Begun:
    """Copy the plain-named collection to its way back, in place of an earlier copy."""
    begun = facts.write(
        notebook, begun, made=tuple(dict.fromkeys((*begun.made, one.way_back))), copied=_without(begun.copied, one.way_back)
    )
    if present(rest, [one.way_back]):
        remove_collection(rest, one.way_back)
    counted = writes_counted(rest)
    points = copy(rest, one.item.plain, one.way_back, ctx, timeout_s=timeout_s)
    return facts.write(
        notebook,
        begun,
        writes={**begun.writes, one.way_back: counted},
        copied=(*begun.copied, one.way_back),
        shelf={**begun.shelf, one.way_back: points},
    )


def exact_way_back(rest: Rest, begun: Begun, one: Placed, notebook: Notebook, ctx: Context, *, timeout_s: float) -> tuple[Begun, str]:
    """Have the way back hold what the plain-named collection holds now; returns a warning if somebody keeps writing."""
    for attempt in range(_ATTEMPTS):
        if one.way_back in begun.copied and _unchanged(rest, begun, one, fresh=attempt > 0):
            return begun, ""
        begun = copy_beside(rest, begun, one, notebook, ctx, timeout_s=timeout_s)
    apart = _apart(rest, one)
    if not apart:
        return begun, ""
    return begun, (
        f"somebody goes on writing to collection {one.item.plain}: the copy of it that is kept for going back ({one.way_back}) "
        f"lacks the newest state of {apart:,} points"
    )


def exact_until_now(rest: Rest, begun: Begun, one: Placed) -> str:
    """A warning if somebody wrote since :func:`exact_way_back`. Other stores serve the set's data by now: there is no time to copy."""
    counted = begun.writes.get(one.way_back, "")
    if one.way_back in begun.copied and counted and writes_counted(rest) == counted:
        return ""
    return (
        f"{rest.where} was written to in the very moment of the switch: the copy of collection {one.item.plain} that is kept for going "
        f"back ({one.way_back}) may lack that"
    )


def _unchanged(rest: Rest, begun: Begun, one: Placed, *, fresh: bool) -> bool:
    """Nobody wrote to the server since the copy was begun, or else both hold the same points, as far as can be read in a moment."""
    counted = begun.writes.get(one.way_back, "")
    if counted and writes_counted(rest) == counted:
        live, kept = (note(rest, name, payloads=False, vectors=False) for name in (one.item.plain, one.way_back))
        return live.points.same_ids(kept.points)
    return (fresh or readable(rest, one.item.plain)) and not _apart(rest, one)


def _apart(rest: Rest, one: Placed) -> int:
    """Points that are not the same in the collection and in its copy."""
    vectors = readable(rest, one.item.plain)
    live, kept = (note(rest, name, payloads=True, vectors=vectors) for name in (one.item.plain, one.way_back))
    found = live.points.change_since(kept.points)
    return found.new + found.changed + found.gone


def _without(names: tuple[str, ...], name: str) -> tuple[str, ...]:
    return tuple(found for found in names if found != name)
