"""Raise sequences above ids that were given out or are known elsewhere, so that none is given out again for something else."""

from __future__ import annotations

from collections.abc import Mapping

from scholaria_ops.cancel import CancelToken
from scholaria_ops.connections import PostgresConnection
from scholaria_ops.stores.postgres.measure import sequences
from scholaria_ops.stores.postgres.names import raw_parts
from scholaria_ops.stores.postgres.session import open_session


def raise_sequence(connection: PostgresConnection, table: str, column: str, at_least: int, *, cancel: CancelToken | None = None) -> str:
    """Make the next value of the sequence behind ``table.column`` larger than ``at_least``; never lowers it.

    Returns a line for people, empty if nothing had to change (no such table, no sequence, or it stood higher already).

    Raises:
        StoreError: the sequence could not be set (the role may not, or its maximum is lower).
    """
    from psycopg.sql import SQL, Identifier

    with open_session(connection, cancel=cancel) as session:
        if not session.rows("SELECT 1 WHERE to_regclass(%s) IS NOT NULL", (table,)):
            return ""
        (name,) = session.one("SELECT pg_get_serial_sequence(%s, %s)", (table, column))
        if name is None:
            return ""
        schema, sequence = session.one(
            "SELECT n.nspname::text, c.relname::text FROM pg_class c"
            " JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = %s::regclass",
            (name,),
        )
        which = SQL("{}.{}").format(Identifier(schema), Identifier(sequence))
        (stands_at,) = session.one(SQL("SELECT CASE WHEN is_called THEN last_value ELSE last_value - 1 END FROM {}").format(which))
        if stands_at >= at_least:
            return ""
        session.one("SELECT setval(%s::regclass, %s)", (name, at_least))
    return f"the sequence {name} was raised from {stands_at:,} to {at_least:,}: ids up to there are known elsewhere"


def given_out(connection: PostgresConnection, *, cancel: CancelToken | None = None) -> dict[str, int]:
    """Sequence → the largest value that it has given out, for every sequence that counts upwards and has given out any."""
    with open_session(connection, cancel=cancel) as session:
        downwards = {
            f"{schema}.{name}"
            for schema, name in session.rows("SELECT schemaname::text, sequencename::text FROM pg_sequences WHERE increment_by < 0")
        }
        return {
            name: value.last_value
            for name, value in sequences(session).items()
            if value.is_called and ".".join(raw_parts(name)) not in downwards
        }


def raise_all(connection: PostgresConnection, at_least: Mapping[str, int], *, cancel: CancelToken | None = None) -> int:
    """Have every sequence that exists go on above the value given for it (as :func:`given_out` tells them). Never lowers one.

    Returns how many were raised.

    Raises:
        StoreError: one could not be set.
    """
    from psycopg.sql import SQL, Identifier

    raised = 0
    with open_session(connection, cancel=cancel) as session:
        now = sequences(session)
        for name, value in at_least.items():
            stands = now.get(name)
            if stands is None or (stands.last_value if stands.is_called else stands.last_value - 1) >= value:
                continue
            which = SQL("{}").format(Identifier(*raw_parts(name)))
            session.one("SELECT setval(%s::regclass, %s)", (which.as_string(session.connection), value))
            raised += 1
    return raised
