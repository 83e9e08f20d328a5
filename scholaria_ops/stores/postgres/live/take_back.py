"""Back to where it was before the restore began, from whatever state the server is in."""

from __future__ import annotations

from scholaria_ops.connections import PostgresConnection
from scholaria_ops.errors import Refused
from scholaria_ops.stores.live import Notebook
from scholaria_ops.stores.postgres.live.records import Record
from scholaria_ops.stores.postgres.live.server import Database, databases, drop, named, set_open, size_for_people
from scholaria_ops.stores.postgres.live.swap import Swap, exchange
from scholaria_ops.stores.postgres.session import Session


def new_database(record: Record, existing: dict[int, Database]) -> Database | None:
    """The database that this restore made, if it stands. Another one that bears its name is not it."""
    if record.new_oid is not None:
        return existing.get(record.new_oid)
    return named(existing, record.new_name)


def old_database(record: Record, existing: dict[int, Database]) -> Database | None:
    return existing.get(record.old_oid) if record.old_oid is not None else None


def take_back(session: Session, connection: PostgresConnection, record: Record, notebook: Notebook) -> list[str]:
    """Serve what was served before, remove what the restore made; returns a line per thing. Repeatable.

    Raises:
        Refused: what was served before is gone, or its name is somebody else's now: nothing is touched then.
    """
    existing = databases(session)
    new, old = new_database(record, existing), old_database(record, existing)
    _require_way_back(record, existing, new, old)
    done = []
    if new and new.name == record.dbname and old:
        exchange(session, connection, Swap(record.dbname, new, record.new_name, old, record.old_open))
        done.append(f"database {record.dbname} is again what it was before; it had been called {old.name}")
        new = Database(new.oid, record.new_name, False)
    elif old and old.name != record.dbname:
        exchange(session, connection, Swap(record.dbname, None, "", old, record.old_open))
        done.append(f"database {old.name} is called {record.dbname} again")
    elif old and old.open != record.old_open:
        set_open(session, old.name, to=record.old_open)
        done.append(f"database {old.name} {'takes' if record.old_open else 'refuses'} connections again")
    if new:
        size = size_for_people(session, new)
        drop(session, connection, new)
        done.append(f"database {new.name}, {size}, removed")
    done += _drop_roles(session, record)
    notebook.write(staged=None)
    return done


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
