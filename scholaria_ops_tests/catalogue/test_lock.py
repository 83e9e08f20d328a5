"""The estate lock: one run at a time, and the kernel as the only judge of death."""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path

import pytest

from scholaria_ops.cancel import CancelToken
from scholaria_ops.catalogue import lock as lock_module
from scholaria_ops.catalogue.lock import current_holder, estate_lock
from scholaria_ops.errors import Busy, Cancelled
from scholaria_ops.process import Daemon, start_daemon

HOLD = """
import sys, time
from pathlib import Path
from scholaria_ops.catalogue.lock import estate_lock
with estate_lock(Path(sys.argv[1]), "backup 20260101_020000"):
    Path(sys.argv[2]).touch()
    time.sleep(600)
"""


def _holder_process(tmp_path: Path) -> Daemon:
    daemon = start_daemon([sys.executable, "-c", HOLD, str(tmp_path / "estate.lock"), str(tmp_path / "held")], log=tmp_path / "log")
    deadline = time.monotonic() + 120
    while not (tmp_path / "held").exists():
        assert time.monotonic() < deadline, (tmp_path / "log").read_text()
        time.sleep(0.02)
    return daemon


def test_a_busy_lock_says_who_holds_it_since_when(tmp_path: Path) -> None:
    daemon = _holder_process(tmp_path)
    try:
        with (
            pytest.raises(Busy, match=rf"backup 20260101_020000 \(pid {daemon.pid}, .+@.+\) since 20"),
            estate_lock(tmp_path / "estate.lock", "x"),
        ):
            pass
        holder = current_holder(tmp_path / "estate.lock")
        assert holder
        assert holder.pid == daemon.pid
    finally:
        daemon.stop()


def test_f74_the_lock_of_a_killed_process_is_free_at_once(tmp_path: Path) -> None:
    daemon = _holder_process(tmp_path)
    daemon.stop(grace_s=0)
    assert json.loads((tmp_path / "estate.lock").read_text())["pid"] == daemon.pid, "killed: it could not clear its name"
    with estate_lock(tmp_path / "estate.lock", "next") as me:
        assert current_holder(tmp_path / "estate.lock") == me
    assert current_holder(tmp_path / "estate.lock") is None


def test_threads_of_one_process_exclude_each_other_too(tmp_path: Path) -> None:
    with estate_lock(tmp_path / "l", "first"), pytest.raises(Busy, match="first"), estate_lock(tmp_path / "l", "second"):
        pass


def test_waiting_ends_with_the_lock_or_with_cancellation(tmp_path: Path) -> None:
    release = threading.Event()

    def hold() -> None:
        with estate_lock(tmp_path / "l", "first"):
            release.wait(150)

    thread = threading.Thread(target=hold)
    thread.start()
    while current_holder(tmp_path / "l") is None:
        time.sleep(0.01)
    token = CancelToken()
    threading.Timer(0.3, token.cancel, args=["user"]).start()
    with pytest.raises(Cancelled), estate_lock(tmp_path / "l", "second", wait_s=120, cancel=token):
        pass
    threading.Timer(0.3, release.set).start()
    with estate_lock(tmp_path / "l", "third", wait_s=120):
        pass
    thread.join()


@pytest.mark.parametrize("shared", [True, False])
def test_an_unreleased_owner_on_another_host_counts_only_where_locks_may_not_reach(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared: bool
) -> None:
    content = {"what": "backup x", "by": "a@b", "host": "elsewhere.example", "pid": 1, "start_time": 1, "since": "2026-01-01"}
    (tmp_path / "l").write_text(json.dumps(content))
    monkeypatch.setattr(lock_module, "_shared_between_hosts", lambda _: shared)
    if shared:
        with pytest.raises(Busy, match=r"elsewhere\.example"), estate_lock(tmp_path / "l", "me"):
            pass
    else:
        with estate_lock(tmp_path / "l", "me"):
            pass
