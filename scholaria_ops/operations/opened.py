"""What a run has opened already, so that the verification right behind its backup need not open the same bytes again.

A dump takes its evidence from the artifacts themselves: they are read in full and opened by the stores' own software
while it lasts. Doing all of it once more a second later would double the time of a backup and look at the same files.
So the run remembers what it found, bound to the digests of those very files, and its verification compares the digests
of what is there now: if they are the same, what was found of them stands. (Large files were read back for the sealing, a
moment ago; unless somebody has touched one since, it is not read once more: :mod:`scholaria_ops.hashed`.)

This lives in the memory of one process and is used once, by the run that made the set. Any later verification, and any
other process, opens everything.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from scholaria_ops.catalogue.artifacts import Artifact
from scholaria_ops.catalogue.evidence.base import StoreName
from scholaria_ops.stores.base import Check


@dataclass(frozen=True, slots=True)
class Opened:
    """Artifacts of one store that were opened: ``digests`` maps path to SHA-256, ``checks`` is what was found."""

    at: datetime
    digests: Mapping[str, str]
    checks: tuple[Check, ...]

    def speaks_of(self, artifacts: Iterable[Artifact]) -> bool:
        """Whether these are the artifacts, byte for byte, that were opened."""
        return {a.path: a.sha256 for a in artifacts} == self.digests


_lock = threading.Lock()
#: Of the newest set only, by the run that made it and its directory.
_newest: dict[tuple[str, Path], Mapping[StoreName, Opened]] = {}


def remember(run_id: str, directory: Path, found: Mapping[StoreName, Opened]) -> None:
    """Keep what a run has opened for its own verification. Without a run id there is nobody to keep it for."""
    with _lock:
        _newest.clear()
        if run_id:
            _newest[run_id, directory] = dict(found)


def recall(run_id: str, directory: Path) -> Mapping[StoreName, Opened]:
    """What this very run has opened of that set, once: the second time it is forgotten. Empty for everybody else."""
    with _lock:
        return _newest.pop((run_id, directory), {})
