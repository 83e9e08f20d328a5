"""Scratch directories of operations: owned by a kernel lock, so that a killed owner's is told from a living one's."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from scholaria_ops.files import make_private_dir
from scholaria_ops.sandbox.sandbox import reap as reap_sandboxes

#: Locked by the living owner of a scratch directory.
OWNER = ".owner"
#: Age in seconds at which a directory without an owner's lock file is a leftover, not one that is being made.
_UNOWNED_AGE_S = 60.0


@contextlib.contextmanager
def scratch_directory(root: Path, label: str) -> Iterator[Path]:
    """A private directory below ``root`` for the length of the block. Scratch sandboxes may be made inside it."""
    make_private_dir(root, exist_ok=True)
    scratch, fd = root / f"{label}-{secrets.token_hex(8)}", -1  # the name first: a Ctrl-C while it is made leaves nothing
    try:
        make_private_dir(scratch)
        fd = os.open(scratch / OWNER, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield scratch
    finally:
        if scratch.exists():
            shutil.rmtree(scratch)
        if fd != -1:
            os.close(fd)


def reap_scratch(root: Path) -> list[str]:
    """End the servers and remove the directories that killed runs left below ``root``; returns a line per thing.

    Directories of living runs (a rehearsal beside a backup) hold their lock and are left alone.
    """
    if not root.is_dir():
        return []
    lines = list(reap_sandboxes(root))
    for directory in sorted(p for p in root.iterdir() if (p / OWNER).exists() or _is_leftover(p)):
        with contextlib.ExitStack() as stack:
            if (directory / OWNER).exists():
                fd = os.open(directory / OWNER, os.O_RDWR | os.O_CLOEXEC)
                stack.callback(os.close, fd)
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
            for below in (directory, *(p for p in directory.iterdir() if p.is_dir())):
                lines += reap_sandboxes(below)
            shutil.rmtree(directory)
            lines.append(f"scratch directory {directory.name} removed, left by a run that was killed")
    return lines


def _is_leftover(path: Path) -> bool:
    """An empty directory of ours that was made by a run killed before it could lock it."""
    return path.is_dir() and not any(path.iterdir()) and time.time() - path.stat().st_mtime > _UNOWNED_AGE_S
