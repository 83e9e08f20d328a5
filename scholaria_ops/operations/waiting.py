"""What whoever waits for the estate lock says meanwhile: who has it, since when, how long it is waited for at most."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from scholaria_ops.catalogue.lock import Holder, Listener
from scholaria_ops.humane import human_seconds
from scholaria_ops.progress import Progress


class Told:
    """A :class:`Listener` that has the wait said for people and handed on to ``then``."""

    def __init__(self, progress: Progress, then: Listener) -> None:
        self._progress = progress
        self._then = then

    def waiting(self, holder: Holder | None, left_s: float) -> None:
        until = datetime.now(UTC) + timedelta(seconds=left_s)
        self._then.waiting(holder, left_s)
        self._progress.say(
            f"waiting for the lock of the backup directory, held by {holder or 'another run'}; "
            f"at most {human_seconds(left_s)}, until {until:%H:%M:%S} UTC"
        )

    def waited(self, seconds: float, *, got: bool) -> None:
        if got:
            self._progress.say(f"the lock of the backup directory is free after {human_seconds(seconds)}")
        self._then.waited(seconds, got=got)
