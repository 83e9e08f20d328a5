"""Going back: taking back what was begun, undoing what was done, and removing what was kept for it."""

from __future__ import annotations

import time
from dataclasses import replace

from scholaria_ops.connections import QdrantConnection
from scholaria_ops.errors import Refused, StoreError, StoreUnavailable
from scholaria_ops.stores.base import Context
from scholaria_ops.stores.live import Notebook, RolledBack, Switched
from scholaria_ops.stores.qdrant.live import facts
from scholaria_ops.stores.qdrant.live.aliases import repoint
from scholaria_ops.stores.qdrant.live.copies import (
    copy,
    downloaded,
    pour,
    present,
    remove_collection,
    sweep_uploads,
    wait_for_stragglers,
)
from scholaria_ops.stores.qdrant.live.damage import counted
from scholaria_ops.stores.qdrant.live.facts import Begun, Placed
from scholaria_ops.stores.qdrant.live.marks import load, marks_file, note, readable, save
from scholaria_ops.stores.qdrant.live.plan import needs
from scholaria_ops.stores.qdrant.live.switch import require_points, switched
from scholaria_ops.stores.qdrant.measure import aliases_of, collections_of, exact_count
from scholaria_ops.stores.qdrant.preflight import live_bytes
from scholaria_ops.stores.qdrant.rest import Rest

_TIMEOUT_S = 3600.0


# -- roll back ---------------------------------------------------------------------------------------------------------


def roll_back(connection: QdrantConnection, notebook: Notebook, ctx: Context) -> RolledBack:
    """See :meth:`scholaria_ops.stores.live.LiveStore.roll_back`."""
    begun = facts.read(notebook.read())
    if not begun.placed:
        return RolledBack()
    if begun.state == "discarded":
        raise Refused("what was kept for going back has been removed", hint="Restore a backup set instead.", store="qdrant")
    first = begun.state not in {"rolling_back", "rolled_back"}
    served = begun.state in {"switching", "after", "rolling_back"}
    with Rest(connection, cancel=ctx.cancel) as rest:
        wait_for_stragglers(rest, {*(name for name in begun.made if not begun.finished(name)), *begun.pouring}, ctx)
        lines: list[str] = []
        live, aliases = set(collections_of(rest)), aliases_of(rest)
        # Told once, and written down before the marks go: without its mark an old collection would pass for a new one.
        gone = _deleted(begun, live, aliases) if first else [one for one in begun.placed if one.item.plain in begun.deleting]
        begun = facts.write(notebook, begun, state="rolling_back", deleting=tuple(one.item.plain for one in gone))
        for one in gone:
            begun = _set_aside(rest, begun, one, live, notebook, ctx, lines)
        lines.extend(repoint(rest, _aliases_wanted(begun, gone, aliases)))
        for one in begun.placed:
            if one.item.plain in begun.pouring:
                lines.append(_poured_back(rest, one, ctx)[0])
        for one in begun.placed if served else ():
            lines.extend(_lost(rest, begun, one, notebook))
        needed = {one.way_back for one in gone}
        for name in begun.made:
            if name not in needed:
                line = remove_collection(rest, name, finished=begun.finished(name))
                lines += [line] if line else []
        for one in begun.placed:
            if one.item.plain in begun.pouring:
                sweep_uploads(rest, one.item.plain)
        kept = tuple(f"collection {name}, {exact_count(rest, name):,} points" for name in present(rest, begun.meanwhile))
    facts.write(notebook, begun, state="rolled_back", made=tuple(name for name in begun.made if name in needed), pouring=())
    return RolledBack(lines, kept)


def _lost(rest: Rest, begun: Begun, one: Placed, notebook: Notebook) -> list[str]:
    """What was written into a restored collection while it was served, and goes with it."""
    mark = begun.marks.get(one.side)
    if one.item.case == "in_place" or mark is None or not present(rest, [one.side]):
        return []
    try:
        then = load(notebook.directory / mark.file, mark)
        found = note(rest, one.side, payloads=mark.payloads, vectors=mark.vectors).points.change_since(then.points)
    except StoreUnavailable:
        raise
    except (Refused, StoreError) as exc:  # no reason to leave the old data out of service
        return [f"collection {one.side}: what was written to it while it was served is lost and cannot be counted: {exc.message}"]
    if not (found.new or found.changed or found.gone):
        return []
    return [
        f"collection {one.side}: what was written to it while it was served is lost: "
        f"{found.new:,} points new, {found.changed:,} changed, {found.gone:,} deleted"
    ]


def _deleted(begun: Begun, live: set[str], aliases: dict[str, str]) -> list[Placed]:
    """The plain-named collections that are gone: their deletion was begun, and their mark (an alias) went with them."""
    return [
        one
        for one in begun.placed
        if one.item.case == "plain" and one.item.plain in begun.deleting and not (one.item.plain in live and one.marker in aliases)
    ]


def _set_aside(rest: Rest, begun: Begun, one: Placed, live: set[str], notebook: Notebook, ctx: Context, lines: list[str]) -> Begun:
    """Free the name of a deleted collection that the application has made anew meanwhile; what it wrote there is kept beside."""
    name = one.item.plain
    if name not in live:
        return begun
    if one.way_back not in live:
        raise Refused(
            f"collection {name} on {rest.where} is not touched: the copy of it, {one.way_back}, is gone",
            hint="Look at what the collection holds.",
            store="qdrant",
        )
    if exact_count(rest, name):
        beside = f"{one.item.base}__meanwhile_{notebook.restore_id}"
        begun = facts.write(notebook, begun, meanwhile=tuple(dict.fromkeys((*begun.meanwhile, beside))))
        if not present(rest, [beside]):
            points = copy(rest, name, beside, ctx, timeout_s=_TIMEOUT_S)
            lines.append(f"collection {name} had been made anew meanwhile: its {points:,} points are kept as {beside}")
    lines.append(remove_collection(rest, name))
    return begun


def _aliases_wanted(begun: Begun, gone: list[Placed], now: dict[str, str]) -> dict[str, str | None]:
    """The touched aliases as they were; what somebody else has re-pointed since is left alone."""
    moved = {one.item.plain: one.way_back for one in gone}
    wanted: dict[str, str | None] = {alias: moved.get(target, target) for alias, target in begun.aliases_before.items()}
    wanted |= {alias: None for alias in begun.aliases_after if alias not in wanted}
    wanted |= moved
    ours = {name for one in begun.placed for name in one.names} | {one.item.plain for one in begun.placed}
    wanted = {a: t for a, t in wanted.items() if a not in now or now[a] in ours or now[a] == begun.aliases_before.get(a)}
    return wanted | {one.marker: None for one in begun.placed if one.marker in now}


def _poured_back(rest: Rest, one: Placed, ctx: Context) -> tuple[str, float]:
    """Have a collection that was recovered in place hold what its way back holds; returns a line, and the seconds it took to pour."""
    name, source = one.item.plain, one.way_back
    expected = exact_count(rest, source)
    file, artifact = downloaded(rest, source, ctx, timeout_s=_TIMEOUT_S)
    try:
        began = time.monotonic()
        points = pour(rest, file, artifact, name, ctx, timeout_s=_TIMEOUT_S)
        seconds = time.monotonic() - began
    finally:
        file.unlink(missing_ok=True)
    require_points(rest, name, points, expected)
    return f"collection {name} recovered in place from {source}, {points:,} points", seconds


# -- finish ------------------------------------------------------------------------------------------------------------


def finish(connection: QdrantConnection, notebook: Notebook, ctx: Context) -> list[str]:
    """See :meth:`scholaria_ops.stores.live.LiveStore.finish`."""
    begun = facts.read(notebook.read())
    facts.require(begun, {"after", "before"}, "finishing")
    with Rest(connection, cancel=ctx.cancel) as rest:
        lines = _remove_spare(rest, begun, notebook)
        for name in present(rest, {*begun.made, *(one.served for one in begun.placed)} - set(begun.spare)):
            lines.extend(sweep_uploads(rest, name))
    return lines


# -- undo --------------------------------------------------------------------------------------------------------------


def undo(connection: QdrantConnection, notebook: Notebook, ctx: Context, *, timeout_s: float) -> Switched:
    """See :meth:`scholaria_ops.stores.live.LiveStore.undo`."""
    begun = facts.read(notebook.read())
    facts.require(begun, {"after", "undoing", "before"}, "undoing")
    with Rest(connection, cancel=ctx.cancel) as rest:
        if begun.state == "before":
            return replace(switched(rest, begun), lockout_s=0.0, seconds={})
        if begun.state == "after":
            require_kept(rest, begun)
            begun = _mark_kept(rest, begun, notebook)
            begun = facts.write(notebook, begun, state="undoing", copied=())
        else:
            wait_for_stragglers(rest, {name for one in begun.placed for name in (*one.names, one.item.plain) if name}, ctx)
        began = time.monotonic()
        lockout = 0.0
        for one in begun.placed:
            if one.item.case in {"in_place", "absent"}:
                begun, seconds = _exchange(rest, begun, one, notebook, ctx, timeout_s=timeout_s)
                lockout += seconds
        asked = time.monotonic()
        repoint(rest, {**dict.fromkeys(begun.aliases_after), **begun.aliases_back})
        lockout += time.monotonic() - asked
        begun = begun.model_copy(update={"state": "before"})
        begun = facts.write(
            notebook,
            begun,
            state="before",
            pouring=(),
            shelf={name: exact_count(rest, name) for name in present(rest, begun.kept)},
            lockout_s=round(lockout, 4),
            seconds={"switch": round(time.monotonic() - began, 4)},
            warnings=(),
            lacking=(),
        )
        _remove_spare(rest, begun, notebook)
        return switched(rest, begun)


def check_undo(connection: QdrantConnection, notebook: Notebook, ctx: Context) -> None:
    """See :meth:`scholaria_ops.stores.live.LiveStore.check_undo`. Re-pointing aliases takes no room; a name that is served whatever
    is restored is copied aside, and poured into.
    """
    begun = facts.read(notebook.read())
    facts.require(begun, {"after", "undoing", "before"}, "undoing")
    if begun.state != "after":
        return
    with Rest(connection, cancel=ctx.cancel) as rest:
        require_kept(rest, begun)
        copied = {one.served: live_bytes(rest, one.served) for one in begun.placed if one.item.case in {"in_place", "absent"}}
        poured = {one.way_back: live_bytes(rest, one.way_back) for one in begun.placed if one.item.case == "in_place"}
        for need in needs(rest, poured, copied, ctx) if copied else ():
            if not need.met:
                raise Refused(
                    f"{need.what}: {need.needed_bytes:,} bytes needed, {need.free_bytes:,} free", hint="Make room first.", store="qdrant"
                )


def _remove_spare(rest: Rest, begun: Begun, notebook: Notebook) -> list[str]:
    spare = begun.spare
    lines = [remove_collection(rest, name) for name in spare]
    if spare:
        facts.write(notebook, begun, made=tuple(name for name in begun.made if name not in spare))
    return [line for line in lines if line]


def require_kept(rest: Rest, begun: Begun) -> None:
    """Raise Refused unless every collection that was kept is there and holds as many points as it did."""
    live = set(collections_of(rest))
    for name in begun.kept:
        if name not in live:
            raise Refused(
                f"collection {name}, which was kept on {rest.where}, is gone", hint="Restore a backup set instead.", store="qdrant"
            )
        points, expected = counted(rest, name, begun.damaged), begun.shelf.get(name)
        if points != expected:
            raise Refused(
                f"collection {name} on {rest.where} was kept with {expected or 0:,} points and has {points:,} now",
                hint="Somebody wrote to it or deleted from it; look at it before you serve it.",
                store="qdrant",
            )


def _mark_kept(rest: Rest, begun: Begun, notebook: Notebook) -> Begun:
    """Write down what is about to be served again, so that later writes can be told."""
    marks = dict(begun.marks)
    for name in begun.kept:
        if name in begun.damaged:
            continue
        noted = note(rest, name, payloads=True, vectors=readable(rest, name))
        marks[name] = save(noted, marks_file(notebook, name))
    return facts.write(notebook, begun, marks=marks)


def _exchange(rest: Rest, begun: Begun, one: Placed, notebook: Notebook, ctx: Context, *, timeout_s: float) -> tuple[Begun, float]:
    """Where one name is served whatever is restored: keep a copy of what it holds, then have it hold the old data (or be gone).

    Returns the seconds during which requests to that name fail.
    """
    name, aside = one.item.plain or one.side, one.aside
    if aside not in begun.copied:
        begun = facts.write(notebook, begun, made=tuple(dict.fromkeys((*begun.made, aside))))
        remove_collection(rest, aside)
        copy(rest, name, aside, ctx, timeout_s=timeout_s)
        begun = facts.write(notebook, begun, copied=(*begun.copied, aside))
    if one.item.case == "absent":
        began = time.monotonic()
        remove_collection(rest, name)
        return begun, time.monotonic() - began
    begun = facts.write(notebook, begun, pouring=tuple(dict.fromkeys((*begun.pouring, name))))
    _, seconds = _poured_back(rest, one, ctx)
    return facts.write(notebook, begun, marks={**begun.marks, name: begun.marks[one.way_back]}), seconds


# -- discard -----------------------------------------------------------------------------------------------------------


def discard(connection: QdrantConnection, notebook: Notebook, ctx: Context) -> list[str]:
    """See :meth:`scholaria_ops.stores.live.LiveStore.discard`."""
    begun = facts.read(notebook.read())
    if begun.state in {"", "discarded"} or (begun.state == "rolled_back" and not begun.meanwhile):
        return []
    facts.require(begun, {"after", "before", "rolled_back"}, "discarding")
    lines = []
    with Rest(connection, cancel=ctx.cancel) as rest:
        led = aliases_of(rest)
        for name in present(rest, [*begun.kept, *begun.spare, *begun.meanwhile]):
            leading = sorted(alias for alias, target in led.items() if target == name)
            if leading:
                lines.append(f"collection {name} is not removed: alias {', '.join(leading)} leads to it")
                continue
            line = remove_collection(rest, name, damaged=name in begun.damaged)
            lines += [line] if line else []
    facts.write(notebook, begun, state="rolled_back" if begun.state == "rolled_back" else "discarded", meanwhile=())
    return lines
