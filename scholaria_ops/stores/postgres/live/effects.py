"""What a restore would cost and bring: rows, ids, definitions, computed from the live database and the set's evidence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from scholaria_ops.catalogue.evidence.postgres import PostgresEvidence, SequenceValue, TableEvidence
from scholaria_ops.stores.live import Effect
from scholaria_ops.stores.postgres import inventory
from scholaria_ops.stores.postgres.live.writes import Table, count, readable, tables, within_reach, written_since
from scholaria_ops.stores.postgres.measure import TIMELINE, alembic_revision, sequences, system_identifier
from scholaria_ops.stores.postgres.names import qualified
from scholaria_ops.stores.postgres.sequences import numbered
from scholaria_ops.stores.postgres.session import Session

_DEFINITIONS_SHOWN = 40


@dataclass(frozen=True, slots=True)
class Key:
    """How a table numbers its rows. ``last`` is the last id given out at the cut, None if none was or it is not known."""

    column: str
    sequence: str
    increment: int
    last: int | None


def effects(
    session: Session, evidence: PostgresEvidence, mark: int | None, measured: Mapping[str, TableEvidence] | None
) -> Iterator[Effect]:
    """Everything that would be different afterwards, for a session in the live database.

    Args:
        mark: see :func:`comparable_mark`. Without one ``measured`` is needed.
        measured: the live tables, measured as those of the evidence were.
    """
    keys = _keys(session, evidence)
    there = tables(session)
    for table in there:
        key, then = keys.get(table.key), evidence.tables.get(table.key)
        now = (measured or {}).get(table.key)
        yield from readable(f"table {table.key}", lambda t=table, p=(then, now), k=key: _table(session, t, p, k, mark))  # type: ignore[misc]
    for name in sorted(set(evidence.tables) - {t.key for t in there}):
        lost = evidence.tables[name]
        if lost.kind != "materialized view":
            yield Effect(kind="back", what=f"table {name}", count=lost.rows, detail="the table is not in the live database")
    yield from readable("large objects", lambda: _large_objects(session, evidence))
    yield from readable("sequences", lambda: _reused(session, evidence, keys))
    yield from readable("definitions", lambda: _definitions(session, evidence))
    yield from readable("settings and privileges", lambda: _properties(session, evidence))


def _table(
    session: Session, table: Table, then_now: tuple[TableEvidence | None, TableEvidence | None], key: Key | None, mark: int | None
) -> Iterator[Effect]:
    then, now = then_now
    if then is None:
        yield Effect(kind="lost", what=f"table {table.key}", count=count(session, table), detail="the table is not in the set")
    elif mark is not None:
        yield from _by_transaction(session, table, then.rows or 0, key, mark)
    elif now is not None:
        yield from _by_content(session, table, (then, now), key)
    else:
        detail = "at most: which of them differ from the set's cannot be told"
        yield Effect(kind="lost", what=f"table {table.key}", count=count(session, table), detail=detail)


def comparable_mark(session: Session, evidence: PostgresEvidence) -> int | None:
    """The transaction from which on rows were written after the cut; None if the live database is not the one of the cut."""
    oid, timeline = session.one("SELECT (SELECT oid FROM pg_database WHERE datname = current_database()), " + TIMELINE)
    same = (evidence.system_identifier, evidence.database.oid, evidence.timeline) == (system_identifier(session), oid, timeline)
    mark = evidence.oldest_transaction
    if mark is None or not same or evidence.system_identifier is None or timeline is None:
        return None
    return mark if within_reach(session, mark) else None


def _keys(session: Session, evidence: PostgresEvidence) -> dict[str, Key]:
    return {
        qualified(key.schema, key.table): Key(key.column, key.sequence, key.increment, _given_out(evidence.sequences.get(key.sequence)))
        for key in numbered(session)
    }


def _given_out(value: SequenceValue | None) -> int | None:
    return value.last_value if value and value.is_called else None


def _by_transaction(session: Session, table: Table, then: int, key: Key | None, mark: int) -> Iterator[Effect]:
    written = written_since(session, table, mark)
    if written.since:
        new = _beyond(session, table, key)
        detail = "written since the set was taken"
        if new is not None:
            detail += f": {new:,} with a new {key.column if key else ''}, {max(0, written.since - new):,} others"
        yield Effect(kind="lost", what=f"table {table.key}", count=written.since, detail=detail)
    if then > written.older:
        yield Effect(
            kind="back", what=f"table {table.key}", count=then - written.older, detail="deleted or changed since the set was taken"
        )


def _by_content(session: Session, table: Table, then_now: tuple[TableEvidence, TableEvidence], key: Key | None) -> Iterator[Effect]:
    """Where rows cannot be dated: the same content costs nothing, any other may have been changed throughout."""
    then, now = then_now
    if then.rows == now.rows and then.fingerprint is not None and then.fingerprint == now.fingerprint:
        return
    new, rows = _beyond(session, table, key) or 0, now.rows or 0
    if rows:
        least = f"{new:,} with a new {key.column}" if key and new else f"{max(0, rows - (then.rows or 0)):,}"
        yield Effect(kind="lost", what=f"table {table.key}", count=rows, detail=f"at most, because its content differs; at least {least}")
    if (back := (then.rows or 0) - (rows - new)) > 0:
        yield Effect(kind="back", what=f"table {table.key}", count=back, detail="at least; changed rows come back as they were, too")


def _beyond(session: Session, table: Table, key: Key | None) -> int | None:
    """Rows whose key was given out after the cut; None where keys tell nothing."""
    from psycopg.sql import SQL, Identifier

    if key is None or key.last is None or key.increment < 0:
        return None
    query = SQL("SELECT count(*) FROM ONLY {} WHERE {} > %s").format(Identifier(table.schema, table.name), Identifier(key.column))
    (rows,) = session.one(query, (key.last,))
    return int(rows)


def _large_objects(session: Session, evidence: PostgresEvidence) -> Iterator[Effect]:
    (now,) = session.one("SELECT count(*) FROM pg_largeobject_metadata")
    then = evidence.large_objects.count
    if now > then:
        yield Effect(kind="lost", what="large objects", count=now, detail=f"at most, at least {now - then:,}: the set has {then:,}")
    elif now or then:
        yield Effect(kind="note", what="large objects", count=then, detail=f"of the set replace the {now:,} that are there")


def _reused(session: Session, evidence: PostgresEvidence, keys: Mapping[str, Key]) -> Iterator[Effect]:
    of_table = {key.sequence: f"{table}.{key.column}" for table, key in keys.items()}
    steps = {
        qualified(schema, name): step
        for schema, name, step in session.rows(
            "SELECT n.nspname::text, c.relname::text, s.seqincrement FROM pg_sequence s JOIN pg_class c ON c.oid = s.seqrelid"
            " JOIN pg_namespace n ON n.oid = c.relnamespace"
        )
    }
    for name, now in sorted(sequences(session).items()):
        then, step = evidence.sequences.get(name), steps[name]
        if then is None or not now.is_called:
            continue
        first = then.last_value + step if then.is_called else then.last_value
        again = (now.last_value - first) // step + 1
        if again > 0:
            what = f"ids of {of_table[name]}" if name in of_table else f"values of sequence {name}"
            detail = f"{first} to {now.last_value}, given out since; the sequence is raised above them"
            yield Effect(kind="reused", what=what, count=again, detail=detail)


def _definitions(session: Session, evidence: PostgresEvidence) -> Iterator[Effect]:
    now, then = inventory.objects(session), evidence.objects
    lines = []
    for name in sorted(now.keys() | then.keys()):
        if name not in then:
            lines.append((name, "is not in the set and will be gone"))
        elif name not in now:
            lines.append((name, "comes back"))
        elif now[name].definition != then[name].definition:
            lines.append((name, "gets its former definition (columns, defaults, conditions)"))
        elif now[name].owner != then[name].owner:
            lines.append((name, f"belongs to {then[name].owner} again"))
    for name, detail in lines[:_DEFINITIONS_SHOWN]:
        yield Effect(kind="changed", what=name, detail=detail)
    if len(lines) > _DEFINITIONS_SHOWN:
        yield Effect(kind="changed", what=f"{len(lines) - _DEFINITIONS_SHOWN:,} more definitions", detail="differ as well")


def _properties(session: Session, evidence: PostgresEvidence) -> Iterator[Effect]:
    revision = alembic_revision(session)
    if revision != evidence.alembic_revision:
        detail = f"{revision or 'none'} → {evidence.alembic_revision or 'none'}: run the migrations that the application needs afterwards"
        yield Effect(kind="changed", what="Alembic revision", detail=detail)
    now, then = inventory.database(session), evidence.database
    for name in sorted(now.settings.keys() | then.settings.keys()):
        if now.settings.get(name) != then.settings.get(name):
            detail = f"{now.settings.get(name, 'not set')} → {then.settings.get(name, 'not set')}"
            yield Effect(kind="changed", what=f"database setting {name}", detail=detail)
    for what, before, after in (
        ("owner of the database", now.owner, then.owner),
        ("connection limit of the database", now.connection_limit, then.connection_limit),
    ):
        if before != after:
            yield Effect(kind="changed", what=what, detail=f"{before} → {after}")
    grants = inventory.grants(session)
    different = sorted(n for n in grants.keys() | evidence.grants.keys() if grants.get(n) != evidence.grants.get(n))
    if different:
        yield Effect(kind="changed", what="privileges", count=len(different), detail=", ".join(different[:10]))
    installed = {name: e.version for name, e in inventory.extensions(session).items()}
    for name in sorted(installed.keys() - evidence.extensions.keys()):
        yield Effect(kind="changed", what=f"extension {name}", detail="is not in the set and will be gone")
