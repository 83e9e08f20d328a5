"""The PostgreSQL store: what :class:`scholaria_ops.stores.base.Store` promises, put together from its parts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from scholaria_ops.catalogue.artifacts import Artifact
from scholaria_ops.catalogue.evidence.base import Difference, StoreName
from scholaria_ops.catalogue.evidence.postgres import PostgresEvidence
from scholaria_ops.connections import PostgresConnection
from scholaria_ops.sandbox.postgres import PostgresServer
from scholaria_ops.stores.base import Check, Context, Dump, Facts, Loaded
from scholaria_ops.stores.postgres import compare as comparison
from scholaria_ops.stores.postgres import dump as dumping
from scholaria_ops.stores.postgres import inspect as inspection
from scholaria_ops.stores.postgres import load as loading
from scholaria_ops.stores.postgres import manual
from scholaria_ops.stores.postgres import preflight as looking
from scholaria_ops.stores.postgres.measure import Scope, Watch, begin_snapshot, measure, take_snapshot
from scholaria_ops.stores.postgres.session import open_session


class PostgresStore:
    """One database of a PostgreSQL server, with the roles of its cluster.

    Args:
        connection: where the live database is, and the role that reads it (``roles.sql`` makes a suitable one).
        pg_dump_compression: as ``pg_dump --compress`` takes it; gzip is used where this ``pg_dump`` lacks the method.
        lock_timeout_s: how long to wait for a table that somebody has locked exclusively.
        fingerprint_max_bytes: tables larger than this (bytes of table and TOAST) are counted, but not fingerprinted.
        restore_jobs: parallel jobs of ``pg_restore``.
        replica_lag_limit_s: a replica further behind than this is refused as a source.
    """

    name: StoreName = "postgres"

    def __init__(
        self,
        connection: PostgresConnection,
        *,
        pg_dump_compression: str = "zstd:1",
        lock_timeout_s: float = 30.0,
        fingerprint_max_bytes: int | None = None,
        restore_jobs: int = 2,
        replica_lag_limit_s: float = 300.0,
    ) -> None:
        self.connection = connection
        self.restore_jobs = restore_jobs
        self.replica_lag_limit_s = replica_lag_limit_s
        self._options = dumping.DumpOptions(pg_dump_compression, lock_timeout_s, fingerprint_max_bytes)

    @property
    def where(self) -> str:
        return self.connection.where

    def preflight(self, ctx: Context) -> Facts:
        return looking.preflight(self.connection, self._options.compression, self.replica_lag_limit_s, ctx)

    def dump(self, into: Path, set_id: str, ctx: Context) -> Dump[PostgresEvidence]:
        return dumping.dump(self.connection, self._options, into, set_id, ctx)

    def inspect(self, directory: Path, artifacts: Sequence[Artifact], evidence: PostgresEvidence, ctx: Context) -> list[Check]:
        return inspection.inspect(directory, artifacts, evidence, ctx)

    def load(
        self, directory: Path, artifacts: Sequence[Artifact], evidence: PostgresEvidence, target: PostgresServer, ctx: Context
    ) -> Loaded:
        """Into a throw-away server, under the database's own name. A database of that name may be there if it is empty."""
        dbname = evidence.database.name
        maintenance = target.connection.with_db("template1") if target.connection.dbname == dbname else target.connection
        load = loading.Load(maintenance, dbname, evidence, ctx, jobs=self.restore_jobs)
        return loading.load_set(directory, artifacts, load, replace_empty=True)

    def probe(self, target: PostgresServer, evidence: PostgresEvidence, ctx: Context) -> PostgresEvidence:
        return measure_database(target.connection.with_db(evidence.database.name), evidence, ctx)

    def compare(self, expected: PostgresEvidence, found: PostgresEvidence) -> list[Difference]:
        return comparison.compare(expected, found)

    def reap(self, ctx: Context) -> list[str]:
        """Nothing to remove: the snapshot of a killed run ends with its connection, which the server itself watches."""
        return []

    def manual_restore(self, artifacts: Sequence[Artifact]) -> str:
        return manual.manual_restore(artifacts)


def measure_database(connection: PostgresConnection, like: PostgresEvidence, ctx: Context) -> PostgresEvidence:
    """Measure a database as ``like`` was measured: the same tables are fingerprinted."""
    with open_session(connection, cancel=ctx.cancel) as session:
        begin_snapshot(session)
        cut = take_snapshot(session)
        return measure(session, cut, Scope.like(like), Watch(ctx.progress, ctx.cancel))
