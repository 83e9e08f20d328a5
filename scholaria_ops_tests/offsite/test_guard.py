"""The guard: who stops whom, and how soon."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial

import pytest

from scholaria_ops.cancel import CancelToken
from scholaria_ops.errors import Cancelled, OffsiteError, OffsiteUnavailable
from scholaria_ops.offsite.guard import Guard, side_by_side


def test_the_first_failure_stops_the_others_and_is_the_one_that_is_raised() -> None:
    ended: list[str] = []

    def wait_long(guard: Guard) -> str:
        try:
            guard.wait(60)
            return "not stopped"
        finally:
            ended.append(threading.current_thread().name)

    def break_down() -> str:
        time.sleep(0.05)
        raise OffsiteError("this one")

    began = time.monotonic()
    with Guard(CancelToken(), what="the test") as guard:
        jobs: list[Callable[[], str]] = [partial(wait_long, guard), break_down, partial(wait_long, guard)]
        with pytest.raises(OffsiteError, match="this one"):
            side_by_side(guard, jobs, workers=3)
    assert time.monotonic() - began < 30
    assert len(ended) == 2


def test_jobs_that_have_not_begun_do_not_begin_after_a_failure() -> None:
    begun: list[int] = []

    def fail() -> None:
        raise OffsiteError("first")

    with Guard(CancelToken(), what="the test") as guard, pytest.raises(OffsiteError, match="first"):
        side_by_side(guard, [fail, lambda: begun.append(1), lambda: begun.append(2)], workers=1)
    assert begun == []


def test_results_come_in_the_order_of_the_jobs() -> None:
    def later(n: int) -> int:
        time.sleep(0.03 * (3 - n))
        return n

    with Guard(CancelToken(), what="the test") as guard:
        assert side_by_side(guard, [partial(later, n) for n in range(3)], workers=3) == [0, 1, 2]
        assert side_by_side(guard, [], workers=3) == []


def test_a_deadline_breaks_off_a_blocked_read() -> None:
    broken_off = threading.Event()
    with Guard(CancelToken(), what="the test", deadline_s=0.3) as guard, pytest.raises(OffsiteUnavailable, match="the test"):
        _read(guard, broken_off)


def _read(guard: Guard, broken_off: threading.Event) -> None:
    with guard.watching(broken_off.set, limit_s=60):
        assert broken_off.wait(50)
    guard.check()


def test_a_read_is_broken_off_at_its_own_limit_and_the_operation_goes_on() -> None:
    broken_off = threading.Event()
    with Guard(CancelToken(), what="the test") as guard:
        with guard.watching(broken_off.set, limit_s=0.2):
            assert broken_off.wait(50)
        guard.check()


def test_cancelling_wakes_whoever_waits() -> None:
    token = CancelToken()
    threading.Timer(0.1, lambda: token.cancel("now")).start()
    began = time.monotonic()
    with Guard(token, what="the test") as guard, pytest.raises(Cancelled, match="now"):
        guard.wait(60)
    assert time.monotonic() - began < 30


def test_waiting_never_outlasts_the_deadline() -> None:
    began = time.monotonic()
    with Guard(CancelToken(), what="the test", deadline_s=0.2) as guard, pytest.raises(OffsiteUnavailable):
        guard.wait(60)
    assert time.monotonic() - began < 30
