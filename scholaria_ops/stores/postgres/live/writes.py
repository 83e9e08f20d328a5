"""Which rows of a table were written since a given transaction. PostgreSQL keeps that with every row.

``xmin`` is the transaction that wrote a row as it stands. Freezing keeps it (since version 9.4), and a table that is
rewritten by a change of its structure gets a new one in every row: that counts too much, never too little.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import LiteralString

from scholaria_ops.errors import OpsError, StoreError, StoreUnavailable
from scholaria_ops.stores.live import Effect
from scholaria_ops.stores.postgres import catalog_sql as sql
from scholaria_ops.stores.postgres.live.records import Record
from scholaria_ops.stores.postgres.names import qualified
from scholaria_ops.stores.postgres.session import Session

#: Transaction ids in rows have 32 bits and are compared over half a circle.
_HALF_CIRCLE = 1 << 31
_SINCE: LiteralString = "age({}xmin) <= age(xid(%s::text::xid8))"


@dataclass(frozen=True, slots=True)
class Table:
    """A relation with rows of its own in the live database."""

    oid: int
    schema: str
    name: str

    @property
    def key(self) -> str:
        return qualified(self.schema, self.name)


@dataclass(frozen=True, slots=True)
class Written:
    """Rows that are there: written since the mark, and older ones."""

    since: int
    older: int


def tables(session: Session) -> list[Table]:
    """The tables that a dump carries the rows of; materialized views are made anew."""
    return [Table(row[0], row[1], row[2]) for row in session.rows(sql.TABLES) if row[3] != "m"]


def within_reach(session: Session, mark: int) -> bool:
    """Whether ``xmin`` can still be compared with ``mark``: it is not in the future, and not two billion transactions ago."""
    (next_one,) = session.one("SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint")
    return bool(0 <= next_one - mark < _HALF_CIRCLE)


def written_since(session: Session, table: Table, mark: int) -> Written:
    """Count a table's rows on either side of the mark, in one pass."""
    from psycopg.sql import SQL, Identifier

    query = SQL("SELECT count(*) FILTER (WHERE " + _SINCE.format("") + "), count(*) FROM ONLY {}")
    since, rows = session.one(query.format(Identifier(table.schema, table.name)), (mark,))
    return Written(since, rows - since)


def count(session: Session, table: Table) -> int:
    from psycopg.sql import SQL, Identifier

    (rows,) = session.one(SQL("SELECT count(*) FROM ONLY {}").format(Identifier(table.schema, table.name)))
    return int(rows)


def since_the_switch(session: Session, record: Record) -> Iterator[Effect]:
    """What was written into the served database since it was put into its place."""
    if record.mark is None or not within_reach(session, record.mark):
        yield Effect(kind="lost", what="everything written since the switch", detail="it was too long ago to tell what that is")
        return
    known = record.staged.rows if record.staged else {}
    there = tables(session)
    for table in there:
        yield from readable(f"table {table.key}", lambda t=table: _of_table(session, t, record.mark or 0, known.get(t.key, 0)))  # type: ignore[misc]
    for key in sorted(set(known) - {t.key for t in there}):
        yield Effect(kind="lost", what=f"table {key}: dropped", count=known[key], detail="the table was dropped or renamed since")
    yield from readable("definitions", lambda: _definitions(session, record.mark or 0))
    yield from readable("large objects", lambda: _large_objects(session, record.mark or 0))


def readable(what: str, look: Callable[[], Iterator[Effect]]) -> Iterator[Effect]:
    """What ``look`` finds, or that it cannot be read. Damage in a live store is a reason to restore, not one against it."""
    try:
        yield from list(look())
    except StoreUnavailable:
        raise
    except StoreError as exc:
        yield unreadable(what, exc)


def unreadable(what: str, exc: OpsError) -> Effect:
    return Effect(kind="lost", what=what, detail=f"cannot be read now, so what it holds cannot be counted: {exc.message}")


def _of_table(session: Session, table: Table, mark: int, then: int) -> Iterator[Effect]:
    written = written_since(session, table, mark)
    if written.since:
        yield Effect(kind="lost", what=f"table {table.key}", count=written.since, detail="rows added or changed since")
    if then > written.older:
        gone = then - written.older
        yield Effect(kind="lost", what=f"table {table.key}: deletions", count=gone, detail="rows deleted or changed since, at most")


def _definitions(session: Session, mark: int) -> Iterator[Effect]:
    """Relations that were made or altered."""
    query: LiteralString = (
        "SELECT DISTINCT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        " LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0"
        " WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f', 'i') AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' AND ("
        + _SINCE.format("c.")
        + " OR "
        + _SINCE.format("a.")
        + ") ORDER BY 1, 2"
    )
    for schema, name in session.rows(query, (mark, mark)):
        yield Effect(kind="changed", what=f"relation {qualified(schema, name)}", detail="made or altered since; its definition goes back")


def _large_objects(session: Session, mark: int) -> Iterator[Effect]:
    (readable,) = session.one("SELECT has_table_privilege('pg_catalog.pg_largeobject', 'SELECT')")
    pages: LiteralString = " UNION SELECT loid FROM pg_largeobject WHERE " + _SINCE.format("")
    query: LiteralString = "SELECT count(*) FROM (SELECT oid FROM pg_largeobject_metadata WHERE " + _SINCE.format("")
    (changed,) = session.one(query + (pages if readable else "") + ") x", (mark, mark) if readable else (mark,))
    if changed:
        yield Effect(kind="lost", what="large objects", count=changed, detail="added or changed since")
