"""A run that is stopped or killed at any moment: nothing half done, nothing left behind after the next run."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from scholaria_ops.catalogue.lock import current_holder
from scholaria_ops.catalogue.sets import Catalogue, Kind
from scholaria_ops.process import Daemon, is_alive, pipe, process_start_time, start_daemon
from scholaria_ops.sandbox.sample import SampleStack
from scholaria_ops_tests.cli.conftest import COMMAND, Command
from scholaria_ops_tests.operations.support import processes_of, sandbox_nonces
from scholaria_ops_tests.operations.test_backup import snapshots_on


def _started(home: Path, env_file: Path, log: Path) -> Daemon:
    return start_daemon([str(COMMAND), "--env-file", str(env_file), "backup"], log=log, env={"DAGSTER_HOME": str(home)}, cwd=home)


def _at_work(backups: Path, pid: int, start_time: int) -> None:
    """Wait until the run holds the lock: from here on there is something to be left behind."""
    deadline = time.monotonic() + 120
    while current_holder(backups / ".state" / "estate.lock") is None:
        assert is_alive(pid, start_time)
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _gone(daemon: Daemon) -> None:
    deadline = time.monotonic() + 120
    while daemon.alive:
        assert time.monotonic() < deadline, "it does not end"
        time.sleep(0.02)


def _a_minute_later(scratch: Path) -> None:
    """What was killed before it could own its directory is told from one that is just being made by its age alone."""
    for path in scratch.iterdir() if scratch.exists() else ():
        if not any(path.iterdir()):
            os.utime(path, (1, 1))


@pytest.mark.slow(6)
@pytest.mark.parametrize("delay_s", [0.0, 0.15, 0.3, 0.5, 0.8, 1.2])
def test_f04_f46_f83_killed_at_any_moment_the_next_run_cleans_up(
    ops: Command, home: Path, env_file: Path, sample_stack: SampleStack, tmp_path: Path, delay_s: float
) -> None:
    backups = tmp_path / "backups"
    daemon = _started(home, env_file, tmp_path / "log")
    _at_work(backups, daemon.pid, daemon.start_time)
    time.sleep(delay_s)
    os.kill(daemon.pid, signal.SIGKILL)  # the process alone, not its group: its children are orphans now
    _gone(daemon)
    _a_minute_later(backups / ".scratch")
    nonces = sandbox_nonces(backups / ".scratch")
    killed = [(e.kind, e.id) for e in Catalogue(backups).entries()]
    assert all(kind is Kind.SEALED for kind, _ in killed), "a set is whole or not there"
    answer = ops("backup", "--json")
    assert answer.code == 0, answer.err
    assert len(Catalogue(backups).entries()) == len(killed) + 1
    assert snapshots_on(sample_stack) == []
    assert processes_of(nonces) == []
    assert [p for d in (".scratch", ".staging", ".trash") if (backups / d).exists() for p in (backups / d).iterdir()] == []


@pytest.mark.slow(6)
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("delay_s", [0.0, 0.4, 1.0])
def test_f83_a_stopped_run_takes_everything_back_itself_and_says_so(
    home: Path, env_file: Path, sample_stack: SampleStack, tmp_path: Path, signum: signal.Signals, delay_s: float
) -> None:
    backups = tmp_path / "backups"
    for attempt in range(8):  # a run that had come to its end by then is repeated, and stopped earlier
        with pipe([str(COMMAND), "--env-file", str(env_file), "backup"], env={"DAGSTER_HOME": str(home)}, cwd=home) as running:
            start_time = process_start_time(running.child.pid)
            assert start_time is not None
            _at_work(backups, running.child.pid, start_time)
            time.sleep(delay_s / 2**attempt)
            nonces = sandbox_nonces(backups / ".scratch")
            os.kill(running.child.pid, signum)
            code = running.child.wait(120)
            told = running.stderr_tail
        if code != 0:
            break
    sealed = Catalogue(backups).entries()
    assert all(e.kind is Kind.SEALED for e in sealed)
    assert code == 130, told
    assert "stopped" in told
    assert "Traceback" not in told
    assert snapshots_on(sample_stack) == []
    assert processes_of(nonces) == []
    assert [p for d in (".scratch", ".staging") if (backups / d).exists() for p in (backups / d).iterdir()] == []
    assert current_holder(backups / ".state" / "estate.lock") is None
