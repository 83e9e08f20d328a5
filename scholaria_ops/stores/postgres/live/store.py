"""PostgreSQL as a live store that can be restored: :class:`scholaria_ops.stores.live.LiveStore`, put together from its parts."""

from __future__ import annotations

from scholaria_ops.catalogue.evidence.base import StoreName
from scholaria_ops.catalogue.evidence.postgres import PostgresEvidence
from scholaria_ops.connections import PostgresConnection
from scholaria_ops.stores.base import Context
from scholaria_ops.stores.live import Effect, Notebook, RolledBack, Source, Staged, Standing, Switched
from scholaria_ops.stores.postgres.live import records, undo
from scholaria_ops.stores.postgres.live.plan import PostgresPlan, Restored, make_plan
from scholaria_ops.stores.postgres.live.server import guarded, require_identity
from scholaria_ops.stores.postgres.live.stage import Stage
from scholaria_ops.stores.postgres.live.standing import standing
from scholaria_ops.stores.postgres.live.switch import switch
from scholaria_ops.stores.postgres.live.take_back import take_back


class PostgresLive:
    """One database of a live server, exchanged whole.

    Three names play a part: ``<name>_restore_<id>`` while data are loaded, ``<name>_before_<id>`` for what was served
    before, ``<name>_after_<id>`` for what an undo sets aside, or a roll-back
    where it was written to. What is not served takes no connections, not even a
    superuser's: nobody can write to it by mistake, and ``pg_dumpall`` passes it over. To look into it:
    ``ALTER DATABASE … WITH ALLOW_CONNECTIONS true``.

    Args:
        connection: the live database, and a role that may make, rename and drop databases and end sessions (a superuser,
            or see the plan's objections). The role that backups use is usually not enough.
        jobs: parallel jobs of ``pg_restore``.
        restored: who knows earlier restores; without it a plan compares all content wherever rows cannot be dated by the set.
        accept_replication: go on although slots, publications, subscriptions or standbys are bound to the database.
    """

    name: StoreName = "postgres"

    def __init__(
        self, connection: PostgresConnection, *, jobs: int = 2, accept_replication: bool = False, restored: Restored | None = None
    ) -> None:
        self.connection = connection
        self.jobs = jobs
        self.accept_replication = accept_replication
        self._restored = restored

    def plan(self, source: Source[PostgresEvidence], ctx: Context) -> PostgresPlan:
        return make_plan(self.connection, source, ctx, jobs=self.jobs, accept_replication=self.accept_replication, restored=self._restored)

    def stage(self, plan: PostgresPlan, source: Source[PostgresEvidence], notebook: Notebook, ctx: Context) -> Staged:
        return Stage(self.connection, plan, source, notebook, ctx, self.jobs).run()

    def ready(self, plan: PostgresPlan, notebook: Notebook, ctx: Context) -> None:
        """Nothing: a switch exchanges names."""

    def switch(self, plan: PostgresPlan, notebook: Notebook, ctx: Context) -> Switched:
        return switch(self.connection, plan, notebook, ctx)

    def roll_back(self, notebook: Notebook, ctx: Context) -> RolledBack:
        record = records.read(notebook)
        if record is None:
            return RolledBack()
        with guarded(self.connection) as session:
            require_identity(session, record.identity)
            return take_back(session, self.connection, record, notebook)

    def finish(self, notebook: Notebook, ctx: Context) -> list[str]:
        """The switch leaves nothing behind that an undo does not need."""
        return []

    def later_writes(self, notebook: Notebook, ctx: Context) -> tuple[Effect, ...]:
        return undo.later_writes(self.connection, notebook, ctx)

    def check_undo(self, notebook: Notebook, ctx: Context) -> None:
        undo.check_undo(self.connection, notebook, ctx)

    def undo(self, notebook: Notebook, ctx: Context) -> Switched:
        return undo.undo(self.connection, notebook, ctx)

    def discard(self, notebook: Notebook, ctx: Context) -> list[str]:
        return undo.discard(self.connection, notebook)

    def standing(self, notebook: Notebook, ctx: Context) -> Standing:
        return standing(self.connection, notebook, ctx)
