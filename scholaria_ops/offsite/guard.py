"""An operation's right to go on: cancellation, a deadline, and the first failure among threads that work side by side."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Self, TypeVar

from scholaria_ops.cancel import CancelToken
from scholaria_ops.errors import OffsiteUnavailable

T = TypeVar("T")
_TICK_S = 0.2


class Guard:
    """Context manager around one operation. Threads call :meth:`check` between blocks and :meth:`wait` instead of sleeping.

    Whoever blocks in a read registers how to break it off (:meth:`watching`); that happens when the operation is cancelled, a
    sibling fails, the deadline passes, or this very read takes longer than its limit.

    Args:
        cancel: the run's token.
        what: names the operation in errors.
        deadline_s: seconds for the whole operation; None for no limit.
    """

    def __init__(self, cancel: CancelToken, *, what: str, deadline_s: float | None = None) -> None:
        self._cancel = cancel
        self._what = what
        self._deadline_s = deadline_s
        self._ends_at = None if deadline_s is None else time.monotonic() + deadline_s
        self._stop = CancelToken()
        self._lock = threading.Lock()
        self._streams: dict[int, tuple[Callable[[], None], float]] = {}
        self._failure: BaseException | None = None
        self._done = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="offsite-guard", daemon=True)
        self._exit = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self._exit.enter_context(self._cancel.on_cancel(lambda: self._halt("cancelled")))
        self._watcher.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._done.set()
        self._watcher.join()
        self._exit.close()

    def check(self) -> None:
        """Raise ``Cancelled``, or ``OffsiteUnavailable`` once the deadline has passed; end quietly when a sibling has failed."""
        self._cancel.check()
        if self._late():
            raise OffsiteUnavailable(
                f"{self._what} did not finish within {self._deadline_s:.0f} s",
                hint="Try again, or allow more time; what was transferred and confirmed is kept where possible.",
            )
        self._stop.check()

    def wait(self, seconds: float) -> None:
        """Sleep, waking up at once for any reason that :meth:`check` raises for."""
        if self._ends_at is not None:
            seconds = min(seconds, max(0.0, self._ends_at - time.monotonic()) + 0.01)
        with contextlib.suppress(Exception):
            self._stop.wait(seconds)
        self.check()

    def fail(self, failure: BaseException) -> None:
        """Keep the first failure and stop everybody else."""
        with self._lock:
            if self._failure is None:
                self._failure = failure
        self._halt("another part of the same operation failed")

    @property
    def failure(self) -> BaseException | None:
        """The first failure, which is the cause of all later ones."""
        return self._failure

    @contextlib.contextmanager
    def watching(self, break_off: Callable[[], None], *, limit_s: float) -> Iterator[None]:
        """Have ``break_off`` called from another thread if the block must not go on, or lasts longer than ``limit_s`` seconds."""
        key = id(break_off)
        with self._lock:
            self._streams[key] = (break_off, time.monotonic() + limit_s)
        try:
            self.check()
            yield
        finally:
            with self._lock:
                self._streams.pop(key, None)

    def _late(self) -> bool:
        return self._ends_at is not None and time.monotonic() >= self._ends_at

    def _halt(self, reason: str) -> None:
        self._stop.cancel(reason)
        self._break_off(lambda _: True)

    def _watch(self) -> None:
        while not self._done.wait(_TICK_S):
            now = time.monotonic()
            everything = self._late() or self._stop.cancelled
            self._break_off(lambda expires, now=now, everything=everything: everything or now >= expires)  # type: ignore[misc]

    def _break_off(self, wanted: Callable[[float], bool]) -> None:
        with self._lock:
            chosen = [close for close, expires in self._streams.values() if wanted(expires)]
        for close in chosen:
            close()


def side_by_side(guard: Guard, jobs: Sequence[Callable[[], T]], *, workers: int) -> list[T]:
    """Run ``jobs`` in at most ``workers`` threads and return their results in order.

    The first failure stops the others through ``guard`` and is raised once every thread has ended.
    """

    def guarded(job: Callable[[], T]) -> T:
        try:
            guard.check()
            return job()
        except BaseException as exc:
            guard.fail(exc)
            raise

    if not jobs:
        return []
    with ThreadPoolExecutor(max_workers=min(workers, len(jobs)), thread_name_prefix="offsite-file") as pool:
        futures = [pool.submit(guarded, job) for job in jobs]
    if guard.failure is not None:
        raise guard.failure
    return [future.result() for future in futures]
