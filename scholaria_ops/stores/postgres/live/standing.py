"""What a restore has left on a server, and what is served there: for people who have to decide by hand."""

from __future__ import annotations

from scholaria_ops.connections import PostgresConnection
from scholaria_ops.stores.base import Context
from scholaria_ops.stores.live import Notebook, Standing, Trace
from scholaria_ops.stores.postgres.live import records
from scholaria_ops.stores.postgres.live.names import Word, word_of
from scholaria_ops.stores.postgres.live.records import Record
from scholaria_ops.stores.postgres.live.server import Database, databases, maintenance, named, size_for_people
from scholaria_ops.stores.postgres.live.take_back import new_database, old_database
from scholaria_ops.stores.postgres.measure import system_identifier
from scholaria_ops.stores.postgres.names import quoted
from scholaria_ops.stores.postgres.session import Session, open_session


def standing(connection: PostgresConnection, notebook: Notebook, ctx: Context) -> Standing:
    """See :meth:`scholaria_ops.stores.live.LiveStore.standing`."""
    record = records.read(notebook)
    if record is None:
        return Standing(served=("this restore has not touched PostgreSQL",))
    with open_session(maintenance(connection), cancel=ctx.cancel) as session:
        if (found := system_identifier(session)) != record.identity:
            was = f"PostgreSQL at {session.where} is another server (system identifier {found or 'unknown'} instead of {record.identity})"
            return Standing(served=(f"{was}: what the restore's own server holds cannot be told",))
        return _on_its_server(session, record)


def _on_its_server(session: Session, record: Record) -> Standing:
    existing = databases(session)
    new, old = new_database(record, existing), old_database(record, existing)
    live = named(existing, record.dbname)
    kinds = {d.oid: kind for d, kind in ((new, "what the restore loaded"), (old, "what was served before the restore")) if d}

    def line(database: Database) -> str:
        kind = kinds.get(database.oid, "neither what the restore loaded nor what was served before it")
        closed = "" if database.open else ", takes no connections"
        return f"database {database.name}, {size_for_people(session, database)}: {kind}{closed}"

    aside = [d for d in (new, old) if d and d.name != record.dbname]
    by_hand = [f"DROP DATABASE {quoted(d.name)}, once nobody needs it" for d in aside]
    if new and new.name == record.new_name:
        by_hand[0] += ": until then no restore of this database begins"
    if live and not live.open:
        by_hand.append(f"ALTER DATABASE {quoted(live.name)} WITH ALLOW_CONNECTIONS true lets people in again")
    return Standing(
        served=(line(live) if live else f"no database {record.dbname}",),
        left=(
            *(line(d) for d in aside),
            *(["what was served before the restore is gone from the server"] if record.old_oid is not None and old is None else []),
        ),
        by_hand=tuple(by_hand),
    )


_BY_NAME: dict[Word, str] = {
    "restore": "by its name what the restore loaded, and did not serve",
    "before": "by its name what was served before the restore",
    "after": "by its name what was served until it went back",
}


def traces(connection: PostgresConnection, restore_id: str, ctx: Context) -> tuple[Trace, ...]:
    """The served database, and those that a restore's id is in the name of. Changes nothing.

    Raises:
        OpsError: the server cannot be asked.
    """
    with open_session(maintenance(connection), cancel=ctx.cancel) as session:
        existing = databases(session)
        found = (
            [] if named(existing, connection.dbname) else [Trace(f"no database {connection.dbname}", "nothing is served under that name")]
        )
        for database in sorted(existing.values(), key=lambda d: d.name):
            word = word_of(database.name, restore_id)
            if word is None and database.name != connection.dbname:
                continue
            closed = "" if database.open else "; takes no connections"
            kind = _BY_NAME[word] if word else "what is served"
            found.append(Trace(f"database {database.name}", f"{size_for_people(session, database)}: {kind}{closed}"))
        return tuple(found)
