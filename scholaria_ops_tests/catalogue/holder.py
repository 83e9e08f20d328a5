"""A process that holds the estate lock, as a command at a terminal does, and who hears of a wait for it."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from scholaria_ops.catalogue.lock import Holder
from scholaria_ops.process import Daemon, start_daemon

WHAT = "restore 20260101_020000"
_HOLD = f"""
import sys, time
from pathlib import Path
from scholaria_ops.catalogue.lock import estate_lock
with estate_lock(Path(sys.argv[1]), {WHAT!r}):
    Path(sys.argv[2]).touch()
    time.sleep(600)
"""


def holder_process(lock: Path) -> Daemon:
    """It holds ``lock`` when this returns, until it is stopped."""
    with tempfile.TemporaryDirectory() as name:
        held, log = Path(name) / "held", Path(name) / "log"
        daemon = start_daemon([sys.executable, "-c", _HOLD, str(lock), str(held)], log=log)
        deadline = time.monotonic() + 120
        while not held.exists():
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.02)
        return daemon


class Heard:
    """What a listener was told. Calls ``then`` when it is first told of a wait."""

    def __init__(self, then: Callable[[], object] = lambda: None) -> None:
        self.holders: list[str] = []
        self.left: list[float] = []
        self.ended: list[tuple[float, bool]] = []
        self._then = then

    def waiting(self, holder: Holder | None, left_s: float) -> None:
        self.holders.append(str(holder))
        self.left.append(left_s)
        if len(self.holders) == 1:
            self._then()

    def waited(self, seconds: float, *, got: bool) -> None:
        self.ended.append((seconds, got))
