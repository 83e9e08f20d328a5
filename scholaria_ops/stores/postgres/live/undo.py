"""Go back to what was served before the switch, or remove what is kept for that."""

from __future__ import annotations

import time
from typing import Literal

from scholaria_ops.connections import PostgresConnection
from scholaria_ops.errors import Refused
from scholaria_ops.humane import human_bytes
from scholaria_ops.stores.base import Context
from scholaria_ops.stores.live import Effect, Notebook, Switched
from scholaria_ops.stores.postgres.live import records
from scholaria_ops.stores.postgres.live.records import Record
from scholaria_ops.stores.postgres.live.server import Database, databases, drop, guarded, named, require_identity, set_open, size_bytes
from scholaria_ops.stores.postgres.live.swap import Swap, exchange
from scholaria_ops.stores.postgres.live.switch import free_name, kept, write_fence
from scholaria_ops.stores.postgres.live.take_back import new_database, old_database
from scholaria_ops.stores.postgres.live.writes import since_the_switch
from scholaria_ops.stores.postgres.session import Session, open_session

Side = Literal["old", "new"]


def undo(connection: PostgresConnection, notebook: Notebook, ctx: Context) -> Switched:
    """See :meth:`scholaria_ops.stores.live.LiveStore.undo`."""
    record = records.require(notebook)
    ctx.cancel.check()
    with guarded(connection) as session:
        require_identity(session, record.identity)
        existing = databases(session)
        sides: dict[Side, Database | None] = {"old": old_database(record, existing), "new": new_database(record, existing)}
        wanted = record.undoing or _other_side(record, existing, sides)
        coming, leaving = sides[wanted], sides["new" if wanted == "old" else "old"]
        began = time.monotonic()
        if _serves(record, existing, wanted, coming):
            lockout = 0.0
            _put_right(session, record, coming, wanted)
            aside = leaving.name if leaving else ""
        else:
            _require_kept(session, record, existing, (wanted, coming, leaving))
            aside = free_name(record, existing, "after_name" if wanted == "old" else "before_name")
            facts: dict[str, str | int] = {"undoing": wanted, ("after_name" if wanted == "old" else "before_name"): aside}
            write_fence(session, notebook, **facts, marked_oid=coming.oid if coming else 0)
            is_open = record.old_open if wanted == "old" else True
            lockout = exchange(session, connection, Swap(record.dbname, leaving, aside, coming, is_open))
        notebook.write(undoing=None, lockout_s=lockout)
        return Switched(lockout_s=lockout, seconds={"switch": time.monotonic() - began}, kept=kept(session, leaving, aside))


def discard(connection: PostgresConnection, notebook: Notebook) -> list[str]:
    """See :meth:`scholaria_ops.stores.live.LiveStore.discard`. What bears the live name is never dropped."""
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
        lines = []
        for database in aside:
            size = human_bytes(size_bytes(session, database))
            drop(session, connection, database)
            lines.append(f"database {database.name}, {size}, removed")
        return lines


def later_writes(connection: PostgresConnection, notebook: Notebook, ctx: Context) -> tuple[Effect, ...]:
    """See :meth:`scholaria_ops.stores.live.LiveStore.later_writes`."""
    record = records.require(notebook)
    with guarded(connection, ctx.cancel) as session:
        require_identity(session, record.identity)
        served = named(databases(session), record.dbname)
    if served is None or not served.open:
        return ()
    if served.oid != record.marked_oid:
        return (
            Effect(
                kind="lost",
                what=f"everything in {record.dbname}",
                detail="it is not the database that the restore put there: what was written to it cannot be told",
            ),
        )
    with open_session(connection.with_db(record.dbname), cancel=ctx.cancel) as inside:
        return tuple(since_the_switch(inside, record))


def _other_side(record: Record, existing: dict[int, Database], sides: dict[Side, Database | None]) -> Side:
    """Which of the two is to be served: the one that is not. Where there was no database before, none is the old side."""
    return "old" if _serves(record, existing, "new", sides["new"]) else "new"


def _serves(record: Record, existing: dict[int, Database], side: Side, database: Database | None) -> bool:
    if side == "old" and record.old_oid is None:
        return named(existing, record.dbname) is None
    return database is not None and database.name == record.dbname


def _put_right(session: Session, record: Record, coming: Database | None, wanted: Side) -> None:
    """After a kill: the names are right, so is the rest (it was one transaction), unless somebody closed it since."""
    is_open = record.old_open if wanted == "old" else True
    if coming and coming.open != is_open:
        set_open(session, coming.name, to=is_open)


def _require_kept(
    session: Session, record: Record, existing: dict[int, Database], what: tuple[Side, Database | None, Database | None]
) -> None:
    wanted, coming, leaving = what
    holder = named(existing, record.dbname)
    name = record.before_name if wanted == "old" else record.after_name
    nothing_to_come = wanted == "old" and record.old_oid is None
    if not nothing_to_come and (coming is None or coming.name != name):
        found = f"is called {coming.name} now" if coming else "is gone"
        raise Refused(
            f"what was kept of {record.dbname} at {session.where}, the database {name}, {found}",
            hint="Nothing was touched. Rename it back if it was renamed; if it is gone, restore the safety set that was taken before.",
            store="postgres",
        )
    if holder and (leaving is None or holder.oid != leaving.oid):
        raise Refused(
            f"the database {record.dbname} at {session.where} is neither the restored nor the former one: somebody has put it there",
            hint="Nothing was touched. Decide which of them is to be served, and rename by hand.",
            store="postgres",
        )
