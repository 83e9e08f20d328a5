"""A plan while it is being made: it may be given up at any moment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from scholaria_ops.catalogue.evidence.base import STORE_NAMES
from scholaria_ops.errors import Cancelled
from scholaria_ops.operations.restore.live import Live
from scholaria_ops.operations.restore.options import RestoreOptions
from scholaria_ops.operations.restore.plan import plan_restore
from scholaria_ops.stores.base import Context
from scholaria_ops.stores.live import Source, StorePlan
from scholaria_ops_tests.operations.restore.bench import BenchFactory
from scholaria_ops_tests.operations.restore.stand_in import StandIn

OPTIONS = RestoreOptions(safety=False)
_LONG_S = 20.0


class _Slow(StandIn):
    """A store that has much to look at."""

    def plan(self, source: Source[Any], ctx: Context) -> StorePlan:
        self._say("looks")
        try:
            ctx.cancel.wait(_LONG_S)
        except Cancelled:
            self._say("stops looking")
            raise
        return super().plan(source, ctx)


def test_what_is_done_meanwhile_is_done_before_the_stores_have_answered(bench: BenchFactory) -> None:
    here = bench()
    done: list[Path] = []
    plan = plan_restore(here.services, here.live, here.set_id, OPTIONS, meanwhile=lambda: done.append(here.root))
    assert done == [here.root]
    assert plan.components == STORE_NAMES


def test_a_signal_stops_the_looking_at_every_store(bench: BenchFactory) -> None:
    here = bench()
    slow = {n: Live(_Slow(n, here.root / f"{n}.live", here.root / "log", {}), StorePlan) for n in STORE_NAMES}

    def interrupted() -> None:
        while sum("looks" in step for step in here.steps) < len(STORE_NAMES):
            here.services.cancel.wait(0.01)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        plan_restore(here.services, slow, here.set_id, OPTIONS, meanwhile=interrupted)
    assert sorted(here.steps) == sorted(f"{n} {what}" for n in STORE_NAMES for what in ("looks", "stops looking"))
