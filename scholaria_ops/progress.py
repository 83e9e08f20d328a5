"""What long work tells about itself while it runs. The command line draws bars, Dagster logs events, tests listen."""

from __future__ import annotations

import logging
from typing import Protocol


class Progress(Protocol):
    """Receiver of progress. Every method may be called from several threads and must return quickly."""

    def start(self, task: str, *, total: int | None = None, unit: str = "bytes") -> None:
        """A piece of work named ``task`` (for example ``postgres: dump``) begins; ``total`` in ``unit`` if it is known."""

    def advance(self, task: str, amount: int) -> None:
        """``amount`` more units of ``task`` are done."""

    def finish(self, task: str, note: str = "") -> None:
        """``task`` is done; ``note`` is a short result such as ``120,000 rows``."""

    def say(self, text: str) -> None:
        """One line for the operator."""


class Silent:
    """Nobody listens."""

    def start(self, task: str, *, total: int | None = None, unit: str = "bytes") -> None:
        return

    def advance(self, task: str, amount: int) -> None:
        return

    def finish(self, task: str, note: str = "") -> None:
        return

    def say(self, text: str) -> None:
        return


class Logged:
    """Begin, end and messages go to a logger; single advances do not."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger

    def start(self, task: str, *, total: int | None = None, unit: str = "bytes") -> None:
        self._logger.info("%s …", task)

    def advance(self, task: str, amount: int) -> None:
        return

    def finish(self, task: str, note: str = "") -> None:
        self._logger.info("%s: done%s", task, f" ({note})" if note else "")

    def say(self, text: str) -> None:
        self._logger.info("%s", text)
