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
from typing import Protocol

from scholaria_ops.cancel import CancelToken
from scholaria_ops.catalogue.records import whoami
from scholaria_ops.errors import Busy
from scholaria_ops.files import make_private_dir
from scholaria_ops.humane import human_seconds
from scholaria_ops.process import process_start_time

#: File systems whose locks may be kept by one host alone. On any other the kernel's lock is proof enough, and a
#: different host name in the file only means that a container was made anew.
_SHARED_FILE_SYSTEMS = ("nfs", "cifs", "smb", "fuse", "9p", "ceph", "lustre", "gluster", "afs", "virtiofs")
#: :func:`current_holder` takes a shared lock for an instant; whoever wants the real one looks twice.
_GLANCE_S = 0.3
#: How long a lock that was freed may stay unnoticed by who waits for it.
_LOOK_S = 0.2
#: Whoever waits says so again this often: health asks after runs that have said nothing for two hours.
_SAY_AGAIN_S = 900.0


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


class Listener(Protocol):
    """Hears of a wait for the lock. Looks that are over in a moment are no wait."""

    def waiting(self, holder: Holder | None, left_s: float) -> None:
        """``holder`` has it (None: it has not said its name yet), and is waited for ``left_s`` seconds more at most.

        Called when the wait begins, when somebody else has it, and every quarter of an hour.
        """

    def waited(self, seconds: float, *, got: bool) -> None:
        """The wait is over after ``seconds``: the lock is ours (``got``), or it was given up or broken off."""


class Unheard:
    """Nobody listens."""

    def waiting(self, holder: Holder | None, left_s: float) -> None:
        return

    def waited(self, seconds: float, *, got: bool) -> None:
        return


@dataclass(frozen=True, slots=True)
class _Taken:
    """The lock is somebody else's. ``elsewhere``: of another host, whose kernel lock does not reach here."""

    holder: Holder | None
    elsewhere: bool = False

    def busy(self, path: Path, waited_s: float) -> Busy:
        waited = f"; it was waited for {human_seconds(waited_s)}" if waited_s else ""
        if self.elsewhere and self.holder:
            return Busy(
                f"the backup directory is locked by {self.holder} on host {self.holder.host}{waited}",
                hint=f"If that host is certainly not running anything any more, empty {path} and try again.",
            )
        return Busy(
            f"another run holds the backup directory: {self.holder or 'it has not said its name yet'}{waited}",
            hint="Wait for it to end (its run is in Dagster), or stop it there; the lock goes with its process."
            + (" Then start this again." if waited else ""),
        )


def _read(path: Path) -> Holder | None:
    try:
        content = json.loads(path.read_text() or "null")
        return Holder(**content) if content else None
    except (OSError, ValueError, TypeError):
        return None  # being written right now, or by another version: the kernel lock decides, this is only its label


@contextlib.contextmanager
def estate_lock(
    path: Path, what: str, *, wait_s: float = 0.0, cancel: CancelToken | None = None, listener: Listener | None = None
) -> Iterator[Holder]:
    """Hold the lock for the length of the block.

    Args:
        path: the lock file; made if absent, never removed.
        what: what we are doing, for whoever has to wait (``backup 20241001_020000``).
        wait_s: seconds to wait for another holder.
        listener: is told of the wait, if there is one.

    Raises:
        Busy: somebody else holds it; the message says who, where and since when.
        Cancelled: told to stop while it waited.
    """
    make_private_dir(path.parent, exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        _acquire(fd, path, wait_s, cancel or CancelToken(), listener or Unheard())
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


def _acquire(fd: int, path: Path, wait_s: float, cancel: CancelToken, listener: Listener) -> None:
    began = time.monotonic()
    deadline = began + max(wait_s, _GLANCE_S)
    told: _Taken | None = None
    told_at = 0.0
    got = False
    try:
        while taken := _take(fd, path):
            now = time.monotonic()
            if now >= deadline:
                raise taken.busy(path, now - began if told else 0.0)
            another = told is None or (taken.holder is not None and taken != told)
            if now - began >= _GLANCE_S and (another or now - told_at >= _SAY_AGAIN_S):
                listener.waiting(taken.holder, deadline - now)
                told, told_at = taken, now
            cancel.wait(min(_LOOK_S, deadline - now))
        got = True
    finally:
        if told:
            listener.waited(time.monotonic() - began, got=got)


def _take(fd: int, path: Path) -> _Taken | None:
    """Take the lock; or say who has it."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return _Taken(_read(path))
    stranger = _read(path)
    if stranger and stranger.host != socket.gethostname() and _shared_between_hosts(path):
        fcntl.flock(fd, fcntl.LOCK_UN)
        return _Taken(stranger, elsewhere=True)
    return None


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
