"""Back to where it was before the restore began, from whatever state the server is in."""

from __future__ import annotations

from scholaria_ops.connections import PostgresConnection
from scholaria_ops.errors import OpsError, Refused
from scholaria_ops.stores.live import Notebook, RolledBack
from scholaria_ops.stores.postgres.live.names import free_name
from scholaria_ops.stores.postgres.live.records import Record
from scholaria_ops.stores.postgres.live.server import Database, databases, drop, named, set_open, size_for_people
from scholaria_ops.stores.postgres.live.swap import Swap, exchange
from scholaria_ops.stores.postgres.live.writes import since_the_switch, unreadable
from scholaria_ops.stores.postgres.sequences import given_out
from scholaria_ops.stores.postgres.session import Session, open_session

_SHOWN = 20


def new_database(record: Record, existing: dict[int, Database]) -> Database | None:
    """The database that this restore made, if it stands. Another one that bears its name is not it."""
    if record.new_oid is not None:
        return existing.get(record.new_oid)
    return named(existing, record.new_name)


def old_database(record: Record, existing: dict[int, Database]) -> Database | None:
    return existing.get(record.old_oid) if record.old_oid is not None else None


def take_back(session: Session, connection: PostgresConnection, record: Record, notebook: Notebook) -> RolledBack:
    """Serve what was served before, remove what the restore made; set it aside if it was written to while it was served. Repeatable.

    Raises:
        Refused: what was served before is gone, or its name is somebody else's now: nothing is touched then.
    """
    existing = databases(session)
    new, old = new_database(record, existing), old_database(record, existing)
    _require_way_back(record, existing, new, old)
    done = []
    if new and new.name == record.dbname:
        aside = free_name(record, {d.name for d in existing.values()}, "after_name")
        notebook.write(after_name=aside)
        exchange(session, connection, Swap(record.dbname, new, aside, old, record.old_open))
        if old:
            done.append(f"database {record.dbname} is again what it was before; it had been called {old.name}")
        new = Database(new.oid, aside, False)
    elif old and old.name != record.dbname:
        exchange(session, connection, Swap(record.dbname, None, "", old, record.old_open))
        done.append(f"database {old.name} is called {record.dbname} again")
    elif old and old.open != record.old_open:
        set_open(session, old.name, to=record.old_open)
        done.append(f"database {old.name} {'takes' if record.old_open else 'refuses'} connections again")
    written, ids = record.set_aside, record.given_out
    untold: list[str] = []
    if new and not written and record.mark is not None and new.name != record.new_name:
        written, ids, untold = _looked_at(session, connection, record, new)
        notebook.write(given_out=ids)
    kept: tuple[str, ...] = ()
    if new:
        size = size_for_people(session, new)
        if written:
            kept = (f"database {new.name}, {size}, which was served and written to: {written}",)
            if not record.set_aside:
                done.append(f"database {new.name}, {size}, is set aside, because it was written to while it was served: {written}")
        else:
            drop(session, connection, new)
            done.append(f"database {new.name}, {size}, removed")
    done += _drop_roles(session, record)
    notebook.write(staged=None, set_aside=written)
    return RolledBack(done, kept, given_out=ids if old else None, warnings=tuple(untold))


def _looked_at(session: Session, connection: PostgresConnection, record: Record, new: Database) -> tuple[str, dict[str, int], list[str]]:
    """What was written into a database that had been served, empty if nothing was; the largest ids that it knows, and what of
    them could not be learnt.

    It was renamed when its sessions had ended, and is opened under a name that nobody else knows, for this look alone. What
    cannot be read is taken to be written to.
    """
    aside = connection.with_db(new.name)
    ids: dict[str, int] = {}
    untold: list[str] = []
    set_open(session, new.name, to=True)
    try:
        try:
            with open_session(aside) as inside:
                found = list(since_the_switch(inside, record))
        except OpsError as exc:  # where the server itself is gone, closing the database says so
            found = [unreadable("everything in it", exc)]
        try:
            ids, untold = given_out(aside)
        except OpsError as exc:
            untold = [f"the ids that the restored database gave out could not be read, and may be given out again: {exc.message}"]
    finally:
        set_open(session, new.name, to=False)
    shown = "; ".join(
        " ".join(filter(None, (e.what, f"{e.count:,}" if e.count is not None else "", f"({e.detail})"))) for e in found[:_SHOWN]
    )
    return f"{shown}; and {len(found) - _SHOWN:,} more" if len(found) > _SHOWN else shown, ids, untold


def _require_way_back(record: Record, existing: dict[int, Database], new: Database | None, old: Database | None) -> None:
    holder = named(existing, record.dbname)
    if record.old_oid is not None and old is None and new is not None and new.name == record.dbname:
        raise Refused(
            f"the database that was served as {record.dbname} before the restore is gone from the server",
            hint=f"The restored one stays in service. The safety set that was taken before holds what {record.before_name} held.",
            store="postgres",
        )
    if old and holder and holder.oid not in {old.oid, new.oid if new else None}:
        raise Refused(
            f"a database {record.dbname} was made that is neither the restored nor the former one; the former is called {old.name}",
            hint="Decide which of them is to be served, and rename the other one by hand.",
            store="postgres",
        )


def _drop_roles(session: Session, record: Record) -> list[str]:
    """Remove the roles that this restore created, unless somebody uses them by now."""
    from psycopg import errors
    from psycopg.sql import SQL, Identifier

    here = dict(session.rows("SELECT rolname::text, oid FROM pg_roles"))
    left = [name for name, oid in record.roles.items() if here.get(name) == oid]
    lines = []
    progress = True
    while left and progress:  # a role that granted memberships goes after those that it granted
        progress = False
        for name in tuple(left):
            try:
                with session.told(passing=errors.DependentObjectsStillExist):
                    session.connection.execute(SQL("DROP ROLE {}").format(Identifier(name)))
            except errors.DependentObjectsStillExist:
                continue
            left.remove(name)
            lines.append(f"role {name} removed")
            progress = True
    return lines + [f"role {name} stays: it is in use by now" for name in left]
