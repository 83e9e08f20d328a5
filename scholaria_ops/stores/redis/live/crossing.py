"""Switch, take back, finish: each looks at the server's marker first, so each can follow a kill at any moment."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from scholaria_ops.errors import OpsError, Refused, StoreError
from scholaria_ops.stores.base import Context
from scholaria_ops.stores.live import Objection, Switched
from scholaria_ops.stores.redis.info import ServerInfo, look
from scholaria_ops.stores.redis.live.journal import Crossing, Journal, Kept, Marker, read_marker
from scholaria_ops.stores.redis.live.keep import keep, keys_of
from scholaria_ops.stores.redis.live.link import Link, to_the_end
from scholaria_ops.stores.redis.live.plan import count_databases
from scholaria_ops.stores.redis.live.swap import change_functions, empty, exchange, function_code, put_policy_back, transaction
from scholaria_ops.stores.redis.wire import Wire


def planned(wire: Wire, identity: str | None) -> ServerInfo:
    """The server's state, if it is the very process that was planned for (None: any)."""
    info = look(wire)
    if identity is not None and info.run_id != identity:
        raise Refused(
            f"Redis at {wire.where} is not the server that was planned for, or was restarted since (run id {info.run_id}, planned for "
            f"{identity})",
            store="redis",
            hint="Plan again.",
        )
    return info


def refuse(objections: Sequence[Objection]) -> None:
    if objections:
        raise Refused(objections[0].message, store="redis", hint=objections[0].hint)


def marker_of(wire: Wire, crossing: Crossing, journal: Journal) -> Marker | None:
    """The server's own word on this crossing; None: it has nothing of it (or not any more)."""
    marker = read_marker(wire, crossing.ledger)
    if marker is not None and (marker.restore, marker.crossing) != (journal.restore_id, crossing.number):
        raise Refused(
            f"Redis at {wire.where} is in the middle of another restore ({marker.restore}): nothing was touched",
            store="redis",
            hint="Roll that one back, or finish it, first.",
        )
    return marker


def is_switched(link: Link, crossing: Crossing, journal: Journal, ctx: Context) -> bool:
    with link.wire(ctx) as wire:
        marker = marker_of(wire, crossing, journal)
    return marker is not None and marker.switched


def is_over(link: Link, crossing: Crossing, journal: Journal, ctx: Context) -> bool:
    """Whether finishing had gone so far that the server holds nothing of it any more."""
    with link.wire(ctx) as wire:
        return crossing.keep is not None and marker_of(wire, crossing, journal) is None


def switch(link: Link, crossing: Crossing, journal: Journal, ctx: Context) -> Switched:
    """Exchange, unless it has happened, and wait until a restart would serve the same."""
    lockout = 0.0
    code = journal.get_code(crossing.functions)
    with link.wire(ctx) as wire:
        marker = marker_of(wire, crossing, journal)
        if marker is None or not crossing.staged:
            raise Refused(f"nothing is staged on Redis at {wire.where} for this restore", store="redis", hint="Roll back and begin again.")
        if not marker.switched:
            _refuse_incomplete(wire, crossing, journal)
            name = journal.put_code(f"redis_functions_before_{crossing.number}.json", function_code(wire))
            crossing = journal.open(_with_new_databases(wire, crossing).with_(functions_before=name))
            ctx.cancel.check()
            lockout = exchange(wire, crossing, code)
        if function_code(wire) != sorted(code):
            raise StoreError(f"the functions of Redis at {wire.where} are not those of the set", store="redis", hint="See its log.")
        held = look(wire, config=False).keyspace
    durable, warnings = link.durable(ctx)
    kept = tuple(
        f"database {spare}: {held[spare]:,} keys that database {served} served before, in memory until the restore is finished"
        for served, spare in crossing.pairs
        if spare in held
    )
    return Switched(lockout, {"swap": lockout, "durable": durable}, kept, warnings)


def _refuse_incomplete(wire: Wire, crossing: Crossing, journal: Journal) -> None:
    """What was compared must still be there: keys that never expire cannot have become fewer."""
    info = look(wire, config=False)
    lasting: dict[int, int] = {}
    for row in journal.get_evidence(crossing.expected).keys:
        if row.expires_before is None:
            lasting[row.db] = lasting.get(row.db, 0) + row.keys
    for db, n in lasting.items():
        spare = crossing.spares[db]
        held = _without_expiry(info.info.get(f"db{spare}", ""))
        if held < n:
            raise Refused(
                f"database {spare} of Redis at {wire.where} holds {held:,} keys that never expire, {n:,} were staged there",
                store="redis",
                hint="Somebody removed some, or the server was restarted: roll back and begin again.",
            )


def _without_expiry(keyspace: str) -> int:
    """From INFO's ``keys=120,expires=100,avg_ttl=0``."""
    fields = dict(part.split("=", 1) for part in keyspace.split(",") if "=" in part)
    return int(fields.get("keys", 0)) - int(fields.get("expires", 0))


def _with_new_databases(wire: Wire, crossing: Crossing) -> Crossing:
    """Databases that came into use since the plan are emptied too: each needs a spare of its own."""
    info = look(wire)
    used = {crossing.ledger, *crossing.spares, *crossing.spares.values()}
    new = sorted(info.keyspace.keys() - used)
    free = [db for db in range(count_databases(wire, info) - 1, -1, -1) if db not in used and db not in info.keyspace]
    if len(free) < len(new):
        raise Refused(f"database(s) {new} of Redis at {wire.where} came into use since the plan", store="redis", hint="Plan again.")
    return crossing.with_(pairs=(*crossing.pairs, *zip(new, free, strict=False)))


def take_back(link: Link, journal: Journal, ctx: Context) -> list[str]:
    """Make the server as it was before the open crossing began, whatever has become of it. Not to be cancelled."""
    crossing = journal.crossing
    if crossing is None:
        return []
    ctx = to_the_end(ctx)
    lines = []
    with link.wire(ctx) as wire:
        marker = marker_of(wire, crossing, journal)
        if marker is None:
            _refuse_unmarked(wire, crossing)
        else:
            if marker.switched:
                served = look(wire, config=False).keyspace
                _swap_back(wire, crossing, journal.get_code(crossing.functions_before))
                lines.append(f"Redis at {wire.where}: database(s) {_list(crossing.spares)} serve again what they served before")
                lines.append(_lost(wire, crossing, served, journal))
            held = look(wire, config=False).keyspace
            staged = sum(held.get(db, 0) for db in crossing.spares.values())
            empty(wire, crossing.spares.values(), crossing.ledger)
            lines.append(f"Redis at {wire.where}: {staged:,} staged keys removed from database(s) {_list(crossing.spares.values())}")
        # Before the policy: loading code must not evict keys.
        if crossing.functions_before and (late := change_functions(wire, journal.get_code(crossing.functions_before))):
            transaction(wire, late, "take its functions back")
        if line := put_policy_back(wire, crossing.policy):
            lines.append(line)
    link.durable(ctx)
    journal.close()
    journal.tidy()
    return lines


def _lost(wire: Wire, crossing: Crossing, served: Mapping[int, int], journal: Journal) -> str:
    """What goes with the set's data: writes since the switch. Only keys can be counted in a moment, and some have expired."""
    try:
        staged = journal.get_evidence(crossing.expected).per_database()
    except OpsError:  # no reason to stop here: the databases have just gone back
        return f"Redis at {wire.where}: what was written to it since the switch is lost and cannot be counted"
    more = {db: served.get(db, 0) - staged.get(db, 0) for db in crossing.spares if served.get(db, 0) > staged.get(db, 0)}
    text = f"Redis at {wire.where}: what was written to it since the switch is lost"
    if not more:
        return f"{text}; it had no more keys than were staged (how many were changed cannot be told)"
    where = ", ".join(f"{n:,} in database {db}" for db, n in more.items())
    return f"{text}: at least {sum(more.values()):,} new keys ({where}), and whatever was changed"


def _swap_back(wire: Wire, crossing: Crossing, code: list[bytes]) -> None:
    """Swap and put functions back; without these where the server has no memory for them yet."""
    try:
        exchange(wire, crossing, code, back=True)
    except StoreError as exc:
        if "OOM" not in exc.message:
            raise
        exchange(wire, crossing, None, back=True)


def _refuse_unmarked(wire: Wire, crossing: Crossing) -> None:
    """Without the marker the server holds nothing of ours: it never did, or it came back from a state before."""
    keyspace = look(wire, config=False).keyspace
    left = sorted(set(crossing.spares.values()) & keyspace.keys())
    if left:
        raise StoreError(
            f"database(s) {left} of Redis at {wire.where} hold keys, but the marker in database {crossing.ledger} is gone: whether "
            "they were staged or are what was served before cannot be told",
            store="redis",
            hint="Compare them with the served database(s) by hand (SWAPDB puts them back), then FLUSHDB the ones that are not wanted.",
        )
    if crossing.served_keys and not keyspace:
        raise StoreError(
            f"Redis at {wire.where} holds nothing: it has lost its {crossing.served_keys:,} keys by itself (by a restart?)",
            store="redis",
            hint="Restore the pre_restore safety set.",
        )


def finish(link: Link, crossing: Crossing, journal: Journal, ctx: Context) -> list[str]:
    """Keep what was served before as a file, then free its memory and put the policy back."""
    lines = []
    kept = crossing.keep
    if not is_over(link, crossing, journal, ctx):
        if not is_switched(link, crossing, journal, ctx):
            raise Refused(f"Redis at {link.where} has not been switched", store="redis", hint="Switch first, or roll back.")
        if kept is None:
            kept = keep(link, crossing, journal, ctx)
            crossing = journal.open(crossing.with_(keep=kept.model_dump()))
        keys = sum(keys_of(kept, journal).values())
        lines.append(f"Redis: {keys:,} keys that were served before are kept in {kept.artifact.path}")
        with link.wire(ctx) as wire:
            empty(wire, crossing.spares.values(), crossing.ledger)
        lines.append(f"Redis at {link.where}: database(s) {_list(crossing.spares.values())} emptied")
    lines += _close(link, crossing, journal, ctx, kept)
    return lines


def _close(link: Link, crossing: Crossing, journal: Journal, ctx: Context, kept: Kept | None) -> list[str]:
    with link.wire(ctx) as wire:
        line = put_policy_back(wire, crossing.policy)
    link.durable(ctx)
    fact = kept.model_dump(mode="json") if kept else None
    journal.close(kept=fact, baseline=crossing.expected, completed=crossing.number + 1)
    journal.tidy()
    return [line] if line else []


def discard(link: Link, journal: Journal, ctx: Context) -> list[str]:
    """Remove what was kept; a crossing that was only staged is taken back, one that was switched stays switched."""
    lines = []
    crossing = journal.crossing
    if crossing is not None:
        if is_switched(link, crossing, journal, ctx):
            with link.wire(ctx) as wire:
                empty(wire, crossing.spares.values(), crossing.ledger)
            lines.append(f"Redis at {link.where}: database(s) {_list(crossing.spares.values())} emptied")
            lines += _close(link, crossing, journal, ctx, None)
        elif is_over(link, crossing, journal, ctx):
            lines += _close(link, crossing, journal, ctx, None)
        else:
            lines += take_back(link, journal, ctx)
    journal.close(kept=None)
    return [*lines, *(f"{name} removed" for name in journal.tidy())]


def kept_lines(journal: Journal) -> tuple[str, ...]:
    kept = journal.kept
    return (f"{kept.artifact.path}, {kept.artifact.size_bytes:,} bytes",) if kept else ()


def _list(databases: Iterable[int]) -> str:
    return ", ".join(map(str, databases))


def under_way(journal: Journal) -> Crossing:
    crossing = journal.crossing
    if crossing is None:
        raise Refused("no exchange of Redis is under way", store="redis")
    return crossing
