"""Dagster's SQLite history as a command writes it: the same files and rows, with connections kept open while the command lasts.

Dagster's own classes open, prepare and close a database for every statement, translate each statement anew, and look through
ninety migrations for every database. A backup writes a hundred events, most of them into two databases, and nearly a second went
into that. Web server and daemon go on using Dagster's own classes on the same files.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import sqlalchemy as db
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from dagster._core.storage.base_storage import DagsterStorage
from dagster._core.storage.event_log.schema import SqlEventLogStorageMetadata
from dagster._core.storage.event_log.sqlite import sqlite_event_log
from dagster._core.storage.runs.sqlite.sqlite_run_storage import SqliteRunStorage
from dagster._core.storage.schedules.sqlite.sqlite_schedule_storage import SqliteScheduleStorage
from dagster._core.storage.sql import get_alembic_config
from dagster._core.storage.sqlite import SQLITE_BUSY_TIMEOUT_SECONDS, create_db_conn_string
from dagster._core.storage.sqlite_storage import DagsterSqliteStorage, _event_logs_directory, _runs_directory, _schedule_directory
from dagster._serdes import ConfigurableClassData
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import OperationalError

_PREPARED = "SELECT version_num FROM alembic_version"


class History(DagsterSqliteStorage):
    """Dagster's SQLite storage below ``base_dir``, for one process for a short while. :meth:`dispose` brings all of it to the disk."""

    def __init__(self, base_dir: str, inst_data: ConfigurableClassData | None = None) -> None:
        # Not the base class's own: it would open everything in its own way first.
        self.base_dir = base_dir
        self._run_storage = _Runs.from_local(_runs_directory(base_dir))
        self._event_log_storage = _Events(_event_logs_directory(base_dir))
        self._schedule_storage = _Ticks.from_local(_schedule_directory(base_dir))
        self._inst_data = inst_data
        DagsterStorage.__init__(self)  # type: ignore[no-untyped-call,arg-type]  # so it is declared

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData | None, config_value: Any) -> Self:
        """As Dagster makes it from its configuration."""
        return cls.from_local(inst_data=inst_data, **config_value)


class _Kept:
    """One database that stays open. Thread-safe: every transaction has a connection to itself.

    What was committed survives the end of this process at once, and a power cut once :meth:`close` has returned: the sets and
    records on disk are the truth, and `sync` rebuilds from them what a history lacks.
    """

    def __init__(self, address: str) -> None:
        self.engine: Engine = db.create_engine(address, connect_args={"timeout": SQLITE_BUSY_TIMEOUT_SECONDS})
        db.event.listen(self.engine, "connect", lambda raw, _: raw.execute("PRAGMA synchronous = NORMAL"))

    def is_prepared(self) -> bool:
        """Whether Dagster has made its tables there before."""
        with self.engine.connect() as connection:
            try:
                return connection.execute(db.text(_PREPARED)).first() is not None
            except OperationalError:  # no such table
                return False

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        with self.engine.begin() as connection:
            yield connection

    def close(self) -> None:
        with self.engine.connect() as connection:
            connection.execute(db.text("PRAGMA wal_checkpoint(PASSIVE)"))
        self.engine.dispose()


class _Runs(SqliteRunStorage):
    def __init__(self, conn_string: str, inst_data: ConfigurableClassData | None = None) -> None:
        super().__init__(conn_string, inst_data)
        self._kept = _Kept(conn_string)

    @classmethod
    def from_local(cls, base_dir: str, inst_data: ConfigurableClassData | None = None) -> Self:
        address = create_db_conn_string(base_dir, "runs")
        return cls(address, inst_data) if _was_prepared(base_dir, address) else super().from_local(base_dir, inst_data)

    @contextmanager
    def connect(self) -> Iterator[Connection]:
        with self._kept.transaction() as connection:
            yield connection

    def dispose(self) -> None:
        self._kept.close()
        super().dispose()


class _Ticks(SqliteScheduleStorage):
    """Commands hardly use it; what is spared is the search through the migrations."""

    @classmethod
    def from_local(cls, base_dir: str, inst_data: ConfigurableClassData | None = None) -> SqliteScheduleStorage:
        address = create_db_conn_string(base_dir, "schedules")
        return cls(address, inst_data) if _was_prepared(base_dir, address) else super().from_local(base_dir, inst_data)


class _Events(sqlite_event_log.SqliteEventLogStorage):
    """One database per run, and an index over all runs."""

    def __init__(self, base_dir: str, inst_data: ConfigurableClassData | None = None) -> None:
        self._kept: dict[str, _Kept] = {}
        super().__init__(base_dir, inst_data)

    @contextmanager
    def _connect(self, shard: str) -> Iterator[Connection]:
        with self._db_lock:
            if (kept := self._kept.get(shard)) is None:
                kept = self._kept[shard] = self._opened(shard)
            with kept.transaction() as connection:
                yield connection

    def _opened(self, shard: str) -> _Kept:
        path = Path(self.path_for_shard(shard))
        is_new = not path.exists()
        kept = _Kept(self.conn_string_for_shard(shard))
        if is_new:
            _prepare(kept.engine)
        elif not kept.is_prepared():
            self._initdb(kept.engine)
        return kept

    def dispose(self) -> None:
        for kept in self._kept.values():
            kept.close()
        self._kept.clear()
        super().dispose()


def _was_prepared(base_dir: str, address: str) -> bool:
    if not Path(base_dir).is_dir():
        return False
    kept = _Kept(address)
    try:
        return kept.is_prepared()
    finally:
        kept.engine.dispose()


def _prepare(engine: Engine) -> None:
    """What Dagster does for a new run's database, with one look at the migrations instead of two. Nobody else knows this run yet."""
    with engine.connect() as connection:
        connection.execute(db.text("PRAGMA journal_mode=WAL"))
        SqlEventLogStorageMetadata.create_all(connection)
        migrations = ScriptDirectory.from_config(get_alembic_config(sqlite_event_log.__file__))
        MigrationContext.configure(connection).stamp(migrations, "head")
        connection.commit()
