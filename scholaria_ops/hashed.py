"""Files that this process has hashed a moment ago and that nobody has touched since: they need not be read again.

A backup reads its artifacts back while the other stores are still being dumped, before it seals them and verifies the
set; a restore looks at a set's bytes when it plans, when it begins, and before PostgreSQL's programs read the archive.
That a file is the same is told by its inode, its size and the times of its last write and last change, the last of which
no program can set. A file that was changed right before it was hashed is never remembered: the kernel's clock ticks some
hundred times a second (on some file systems every other second), and a write in the same tick would not show.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from scholaria_ops.files import Written, hash_file

#: How long what was hashed is believed (seconds).
_BELIEVED_S = 900.0
#: A file must not have been changed for so long before it is hashed (seconds): where times have fractions, and where not.
SETTLED_S = 0.05
_SETTLED_COARSE_S = 2.0
_NS = 1_000_000_000
_REMEMBERED = 1000

_Inode = tuple[int, int]
_Identity = tuple[int, int, int, int, int]


@dataclass(frozen=True, slots=True)
class _Known:
    identity: _Identity
    at: float
    written: Written


_lock = threading.Lock()
_known: dict[_Inode, _Known] = {}


def hash_unless_known(path: Path, *, on_bytes: Callable[[int], None] | None = None) -> Written:
    """As :func:`scholaria_ops.files.hash_file`, for a file that was hashed here a moment ago without reading it again.

    Not for a verification that stands by itself: it reads what is on the disk.
    """
    before = path.stat()
    with _lock:
        known = _known.get((before.st_dev, before.st_ino))
    if known is not None and known.identity == _identity(before) and time.monotonic() - known.at < _BELIEVED_S:
        if on_bytes:
            on_bytes(known.written.size)
        return Written(path, known.written.size, known.written.sha256)
    old_enough = settled(before)
    written = hash_file(path, on_bytes=on_bytes)
    after = path.stat()
    if old_enough and _identity(after) == _identity(before):
        with _lock:
            if len(_known) >= _REMEMBERED:
                _known.clear()
            _known[before.st_dev, before.st_ino] = _Known(_identity(before), time.monotonic(), written)
    return written


def settled(found: os.stat_result) -> bool:
    """Whether the file's last change is long enough ago for another one to show (also where the clock went back meanwhile)."""
    ticks = _SETTLED_COARSE_S if found.st_ctime_ns % _NS == found.st_mtime_ns % _NS == 0 else SETTLED_S
    return time.time() - found.st_ctime > ticks


def _identity(found: os.stat_result) -> _Identity:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
