"""Raise sequences above ids that were given out or are known elsewhere, so that none is given out again for something else."""

from __future__ import annotations

from collections.abc import Mapping

from scholaria_ops.cancel import CancelToken
from scholaria_ops.connections import PostgresConnection
from scholaria_ops.stores.postgres.measure import sequences
from scholaria_ops.stores.postgres.names import qualified, quoted, raw_parts
from scholaria_ops.stores.postgres.session import Session, open_session


def raise_sequence(connection: PostgresConnection, table: str, column: str, at_least: int, *, cancel: CancelToken | None = None) -> str:
    """Make the next value of the sequence behind ``table.column`` larger than ``at_least``; never lowers it.

    Returns a line for people, empty if nothing had to change (no such table, no sequence, or it stood higher already).

    Raises:
        StoreError: the sequence could not be set (the role may not, or its maximum is lower).
    """
    with open_session(connection, cancel=cancel) as session:
        found = _behind(session, table, column)
        if found is None:
            return ""
        schema, name, _ = found
        before = _raised(session, schema, name, at_least)
    if before is None:
        return ""
    return f"the sequence {qualified(schema, name)} was raised from {before:,} to {at_least:,}: ids up to there are known elsewhere"


def largest_possible(connection: PostgresConnection, table: str, column: str, *, cancel: CancelToken | None = None) -> int:
    """The largest value that the sequence behind ``table.column`` can ever give out, 0 if there is none."""
    with open_session(connection, cancel=cancel) as session:
        found = _behind(session, table, column)
    return found[2] if found else 0


def _behind(session: Session, table: str, column: str) -> tuple[str, str, int] | None:
    """Schema, name and maximum of the sequence behind a column; None if there is no such table or no sequence."""
    if not session.rows("SELECT 1 WHERE to_regclass(%s) IS NOT NULL", (table,)):
        return None
    rows = session.rows(
        "SELECT n.nspname::text, c.relname::text, s.seqmax FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        " JOIN pg_sequence s ON s.seqrelid = c.oid WHERE c.oid = pg_get_serial_sequence(%s, %s)::regclass",
        (table, column),
    )
    return next(((schema, name, int(most)) for schema, name, most in rows), None)


def given_out(connection: PostgresConnection, *, cancel: CancelToken | None = None) -> dict[str, int]:
    """Sequence → the largest value that it has given out, for every sequence that counts upwards and has given out any."""
    with open_session(connection, cancel=cancel) as session:
        downwards = {
            qualified(schema, name)
            for schema, name in session.rows("SELECT schemaname::text, sequencename::text FROM pg_sequences WHERE increment_by < 0")
        }
        return {name: v.last_value for name, v in sequences(session).items() if v.is_called and name not in downwards}


def raise_all(connection: PostgresConnection, at_least: Mapping[str, int], *, cancel: CancelToken | None = None) -> int:
    """Have every sequence that exists go on above the value given for it (as :func:`given_out` tells them). Never lowers one.

    Returns how many were raised.

    Raises:
        StoreError: one could not be set.
    """
    raised = 0
    with open_session(connection, cancel=cancel) as session:
        now = sequences(session)
        for name, value in at_least.items():
            if name in now:
                schema, sequence = raw_parts(name)
                raised += _raised(session, schema, sequence, value) is not None
    return raised


def _raised(session: Session, schema: str, name: str, at_least: int) -> int | None:
    """Raise one sequence; what it had given out before, or None if it stood high enough."""
    from psycopg.sql import SQL, Identifier, Literal

    which = SQL("{}.{}").format(Identifier(schema), Identifier(name))
    stands = SQL("SELECT CASE WHEN is_called THEN last_value ELSE last_value - 1 END FROM {}").format(which)
    if session.one(stands)[0] >= at_least:
        return None
    regclass = f"{quoted(schema)}.{quoted(name)}"
    (step,) = session.one("SELECT seqincrement FROM pg_sequence WHERE seqrelid = %s::regclass", (regclass,))
    with session.told(), session.connection.transaction():
        # A database may be read-only by default, and an event trigger may forbid every change of a definition.
        session.execute("SET TRANSACTION READ WRITE")
        if session.one("SELECT current_setting('is_superuser') = 'on'")[0]:
            session.execute("SET LOCAL session_replication_role = replica")
        # Changes nothing, but nobody takes a value until we are done: one that was taken meanwhile would be lowered.
        session.execute(SQL("ALTER SEQUENCE {} INCREMENT BY {}").format(which, Literal(step)))
        before = int(session.one(stands)[0])
        if before >= at_least:
            return None
        session.one("SELECT setval(%s::regclass, %s)", (regclass, at_least))
    return before
