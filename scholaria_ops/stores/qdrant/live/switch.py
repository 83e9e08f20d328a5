"""The switch: the restored collections take the place of what was served."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

from scholaria_ops.catalogue.artifacts import Artifact
from scholaria_ops.connections import QdrantConnection
from scholaria_ops.errors import Refused, StoreError, VerificationFailed
from scholaria_ops.stores.base import Context
from scholaria_ops.stores.live import Notebook, Switched
from scholaria_ops.stores.qdrant.live import facts, wayback
from scholaria_ops.stores.qdrant.live.aliases import repoint
from scholaria_ops.stores.qdrant.live.copies import downloaded, pour, present
from scholaria_ops.stores.qdrant.live.damage import counted
from scholaria_ops.stores.qdrant.live.facts import Begun, Placed
from scholaria_ops.stores.qdrant.live.plan import QdrantPlan
from scholaria_ops.stores.qdrant.measure import aliases_of, collections_of, exact_count
from scholaria_ops.stores.qdrant.rest import BadRequest, NotFound, Rest, at

#: An application that makes its collection when it finds none can win the race for the name so many times.
_RACES = 5


def switch(connection: QdrantConnection, plan: QdrantPlan, notebook: Notebook, ctx: Context, *, timeout_s: float) -> Switched:
    """See :meth:`scholaria_ops.stores.live.LiveStore.switch`."""
    begun = facts.read(notebook.read())
    facts.require(begun, {"staged", "switching", "after"}, "switching")
    if tuple(one.item for one in begun.placed) != plan.items:
        raise Refused("the plan is not the one that was staged", hint="Roll back, and plan again.", store="qdrant")
    with Rest(connection, cancel=ctx.cancel) as rest:
        if begun.state == "after":
            return switched(rest, begun)
        began = time.monotonic()
        if begun.state == "staged":
            begun = _ready(rest, begun, notebook, ctx, timeout_s=timeout_s)
        prepared = time.monotonic() - began
        with _files(rest, begun, ctx, timeout_s=timeout_s) as files:
            begun = facts.write(notebook, begun, state="switching")
            began = time.monotonic()
            lockout = _aliases(rest, begun)
            begun, gaps = _plain_names(rest, begun, notebook, ctx)
            begun, poured = _in_place(rest, begun, files, notebook, ctx, timeout_s=timeout_s)
        changed = time.monotonic() - began
        begun = facts.write(
            notebook,
            begun,
            state="after",
            shelf={name: points for name in present(rest, begun.superseded) if (points := counted(rest, name, begun.damaged)) is not None},
            marks={**begun.marks, **{one.served: begun.marks[one.side] for one in begun.placed}},
            lockout_s=round(lockout + gaps + poured, 4),
            seconds={"prepare": round(prepared, 4), "switch": round(changed, 4)},
        )
        return switched(rest, begun)


def ready(connection: QdrantConnection, notebook: Notebook, ctx: Context, *, timeout_s: float) -> None:
    """See :meth:`scholaria_ops.stores.live.LiveStore.ready`."""
    begun = facts.read(notebook.read())
    if begun.state == "staged":
        with Rest(connection, cancel=ctx.cancel) as rest:
            begun = _ready(rest, begun.model_copy(update={"ready": False}), notebook, ctx, timeout_s=timeout_s)
            facts.write(notebook, begun, ready=True)


def switched(rest: Rest, begun: Begun) -> Switched:
    """What was measured, and what is kept."""
    there = set(collections_of(rest))
    kept = tuple(
        f"collection {name}, " + ("which does not answer" if name in begun.damaged else f"{begun.shelf.get(name, 0):,} points")
        for name in begun.kept
        if name in there
    )
    return Switched(begun.lockout_s, dict(begun.seconds), kept, (*begun.warnings, *begun.lacking))


def _ready(rest: Rest, begun: Begun, notebook: Notebook, ctx: Context, *, timeout_s: float) -> Begun:
    """What was staged is there, what it is to take the place of is as it was, and every way back is exact."""
    live, aliases = set(collections_of(rest)), aliases_of(rest)
    touched = {*begun.aliases_before, *begun.aliases_after}
    moved = sorted(a for a in touched if aliases.get(a) != begun.aliases_before.get(a))
    gone = sorted({old for one in begun.placed for old in one.item.replaces} - live)
    anew = sorted((set(begun.aliases_after) & live) - {one.item.plain for one in begun.placed})
    if moved or gone or anew:
        what = ", ".join(
            [*(f"alias {a}" for a in moved), *(f"collection {c}" for c in gone), *(f"collection {c}, which was made since" for c in anew)]
        )
        raise Refused(
            f"{rest.where} has changed since the restore was staged: {what}",
            hint="Roll back, and plan again.",
            store="qdrant",
        )
    for one in begun.placed:
        points = exact_count(rest, one.side) if one.side in live else None
        if points is None or (points != begun.marks[one.side].points and one.item.case != "absent"):
            raise VerificationFailed(
                f"what was staged as {one.side} on {rest.where} has {'gone' if points is None else f'{points:,} points now'}",
                hint="Roll back, and plan again.",
                store="qdrant",
            )
    warnings: list[str] = []
    for one in begun.placed:
        if not one.item.plain:
            continue
        if begun.ready:
            warning = wayback.exact_until_now(rest, begun, one)
        else:
            begun, warning = wayback.exact_way_back(rest, begun, one, notebook, ctx, timeout_s=timeout_s)
        warnings += [warning] if warning else []
    # Where ways back were made exact anew, it does not matter who wrote before.
    return facts.write(notebook, begun, lacking=(*(begun.lacking if begun.ready else ()), *warnings))


def _aliases(rest: Rest, begun: Begun) -> float:
    """Re-point all aliases in one request; returns the seconds that it took (nobody was seen to fail meanwhile).

    Only a name that a collection still has is left for later; the same request marks such a collection with an alias
    that dies with it: whoever comes after a kill sees by it whether the collection of that name is still the old one.
    """
    live = set(collections_of(rest))
    old = {one.item.plain: one.marker for one in begun.placed if one.item.case == "plain" and one.item.plain not in begun.deleting}
    wanted: dict[str, str | None] = {alias: target for alias, target in begun.aliases_after.items() if alias not in live}
    wanted |= {marker: name for name, marker in old.items() if name in live}
    began = time.monotonic()
    return time.monotonic() - began if repoint(rest, wanted) else 0.0


def _plain_names(rest: Rest, begun: Begun, notebook: Notebook, ctx: Context) -> tuple[Begun, float]:
    """Delete each plain-named collection and make an alias of its name: the only gap. Returns its seconds, as measured."""
    plain = [one for one in begun.placed if one.item.case == "plain"]
    if plain and not begun.deleting:
        begun = facts.write(notebook, begun, deleting=tuple(one.item.plain for one in plain))
    return begun, sum(_replaced_by_alias(rest, one, ctx) for one in plain)


def _replaced_by_alias(rest: Rest, one: Placed, ctx: Context) -> float:
    name = one.item.plain
    if aliases_of(rest).get(name) == one.side:
        return 0.0
    began = time.monotonic()
    for attempt in range(_RACES):
        with contextlib.suppress(NotFound):
            rest.delete(at(name), timeout_s=120.0)
        try:
            repoint_one(rest, name, one.side)
            break
        except BadRequest:
            if attempt == _RACES - 1 or name not in collections_of(rest):
                raise
            ctx.log.warning("somebody made collection %r anew while it was being replaced; it is deleted again", name)
    return time.monotonic() - began


def repoint_one(rest: Rest, alias: str, target: str) -> None:
    """Have one alias lead somewhere, without looking first: every millisecond counts here."""
    rest.post("/collections/aliases", {"actions": [{"create_alias": {"alias_name": alias, "collection_name": target}}]}, timeout_s=60.0)


@contextlib.contextmanager
def _files(rest: Rest, begun: Begun, ctx: Context, *, timeout_s: float) -> Iterator[dict[str, tuple[Path, Artifact]]]:
    """Snapshots of what was proven beside, for the collections that are recovered in place."""
    files: dict[str, tuple[Path, Artifact]] = {}
    try:
        for one in begun.placed:
            if one.item.case == "in_place":
                files[one.side] = downloaded(rest, one.side, ctx, timeout_s=timeout_s)
        yield files
    finally:
        for path, _ in files.values():
            path.unlink(missing_ok=True)


def _in_place(
    rest: Rest, begun: Begun, files: dict[str, tuple[Path, Artifact]], notebook: Notebook, ctx: Context, *, timeout_s: float
) -> tuple[Begun, float]:
    seconds = 0.0
    for one in begun.placed:
        if one.item.case != "in_place":
            continue
        name = one.item.plain
        begun = facts.write(notebook, begun, pouring=tuple(dict.fromkeys((*begun.pouring, name))))
        began = time.monotonic()
        points = pour(rest, *files[one.side], name, ctx, timeout_s=timeout_s)
        seconds += time.monotonic() - began
        require_points(rest, name, points, begun.marks[one.side].points)
    return begun, seconds


def require_points(rest: Rest, name: str, points: int, expected: int) -> None:
    if points != expected:
        raise StoreError(
            f"collection {name} on {rest.where} has {points:,} points instead of {expected:,} after it was recovered in place",
            hint="Roll back: what it held before is kept.",
            store="qdrant",
        )
