"""Raise a column's sequence above ids that are known elsewhere, so that none is given out again for something else."""

from __future__ import annotations

from scholaria_ops.cancel import CancelToken
from scholaria_ops.connections import PostgresConnection
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
