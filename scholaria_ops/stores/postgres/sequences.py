"""Raise sequences above ids that were given out or are known elsewhere, so that none is given out again for something else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import LiteralString

from scholaria_ops.cancel import CancelToken
from scholaria_ops.connections import PostgresConnection
from scholaria_ops.errors import Refused, StoreError, StoreUnavailable
from scholaria_ops.stores.postgres.measure import sequences
from scholaria_ops.stores.postgres.names import qualified, quoted, raw_parts
from scholaria_ops.stores.postgres.session import Session, open_session

#: How long a table that somebody holds is waited for where only its largest id is wanted.
_LOCK_PATIENCE_S = 3.0

#: The largest value that sequence ``q`` can give out into column ``a``: before PostgreSQL 10 all sequences were wide.
_MOST: LiteralString = (
    "least(q.seqmax, CASE a.atttypid WHEN 'int2'::regtype THEN 32767 WHEN 'int4'::regtype THEN 2147483647 ELSE q.seqmax END)"
)
#: Tables with a key of one integer column that a sequence fills.
_NUMBERED: LiteralString = f"""
SELECT n.nspname::text, c.relname::text, a.attname::text, sn.nspname::text, s.relname::text, q.seqincrement, {_MOST}
FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = i.indkey[0]
JOIN pg_class s ON s.oid = pg_get_serial_sequence(format('%%I.%%I', n.nspname, c.relname), a.attname)::regclass
JOIN pg_namespace sn ON sn.oid = s.relnamespace JOIN pg_sequence q ON q.seqrelid = s.oid
WHERE i.indisprimary AND i.indnkeyatts = 1 AND a.atttypid IN ('int2'::regtype, 'int4'::regtype, 'int8'::regtype)
  AND c.relkind IN ('r', 'p') AND n.nspname <> %s ORDER BY 1, 2
"""


@dataclass(frozen=True, slots=True)
class Numbered:
    """A table whose rows a sequence numbers. ``sequence``: its qualified name; ``most``: the largest value it can give out."""

    schema: str
    table: str
    column: str
    sequence: str
    increment: int
    most: int


def numbered(session: Session) -> list[Numbered]:
    """Every such table of the database."""
    return [
        Numbered(schema, table, column, qualified(sequence_schema, sequence), increment, most)
        for schema, table, column, sequence_schema, sequence, increment, most in session.rows(_NUMBERED, ("information_schema",))
    ]


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
    """Schema, name and maximum of the sequence behind a column, as far as the column can hold it; None if there is no such table
    or no sequence."""
    if not session.rows("SELECT 1 WHERE to_regclass(%s) IS NOT NULL", (table,)):
        return None
    rows = session.rows(
        f"SELECT n.nspname::text, c.relname::text, {_MOST} FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        " JOIN pg_sequence q ON q.seqrelid = c.oid JOIN pg_attribute a ON a.attrelid = to_regclass(%s) AND a.attname = %s"
        " WHERE c.oid = pg_get_serial_sequence(%s, %s)::regclass",
        (table, column, table, column),
    )
    return next(((schema, name, int(most)) for schema, name, most in rows), None)


def given_out(connection: PostgresConnection, *, cancel: CancelToken | None = None) -> tuple[dict[str, int], list[str]]:
    """Sequence → the largest value that it has given out, or that a row bears which it numbers (somebody may have chosen that
    id); for every sequence that counts upwards and has any. And a line for people per table that could not be read.

    A row that bears the largest id there can be is passed over: behind it there is none to go on with.

    Raises:
        StoreError: the sequences themselves cannot be read.
    """
    with open_session(connection, cancel=cancel, lock_timeout_s=_LOCK_PATIENCE_S) as session:
        downwards = {
            qualified(schema, name)
            for schema, name in session.rows("SELECT schemaname::text, sequencename::text FROM pg_sequences WHERE increment_by < 0")
        }
        found = {name: v.last_value for name, v in sequences(session).items() if v.is_called and name not in downwards}
        unread = []
        for key in numbered(session):
            if key.increment < 0:
                continue
            try:
                largest = _largest(session, key)
            except StoreUnavailable:
                raise
            except (StoreError, Refused) as exc:  # damage in one table hides nothing of the others
                where = f"{qualified(key.schema, key.table)}.{key.column}"
                unread.append(f"the largest {where} could not be read, only what its sequence has given out: {exc.message}")
            else:
                found[key.sequence] = max(largest, found.get(key.sequence, largest))
        return {name: value for name, value in found.items() if value > 0}, unread


def _largest(session: Session, key: Numbered) -> int:
    from psycopg.sql import SQL, Identifier

    query = SQL("SELECT coalesce(max({column}), 0)::bigint FROM {table} WHERE {column} < %s").format(
        column=Identifier(key.column), table=Identifier(key.schema, key.table)
    )
    return int(session.one(query, (key.most,))[0])


def raise_all(connection: PostgresConnection, at_least: Mapping[str, int], *, cancel: CancelToken | None = None) -> int:
    """Have every sequence that exists go on above the value given for it (as :func:`given_out` tells them). Never lowers one.

    Returns how many were raised.

    Raises:
        StoreError, Refused: one could not be set; all others are.
    """
    raised, failures = 0, list[StoreError | Refused]()
    with open_session(connection, cancel=cancel) as session:
        now = sequences(session)
        for name, value in at_least.items():
            if name in now:
                schema, sequence = raw_parts(name)
                try:
                    raised += _raised(session, schema, sequence, value) is not None
                except StoreUnavailable:
                    raise
                except (StoreError, Refused) as exc:
                    failures.append(exc)
    if failures:
        raise failures[0]
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
