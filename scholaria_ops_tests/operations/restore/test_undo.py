"""Undo and discard over three stores: all of them go back, or none; and a crash anywhere is carried on by the next command."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

import pytest

from scholaria_ops.catalogue.evidence.base import STORE_NAMES
from scholaria_ops.errors import Cancelled, Refused, StoreError, StoreUnavailable, UsageError
from scholaria_ops.operations.restore import recover as recover_module
from scholaria_ops.operations.restore import undo as undo_module
from scholaria_ops.operations.restore.journal import Journals
from scholaria_ops.operations.restore.recover import NotTakenBack, recover_now
from scholaria_ops.operations.restore.saga import RestoreFailed
from scholaria_ops.operations.restore.undo import discard, plan_undo, undo
from scholaria_ops.operations.services import Services
from scholaria_ops.stores.base import Context
from scholaria_ops.stores.live import Notebook, StillKept, Switched
from scholaria_ops_tests.operations.restore.bench import BenchFactory, killed
from scholaria_ops_tests.operations.restore.stand_in import StandIn, unavailable


def test_undo_goes_back_in_every_store_and_discard_ends_that(bench: BenchFactory) -> None:
    here = bench()
    here.execute()
    plan = plan_undo(here.services, here.live)
    assert plan.set_id == here.set_id
    undo(here.services, here.live, plan)
    assert here.served == ["old"] * 3
    assert here.writers == "running"
    with pytest.raises(UsageError, match="no restore that can be undone"):
        plan_undo(here.services, here.live)
    assert discard(here.services, here.live, older_than=timedelta(days=7)) == []
    (gone,) = discard(here.services, here.live)
    assert gone.lines == tuple(f"removed what {n} had kept" for n in STORE_NAMES)
    assert discard(here.services, here.live) == []


def test_a_store_that_cannot_go_back_keeps_the_undo_open(bench: BenchFactory) -> None:
    here = bench()
    here.execute()
    here.fails["redis"] = {"undo": unavailable("it is down")}
    with pytest.raises(NotTakenBack, match=r"redis: .*it is down"):
        undo(here.services, here.live, plan_undo(here.services, here.live))
    assert here.served == ["old", here.set_id, "old"]
    here.fails.clear()
    recover_now(here.services, here.live)
    assert here.served == ["old"] * 3
    assert here.steps.count("postgres undo") == 1


def test_a_discard_that_was_cut_off_is_carried_on_and_not_followed_by_half_an_undo(bench: BenchFactory) -> None:
    here = bench()
    here.execute()
    here.fails["redis"] = {"discard": unavailable("it is down")}
    with pytest.raises(StoreError, match="it is down"):
        discard(here.services, here.live)
    assert here.steps[-2:] == ["postgres discard", "redis discard"], "what PostgreSQL kept is gone"
    with pytest.raises(UsageError, match="no restore that can be undone"):
        plan_undo(here.services, here.live)
    here.fails.clear()
    (gone,) = discard(here.services, here.live)
    assert gone.lines == tuple(f"removed what {n} had kept" for n in STORE_NAMES)


def test_a_discard_that_is_refused_leaves_the_undo(bench: BenchFactory) -> None:
    here = bench()
    here.execute()
    here.fails["postgres"] = {"discard": Refused("it may be all that is left", hint="Undo the restore.")}
    with pytest.raises(Refused, match="all that is left"):
        discard(here.services, here.live)
    undo(here.services, here.live, plan_undo(here.services, here.live))
    assert here.served == ["old"] * 3


def test_what_one_store_leaves_standing_keeps_neither_the_other_stores_nor_other_restores(bench: BenchFactory) -> None:
    here = bench()
    older, newer = here.execute().journal, here.execute().journal
    spared = StillKept("x, is renamed", hint="Drop it.", store="postgres", removed=["y, removed"], kept=["x, is renamed"])
    here.fails["postgres"] = {"discard": spared}
    first, second = discard(here.services, here.live)
    assert [first.restore_id, second.restore_id] == [older.id, newer.id]
    for gone in (first, second):
        assert gone.lines == ("y, removed", "removed what redis had kept", "removed what qdrant had kept")
        assert gone.left[0].startswith("postgres: x, is renamed (Drop it. ")
        assert f"restore --give-up {gone.restore_id}" in gone.left[0]
    assert [(j.phase, j.kept) for j in here.journals.all()] == [("discarding", ("x, is renamed",))] * 2
    ended = [e for e in here.services.audit_log.entries() if e.verb == "discard"]
    assert [(e.outcome, e.detail["left"][0][:8]) for e in ended] == [("refused", "postgres")] * 2
    with pytest.raises(UsageError, match="no restore that can be undone"):
        plan_undo(here.services, here.live)
    here.fails.clear()
    assert [gone.left for gone in discard(here.services, here.live)] == [(), ()]
    assert [(j.phase, j.kept) for j in here.journals.all()] == [("discarded", ())] * 2


@pytest.mark.slow(6)
def test_killed_at_every_durable_step_of_an_undo_the_next_command_carries_it_on(bench: BenchFactory, tmp_path: Path) -> None:
    here = bench()
    for write in range(1, 40):
        for path in (*tmp_path.glob("*.live"), tmp_path / "log"):
            path.unlink(missing_ok=True)
        here.execute()
        plan = plan_undo(here.services, here.live)
        ended = killed(here, write, lambda plan=plan: undo(here.services, here.live, plan))  # type: ignore[misc]
        recover_now(here.services, here.live)
        assert len(set(here.served)) == 1
        assert here.writers == "running"
        if ended == 0:
            assert here.served == ["old"] * 3
            break
        discard(here.services, here.live)
    else:
        pytest.fail("the undo never came to its end")


def test_what_was_written_to_a_restore_that_was_taken_back_is_kept_until_it_is_discarded(bench: BenchFactory, tmp_path: Path) -> None:
    here = bench()
    done = here.execute().journal
    here.fails["postgres"] = {"written": unavailable("somebody wrote")}
    here.fails["qdrant"] = {"switch late": unavailable("it broke")}
    with pytest.raises(RestoreFailed, match=f"was taken back.*it broke.*; set aside: {here.set_id} of postgres"):
        here.execute()
    here.fails.clear()
    aside = here.journals.all()[-1]
    assert (aside.phase, aside.kept) == ("aside", (f"{here.set_id} of postgres",))
    assert here.journals.unfinished() == []
    assert discard(here.services, here.live, older_than=timedelta(days=7)) == []
    assert plan_undo(here.services, here.live).restore_id == done.id, "what was taken back changed nothing"
    first, second = discard(here.services, here.live)
    assert (first.restore_id, second.restore_id) == (done.id, aside.id)
    assert [(j.phase, j.kept) for j in here.journals.all()] == [("discarded", ()), ("rolled_back", ())]


def test_a_discard_of_what_was_set_aside_leaves_an_older_restore_undoable(bench: BenchFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    here = bench()
    done = here.execute().journal
    here.fails["postgres"] = {"written": unavailable("somebody wrote"), "discard": unavailable("it is down")}
    here.fails["qdrant"] = {"switch late": unavailable("it broke")}
    with pytest.raises(RestoreFailed):
        here.execute()
    aside = here.journals.all()[-1]
    monkeypatch.setattr(Journals, "keeping", lambda _: [aside])
    with pytest.raises(StoreError, match="it is down"):
        discard(here.services, here.live)
    assert plan_undo(here.services, here.live).restore_id == done.id
    here.fails.clear()
    discard(here.services, here.live)
    assert plan_undo(here.services, here.live).restore_id == done.id


@pytest.mark.slow(6)
def test_killed_at_every_durable_step_of_taking_back_what_was_written_stays_known(bench: BenchFactory, tmp_path: Path) -> None:
    here = bench()
    for write in range(1, 40):
        for path in (*tmp_path.glob("*.live"), tmp_path / "log"):
            path.unlink(missing_ok=True)
        here.fails["redis"] = {"written": unavailable("somebody wrote")}
        here.fails["qdrant"] = {"switch": KeyboardInterrupt()}  # type: ignore[dict-item]
        here.fails["postgres"] = {"roll_back": unavailable("it is down")}
        with pytest.raises(RestoreFailed, match="not everything could be taken back"):
            here.execute()
        here.fails["postgres"] = {}
        ended = killed(here, write, lambda: recover_now(here.services, here.live))
        recover_now(here.services, here.live)
        assert here.journals.all()[-1].kept == (f"{here.set_id} of redis",), f"forgotten after a kill at write {write}"
        (gone,) = discard(here.services, here.live)
        assert gone.lines == tuple(f"removed what {n} had kept" for n in STORE_NAMES)
        if ended == 0:
            break
    else:
        pytest.fail("it never came to its end")
    assert write > 2


def test_an_undo_that_one_store_would_refuse_touches_none(bench: BenchFactory) -> None:
    here = bench()
    here.execute()
    plan = plan_undo(here.services, here.live)
    here.fails["postgres"] = {"check_undo": Refused("both copies do not fit", hint="Raise maxmemory.")}
    with pytest.raises(Refused, match="both copies do not fit"):
        plan_undo(here.services, here.live)
    stop_was_seen = here.root / "writers"
    stop_was_seen.write_text("untouched\n")
    with pytest.raises(Refused, match="both copies do not fit"):
        undo(here.services, here.live, plan)
    assert here.served == [here.set_id] * 3
    assert here.writers == "untouched"
    assert not [step for step in here.steps if step.endswith(" undo")]
    here.fails.clear()
    undo(here.services, here.live, plan_undo(here.services, here.live))
    assert here.served == ["old"] * 3


@pytest.mark.parametrize("resumed", [False, True], ids=["undo", "recover"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_stores_go_back_does_not_stop_the_rest_and_is_answered(
    bench: BenchFactory, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], number: signal.Signals, resumed: bool
) -> None:
    here = bench()
    here.execute()
    plan = plan_undo(here.services, here.live)
    real = StandIn.undo
    if resumed:
        (journal,) = here.journals.all()
        here.journals.write(journal.model_copy(update={"phase": "undoing", "fenced": True}))

    def signalled(store: StandIn, notebook: Notebook, ctx: Context) -> Switched:
        signal.raise_signal(number)
        return real(store, notebook, ctx)

    monkeypatch.setattr(StandIn, "undo", signalled)
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    lines = recover_now(here.services, here.live) if resumed else undo(here.services, here.live, plan)
    assert len(lines) == 3
    assert (here.served, here.writers) == (["old"] * 3, "running")
    assert "this is brought to its end first" in capfd.readouterr().err
    assert handlers == (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))


def test_a_run_that_is_cancelled_while_stores_go_back_brings_all_of_them_back(bench: BenchFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    here = bench()
    here.execute()
    plan = plan_undo(here.services, here.live)
    real = StandIn.undo

    def cancelled(store: StandIn, notebook: Notebook, ctx: Context) -> Switched:
        ctx.cancel.check()
        here.services.cancel.cancel("somebody pressed Terminate")
        return real(store, notebook, ctx)

    monkeypatch.setattr(StandIn, "undo", cancelled)
    assert len(undo(here.services, here.live, plan)) == 3
    assert (here.served, here.writers) == (["old"] * 3, "running")


def test_a_signal_before_the_first_store_goes_back_ends_the_undo_and_starts_the_writers(bench: BenchFactory, tmp_path: Path) -> None:
    here = bench(stop=f"echo stopped > {{}}; test ! -e {tmp_path}/armed || kill -INT $PPID")
    here.execute()
    plan = plan_undo(here.services, here.live)
    (tmp_path / "armed").touch()
    with pytest.raises(Cancelled, match="before any store had gone back"):
        undo(here.services, here.live, plan)
    assert (here.served, here.writers) == ([here.set_id] * 3, "running")
    assert plan_undo(here.services, here.live).kept == plan.kept


@pytest.fixture
def sequences(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The ids that the served database has given out (900), and a file of what sequences were raised to."""
    file = tmp_path / "raised"

    def raised(_services: Services, at_least: Mapping[str, int]) -> tuple[list[str], list[str]]:
        with file.open("a") as out:
            out.write(f"{dict(at_least)}\n")
        return [], []

    for module in (undo_module, recover_module):
        monkeypatch.setattr(module, "ids_given_out", lambda *_: ({"public.topic_id_seq": 900}, []))
    monkeypatch.setattr(recover_module, "raise_sequences", raised)
    return file


@pytest.mark.slow(6)
def test_ids_that_were_given_out_since_the_restore_are_not_given_out_again_whenever_it_is_killed(
    bench: BenchFactory, tmp_path: Path, sequences: Path
) -> None:
    here = bench()
    for write in range(1, 40):
        for path in (*tmp_path.glob("*.live"), tmp_path / "log"):
            path.unlink(missing_ok=True)
        here.execute()
        sequences.unlink(missing_ok=True)
        plan = plan_undo(here.services, here.live)
        ended = killed(here, write, lambda plan=plan: undo(here.services, here.live, plan))  # type: ignore[misc]
        recover_now(here.services, here.live)
        assert here.writers == "running"
        if here.journals.all()[-1].phase == "undone":
            *_, last = sequences.read_text().splitlines()
            assert last == "{'public.topic_id_seq': 900}", f"after a kill at write {write}"
        if ended == 0:
            break
        discard(here.services, here.live)
    else:
        pytest.fail("the undo never came to its end")


def test_sequences_that_cannot_be_raised_are_told_or_tried_again_where_the_database_is_down(
    bench: BenchFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = bench()
    here.execute()

    def failing(error: StoreError | Refused) -> None:
        def raise_it(*_: object) -> list[str]:
            raise error

        monkeypatch.setattr(recover_module, "raise_sequences", raise_it)

    failing(StoreUnavailable("nobody answers"))
    with pytest.raises(NotTakenBack, match="postgres: ids may be given out again: nobody answers"):
        undo(here.services, here.live, plan_undo(here.services, here.live))
    assert (here.served, here.writers) == (["old"] * 3, "running")
    failing(StoreError("its maximum is lower"))
    lines = recover_now(here.services, here.live)
    assert "ids that were given out since the restore may be given out again: its maximum is lower" in lines
    assert here.journals.unfinished() == []
    here.execute()
    failing(Refused("permission denied for sequence topic_id_seq"))
    lines = undo(here.services, here.live, plan_undo(here.services, here.live))
    assert lines[-1] == "ids that were given out since the restore may be given out again: permission denied for sequence topic_id_seq"
    assert here.journals.all()[-1].warnings == (lines[-1],)
