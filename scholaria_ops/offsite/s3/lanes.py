"""Bounded parallelism with flat memory: a fixed number of requests in flight, a fixed number of buffers.

Files are worked on side by side and each file's ranges too; all share the same lanes, so one huge file is as fast as many.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Self, TypeVar

from scholaria_ops.files import BLOCK
from scholaria_ops.offsite.guard import Guard
from scholaria_ops.offsite.s3.options import MEMORY_BUDGET

T = TypeVar("T")
#: Fills a buffer of the length it wants with one range of an object.
Fill = Callable[[memoryview], None]


class Lanes:
    """Worker threads and buffers of one operation. A context manager; leaving it joins the threads.

    Args:
        concurrency: requests in flight at once.
        buffer_size: bytes of each buffer; as many are made as fit the memory budget, at least one.
    """

    def __init__(self, guard: Guard, *, concurrency: int, buffer_size: int) -> None:
        self.concurrency = concurrency
        self._guard = guard
        self._buffer_size = buffer_size
        self._pool = ThreadPoolExecutor(max_workers=concurrency, thread_name_prefix="offsite-lane")
        self._free = threading.Semaphore(max(1, min(concurrency + 1, MEMORY_BUDGET // buffer_size)))
        self._spare: list[bytearray] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def submit(self, job: Callable[[], T]) -> Future[T]:
        """Run ``job`` as soon as a lane is free. A job must not wait for another one."""
        return self._pool.submit(job)

    def throttle(self, running: Sequence[Future[T]]) -> None:
        """Wait until at most two requests per lane are queued, so that what is read ahead is still in the page cache when it is sent."""
        if len(running) >= 2 * self.concurrency:
            while not running[-2 * self.concurrency].done():
                wait([running[-2 * self.concurrency]], timeout=0.2)
                self._guard.check()

    def in_order(self, parts: Sequence[tuple[int, Fill]]) -> Iterator[memoryview]:
        """Fetch ``parts`` (length, how) ahead of the reader and yield their contents in order.

        A yielded view is valid until the next one is asked for. Whoever waits for a buffer holds none, and whoever holds some
        is served oldest first, so files that compete for buffers cannot block each other.
        """
        running: deque[tuple[Future[None], bytearray, int]] = deque()
        ahead = iter(parts)
        pending = next(ahead, None)
        try:
            while running or pending is not None:
                while pending is not None and (buffer := self._buffer(patient=not running)) is not None:
                    length, fill = pending
                    running.append((self.submit(lambda f=fill, b=buffer, n=length: f(memoryview(b)[:n])), buffer, length))  # type: ignore[misc]
                    pending = next(ahead, None)
                future, buffer, length = running[0]
                future.result()
                yield memoryview(buffer)[:length]
                running.popleft()
                self._give_back(buffer)
        finally:
            wait([future for future, _, _ in running])
            for _, buffer, _ in running:
                self._give_back(buffer)

    def _buffer(self, *, patient: bool) -> bytearray | None:
        """A buffer; None if there is none free and the caller is not ``patient``."""
        while not self._free.acquire(blocking=patient, timeout=0.2 if patient else None):
            if not patient:
                return None
            self._guard.check()
        # Reused, because the kernel takes its time over fresh pages.
        return self._spare.pop() if self._spare else bytearray(self._buffer_size)

    def _give_back(self, buffer: bytearray) -> None:
        self._spare.append(buffer)
        self._free.release()


class PartBody:
    """A region of an open file as the body of a request. Holds no more than one piece in memory; stops when the guard says so.

    The HTTP layer asks for 16 KiB at a time and sends what it gets; larger pieces halve the time spent per part.
    """

    _PIECE = BLOCK // 4

    def __init__(self, fd: int, start: int, length: int, digest: bytes, guard: Guard) -> None:
        #: What the request is signed with; nobody has to read the body for that.
        self.sha256 = digest.hex()
        self._fd = fd
        self._start = start
        self._length = length
        self._guard = guard
        self._at = 0

    def __len__(self) -> int:
        return self._length

    def read(self, amount: int | None = None) -> bytes:
        self._guard.check()
        left = self._length - self._at
        wanted = left if amount is None or amount < 0 else min(left, max(amount, self._PIECE))
        piece = os.pread(self._fd, wanted, self._start + self._at)
        self._at += len(piece)
        return piece

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + (0, self._at, self._length)[whence]
        return self._at

    def tell(self) -> int:
        return self._at
