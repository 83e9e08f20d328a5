"""What a killed owner leaves is found and removed; what is not ours, or still in use, is left alone."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from scholaria_ops.process import is_alive, process_start_time
from scholaria_ops.sandbox import sandbox as sandbox_module
from scholaria_ops.sandbox.home import MARKER, Home, Marker
from scholaria_ops.sandbox.identity import server_account
from scholaria_ops.sandbox.sandbox import Sandbox, reap
from scholaria_ops.sandbox.tools import Tools
from scholaria_ops_tests.sandbox.helpers import marker_of, processes_of, programs_of, start_owner, the_home, wait_for

ALL_THREE = "box.postgres(); box.redis(); box.qdrant()"


def traces(base: Path, tools: Tools) -> tuple[Marker, set[str]]:
    home = the_home(base)
    known = {str(p.resolve()) for p in (tools.require_pg("postgres"), tools.require_redis(), tools.require_qdrant())}
    return marker_of(home), known | programs_of(home)


def assert_gone(base: Path, marker: Marker, programs: set[str]) -> None:
    assert processes_of(marker, programs) == []
    assert list(base.iterdir()) == []
    assert not marker.data.exists()
    if marker.sockets:
        assert not marker.sockets.exists()


def test_f79_servers_and_directories_of_a_killed_owner_are_reaped(tools: Tools, tmp_path: Path) -> None:
    base, ready = tmp_path / "base", tmp_path / "ready"
    owner = start_owner(base, ready, ALL_THREE)
    wait_for(lambda: ready.exists() or not owner.alive, what="the owner's servers")
    marker, programs = traces(base, tools)
    assert reap(base) == []  # the owner lives
    os.kill(owner.pid, signal.SIGKILL)
    wait_for(lambda: not owner.alive)
    assert len(processes_of(marker, programs)) >= 3  # they outlive their owner: that is the fault
    done = reap(base)
    assert len(done) == 1
    assert str(owner.pid) in done[0]
    assert_gone(base, marker, programs)
    assert reap(base) == []


@pytest.mark.parametrize("delay_s", [0.0, 0.05, 0.15, 0.3, 0.45, 0.6])
def test_f79_an_owner_killed_while_it_starts_servers_leaves_nothing(tools: Tools, tmp_path: Path, delay_s: float) -> None:
    base, ready = tmp_path / "base", tmp_path / "ready"
    owner = start_owner(base, ready, ALL_THREE)
    wait_for(Path(f"{ready}.begun").exists, what="the sandbox")
    time.sleep(delay_s)
    os.kill(owner.pid, signal.SIGKILL)
    wait_for(lambda: not owner.alive)
    marker, programs = traces(base, tools)
    reap(base)
    assert_gone(base, marker, programs)


@pytest.mark.parametrize("delay_s", [0.1, 0.4, 3.0])
def test_ctrl_c_leaves_no_process_and_no_directory(tools: Tools, tmp_path: Path, delay_s: float) -> None:
    base, ready = tmp_path / "base", tmp_path / "ready"
    owner = start_owner(base, ready, ALL_THREE)
    wait_for(Path(f"{ready}.begun").exists, what="the sandbox")
    marker, programs = traces(base, tools)
    wait_for(ready.exists) if delay_s > 1 else time.sleep(delay_s)
    os.kill(owner.pid, signal.SIGINT)
    time.sleep(0.02)
    if owner.alive:
        os.kill(owner.pid, signal.SIGINT)  # an impatient second one
    wait_for(lambda: not owner.alive, what="the owner's end")
    assert "KeyboardInterrupt" in ready.with_suffix(".log").read_text()
    assert_gone(base, marker, programs)


def test_a_second_ctrl_c_before_signals_are_deferred_leaves_nothing(tools: Tools, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deferred = sandbox_module._signals_deferred
    calls: list[None] = []

    def interrupted_once() -> AbstractContextManager[None]:
        calls.append(None)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return deferred()

    monkeypatch.setattr(sandbox_module, "_signals_deferred", interrupted_once)
    base = tmp_path / "base"
    box = Sandbox(base, tools)
    box.__enter__()
    box.redis()
    marker, programs = traces(base, tools)
    first = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        box.__exit__(KeyboardInterrupt, first, None)
    assert len(calls) == 2
    assert_gone(base, marker, programs)


def test_a_reaper_that_was_killed_midway_is_finished_by_the_next(tools: Tools, tmp_path: Path) -> None:
    base, ready = tmp_path / "base", tmp_path / "ready"
    owner = start_owner(base, ready, "box.redis()")
    wait_for(ready.exists, what="the owner's servers")
    marker, programs = traces(base, tools)
    os.kill(owner.pid, signal.SIGKILL)
    wait_for(lambda: not owner.alive)
    for pid, _ in processes_of(marker, programs):
        os.kill(pid, signal.SIGKILL)
    if marker.data != the_home(base):  # the data are gone already, the home is not
        shutil.rmtree(marker.data)
    assert len(reap(base)) == 1
    assert_gone(base, marker, programs)


def test_what_carries_no_marker_of_ours_is_never_deleted(tools: Tools, tmp_path: Path) -> None:
    stray = tmp_path / "sandbox-0123456789ab"
    stray.mkdir()
    (stray / "precious").write_text("data")
    with Sandbox(tmp_path, tools) as box:
        genuine = (box.directory / MARKER).read_bytes()
    copied = tmp_path / "copied"  # a marker that was made for another directory
    copied.mkdir()
    (copied / MARKER).write_bytes(genuine)
    linked = tmp_path / "linked-0123456789ab"
    linked.symlink_to(stray)
    assert reap(tmp_path) == []
    assert (stray / "precious").read_text() == "data"
    assert (copied / MARKER).exists()
    assert linked.is_symlink()


def test_a_marker_that_names_a_foreign_data_directory_deletes_nothing_there(tools: Tools, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "precious").write_text("data")
    base = tmp_path / "base"
    home = Home.create(base, "sandbox", server_account())
    found = json.loads((home.directory / MARKER).read_bytes())
    found["data"] = str(foreign)
    found["owner"]["start_time"] = 1  # long dead
    home.release()
    (home.directory / MARKER).write_text(json.dumps(found))
    real = home.data
    reap(base)
    assert (foreign / "precious").read_text() == "data"
    if real.exists():
        shutil.rmtree(real)


def test_a_process_that_only_has_the_same_pid_is_not_ended(tools: Tools, tmp_path: Path) -> None:
    home = Home.create(tmp_path, "sandbox", server_account())
    state = {"name": "redis", "kind": "redis", "pid": os.getpid(), "start_time": 1, "program": "/nowhere", "discard_signal": 9}
    home.write_servers({"redis": state})
    found = json.loads((home.directory / MARKER).read_bytes())
    found["owner"]["start_time"] = 1
    home.release()
    (home.directory / MARKER).write_text(json.dumps(found))
    assert len(reap(tmp_path)) == 1  # and we are still here
    assert list(tmp_path.iterdir()) == []


def test_an_owner_that_cannot_be_judged_from_here_is_believed_alive(tools: Tools, tmp_path: Path) -> None:
    home = Home.create(tmp_path, "sandbox", server_account())
    found = json.loads((home.directory / MARKER).read_bytes())
    found["owner"] |= {"start_time": 1, "boot_id": "another-boot", "host": "another-host"}
    home.release()
    (home.directory / MARKER).write_text(json.dumps(found))
    assert reap(tmp_path) == []
    found["owner"]["host"] = os.uname().nodename  # this very host, before it was booted anew
    (home.directory / MARKER).write_text(json.dumps(found))
    assert len(reap(tmp_path)) == 1


def test_a_kept_sandbox_is_reaped_only_after_its_time(tools: Tools, tmp_path: Path) -> None:
    with Sandbox(tmp_path, tools, label="kept") as box:
        server = box.redis()
        box.keep(datetime.now(UTC) + timedelta(hours=2))
    daemon = server.daemon
    assert daemon is not None
    assert reap(tmp_path) == []
    assert is_alive(daemon.pid, daemon.start_time)
    with Sandbox(tmp_path, tools, label="expired") as box:
        late = box.redis().daemon
        box.keep(datetime.now(UTC) - timedelta(seconds=1))
    assert late is not None
    assert [line for line in reap(tmp_path) if "expired" in line]
    assert not is_alive(late.pid, late.start_time)
    assert is_alive(daemon.pid, daemon.start_time)
    Sandbox.attach(tmp_path, tools).close()
    assert not is_alive(daemon.pid, daemon.start_time)


def test_an_empty_directory_that_was_never_marked_is_removed_once_it_is_old(tmp_path: Path) -> None:
    fresh, old = tmp_path / "sandbox-aaaaaaaaaaaa", tmp_path / "sandbox-bbbbbbbbbbbb"
    fresh.mkdir()
    old.mkdir()
    os.utime(old, (1, 1))
    assert reap(tmp_path) == ["empty directory sandbox-bbbbbbbbbbbb removed"]
    assert fresh.exists()


def test_reaping_where_there_is_nothing_is_no_error(tmp_path: Path) -> None:
    assert reap(tmp_path / "nowhere") == []
    assert process_start_time(os.getpid()) is not None
