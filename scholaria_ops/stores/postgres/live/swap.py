"""Exchange the database that bears a name for another one: the only moment in which the application is locked out.

New sessions are refused first (``ALLOW_CONNECTIONS false``: it holds for superusers too, which a connection limit does
not), then those that are there are ended, then both renames and the opening of the new one happen in one transaction.
Killed at any point, the server shows either the old names or the new ones.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass

from scholaria_ops.connections import PostgresConnection
from scholaria_ops.errors import AuthenticationFailed, OpsError, Refused, StoreError, StoreUnavailable
from scholaria_ops.stores.postgres.live.server import Database, databases, end_sessions, maintenance, prepared_transactions, set_open
from scholaria_ops.stores.postgres.names import ident
from scholaria_ops.stores.postgres.session import Session, open_session

#: How long sessions may take to go before we give up and let the application in again.
_PATIENCE_S = 30.0
_POLL_S = 0.005
#: A rename waits up to five seconds for sessions to go away (``CountOtherDBBackends``); we would rather end them once more.
_RENAME_TIMEOUT_MS = 300


@dataclass(frozen=True, slots=True)
class Swap:
    """``leaving`` gives up its name ``dbname``, is called ``aside`` from then on and stays closed; ``coming`` takes the name.

    Either may be None: then nobody had the name, or nobody has it afterwards.
    """

    dbname: str
    leaving: Database | None
    aside: str
    coming: Database | None
    coming_open: bool = True
    #: Whether it is an error if the coming one then lets nobody in. What is taken back may be damaged: it comes back so.
    must_serve: bool = False

    @property
    def oids(self) -> list[int]:
        return [d.oid for d in (self.leaving, self.coming) if d]


def exchange(session: Session, connection: PostgresConnection, swap: Swap) -> float:
    """Carry out a swap; returns the seconds from the fence until a session is let in again.

    Not cancellable: it either happens or is taken back. On failure the leaving database takes connections as before.

    Raises:
        Refused: a prepared transaction forbids it; nothing was touched.
        StoreError: sessions did not go in time, or the server refused.
    """
    refuse_prepared(session, swap)
    began = time.monotonic()
    try:
        if swap.leaving:
            set_open(session, swap.leaving.name, to=False)
        _rename(session, swap)
    except BaseException:
        if swap.leaving:
            _open_again(connection, swap.leaving, session)
        raise
    if swap.coming and swap.coming_open:
        _wait_until_served(connection, swap)
    return time.monotonic() - began


def _wait_until_served(connection: PostgresConnection, swap: Swap) -> None:
    try:
        with open_session(connection.with_db(swap.dbname)) as served:
            served.one("SELECT 1")
    except AuthenticationFailed:
        return  # our role may have no business in it; it answers
    except (StoreError, Refused):
        if swap.must_serve:
            raise


def refuse_prepared(session: Session, swap: Swap) -> None:
    for database in (swap.leaving, swap.coming):
        if database and (found := prepared_transactions(session, database.name)):
            raise Refused(
                f"the database {database.name} has prepared transactions ({', '.join(found[:5])}): PostgreSQL will not rename it",
                hint="COMMIT PREPARED or ROLLBACK PREPARED them, then run again.",
                store="postgres",
            )


def _rename(session: Session, swap: Swap) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        while end_sessions(session, swap.oids) and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        try:
            with _transaction(session):
                _rename_both(session, swap)
        except _InTheWay as exc:
            if time.monotonic() > deadline:
                raise _still_there(session, swap) from exc
        else:
            return


class _InTheWay(StoreError):
    """Somebody is in one of the databases after all: a session that was being let in when the fence came down."""


def _rename_both(session: Session, swap: Swap) -> None:
    import psycopg
    from psycopg.sql import SQL, Identifier

    rename = SQL("ALTER DATABASE {} RENAME TO {}")
    session.execute(SQL("SET LOCAL statement_timeout = {}").format(_RENAME_TIMEOUT_MS))
    for database, name in ((swap.leaving, swap.aside), (swap.coming, swap.dbname)):
        if database:
            with session.told():
                try:
                    session.connection.execute(rename.format(Identifier(database.name), Identifier(name)))
                except (psycopg.errors.ObjectInUse, psycopg.errors.QueryCanceled) as exc:
                    raise _InTheWay(f"{database.name} is in use", store="postgres") from exc
    if swap.coming:
        set_open(session, swap.dbname, to=swap.coming_open)


@contextlib.contextmanager
def _transaction(session: Session) -> Iterator[None]:
    """One transaction, whose own errors come in our words except those that mean "again"."""
    session.execute("BEGIN")
    try:
        yield
    except BaseException:
        with contextlib.suppress(OpsError):  # a broken connection has rolled back already
            session.execute("ROLLBACK")
        raise
    session.execute("COMMIT")


def _still_there(session: Session, swap: Swap) -> StoreError:
    rows = session.rows(
        "SELECT pid, coalesce(usename, backend_type)::text, coalesce(application_name, '') FROM pg_stat_activity"
        " WHERE datid = ANY (%s::oid[]) AND pid <> pg_backend_pid() ORDER BY 1",
        (swap.oids,),
    )
    who = ", ".join(f"process {pid} of {user} {application}".rstrip() for pid, user, application in rows[:5]) or "none that can be seen"
    return StoreError(
        f"sessions of {ident(swap.dbname)} at {session.where} did not end within {_PATIENCE_S:.0f} s: {who}",
        hint="Only a superuser may end the sessions of superusers: set DB_RESTORE_USER to one. The database takes connections as before.",
        store="postgres",
    )


def _open_again(connection: PostgresConnection, leaving: Database, session: Session) -> None:
    """Undo the fence if the swap did not happen; the session may be broken, so that a new one is tried then."""
    try:
        _reopen(session, leaving)
    except StoreUnavailable:
        with open_session(maintenance(connection)) as fresh:
            _reopen(fresh, leaving)


def _reopen(session: Session, leaving: Database) -> None:
    now = databases(session).get(leaving.oid)
    if now and now.name == leaving.name and now.open != leaving.open:
        set_open(session, leaving.name, to=leaving.open)
