"""A restore that can never be settled is closed by hand, so that the next one may begin; no store is touched by that."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from scholaria_ops.errors import Refused, StoreUnavailable, UsageError
from scholaria_ops.operations.restore.fence import FenceFailed
from scholaria_ops.operations.restore.give_up import give_up, plan_give_up
from scholaria_ops.operations.restore.kept import kept_on_qdrant
from scholaria_ops.operations.restore.recover import NotTakenBack, recover_now
from scholaria_ops.operations.restore.saga import RestoreFailed
from scholaria_ops.operations.restore.undo import discard, plan_undo, undo
from scholaria_ops_tests.operations.conftest import ServicesFactory
from scholaria_ops_tests.operations.restore.bench import Bench, BenchFactory, killed
from scholaria_ops_tests.operations.restore.stand_in import unavailable


def dead_end(here: Bench) -> str:
    """A restore whose Redis is gone for ever, in the middle of the switch; returns its id."""
    here.fails["qdrant"] = {"switch": unavailable("it broke")}
    here.fails["redis"] = {"roll_back": unavailable("it holds nothing"), "standing": StoreUnavailable("nobody answers")}
    with pytest.raises(RestoreFailed) as caught:
        here.execute()
    (journal,) = here.journals.unfinished()
    assert f"restore --give-up {journal.id}" in caught.value.hint
    here.fails["qdrant"] = {}
    return journal.id


def test_a_dead_end_names_the_command_that_shows_what_stands_closes_it_and_lets_the_next_restore_begin(bench: BenchFactory) -> None:
    here = bench()
    dead = dead_end(here)
    with pytest.raises(NotTakenBack) as caught:
        recover_now(here.services, here.live)
    assert f"restore --give-up {dead}" in caught.value.hint
    plan = plan_give_up(here.services, here.live, dead)
    text = "\n".join(plan.lines)
    for words in (
        f"the restore {dead} of the set {here.set_id}",
        "it stands at: rolling back",
        "postgres serves: old of postgres",
        "redis: cannot be asked: nobody answers",
        "qdrant serves: old of qdrant",
        "journal.json, ",
        "writers: this restore does not hold them stopped",
    ):
        assert words in text
    files, states, steps = sorted(here.journals.directory(dead).rglob("*")), here.states(), here.steps
    lines = give_up(here.services, plan)
    assert lines[-1].startswith(f"the restore {dead} is given up")
    assert (sorted(here.journals.directory(dead).rglob("*")), here.states(), here.steps) == (files, states, steps)
    (closed,) = here.journals.all()
    assert (closed.phase, closed.ended_at is not None) == ("given_up", True)
    begun, ended = [e for e in here.services.audit_log.entries() if e.verb == "give_up"]
    assert (begun.outcome, begun.detail["restore"], begun.detail["found"], ended.outcome) == ("begun", dead, "rolling_back", "done")
    assert recover_now(here.services, here.live) == []
    here.fails.clear()
    here.execute()
    assert here.served == [here.set_id] * 3


def test_only_what_is_not_settled_can_be_given_up(bench: BenchFactory) -> None:
    here = bench()
    with pytest.raises(UsageError, match="there is no restore '20200101_000000'") as caught:
        plan_give_up(here.services, here.live, "20200101_000000")
    assert caught.value.hint == "Every restore is settled."
    dead = dead_end(here)
    with pytest.raises(UsageError) as caught:
        plan_give_up(here.services, here.live, "20200101_000000")
    assert dead in caught.value.hint
    plan = plan_give_up(here.services, here.live, dead)
    here.fails.clear()
    recover_now(here.services, here.live)
    with pytest.raises(UsageError, match=r"nothing of the restore .* is left to settle: it is rolled back"):
        give_up(here.services, plan)
    assert here.journals.all()[0].phase == "rolled_back"


def test_a_plan_of_another_moment_is_not_carried_out(bench: BenchFactory) -> None:
    here = bench()
    done = here.execute().journal
    plan = plan_give_up(here.services, here.live, done.id)
    undo(here.services, here.live, plan_undo(here.services, here.live))
    with pytest.raises(Refused, match="is undone by now, not done"):
        give_up(here.services, plan)


def test_writers_that_the_restore_holds_stopped_are_started(bench: BenchFactory, services_factory: ServicesFactory, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    here = bench(hook="sh -c 'kill -9 $PPID'", start=f"test ! -e {broken} && echo running > {{}}")
    for case in ("they start", "they do not start", "nobody knows how"):
        assert killed(here, 0, here.execute) == -signal.SIGKILL
        (journal,) = here.journals.unfinished()
        assert (journal.fenced, here.writers) == (True, "stopped")
        services = services_factory(BACKUP_FENCE="none") if case == "nobody knows how" else here.services
        plan = plan_give_up(services, here.live, journal.id)
        if case == "they start":
            assert "the writers were started again" in give_up(services, plan)
            assert here.writers == "running"
        elif case == "they do not start":
            broken.touch()
            with pytest.raises(FenceFailed):
                give_up(services, plan)
            broken.unlink()
        else:
            assert "start them by hand" in "\n".join(give_up(services, plan))
        assert here.journals.unfinished() == []


def test_what_was_kept_stays_known_and_an_older_restore_cannot_be_undone_over_it(bench: BenchFactory) -> None:
    here = bench()
    here.execute()
    newer = here.execute().journal
    plan = plan_give_up(here.services, here.live, newer.id)
    assert f"postgres holds: {here.set_id}, kept" in plan.lines
    assert f"postgres, by hand: remove {here.set_id}, kept" in plan.lines
    give_up(here.services, plan)
    assert f"postgres: {here.set_id}, kept" in here.journals.all()[-1].kept
    with pytest.raises(UsageError, match="no restore that can be undone"):
        plan_undo(here.services, here.live)
    assert newer.id not in {gone.restore_id for gone in discard(here.services, here.live)}


def test_a_discard_that_can_never_end_names_the_command_too(bench: BenchFactory) -> None:
    here = bench()
    done = here.execute().journal
    here.fails["redis"] = {"discard": unavailable("it is gone for ever")}
    with pytest.raises(Exception, match="gone for ever") as caught:
        discard(here.services, here.live)
    assert f"restore --give-up {done.id}" in getattr(caught.value, "hint", "")
    give_up(here.services, plan_give_up(here.services, here.live, done.id))
    assert discard(here.services, here.live) == []


def test_collections_of_a_restore_that_was_given_up_stay_out_of_backups(bench: BenchFactory) -> None:
    here = bench()
    done = here.execute().journal
    here.journals.notebook(done.id, "qdrant").write(state="rolled_back", meanwhile=["documents__meanwhile_1"])
    give_up(here.services, plan_give_up(here.services, here.live, done.id))
    assert "documents__meanwhile_1" in kept_on_qdrant(here.services.catalogue.layout)
