"""Raise a table's sequence, so that ids which are known elsewhere are never given out for something else."""

from __future__ import annotations

from dataclasses import dataclass

from scholaria_ops.connections import PostgresConnection
from scholaria_ops.errors import Refused
from scholaria_ops.stores.postgres.names import qualified, quoted, raw_parts
from scholaria_ops.stores.postgres.session import Session, open_session


@dataclass(frozen=True, slots=True)
class Raised:
    """``before`` and ``after``: the last value given out (0 where none was and the sequence begins at 1)."""

    sequence: str
    before: int
    after: int


def raise_sequence(connection: PostgresConnection, table: str, column: str, at_least: int) -> Raised:
    """Have ids of ``table.column`` begin above ``at_least``. Never lowers; safe while others take ids.

    Args:
        table: as keys of the evidence write it (``public.rag_contextitem``).
        at_least: the largest id that must not be given out again.

    Raises:
        Refused: no sequence fills that column, or it counts downwards.
        StoreError: the sequence cannot hold so large a value.
    """
    from psycopg.sql import SQL, Identifier, Literal

    with open_session(connection) as session:
        schema, name, increment = _sequence(session, table, column)
        sequence = Identifier(schema, name)
        before = _given_out(session, schema, name, increment)
        if before >= at_least:
            return Raised(qualified(schema, name), before, before)
        with session.told(), session.connection.transaction():
            # Changing nothing: but it keeps everybody else from taking values until we are done.
            session.execute(SQL("ALTER SEQUENCE {} INCREMENT BY {}").format(sequence, Literal(increment)))
            before = _given_out(session, schema, name, increment)
            after = max(before, at_least)
            if after > before:
                session.execute(
                    SQL("SELECT setval({}::regclass, {}, true)").format(Literal(f"{quoted(schema)}.{quoted(name)}"), Literal(after))
                )
        return Raised(qualified(schema, name), before, after)


def _sequence(session: Session, table: str, column: str) -> tuple[str, str, int]:
    schema, relation = raw_parts(table)
    found = session.rows(
        "SELECT n.nspname::text, c.relname::text, s.seqincrement FROM pg_sequence s JOIN pg_class c ON c.oid = s.seqrelid"
        " JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = pg_get_serial_sequence(%s, %s)::regclass",
        (f"{quoted(schema)}.{quoted(relation)}", column),
    )
    if not found or found[0][2] < 0:
        why = "counts downwards" if found else "is not filled by a sequence"
        raise Refused(f"{table}.{column} at {session.where} {why}", hint="Nothing was changed.", store="postgres")
    return found[0][0], found[0][1], found[0][2]


def _given_out(session: Session, schema: str, name: str, increment: int) -> int:
    from psycopg.sql import SQL, Identifier

    last, called = session.one(SQL("SELECT last_value, is_called FROM {}").format(Identifier(schema, name)))
    return int(last) if called else int(last) - increment
