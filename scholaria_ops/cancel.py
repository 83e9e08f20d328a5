"""Cooperative cancellation, shared by threads, sockets and child processes of one run."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType

from scholaria_ops.errors import Cancelled


class CancelToken:
    """A one-way switch. Long loops call :meth:`check`; whoever blocks registers a callback that unblocks it.

    Thread-safe. Callbacks run in the thread that cancels, newest first, at most once each, and must not raise.
    """

    def __init__(self) -> None:
        self._event = threading.Event()
        self._lock = threading.Lock()
        self._callbacks: list[Callable[[], None]] = []
        self.reason = ""

    @property
    def cancelled(self) -> bool:
        return self._event.is_set()

    def cancel(self, reason: str) -> None:
        """Switch on. The first reason is kept; later calls change nothing."""
        with self._lock:
            if self._event.is_set():
                return
            self.reason = reason
            self._event.set()
            callbacks = list(reversed(self._callbacks))
        for callback in callbacks:
            callback()

    def check(self) -> None:
        """Raise :class:`Cancelled` if the switch is on."""
        if self._event.is_set():
            raise Cancelled(f"stopped: {self.reason}")

    def wait(self, seconds: float) -> None:
        """Sleep for ``seconds``, or raise :class:`Cancelled` as soon as the switch is on."""
        self._event.wait(seconds)
        self.check()

    @contextlib.contextmanager
    def on_cancel(self, callback: Callable[[], None]) -> Iterator[None]:
        """Have ``callback`` run if the switch goes on inside the block (at once, if it is on already)."""
        with self._lock:
            already = self._event.is_set()
            if not already:
                self._callbacks.append(callback)
        if already:
            callback()
            self.check()
        try:
            yield
        finally:
            with self._lock:
                if callback in self._callbacks:
                    self._callbacks.remove(callback)


@dataclass
class Deferred:
    """What becomes of signals inside :func:`uninterrupted`."""

    #: Said on standard error when one comes.
    text: str
    #: Whether one came.
    asked: bool = False


@contextlib.contextmanager
def uninterrupted(text: str) -> Iterator[Deferred]:
    """Have Ctrl-C and SIGTERM say ``text`` instead of ending what is done inside the block, which is worse half done than late.

    Signals interrupt the main thread only: in another one this does nothing. SIGKILL and SIGQUIT end it all the same.
    """
    deferred = Deferred(text)

    def told(_signum: int, _frame: FrameType | None) -> None:
        deferred.asked = True
        with contextlib.suppress(OSError):
            os.write(2, f"\n{deferred.text}\n".encode())  # the main thread may hold the lock of whatever prints more nicely

    if threading.current_thread() is not threading.main_thread():
        yield deferred
        return
    before = {number: signal.signal(number, told) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield deferred
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)
