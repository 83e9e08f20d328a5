"""Child processes: their groups, their errors, their secrets."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from scholaria_ops.cancel import CancelToken
from scholaria_ops.errors import Cancelled, ToolFailed
from scholaria_ops.process import end_group, is_alive, pipe, process_start_time, redact, run, start_daemon

SHELL = "/bin/sh"


def test_output_and_status() -> None:
    assert run([SHELL, "-c", "echo hello"]).stdout == b"hello\n"
    with pytest.raises(ToolFailed, match="status 3") as caught:
        run([SHELL, "-c", "echo broken >&2; exit 3"])
    assert "broken" in str(caught.value)
    assert caught.value.returncode == 3


def test_a_missing_program_is_named() -> None:
    with pytest.raises(ToolFailed, match="cannot start /nonexistent/tool"):
        run(["/nonexistent/tool"])


def test_f23_secrets_are_redacted_in_errors_and_our_environment_is_not_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DB_PASSWORD", "hunter2")
    assert b"hunter2" not in run(["/usr/bin/env"]).stdout
    with pytest.raises(ToolFailed) as caught:
        run([SHELL, "-c", "echo password $PGPASSWORD is wrong >&2; exit 1"], env={"PGPASSWORD": "hunter2"}, secrets=["hunter2"])
    assert "hunter2" not in str(caught.value)
    assert "password *** is wrong" in str(caught.value)


def test_redaction_takes_the_longest_secret_first() -> None:
    assert redact("abcdef abc", ["abc", "abcdef", ""]) == "*** ***"


def test_timeout_ends_the_whole_group(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    for timeout_s in (0.5, 4.0, 30.0):  # a busy machine may take longer to start a shell
        with pytest.raises(ToolFailed, match="took longer than"):
            run([SHELL, "-c", f"sleep 600 & echo $! > {pid_file}; wait"], timeout_s=timeout_s)
        if pid_file.exists() and pid_file.read_text():
            break
    grandchild = int(pid_file.read_text())
    deadline = time.monotonic() + 60
    while process_start_time(grandchild) is not None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert process_start_time(grandchild) is None


def test_cancellation_unblocks_a_reader_and_ends_the_child() -> None:
    token = CancelToken()
    threading.Timer(0.3, token.cancel, args=["enough"]).start()
    began = time.monotonic()
    with pytest.raises(Cancelled, match="enough"):
        run([SHELL, "-c", "sleep 600"], cancel=token)
    assert time.monotonic() - began < 60


def test_leaving_a_pipe_early_ends_the_child() -> None:
    with pipe([SHELL, "-c", "while :; do echo x; done"]) as running:
        next(running.chunks(16))
        pid = running.child.pid
    assert process_start_time(pid) is None


def test_a_killed_tool_is_named_with_its_signal() -> None:
    with pytest.raises(ToolFailed, match="SIGKILL"):
        run([SHELL, "-c", "kill -KILL $$"])


def test_a_reused_pid_is_never_ended(tmp_path: Path) -> None:
    daemon = start_daemon(["/bin/sleep", "600"], log=tmp_path / "log")
    try:
        assert not end_group(daemon.pid, daemon.start_time + 1), "another start time means another process"
        assert daemon.alive
    finally:
        daemon.stop()
    assert not is_alive(daemon.pid, daemon.start_time)


def test_a_daemon_that_ends_while_it_is_looked_at_leaves_no_pid_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its end may fall between the look for an ended child and the look at the process."""
    daemon = start_daemon([SHELL, "-c", "sleep 0.2"], log=tmp_path / "log")
    waitpid, early = os.waitpid, [True]

    def looking(pid: int, options: int) -> tuple[int, int]:
        if early:
            early.clear()
            while process_start_time(pid) is not None:  # a zombie counts as gone
                time.sleep(0.02)
            return 0, 0
        return waitpid(pid, options)

    monkeypatch.setattr(os, "waitpid", looking)
    while daemon.alive:
        time.sleep(0.02)
    assert not early
    assert not Path(f"/proc/{daemon.pid}").exists()


def test_a_stubborn_daemon_is_killed(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    code = (
        "import signal, time, pathlib; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        f"pathlib.Path({str(ready)!r}).touch(); time.sleep(600)"
    )
    daemon = start_daemon([sys.executable, "-c", code], log=tmp_path / "log")
    while not ready.exists():
        time.sleep(0.02)
    os.kill(daemon.pid, signal.SIGTERM)
    daemon.stop(grace_s=0.3)
    assert not daemon.alive
