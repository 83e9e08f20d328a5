"""The saga: all or nothing over three stores, writers always started again, and a crash anywhere is settled by the next command."""

from __future__ import annotations

import multiprocessing
import os
import shlex
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from scholaria_ops import hashed
from scholaria_ops.catalogue.evidence.base import STORE_NAMES, StoreName
from scholaria_ops.catalogue.layout import SUMS
from scholaria_ops.catalogue.sets import BackupSet
from scholaria_ops.errors import Busy, DiskFull, OpsError, Refused, StoreError, UsageError, VerificationFailed
from scholaria_ops.files import Written, hash_file, replace_durably
from scholaria_ops.operations.restore import journal as journal_module
from scholaria_ops.operations.restore.after import After, Aftermath, HookFailed
from scholaria_ops.operations.restore.fence import FenceFailed
from scholaria_ops.operations.restore.journal import FileNotebook, Journal, Journals
from scholaria_ops.operations.restore.live import Live, LiveStores
from scholaria_ops.operations.restore.options import RestoreOptions
from scholaria_ops.operations.restore.plan import Plans, RestorePlan, plan_restore
from scholaria_ops.operations.restore.recover import NotTakenBack, recover_now
from scholaria_ops.operations.restore.saga import RestoreFailed, RestoreReport, execute
from scholaria_ops.operations.restore.undo import discard, plan_undo, undo
from scholaria_ops.operations.services import Services
from scholaria_ops.stores.live import Objection, StorePlan
from scholaria_ops_tests.operations.conftest import ServicesFactory
from scholaria_ops_tests.operations.restore.stand_in import StandIn, unavailable
from scholaria_ops_tests.operations.support import copied, flip

OPTIONS = RestoreOptions(safety=False)
FORK = multiprocessing.get_context("fork")


@pytest.fixture(autouse=True)
def _no_aftermath(monkeypatch: pytest.MonkeyPatch) -> None:
    """What follows a switch concerns real stores, which the stand-ins are not; it has tests of its own."""
    monkeypatch.setattr(After, "before_switch", lambda *_: None)
    monkeypatch.setattr(After, "_raise_sequences", lambda *_: None)
    monkeypatch.setattr(After, "look", lambda *_: Aftermath())
    monkeypatch.setattr(After, "ask_for_backup", lambda _self, _set, found: found)


@dataclass
class Bench:
    """A set, three stand-ins, and a fence that keeps a writer's state in a file."""

    services: Services
    root: Path
    set_id: str
    fails: dict[StoreName, dict[str, Exception]]

    @property
    def live(self) -> LiveStores:
        return {n: Live(StandIn(n, self.root / f"{n}.live", self.root / "log", self.fails.get(n, {})), StorePlan) for n in STORE_NAMES}

    def plan(self, **options: Any) -> RestorePlan:
        return plan_restore(self.services, self.live, self.set_id, RestoreOptions(**{"safety": False, **options}))

    def execute(self, **options: Any) -> RestoreReport:
        return execute(self.services, self.live, self.plan(**options))

    @property
    def served(self) -> list[str]:
        return [StandIn(n, self.root / f"{n}.live", self.root / "log", {}).state["served"] for n in STORE_NAMES]

    @property
    def steps(self) -> list[str]:
        return (self.root / "log").read_text().splitlines() if (self.root / "log").exists() else []

    @property
    def writers(self) -> str:
        return (self.root / "writers").read_text().strip()

    @property
    def journals(self) -> Journals:
        return Journals(self.services.catalogue.layout)

    def states(self) -> list[dict[str, Any]]:
        return [StandIn(n, self.root / f"{n}.live", self.root / "log", {}).state for n in STORE_NAMES]


BenchFactory = Callable[..., Bench]


@pytest.fixture
def bench(tmp_path: Path, pristine: BackupSet, services_factory: ServicesFactory) -> BenchFactory:
    def make(*, hook: str = "", stop: str = "echo stopped > {}", start: str = "echo running > {}") -> Bench:
        writers = tmp_path / "writers"
        writers.write_text("running\n")
        shell = "sh -c " + shlex.quote(stop.format(writers)), "sh -c " + shlex.quote(start.format(writers))
        services = services_factory(
            BACKUP_FENCE="command", BACKUP_FENCE_STOP=shell[0], BACKUP_FENCE_START=shell[1], BACKUP_RESTORE_HOOK=hook
        )
        services.check_directory()
        copied(pristine, services.catalogue.layout.root)
        return Bench(services, tmp_path, pristine.id, {})

    return make


def test_a_restore_stages_all_then_switches_all_and_qdrant_last(bench: BenchFactory) -> None:
    here = bench()
    report = here.execute()
    assert here.served == [here.set_id] * 3
    assert sorted(here.steps[:3]) == ["postgres stage", "qdrant stage", "redis stage"]
    assert here.steps[3:6] == [f"{n} switch" for n in STORE_NAMES]
    assert sorted(here.steps[6:]) == sorted(f"{n} finish" for n in STORE_NAMES)
    assert here.writers == "running"
    assert report.journal.kept == ("old of postgres", "old of redis", "old of qdrant")
    assert report.journal.seconds["fenced"] > 0
    assert here.journals.undoable() is not None


@pytest.mark.parametrize("store", STORE_NAMES)
@pytest.mark.parametrize("step", ["stage", "switch", "switch late"])
def test_a_failure_takes_every_store_back_and_starts_the_writers(bench: BenchFactory, store: StoreName, step: str) -> None:
    here = bench()
    here.fails[store] = {step: unavailable("it broke")}
    with pytest.raises(RestoreFailed, match=r"was taken back.*it broke") as caught:
        here.execute()
    assert caught.value.taken_back
    assert here.served == ["old"] * 3
    assert all("beside" not in s for s in here.states())
    assert here.writers == "running"
    assert here.journals.unfinished() == []
    with pytest.raises(UsageError, match="no restore that can be undone"):
        plan_undo(here.services, here.live)


def test_what_cannot_be_taken_back_is_said_and_tried_again_by_the_next_command(bench: BenchFactory) -> None:
    here = bench()
    here.fails["qdrant"] = {"switch": unavailable("it broke")}
    here.fails["redis"] = {"roll_back": unavailable("it is down")}
    with pytest.raises(RestoreFailed, match="not everything could be taken back: redis: it is down") as caught:
        here.execute()
    assert not caught.value.taken_back
    assert here.served == ["old", here.set_id, "old"]
    with pytest.raises(NotTakenBack, match="it is down"):
        recover_now(here.services, here.live)
    here.fails.clear()
    assert "redis is back" in recover_now(here.services, here.live)
    assert here.served == ["old"] * 3
    assert recover_now(here.services, here.live) == []


def test_a_fence_that_does_not_stop_the_writers_aborts_before_anything_is_switched(bench: BenchFactory) -> None:
    here = bench(stop="echo half > {}; exit 3")
    with pytest.raises(RestoreFailed, match="could not be stopped"):
        here.execute()
    assert not [s for s in here.steps if "switch" in s]
    assert here.served == ["old"] * 3
    assert here.writers == "running", "whoever was stopped was started again"


def test_writers_that_do_not_start_are_told_and_the_rest_is_finished_by_recover(bench: BenchFactory, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.touch()
    here = bench(start=f"test ! -e {broken} && echo running > {{}}")
    with pytest.raises(RestoreFailed, match="is served, but the writers could not be started again") as caught:
        here.execute()
    assert "The application is down until somebody runs" in caught.value.hint
    assert here.served == [here.set_id] * 3
    with pytest.raises(FenceFailed):
        recover_now(here.services, here.live)
    broken.unlink()
    assert "the writers were started again" in recover_now(here.services, here.live)
    assert (here.writers, here.served) == ("running", [here.set_id] * 3)
    assert here.journals.undoable() is not None


def test_the_hook_runs_before_the_writers_start(bench: BenchFactory, tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    here = bench(hook=f"sh -c 'cp {tmp_path}/writers {seen}'")
    here.execute()
    assert seen.read_text() == "stopped\n"


def test_a_hook_that_fails_takes_every_store_back(bench: BenchFactory) -> None:
    here = bench(hook="sh -c 'echo migration is stuck >&2; exit 7'")
    with pytest.raises(RestoreFailed, match="migration is stuck") as caught:
        here.execute()
    assert isinstance(caught.value.__cause__, HookFailed)
    assert here.served == ["old"] * 3
    assert here.writers == "running"


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


def test_a_full_disk_here_keeps_neither_the_stores_nor_the_writers_from_going_back(
    bench: BenchFactory, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    here = bench(hook=f"sh -c 'touch {tmp_path}/full; exit 1'")

    def full(path: Path, data: bytes, *, mode: int = 0o600) -> None:
        if (tmp_path / "full").exists():
            raise DiskFull(f"no space left while writing {path.name}")
        replace_durably(path, data, mode=mode)

    monkeypatch.setattr(journal_module, "replace_durably", full)
    with pytest.raises(RestoreFailed, match="not everything could be taken back: no space left") as caught:
        here.execute()
    assert not caught.value.taken_back
    assert here.served == ["old"] * 3
    assert here.writers == "running"
    (tmp_path / "full").unlink()
    recover_now(here.services, here.live)
    assert here.journals.unfinished() == []


def test_an_unexpected_error_of_one_store_keeps_neither_the_others_nor_the_writers(bench: BenchFactory) -> None:
    here = bench()
    here.fails["qdrant"] = {"switch": unavailable("it broke"), "roll_back": OSError("input/output error")}
    with pytest.raises(RestoreFailed, match="qdrant: OSError: input/output error"):
        here.execute()
    assert here.served == ["old"] * 3
    assert here.writers == "running"


def test_writers_are_not_said_to_run_when_the_settings_do_not_say_how_they_start(
    bench: BenchFactory, services_factory: ServicesFactory
) -> None:
    here = bench(hook="sh -c 'kill -9 $PPID'")
    assert _killed(here, 0, here.execute) == -signal.SIGKILL
    (journal,) = here.journals.unfinished()
    assert (journal.fenced, here.writers) == (True, "stopped")
    with pytest.raises(OpsError, match="how they are started is not set any more"):
        recover_now(services_factory(BACKUP_FENCE="none"), here.live)
    assert "the writers were started again" in recover_now(here.services, here.live)
    assert here.writers == "running"


def test_what_fails_after_the_switch_is_not_told_as_a_restore_that_failed(bench: BenchFactory) -> None:
    here = bench()
    here.fails["redis"] = {"finish": unavailable("the way back cannot be written")}
    with pytest.raises(RestoreFailed, match=f"the set {here.set_id} is served, but .* the way back cannot be written") as caught:
        here.execute()
    assert not caught.value.taken_back
    assert "restore --recover" in caught.value.hint
    here.fails.clear()
    recover_now(here.services, here.live)
    assert here.journals.undoable() is not None


def test_a_plan_is_not_executed_with_other_settings_than_it_shows(bench: BenchFactory, services_factory: ServicesFactory) -> None:
    here = bench()
    plan = here.plan()
    for services, shown in ((services_factory(BACKUP_FENCE="none"), plan), (here.services, plan.model_copy(update={"after": ()}))):
        with pytest.raises(Refused, match="set otherwise than when the plan was made"):
            execute(services, here.live, shown)
    assert here.steps == []


def test_a_plan_is_executed_only_while_it_is_true(bench: BenchFactory, tmp_path: Path) -> None:
    here = bench()
    plan = here.plan()
    with pytest.raises(Refused, match="has expired"):
        execute(here.services, here.live, plan.model_copy(update={"valid_until": plan.made_at - timedelta(seconds=1)}))
    with pytest.raises(Refused, match="not the one that was planned"):
        execute(here.services, here.live, plan.model_copy(update={"sums_sha256": "0" * 64}))
    against = plan.model_copy(update={"objections": (Objection(message="it is Friday", hint="Wait."),)})
    with pytest.raises(Refused, match="it is Friday"):
        execute(here.services, here.live, against)
    assert here.steps == []
    plans = Plans(here.services.catalogue)
    plans.show(plan)
    assert plans.shown(plan.digest[:12], here.services.now()) == plan
    with pytest.raises(UsageError, match="not the digest"):
        plans.shown("0" * 64, here.services.now())
    with pytest.raises(Refused, match="expired"):
        plans.shown(plan.digest, plan.valid_until + timedelta(seconds=1))


def test_a_damaged_set_is_refused_and_the_next_older_sound_one_named(
    bench: BenchFactory, pristine: BackupSet, services_factory: ServicesFactory
) -> None:
    here = bench()
    catalogue = here.services.catalogue
    catalogue.records.append(here.set_id, "verified", passed=True, level="hash")
    from scholaria_ops_tests.operations.support import take

    newer = take(here.services)
    flip(newer.directory / newer.manifest.artifacts[0].path)
    with pytest.raises(VerificationFailed) as caught:
        plan_restore(here.services, here.live, newer.id, OPTIONS)
    assert f"scholaria-ops restore {here.set_id}" in caught.value.hint
    flip(catalogue.layout.sealed(here.set_id) / SUMS)
    with pytest.raises(VerificationFailed) as caught:
        plan_restore(here.services, here.live, newer.id, OPTIONS)
    assert "No older set here is sound" in caught.value.hint


def test_a_restore_and_a_backup_exclude_each_other(bench: BenchFactory) -> None:
    here = bench()
    plan = here.plan()
    with here.services.locked("backup 20260101_000000"), pytest.raises(Busy, match="backup 20260101_000000"):
        execute(here.services, here.live, plan)
    assert here.steps == []


def test_a_safety_set_of_the_real_stores_is_taken_first_and_says_so(bench: BenchFactory) -> None:
    here = bench()
    report = here.execute(safety=True, components=("redis",))
    safety = here.services.catalogue.find(report.journal.safety_set)
    assert safety.set is not None
    assert safety.set.manifest.tier == "pre_restore"
    assert [n for n, _ in safety.set.manifest.parts()] == ["redis"]
    assert safety.set.manifest.missing["postgres"] == "not asked for"
    assert here.served == ["old", here.set_id, "old"]


def _killed(here: Bench, write: int, action: Callable[[], object]) -> int:
    """Run ``action`` in a child that kills itself at the ``write``-th durable write; returns the child's exit code."""

    def child() -> None:
        count = 0

        def counted(path: Path, data: bytes, *, mode: int = 0o600) -> None:
            nonlocal count
            count += 1
            if count == write:
                os.kill(os.getpid(), signal.SIGKILL)
            replace_durably(path, data, mode=mode)

        setattr(journal_module, "replace_durably", counted)  # noqa: B010 - the module does not export it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
        action()
        os._exit(0)

    process = FORK.Process(target=child)
    process.start()
    process.join(120)
    assert process.exitcode is not None
    return process.exitcode


@pytest.mark.slow(6)
def test_killed_at_every_durable_step_the_next_command_leaves_all_old_or_all_new(bench: BenchFactory, tmp_path: Path) -> None:
    here = bench()
    old = new = 0
    for write in range(1, 60):
        for path in (*tmp_path.glob("*.live"), tmp_path / "log"):
            path.unlink(missing_ok=True)
        (tmp_path / "writers").write_text("running\n")
        ended = _killed(here, write, here.execute)
        recover_now(here.services, here.live)
        assert len(set(here.served)) == 1, f"half and half after a kill at write {write}"
        assert here.writers == "running", f"the application stays down after a kill at write {write}"
        assert here.journals.unfinished() == []
        if ended == 0:
            break
        old, new = old + (here.served[0] == "old"), new + (here.served[0] != "old")
    else:
        pytest.fail("the restore never came to its end")
    assert old >= 5
    assert new >= 1


@pytest.mark.slow(6)
def test_killed_at_every_durable_step_of_an_undo_the_next_command_carries_it_on(bench: BenchFactory, tmp_path: Path) -> None:
    here = bench()
    for write in range(1, 40):
        for path in (*tmp_path.glob("*.live"), tmp_path / "log"):
            path.unlink(missing_ok=True)
        here.execute()
        plan = plan_undo(here.services, here.live)
        ended = _killed(here, write, lambda plan=plan: undo(here.services, here.live, plan))  # type: ignore[misc]
        recover_now(here.services, here.live)
        assert len(set(here.served)) == 1
        assert here.writers == "running"
        if ended == 0:
            assert here.served == ["old"] * 3
            break
        discard(here.services, here.live)
    else:
        pytest.fail("the undo never came to its end")


def test_a_journal_that_cannot_be_understood_stops_everything(bench: BenchFactory) -> None:
    here = bench()
    report = here.execute()
    path = here.journals.directory(report.journal.id) / "journal.json"
    path.write_text("{")
    with pytest.raises(Refused, match="cannot be understood"):
        here.execute()
    with pytest.raises(Refused, match="cannot be understood"):
        plan_undo(here.services, here.live)


def test_a_notebook_keeps_what_was_written_and_refuses_what_it_did_not_write(tmp_path: Path) -> None:
    directory = tmp_path / "20261124_020000"
    directory.mkdir()
    book = FileNotebook(directory, "redis")
    assert book.read() == {}
    book.write(first=1)
    book.write(second=[1, "zwei"], first=2)
    facts: Mapping[str, Any] = FileNotebook(directory, "redis").read()
    assert facts == {"first": 2, "second": [1, "zwei"]}
    assert book.restore_id == "20261124_020000"
    assert (directory / "redis.json").stat().st_mode & 0o777 == 0o600
    (directory / "redis.json").write_text("[]")
    with pytest.raises(Refused, match="cannot be understood"):
        book.read()


def test_the_journal_is_open_in_every_phase_that_leaves_something_to_do() -> None:
    phases = Journal.model_fields["phase"].annotation.__args__  # type: ignore[union-attr]
    assert set(phases) - journal_module.OPEN == {"done", "rolled_back", "undone", "discarding", "discarded"}


def test_what_a_plan_has_hashed_is_not_read_again_unless_it_was_touched(bench: BenchFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    here = bench()
    directory = here.services.catalogue.find(here.set_id).directory
    monkeypatch.setattr(hashed, "SETTLED_S", 0.0)
    read: list[str] = []

    def reading(path: Path, **options: Any) -> Written:
        read.append(path.name)
        return hash_file(path, **options)

    monkeypatch.setattr(hashed, "hash_file", reading)
    plan = here.plan()
    assert sorted(read) == sorted(p.name for p in directory.rglob("*") if p.is_file() and p.name != SUMS)
    read.clear()
    dump = next(directory.glob("postgres_*.sql.custom"))
    flip(dump)
    with pytest.raises(VerificationFailed, match="is not what was sealed"):
        execute(here.services, here.live, plan)
    assert read == [dump.name]
