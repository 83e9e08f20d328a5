"""The gate at which the stores wait for each other, so that their cuts lie close together."""

from __future__ import annotations

import threading
import time

from scholaria_ops.cancel import CancelToken


class CutGate:
    """Opens once every party has arrived or left. A party that fails must :meth:`leave`, or the others wait in vain.

    Args:
        parties: how many stores are going to arrive.
        patience_s: after this long the gate opens for whoever is there: a slow store must not hold up the others for
            ever; the manifest's skew tells.
    """

    def __init__(self, parties: int, *, cancel: CancelToken, patience_s: float = 60.0) -> None:
        self._awaited = parties
        self._cancel = cancel
        self._patience_s = patience_s
        self._changed = threading.Condition()

    def arrive(self) -> None:
        """Wait for the others. Raises Cancelled as soon as the run is."""
        deadline = time.monotonic() + self._patience_s
        with self._changed:
            self._awaited -= 1
            self._changed.notify_all()
            while self._awaited > 0 and time.monotonic() < deadline:
                self._changed.wait(0.05)
                self._cancel.check()

    def leave(self) -> None:
        """This party will not come."""
        with self._changed:
            self._awaited -= 1
            self._changed.notify_all()
