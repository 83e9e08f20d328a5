"""Go back to what was served before the switch, or remove what is kept for that."""

from __future__ import annotations

import time

from scholaria_ops.connections import PostgresConnection
from scholaria_ops.errors import Refused, StoreUnavailable
from scholaria_ops.stores.base import Context
from scholaria_ops.stores.live import Effect, Notebook, StillKept, Switched
from scholaria_ops.stores.postgres.live import records
from scholaria_ops.stores.postgres.live.names import free_name
from scholaria_ops.stores.postgres.live.records import Record
from scholaria_ops.stores.postgres.live.server import (
    Database,
    databases,
    drop,
    guarded,
    named,
    require_identity,
    set_open,
    size_for_people,
)
from scholaria_ops.stores.postgres.live.swap import Swap, exchange, refuse_prepared
from scholaria_ops.stores.postgres.live.switch import kept, write_fence
from scholaria_ops.stores.postgres.live.take_back import new_database, old_database
from scholaria_ops.stores.postgres.live.writes import since_the_switch, unreadable
from scholaria_ops.stores.postgres.names import quoted
from scholaria_ops.stores.postgres.session import Session, open_session

#: So many sessions are named one by one.
_NAMED = 5


def undo(connection: PostgresConnection, notebook: Notebook, ctx: Context) -> Switched:
    """See :meth:`scholaria_ops.stores.live.LiveStore.undo`."""
    record = records.require(notebook)
    ctx.cancel.check()
    with guarded(connection) as session:
        require_identity(session, record.identity)
        existing = databases(session)
        new, old = new_database(record, existing), old_database(record, existing)
        if _undone(record, existing, old):
            return Switched(lockout_s=0.0, seconds={}, kept=kept(session, new, new.name if new else ""))
        _require_kept(session, record, existing, (new, old))
        aside = free_name(record, {d.name for d in existing.values()}, "after_name")
        write_fence(notebook, after_name=aside)
        began = time.monotonic()
        lockout = exchange(session, connection, Swap(record.dbname, new, aside, old, record.old_open))
        return Switched(lockout_s=lockout, seconds={"switch": time.monotonic() - began}, kept=kept(session, new, aside))


def check_undo(connection: PostgresConnection, notebook: Notebook, ctx: Context) -> None:
    """See :meth:`scholaria_ops.stores.live.LiveStore.check_undo`. Names are exchanged: that takes no room."""
    record = records.require(notebook)
    with guarded(connection, ctx.cancel) as session:
        require_identity(session, record.identity)
        existing = databases(session)
        new, old = new_database(record, existing), old_database(record, existing)
        if not _undone(record, existing, old):
            _require_kept(session, record, existing, (new, old))
            refuse_prepared(session, Swap(record.dbname, new, "", old))


def discard(connection: PostgresConnection, notebook: Notebook) -> list[str]:
    """See :meth:`scholaria_ops.stores.live.LiveStore.discard`. What bears the live name is never dropped, nor what somebody has
    given another name or is at work in.
    """
    record = records.read(notebook)
    if record is None:
        return []
    with guarded(connection) as session:
        require_identity(session, record.identity)
        existing = databases(session)
        both = [d for d in (old_database(record, existing), new_database(record, existing)) if d]
        aside = [d for d in both if d.name != record.dbname]
        if aside and named(existing, record.dbname) is None and record.old_oid is not None:
            raise Refused(
                f"the server has no database {record.dbname} now: {', '.join(d.name for d in aside)} may be all that is left",
                hint="Undo the restore, or rename the one that is to be served by hand; then discard.",
                store="postgres",
            )
        lines: list[str] = []
        left: list[str] = []
        hints: list[str] = []
        for database in aside:
            line = f"database {database.name}, {size_for_people(session, database)}"
            if spared := _spared(session, record, database):
                left.append(f"{line}, {spared[0]}")
                hints.append(spared[1])
                continue
            drop(session, connection, database)
            lines.append(f"{line}, removed")
    if left:
        raise StillKept("; ".join(left), hint=" ".join(hints), store="postgres", removed=lines, kept=left)
    return lines


def _spared(session: Session, record: Record, database: Database) -> tuple[str, str] | None:
    """Why somebody seems to want this database, and what to do; None if nobody does, and then nobody is let in any more."""
    was = record.before_name if database.oid == record.old_oid else record.after_name
    if database.name not in {was, record.new_name}:
        return (
            f"is not removed: it had been called {was}, and somebody has renamed it",
            f"If nobody wants it: DROP DATABASE {quoted(database.name)}, or name it {was} again; then discard once more.",
        )
    set_open(session, database.name, to=False)
    inside = session.rows(
        "SELECT pid, coalesce(usename, '?')::text, coalesce(nullif(application_name, ''), 'no application name') FROM pg_stat_activity"
        " WHERE datid = %s::oid AND backend_type IN ('client backend', 'walsender') ORDER BY 1",
        (database.oid,),
    )
    if not inside:
        return None
    set_open(session, database.name, to=database.open)
    who = ", ".join(f"process {pid} of {user} ({application})" for pid, user, application in inside[:_NAMED])
    return f"is not removed: it is in use by {who}", f"Let them leave {database.name}, then discard once more."


def later_writes(connection: PostgresConnection, notebook: Notebook, ctx: Context) -> tuple[Effect, ...]:
    """See :meth:`scholaria_ops.stores.live.LiveStore.later_writes`."""
    record = records.require(notebook)
    with guarded(connection, ctx.cancel) as session:
        require_identity(session, record.identity)
        existing = databases(session)
        served = named(existing, record.dbname)
        old = old_database(record, existing)
        undone = _undone(record, existing, old)
        if not undone:
            _require_old(session, record, old)
    if served is None or undone:
        return ()
    if served.oid != record.new_oid or not served.open:
        detail = "it is not the database that the restore put there, or takes no connections: what was written to it cannot be told"
        return (Effect(kind="lost", what=f"everything in {record.dbname}", detail=detail),)
    try:
        with open_session(connection.with_db(record.dbname), cancel=ctx.cancel) as inside:
            return tuple(since_the_switch(inside, record))
    except (StoreUnavailable, Refused) as exc:  # the server has just answered: it is the database that lets nobody in
        return (unreadable(f"everything in {record.dbname}", exc),)


def _undone(record: Record, existing: dict[int, Database], old: Database | None) -> bool:
    """Whether what was there before the switch is there: its database, or no database of that name."""
    if record.old_oid is None:
        return named(existing, record.dbname) is None
    return old is not None and old.name == record.dbname


def _require_kept(
    session: Session, record: Record, existing: dict[int, Database], new_and_old: tuple[Database | None, Database | None]
) -> None:
    new, old = new_and_old
    holder = named(existing, record.dbname)
    _require_old(session, record, old)
    if holder and (new is None or holder.oid != new.oid):
        raise Refused(
            f"the database {record.dbname} at {session.where} is neither the restored nor the former one: somebody has put it there",
            hint="Nothing was touched. Decide which of them is to be served, and rename by hand.",
            store="postgres",
        )


def _require_old(session: Session, record: Record, old: Database | None) -> None:
    if record.old_oid is not None and (old is None or old.name != record.before_name):
        found = f"is called {old.name} now" if old else "is gone"
        raise Refused(
            f"what was kept of {record.dbname} at {session.where}, the database {record.before_name}, {found}",
            hint="Nothing was touched. Rename it back if it was renamed; if it is gone, restore the safety set that was taken before.",
            store="postgres",
        )
