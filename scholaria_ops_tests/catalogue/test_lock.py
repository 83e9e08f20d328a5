"""The estate lock: one run at a time, and the kernel as the only judge of death."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest

from scholaria_ops.cancel import CancelToken
from scholaria_ops.catalogue import lock as lock_module
from scholaria_ops.catalogue.lock import current_holder, estate_lock
from scholaria_ops.errors import Busy, Cancelled
from scholaria_ops_tests.catalogue.holder import WHAT, Heard, holder_process

HOLDER = {"what": "backup x", "by": "a@b", "host": "here", "pid": 1, "start_time": 1, "since": "2026-01-01"}


def test_a_busy_lock_says_who_holds_it_since_when(tmp_path: Path) -> None:
    daemon = holder_process(tmp_path / "estate.lock")
    try:
        with (
            pytest.raises(Busy, match=rf"restore 20260101_020000 \(pid {daemon.pid}, .+@.+\) since 20"),
            estate_lock(tmp_path / "estate.lock", "x"),
        ):
            pass
        holder = current_holder(tmp_path / "estate.lock")
        assert holder
        assert holder.pid == daemon.pid
    finally:
        daemon.stop()


def test_f74_the_lock_of_a_killed_process_is_free_at_once(tmp_path: Path) -> None:
    daemon = holder_process(tmp_path / "estate.lock")
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


def test_who_waits_for_another_process_hears_of_it_and_goes_on_as_soon_as_it_ends(tmp_path: Path) -> None:
    daemon = holder_process(tmp_path / "estate.lock")
    heard = Heard(then=lambda: daemon.stop(grace_s=0))
    began = time.monotonic()
    with estate_lock(tmp_path / "estate.lock", "next", wait_s=600, listener=heard):
        assert time.monotonic() - began < 60
    (said,) = heard.holders
    assert said.startswith(f"{WHAT} (pid {daemon.pid}, ")
    assert " since 20" in said
    assert heard.left == [pytest.approx(600, abs=5)]
    ((waited, got),) = heard.ended
    assert got
    assert waited == pytest.approx(time.monotonic() - began, abs=5)


def test_a_wait_that_runs_out_says_who_held_it_and_for_how_long_it_was_waited(tmp_path: Path) -> None:
    daemon = holder_process(tmp_path / "estate.lock")
    heard = Heard()
    try:
        with (
            pytest.raises(Busy, match=rf"restore 20260101_020000 \(pid {daemon.pid}, .+\) since 20.+; it was waited for 1") as caught,
            estate_lock(tmp_path / "estate.lock", "x", wait_s=1, listener=heard),
        ):
            pass
    finally:
        daemon.stop()
    assert caught.value.hint.endswith("Then start this again.")
    ((waited, got),) = heard.ended
    assert not got
    assert waited == pytest.approx(1, abs=0.5)


def test_who_is_told_to_stop_while_waiting_leaves_the_lock_to_its_holder(tmp_path: Path) -> None:
    daemon = holder_process(tmp_path / "estate.lock")
    token = CancelToken()
    heard = Heard(then=lambda: token.cancel("the run was terminated"))
    try:
        with pytest.raises(Cancelled), estate_lock(tmp_path / "estate.lock", "x", wait_s=600, cancel=token, listener=heard):
            pass
        holder = current_holder(tmp_path / "estate.lock")
        assert holder
        assert holder.pid == daemon.pid
    finally:
        daemon.stop()
    assert [got for _, got in heard.ended] == [False]


def test_a_moment_is_no_wait_and_another_holder_is_told_anew(tmp_path: Path) -> None:
    heard = Heard(then=lambda: (tmp_path / "l").write_text(json.dumps({**HOLDER, "what": "prune y"})))
    with estate_lock(tmp_path / "l", "free", wait_s=60, listener=heard):
        assert heard.holders == []
        with pytest.raises(Busy, match="prune y"), estate_lock(tmp_path / "l", "second", wait_s=1.5, listener=heard):
            pass
    assert [h.split()[0] for h in heard.holders] == ["free", "prune"]
    assert heard.left[1] < heard.left[0], "it is the same wait"
    assert [got for _, got in heard.ended] == [False]


def test_a_long_wait_says_so_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock_module, "_SAY_AGAIN_S", 0.3)
    heard = Heard()
    with (
        estate_lock(tmp_path / "l", "long"),
        pytest.raises(Busy),
        estate_lock(tmp_path / "l", "patient", wait_s=2, listener=heard),
    ):
        pass
    assert len(heard.holders) >= 2
    assert len(heard.ended) == 1


def test_an_owner_on_another_host_is_waited_for_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "l").write_text(json.dumps({**HOLDER, "host": "elsewhere.example"}))
    monkeypatch.setattr(lock_module, "_shared_between_hosts", lambda _: True)
    with pytest.raises(Busy, match=r"on host elsewhere\.example; it was waited"), estate_lock(tmp_path / "l", "me", wait_s=0.7):
        pass
    heard = Heard(then=lambda: (tmp_path / "l").write_text(""))
    with estate_lock(tmp_path / "l", "me", wait_s=60, listener=heard):
        assert len(heard.holders) == 1


@pytest.mark.parametrize("shared", [True, False])
def test_an_unreleased_owner_on_another_host_counts_only_where_locks_may_not_reach(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared: bool
) -> None:
    (tmp_path / "l").write_text(json.dumps({**HOLDER, "host": "elsewhere.example"}))
    monkeypatch.setattr(lock_module, "_shared_between_hosts", lambda _: shared)
    if shared:
        with pytest.raises(Busy, match=r"elsewhere\.example"), estate_lock(tmp_path / "l", "me"):
            pass
    else:
        with estate_lock(tmp_path / "l", "me"):
            pass
