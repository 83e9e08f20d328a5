"""The estate lock: at most one run touches the live stores and the catalogue, however it was started.

A kernel lock (``flock``) on ``BACKUP_DIR/.state/estate.lock``: the kernel gives it back the moment its holder is dead, so
it is never taken over on suspicion. The file's content only tells people who holds it. On a file system shared by
several hosts whose locks do not reach across them, an unreleased owner of another host counts as holding it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from scholaria_ops.cancel import CancelToken
from scholaria_ops.catalogue.records import whoami
from scholaria_ops.errors import Busy
from scholaria_ops.files import make_private_dir
from scholaria_ops.process import process_start_time

#: File systems whose locks may be kept by one host alone. On any other the kernel's lock is proof enough, and a
#: different host name in the file only means that a container was made anew.
_SHARED_FILE_SYSTEMS = ("nfs", "cifs", "smb", "fuse", "9p", "ceph", "lustre", "gluster", "afs", "virtiofs")
#: :func:`current_holder` takes a shared lock for an instant; whoever wants the real one looks twice.
_GLANCE_S = 0.3


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds the lock, for people."""

    what: str
    by: str
    host: str
    pid: int
    start_time: int
    since: str

    def __str__(self) -> str:
        return f"{self.what} (pid {self.pid}, {self.by}) since {self.since}"


def _read(path: Path) -> Holder | None:
    try:
        content = json.loads(path.read_text() or "null")
        return Holder(**content) if content else None
    except (OSError, ValueError, TypeError):
        return None  # being written right now, or by another version: the kernel lock decides, this is only its label


@contextlib.contextmanager
def estate_lock(path: Path, what: str, *, wait_s: float = 0.0, cancel: CancelToken | None = None) -> Iterator[Holder]:
    """Hold the lock for the length of the block.

    Args:
        path: the lock file; made if absent, never removed.
        what: what we are doing, for whoever has to wait (``backup 20241001_020000``).
        wait_s: seconds to wait for another holder.

    Raises:
        Busy: somebody else holds it; the message says who, where and since when.
    """
    make_private_dir(path.parent, exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        _acquire(fd, path, wait_s, cancel)
        stranger = _read(path)
        if stranger and stranger.host != socket.gethostname() and _shared_between_hosts(path):
            raise Busy(
                f"the backup directory is locked by {stranger} on host {stranger.host}",
                hint=f"If that host is certainly not running anything any more, empty {path} and try again.",
            )
        me = Holder(
            what=what,
            by=whoami(),
            host=socket.gethostname(),
            pid=os.getpid(),
            start_time=process_start_time(os.getpid()) or 0,
            since=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        _write(fd, json.dumps(asdict(me)))
        try:
            yield me
        finally:
            _write(fd, "")
    finally:
        os.close(fd)


def current_holder(path: Path) -> Holder | None:
    """Who holds the lock right now, or None if it is free. Does not wait and does not take it."""
    if not path.exists():
        return None
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _read(path)
    else:
        return None
    finally:
        os.close(fd)


def _acquire(fd: int, path: Path, wait_s: float, cancel: CancelToken | None) -> None:
    deadline = time.monotonic() + max(wait_s, _GLANCE_S)
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                holder = _read(path)
                raise Busy(
                    f"another run holds the backup directory: {holder or 'it has not said its name yet'}",
                    hint="Wait for it to end (its run is in Dagster), or stop it there; the lock goes with its process.",
                ) from None
            if cancel:
                cancel.wait(0.2)
            else:
                time.sleep(0.2)
        else:
            return


def _shared_between_hosts(path: Path) -> bool:
    """Whether ``path`` lies on a file system that several hosts may mount."""
    best, kind = "", ""
    real = str(path.resolve())
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, mount, fs_type = line.split(" ")[:3]
        mount = mount.replace("\\040", " ")
        if (real == mount or real.startswith(mount.rstrip("/") + "/")) and len(mount) >= len(best):
            best, kind = mount, fs_type
    return kind.startswith(_SHARED_FILE_SYSTEMS)


def _write(fd: int, text: str) -> None:
    os.ftruncate(fd, 0)
    os.pwrite(fd, text.encode(), 0)
