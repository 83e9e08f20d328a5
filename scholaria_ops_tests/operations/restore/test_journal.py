"""What is written down of a restore, and what the next command makes of it after a crash."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from scholaria_ops.errors import OpsError, Refused
from scholaria_ops.operations.restore import journal as journal_module
from scholaria_ops.operations.restore.journal import FileNotebook, Journal
from scholaria_ops.operations.restore.recover import recover_now
from scholaria_ops.operations.restore.undo import plan_undo
from scholaria_ops_tests.operations.conftest import ServicesFactory
from scholaria_ops_tests.operations.restore.bench import BenchFactory, killed


@pytest.mark.slow(6)
def test_killed_at_every_durable_step_the_next_command_leaves_all_old_or_all_new(bench: BenchFactory, tmp_path: Path) -> None:
    here = bench()
    old = new = 0
    for write in range(1, 60):
        for path in (*tmp_path.glob("*.live"), tmp_path / "log"):
            path.unlink(missing_ok=True)
        (tmp_path / "writers").write_text("running\n")
        ended = killed(here, write, here.execute)
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


def test_writers_are_not_said_to_run_when_the_settings_do_not_say_how_they_start(
    bench: BenchFactory, services_factory: ServicesFactory
) -> None:
    here = bench(hook="sh -c 'kill -9 $PPID'")
    assert killed(here, 0, here.execute) == -signal.SIGKILL
    (journal,) = here.journals.unfinished()
    assert (journal.fenced, here.writers) == (True, "stopped")
    with pytest.raises(OpsError, match="how they are started is not set any more"):
        recover_now(services_factory(BACKUP_FENCE="none"), here.live)
    assert "the writers were started again" in recover_now(here.services, here.live)
    assert here.writers == "running"


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
    assert set(phases) - journal_module.OPEN == {"done", "rolled_back", "aside", "undone", "discarding", "discarded", "given_up"}
