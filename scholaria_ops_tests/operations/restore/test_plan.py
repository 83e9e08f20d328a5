"""A plan: what it is made of, while it is being made, and that it is carried out once."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from scholaria_ops.catalogue.evidence.base import STORE_NAMES
from scholaria_ops.errors import Cancelled, Refused
from scholaria_ops.operations import preflight
from scholaria_ops.operations.restore.live import Live
from scholaria_ops.operations.restore.options import RestoreOptions
from scholaria_ops.operations.restore.plan import plan_restore
from scholaria_ops.operations.restore.recover import recover_now
from scholaria_ops.operations.restore.saga import execute
from scholaria_ops.operations.restore.undo import plan_undo
from scholaria_ops.stores.base import Context
from scholaria_ops.stores.live import Source, StorePlan
from scholaria_ops_tests.operations.restore.bench import BenchFactory, killed
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


def test_a_plan_is_carried_out_once(bench: BenchFactory) -> None:
    here = bench()
    plan = here.plan()
    restore_id = execute(here.services, here.live, plan).journal.id
    steps = here.steps
    with pytest.raises(Refused, match=f"this plan was carried out already, as the restore {restore_id}"):
        execute(here.services, here.live, plan)
    assert here.steps == steps
    here.execute()


def test_nothing_is_planned_over_a_restore_that_was_cut_off(bench: BenchFactory) -> None:
    here = bench()
    assert killed(here, 4, here.execute) < 0
    (journal,) = here.journals.unfinished()
    for planning in (here.plan, lambda: plan_undo(here.services, here.live)):
        with pytest.raises(Refused, match=f"the restore {journal.id} of {here.set_id} has not come to its end") as caught:
            planning()
        assert "restore --recover" in caught.value.hint
    recover_now(here.services, here.live)
    here.execute()


def test_a_set_outside_the_catalogue_is_restored_from_where_it_lies(bench: BenchFactory) -> None:
    here = bench()
    sealed = here.services.catalogue.layout.sealed(here.set_id)
    outside = here.root / "outside" / sealed.name
    shutil.copytree(sealed, outside)
    shutil.rmtree(sealed)
    plan = plan_restore(here.services, here.live, str(outside), OPTIONS)
    execute(here.services, here.live, plan)
    assert here.served == [here.set_id] * 3


def test_a_disk_without_room_for_the_safety_set_is_an_objection(bench: BenchFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    here = bench()
    monkeypatch.setattr(preflight, "shutil", SimpleNamespace(disk_usage=lambda _: SimpleNamespace(free=1 << 20)))
    (found,) = here.plan(safety=True).objections
    assert "no room to save what is replaced: the set may need " in found.message
    assert (found.option, "larger disk" in found.hint) == ("--no-safety", True)
    assert here.plan(safety=False).objections == ()


def test_the_time_is_expected_by_what_an_earlier_restore_of_the_same_stores_took_here(bench: BenchFactory) -> None:
    here = bench()
    assert (here.plan().expected_s, here.plan().measured_by) == (1.0, ""), "by the stores' own guess"
    journal = here.execute().journal
    here.journals.write(journal.model_copy(update={"seconds": {**journal.seconds, "stage": 77.0}}))
    plan = here.plan()
    assert (plan.expected_s, plan.measured_by) == (77.0, journal.id)
    assert here.plan(components=("redis",)).measured_by == "", "other stores take another time"
