"""Serve what was staged; keep what was served."""

from __future__ import annotations

import time

from scholaria_ops.connections import PostgresConnection
from scholaria_ops.errors import Refused
from scholaria_ops.stores.base import Context
from scholaria_ops.stores.live import Notebook, Switched
from scholaria_ops.stores.postgres.live import records
from scholaria_ops.stores.postgres.live.names import free_name
from scholaria_ops.stores.postgres.live.plan import PostgresPlan
from scholaria_ops.stores.postgres.live.records import Record
from scholaria_ops.stores.postgres.live.server import Database, databases, guarded, named, require_identity, size_for_people
from scholaria_ops.stores.postgres.live.swap import Swap, exchange
from scholaria_ops.stores.postgres.live.take_back import new_database, old_database
from scholaria_ops.stores.postgres.session import Session


def switch(connection: PostgresConnection, plan: PostgresPlan, notebook: Notebook, ctx: Context) -> Switched:
    """See :meth:`scholaria_ops.stores.live.LiveStore.switch`. From the fence on it cannot be cancelled: it takes moments."""
    record = records.require(notebook)
    ctx.cancel.check()
    with guarded(connection) as session:
        for identity in {plan.identity, record.identity}:
            require_identity(session, identity)
        existing = databases(session)
        new, old = new_database(record, existing), old_database(record, existing)
        if new and new.name == record.dbname:
            return resumed(session, record, old, notebook)
        _require_ready(session, record, existing, new)
        assert new is not None  # noqa: S101 - _require_ready refuses without it
        aside = free_name(record, {d.name for d in existing.values()}, "before_name")
        (mark,) = session.one("SELECT pg_current_xact_id()::text::bigint")
        write_fence(notebook, before_name=aside, mark=mark)
        began = time.monotonic()
        lockout = exchange(session, connection, Swap(record.dbname, old, aside, new, must_serve=True))
        lockout = lockout if old else 0.0  # nobody was served, so nobody was locked out
        notebook.write(lockout_s=lockout)
        return Switched(lockout_s=lockout, seconds={"switch": time.monotonic() - began}, kept=kept(session, old, aside))


def write_fence(notebook: Notebook, **facts: str | int) -> None:
    """Write down what is about to be renamed, and when."""
    notebook.write(fenced_at=time.time(), lockout_s=None, **facts)


def resumed(session: Session, record: Record, old: Database | None, notebook: Notebook) -> Switched:
    """It had happened already when the run that did it was killed."""
    lockout, warnings = record.lockout_s, ()
    if lockout is None:
        lockout = max(0.0, time.time() - record.fenced_at) if record.fenced_at else 0.0
        text = "the run that switched PostgreSQL was killed before it had measured the lock-out: the figure is the time until now, at most"
        warnings = (text,)  # type: ignore[assignment]
        notebook.write(lockout_s=lockout)
    return Switched(lockout_s=lockout, seconds={}, kept=kept(session, old, old.name if old else ""), warnings=warnings)


def kept(session: Session, database: Database | None, name: str) -> tuple[str, ...]:
    """What is set aside, for people."""
    return (f"database {name}, {size_for_people(session, database)}",) if database else ()


def _require_ready(session: Session, record: Record, existing: dict[int, Database], new: Database | None) -> None:
    live = named(existing, record.dbname)
    if record.staged is None or new is None or new.name != record.new_name:
        raise Refused(
            f"there is nothing staged for {record.dbname} at {session.where}: the database {record.new_name} is not what was proven",
            hint="Take the restore back and begin again. The live database was not touched.",
            store="postgres",
        )
    if new.open:
        raise Refused(
            f"somebody has opened {new.name} since it was compared with its evidence, so it may have been changed",
            hint="Take the restore back and begin again. The live database was not touched.",
            store="postgres",
        )
    if (live.oid if live else None) != record.old_oid:
        raise Refused(
            f"the database {record.dbname} at {session.where} is not the one for which this was planned",
            hint="Take the restore back and plan again. The live database was not touched.",
            store="postgres",
        )
