"""Measure a database: exact counts, content fingerprints, inventory. The same code looks at the live one and at a restored one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, LiteralString

from scholaria_ops.cancel import CancelToken
from scholaria_ops.catalogue.evidence.postgres import LargeObjects, PostgresEvidence, SequenceValue, TableEvidence, TableKind
from scholaria_ops.errors import StoreError
from scholaria_ops.progress import Progress
from scholaria_ops.stores.postgres import catalog_sql as sql
from scholaria_ops.stores.postgres import inventory
from scholaria_ops.stores.postgres.names import qualified
from scholaria_ops.stores.postgres.session import Session

if TYPE_CHECKING:
    from psycopg.sql import Composed

TASK = "postgres: evidence"
#: Of the log that is being written: it changes when a replica is promoted and when a server goes back in time.
TIMELINE: LiteralString = (
    "CASE WHEN pg_is_in_recovery() THEN NULL ELSE ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int END"
)
_SEQUENCES_PER_QUERY = 100
_TABLES_PER_LOCK = 200
_LOCK_ATTEMPTS = 5


@dataclass(frozen=True, slots=True)
class Cut:
    """The instant that a snapshot shows. ``at`` is our clock, so that the cuts of all stores can be compared."""

    snapshot: str
    at: datetime
    lsn: str
    in_recovery: bool
    oldest_transaction: int | None = None
    timeline: int | None = None


def begin_snapshot(session: Session, *, lock: bool = False) -> None:
    """Open the transaction, without its snapshot yet: the first query takes that (:func:`take_snapshot`).

    With ``lock`` every table is held against changes of its structure (``ACCESS SHARE``, as ``pg_dump`` itself does).
    Otherwise a migration that waits for ``pg_dump`` would get in between, rewrite a table, and our snapshot would see
    it empty. Locking needs no snapshot, so waiting for a lock does not make the cut older.
    """
    import psycopg
    from psycopg.sql import SQL, Identifier

    for _ in range(_LOCK_ATTEMPTS):
        tables = [Identifier(schema, name) for schema, name in session.rows(sql.LOCKABLE)] if lock else []
        session.execute("BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        try:
            for start in range(0, len(tables), _TABLES_PER_LOCK):
                names = SQL(", ").join(SQL("ONLY {}").format(table) for table in tables[start : start + _TABLES_PER_LOCK])
                with session.told(passing=psycopg.errors.UndefinedTable):
                    session.connection.execute(SQL("LOCK TABLE {} IN ACCESS SHARE MODE").format(names))
        except psycopg.errors.UndefinedTable:
            session.execute("ROLLBACK")  # dropped since they were listed
        else:
            return
    raise StoreError(f"PostgreSQL at {session.where}: tables vanish faster than they can be locked", hint="Run again.", store="postgres")


def take_snapshot(session: Session) -> Cut:
    """Fix what this transaction sees from now on, and export it for the dump. One round trip."""
    snapshot, recovering, lsn, oldest, timeline = session.one(
        "SELECT pg_export_snapshot(), pg_is_in_recovery(),"
        " CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END::text,"
        " pg_snapshot_xmin(pg_current_snapshot())::text::bigint, " + TIMELINE
    )
    return Cut(snapshot, datetime.now(UTC), lsn, recovering, oldest, timeline)


@dataclass(frozen=True, slots=True)
class Scope:
    """What to look at. ``only`` names the tables to fingerprint (a probe follows its evidence); else all within ``max_bytes``."""

    max_bytes: int | None = None
    only: frozenset[str] | None = None

    @classmethod
    def like(cls, evidence: PostgresEvidence) -> Scope:
        return cls(only=frozenset(name for name, table in evidence.tables.items() if table.fingerprint is not None))


@dataclass(frozen=True)
class Watch:
    """Who listens and who may stop us."""

    progress: Progress
    cancel: CancelToken = field(default_factory=CancelToken)


def measure(session: Session, cut: Cut, scope: Scope, watch: Watch, *, password_hashes: bool = False) -> PostgresEvidence:
    """Everything that is known of the database at ``cut``, inside the open transaction of ``session``."""
    watch.progress.start(TASK, total=None, unit="tables")
    notes: list[str] = []
    database = inventory.database(session)
    roles, bootstrap = inventory.roles(session)
    replication = inventory.replication(session)
    tables = dict(sorted(_tables(session, cut, scope, watch, notes)))
    evidence = PostgresEvidence(
        server_version=session.version,
        server_version_num=session.version_num,
        cut_at=cut.at,
        system_identifier=system_identifier(session),
        lsn=cut.lsn,
        snapshot=cut.snapshot,
        in_recovery=cut.in_recovery,
        oldest_transaction=cut.oldest_transaction,
        timeline=cut.timeline,
        database=database,
        tables=tables,
        sequences=sequences(session),
        objects=inventory.objects(session),
        grants=inventory.grants(session),
        extensions=inventory.extensions(session),
        roles=roles,
        bootstrap_role=bootstrap,
        password_hashes=password_hashes,
        large_objects=_large_objects(session),
        replication=replication,
        alembic_revision=alembic_revision(session),
        notes=(*notes, *_notes(session, database.tablespaces, replication.slots, replication.subscriptions)),
    )
    watch.progress.finish(TASK, f"{evidence.rows:,} rows in {len(tables):,} tables")
    return evidence


@dataclass(frozen=True, slots=True)
class _Table:
    """One row of :data:`catalog_sql.TABLES`."""

    oid: int
    schema: str
    name: str
    relkind: str
    is_partition: bool
    unlogged: bool
    populated: bool
    total_bytes: int
    table_bytes: int
    root_schema: str | None
    root_name: str | None
    condition: str | None
    columns: Sequence[str] | None

    @property
    def key(self) -> str:
        return qualified(self.schema, self.name)

    @property
    def kind(self) -> TableKind:
        return "materialized view" if self.relkind == "m" else "partition" if self.is_partition else "table"


def _tables(session: Session, cut: Cut, scope: Scope, watch: Watch, notes: list[str]) -> Iterator[tuple[str, TableEvidence]]:
    for row in session.rows(sql.TABLES):
        watch.cancel.check()
        table = _Table(*row)
        why = _unmeasurable(table, cut)
        limited = "" if why else _no_fingerprint(table, scope)
        rows, fingerprint = (None, None) if why else _content(session, table, fingerprint=not limited)
        if why or limited:
            notes.append(f"{table.key}: {why or limited}")
        watch.progress.advance(TASK, 1)
        yield (
            table.key,
            TableEvidence(
                kind=table.kind,
                rows=rows,
                fingerprint=fingerprint,
                size_bytes=table.total_bytes,
                unlogged=table.unlogged,
                root=qualified(table.root_schema or "", table.root_name) if table.root_name else None,
                unmeasured=why or limited,
            ),
        )


def _unmeasurable(table: _Table, cut: Cut) -> str:
    if table.unlogged and cut.in_recovery:
        return "unlogged, so it is empty on a replica and its rows are not in the dump"
    if not table.populated:
        return "a materialized view that has not been filled yet"
    return ""


def _no_fingerprint(table: _Table, scope: Scope) -> str:
    if scope.only is not None:
        return "" if table.key in scope.only else "not fingerprinted in the evidence either"
    if scope.max_bytes is not None and table.table_bytes > scope.max_bytes:
        return f"no fingerprint, because its {table.table_bytes:,} bytes exceed the limit of {scope.max_bytes:,}"
    return ""


def _content(session: Session, table: _Table, *, fingerprint: bool) -> tuple[int, str | None]:
    """Rows and fingerprint in one pass over the table."""
    from psycopg.sql import SQL, Identifier

    # The row is named like no column of the table, because a column would win over it.
    alias = "row"
    while alias in (table.columns or ()):
        alias += "_"
    what = SQL('count(*), sum(hashtextextended(record_out({row})::text COLLATE "C", 0))::text') if fingerprint else SQL("count(*), NULL")
    # The condition is that of an extension's own configuration table, the one that pg_dump applies as well.
    query = SQL("SELECT " + "{what} FROM ONLY {table} AS {row} {condition}").format(
        what=what.format(row=Identifier(alias)),
        table=Identifier(table.schema, table.name),
        row=Identifier(alias),
        condition=_trusted(table.condition or ""),
    )
    try:
        rows, total = session.one(query)
    except StoreError as exc:
        raise type(exc)(f"{exc.message} (while reading {table.key})", hint=exc.hint, store="postgres") from None
    return int(rows), (total or "0") if fingerprint else None


def _trusted(text: str) -> Composed:
    """SQL text that the server itself keeps as SQL."""
    from psycopg.sql import SQL, Composed

    return Composed([SQL(text)])


def sequences(session: Session) -> dict[str, SequenceValue]:
    """Every sequence's value, as it is this moment."""
    from psycopg.sql import SQL, Identifier

    names: list[tuple[Any, ...]] = session.rows(sql.SEQUENCES)
    found = {}
    for start in range(0, len(names), _SEQUENCES_PER_QUERY):
        batch = names[start : start + _SEQUENCES_PER_QUERY]
        one = SQL("SELECT {}, last_value, is_called FROM {}")
        parts = [one.format(number, Identifier(schema, name)) for number, (schema, name) in enumerate(batch)]
        for number, last_value, is_called in session.rows(SQL(" UNION ALL ").join(parts)):
            found[qualified(*batch[number])] = SequenceValue(last_value=last_value, is_called=is_called)
    return found


def _large_objects(session: Session) -> LargeObjects:
    (count,) = session.one("SELECT count(*) FROM pg_largeobject_metadata")
    if not count:
        return LargeObjects(count=0, fingerprint="0")
    (readable,) = session.one("SELECT has_table_privilege('pg_catalog.pg_largeobject', 'SELECT')")
    if not readable:
        return LargeObjects(count=count, fingerprint=None, unmeasured="the role may not read pg_largeobject")
    (total,) = session.one(sql.LARGE_OBJECTS)
    return LargeObjects(count=count, fingerprint=total or "0")


def system_identifier(session: Session) -> str | None:
    """The cluster's own number, given by ``initdb``; None where the role may not ask for it."""
    (allowed,) = session.one("SELECT has_function_privilege('pg_catalog.pg_control_system()', 'EXECUTE')")
    return str(session.one("SELECT system_identifier FROM pg_control_system()")[0]) if allowed else None


def alembic_revision(session: Session) -> str | None:
    """Alembic keeps its revision in a table of a fixed name and one column, in whichever schema it was told."""
    from psycopg.sql import SQL, Identifier

    found = session.rows(
        "SELECT n.nspname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_attribute a ON a.attrelid = c.oid"
        " WHERE c.relname = 'alembic_version' AND c.relkind = 'r' AND a.attname = 'version_num' ORDER BY 1 LIMIT 1"
    )
    if not found:
        return None
    rows = session.rows(SQL("SELECT version_num::text FROM {} ORDER BY 1").format(Identifier(found[0][0], "alembic_version")))
    return ",".join(revision for (revision,) in rows) or None


def _notes(session: Session, tablespaces: Sequence[str], slots: Sequence[str], subscriptions: Sequence[str]) -> Iterator[str]:
    for schema, name in session.rows(sql.INVALID_INDEXES):
        yield f"index {qualified(schema, name)} is invalid on the server and therefore not in the dump"
    for schema, name, extension in session.rows(sql.UNDUMPED):
        yield f"table {qualified(schema, name)} belongs to the extension {extension}: its rows are not in the dump"
    for schema, name in session.rows(sql.FOREIGN_TABLES):
        yield f"foreign table {qualified(schema, name)}: its rows are on another server and not in the dump"
    if tablespaces:
        yield f"tablespaces in use: {', '.join(tablespaces)}; a restore elsewhere needs them too, or puts everything into the default one"
    if slots:
        yield f"logical replication slots are not part of a dump: {', '.join(slots)}"
    if subscriptions:
        yield f"subscriptions come back disabled: {', '.join(subscriptions)}"
