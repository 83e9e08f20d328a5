"""The server whose database is exchanged: who it is, which databases it has, who is connected, one restore at a time."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import LiteralString

from scholaria_ops.cancel import CancelToken
from scholaria_ops.connections import PostgresConnection
from scholaria_ops.errors import AuthenticationFailed, Busy, OpsError, Refused, StoreError, StoreUnavailable
from scholaria_ops.humane import human_bytes
from scholaria_ops.stores.postgres.measure import system_identifier
from scholaria_ops.stores.postgres.names import quoted
from scholaria_ops.stores.postgres.session import Session, open_session

#: First half of the advisory lock's key; the second is a hash of the database's name. Any constant would do.
_LOCK_CLASS = 0x5C401A
#: A killed client's backend may be busy for a while before it sees that nobody is there.
_LOCK_PATIENCE_S = 30.0
_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class Database:
    """A row of ``pg_database``. ``open``: it takes connections."""

    oid: int
    name: str
    open: bool


def maintenance(connection: PostgresConnection) -> PostgresConnection:
    """A database of the same server from which the live one can be renamed: ``postgres``, else ``template1``.

    Raises:
        AuthenticationFailed, StoreUnavailable: as they say.
        Refused: the server has neither.
    """
    last: OpsError | None = None
    for name in ("postgres", "template1"):
        if name == connection.dbname:
            continue
        try:
            with open_session(connection.with_db(name)):
                return connection.with_db(name)
        except Refused as exc:
            last = exc
        except AuthenticationFailed as exc:
            last = last or AuthenticationFailed(
                exc.message, hint="Check DB_RESTORE_USER, DB_RESTORE_PASSWORD and the server's pg_hba.conf.", store="postgres"
            )
    raise last or Refused(f"PostgreSQL at {connection.where} has no other database", hint="Create one called postgres.", store="postgres")


def databases(session: Session) -> dict[int, Database]:
    """Every database of the server, by object id."""
    rows = session.rows("SELECT oid, datname::text, datallowconn FROM pg_database")
    return {oid: Database(oid, name, is_open) for oid, name, is_open in rows}


def named(all_of_them: dict[int, Database], name: str) -> Database | None:
    return next((d for d in all_of_them.values() if d.name == name), None)


def size_for_people(session: Session, database: Database) -> str:
    """``412.3 MB``; a database whose files are damaged may have no size."""
    try:
        (size,) = session.one("SELECT pg_database_size(%s::oid)", (database.oid,))
    except StoreUnavailable:
        raise
    except StoreError:
        return "of unknown size"
    return "of unknown size" if size is None else human_bytes(size)


def require_identity(session: Session, identity: str) -> None:
    """Raise :class:`Refused` unless this is the server that was planned for (or written down)."""
    found = system_identifier(session)
    if found != identity:
        raise Refused(
            f"PostgreSQL at {session.where} is another server than the one that was planned for"
            f" (system identifier {found or 'unknown'} instead of {identity})",
            hint="Check DB_HOST and DB_PORT, then plan again. Nothing was touched.",
            store="postgres",
        )


@contextlib.contextmanager
def guarded(connection: PostgresConnection, cancel: CancelToken | None = None) -> Iterator[Session]:
    """A session for changing the databases of this server: one restore of ``connection.dbname`` at a time.

    The lock belongs to the session that does the work: when it is free, nothing that a killed run had sent is still
    under way on the server.

    Raises:
        Busy: another restore holds it, with its process on the server and since when.
    """
    with open_session(maintenance(connection), cancel=cancel) as session:
        deadline = time.monotonic() + _LOCK_PATIENCE_S
        while not session.one("SELECT pg_try_advisory_lock(%s, hashtext(%s))", (_LOCK_CLASS, connection.dbname))[0]:
            if time.monotonic() > deadline:
                raise _busy(session, connection)
            (cancel or CancelToken()).wait(_POLL_S)
        yield session


def _busy(session: Session, connection: PostgresConnection) -> Busy:
    holders = session.rows(
        "SELECT a.pid, coalesce(a.client_addr::text, 'this host'), a.backend_start::text FROM pg_locks l JOIN pg_stat_activity a"
        " ON a.pid = l.pid WHERE l.locktype = 'advisory' AND l.granted AND l.classid = %s::oid AND l.objid::bigint ="
        " (hashtext(%s)::bigint & 4294967295)",
        (_LOCK_CLASS, connection.dbname),
    )
    who = (
        ", ".join(f"server process {pid} from {address} since {since}" for pid, address, since in holders) or "somebody who has just ended"
    )
    return Busy(
        f"another restore of {connection.dbname} at {connection.where} is under way: {who}",
        hint="Wait for its end, then plan again.",
        store="postgres",
    )


def set_open(session: Session, name: str, *, to: bool) -> None:
    """Let a database take connections, or not. Sessions that are there stay; superusers are kept out as well."""
    from psycopg.sql import SQL, Identifier

    word = SQL("true" if to else "false")
    session.execute(SQL("ALTER DATABASE {} WITH ALLOW_CONNECTIONS {}").format(Identifier(name), word))


def end_sessions(session: Session, oids: Sequence[int]) -> int:
    """Tell everybody in these databases to go; returns how many there were. Workers of the server itself are told too."""
    rows = session.rows(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datid = ANY (%s::oid[]) AND pid <> pg_backend_pid()", (list(oids),)
    )
    return len(rows)


def prepared_transactions(session: Session, dbname: str) -> list[str]:
    """Global ids of prepared transactions in a database: with one of them a database can neither be renamed nor dropped."""
    return [gid for (gid,) in session.rows("SELECT gid FROM pg_prepared_xacts WHERE database = %s ORDER BY 1", (dbname,))]


def drop(session: Session, connection: PostgresConnection, database: Database) -> None:
    """Drop a database and whoever is in it.

    Subscriptions in it would forbid that. They are taken off their slot first, so that the slot at the publisher (which
    may serve another database by now) stays.
    """
    subscriptions = [name for (name,) in session.rows("SELECT subname::text FROM pg_subscription WHERE subdbid = %s::oid", (database.oid,))]
    if subscriptions:
        set_open(session, database.name, to=True)
        with open_session(connection.with_db(database.name)) as inside:
            for name in subscriptions:
                for statement in ("ALTER SUBSCRIPTION {} DISABLE", "ALTER SUBSCRIPTION {} SET (slot_name = NONE)", "DROP SUBSCRIPTION {}"):
                    _said(inside, statement, name)
    try:
        if session.rows("SELECT 1 FROM pg_database WHERE oid = %s::oid AND datistemplate", (database.oid,)):
            _said(session, "ALTER DATABASE {} IS_TEMPLATE false", database.name)  # the live one was a template, or the set's
        _said(session, "DROP DATABASE IF EXISTS {} WITH (FORCE)", database.name)
    except StoreError as exc:
        exc.hint = (
            exc.hint
            or f"End what uses it (a prepared transaction, a replication slot), then run again, or: DROP DATABASE {quoted(database.name)}."
        )
        raise


def _said(session: Session, statement: LiteralString, name: str) -> None:
    from psycopg.sql import SQL, Identifier

    session.execute(SQL(statement).format(Identifier(name)))
