"""A live Qdrant behind the seam of restores."""

from __future__ import annotations

from collections.abc import Collection

from scholaria_ops.catalogue.evidence.base import StoreName
from scholaria_ops.catalogue.evidence.qdrant import QdrantEvidence
from scholaria_ops.connections import QdrantConnection
from scholaria_ops.stores.base import Context
from scholaria_ops.stores.live import Effect, Notebook, RolledBack, Source, Staged, Standing, Switched
from scholaria_ops.stores.qdrant.live import back
from scholaria_ops.stores.qdrant.live.later import later_writes
from scholaria_ops.stores.qdrant.live.marks import MAX_FLOATS
from scholaria_ops.stores.qdrant.live.plan import QdrantPlan, make_plan
from scholaria_ops.stores.qdrant.live.stage import stage
from scholaria_ops.stores.qdrant.live.standing import standing
from scholaria_ops.stores.qdrant.live.switch import ready, switch
from scholaria_ops.stores.qdrant.measure import Limits


class QdrantLive:
    """Restores into a live Qdrant of version 1.7 or newer, without losing what it serves.

    Args:
        in_place: recover a collection that the application calls by its own name in place, so that the name stays a
            collection's; requests to it fail meanwhile. Otherwise the name becomes an alias.
        by_own_name: collections that the application calls by their own names although aliases lead to them.
        timeout_s: seconds for one recovery or one snapshot.
    """

    name: StoreName = "qdrant"

    def __init__(
        self,
        connection: QdrantConnection,
        *,
        in_place: bool = False,
        by_own_name: Collection[str] = (),
        timeout_s: float = 3600.0,
    ) -> None:
        self.connection = connection
        self._in_place = in_place
        self._by_own_name = frozenset(by_own_name)
        self._timeout_s = timeout_s
        self._limits = Limits(rest_max_floats=MAX_FLOATS)

    def plan(self, source: Source[QdrantEvidence], ctx: Context) -> QdrantPlan:
        return make_plan(self.connection, source, ctx, in_place=self._in_place, by_own_name=self._by_own_name)

    def stage(self, plan: QdrantPlan, source: Source[QdrantEvidence], notebook: Notebook, ctx: Context) -> Staged:
        return stage(self.connection, plan, source, notebook, ctx, limits=self._limits, timeout_s=self._timeout_s)

    def ready(self, plan: QdrantPlan, notebook: Notebook, ctx: Context) -> None:
        ready(self.connection, notebook, ctx, timeout_s=self._timeout_s)

    def switch(self, plan: QdrantPlan, notebook: Notebook, ctx: Context) -> Switched:
        return switch(self.connection, plan, notebook, ctx, timeout_s=self._timeout_s)

    def roll_back(self, notebook: Notebook, ctx: Context) -> RolledBack:
        return back.roll_back(self.connection, notebook, ctx)

    def finish(self, notebook: Notebook, ctx: Context) -> list[str]:
        return back.finish(self.connection, notebook, ctx)

    def later_writes(self, notebook: Notebook, ctx: Context) -> tuple[Effect, ...]:
        return later_writes(self.connection, notebook, ctx)

    def check_undo(self, notebook: Notebook, ctx: Context) -> None:
        back.check_undo(self.connection, notebook, ctx)

    def undo(self, notebook: Notebook, ctx: Context) -> Switched:
        return back.undo(self.connection, notebook, ctx, timeout_s=self._timeout_s)

    def discard(self, notebook: Notebook, ctx: Context) -> list[str]:
        return back.discard(self.connection, notebook, ctx)

    def standing(self, notebook: Notebook, ctx: Context) -> Standing:
        return standing(self.connection, notebook, ctx)
