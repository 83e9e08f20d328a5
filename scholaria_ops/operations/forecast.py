"""How large the next set will be, and whether the disk can take it. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

#: Sets that a prediction looks at, the newest ones.
WINDOW = 7
#: What is wanted besides: manifests, records, the file system's own needs.
HEADROOM_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class DiskForecast:
    """Room under BACKUP_DIR, in bytes. What is not known is None, never 0."""

    free_bytes: int | None
    total_bytes: int | None
    predicted_next_bytes: int | None
    #: Whole sets that the prediction rests upon.
    based_on: int
    #: Why the free space could not be read; empty if it was.
    trouble: str = ""

    @property
    def needed_bytes(self) -> int | None:
        """Free space that the next set wants."""
        return None if self.predicted_next_bytes is None else self.predicted_next_bytes + HEADROOM_BYTES

    @property
    def fits(self) -> bool | None:
        """Whether the next set will find room; None if either side is not known."""
        if self.needed_bytes is None or self.free_bytes is None:
            return None
        return self.needed_bytes <= self.free_bytes

    @property
    def sets_that_fit(self) -> int | None:
        """So many sets of the predicted size find room if nothing is removed meanwhile."""
        if not self.predicted_next_bytes or self.free_bytes is None:
            return None
        return max(0, self.free_bytes - HEADROOM_BYTES) // self.predicted_next_bytes


def predict_next(sizes: Sequence[int]) -> int | None:
    """The size to expect of the next set, from the sizes of whole sets in the order of their cuts; None without any.

    The largest of the newest three plus the median step of the newest :data:`WINDOW`, if sets grow: a prediction that is used to
    ask for room errs upwards.
    """
    recent = list(sizes)[-WINDOW:]
    if not recent:
        return None
    steps = [later - earlier for earlier, later in pairwise(recent)]
    return max(recent[-3:]) + max(0, round(statistics.median(steps)) if steps else 0)
