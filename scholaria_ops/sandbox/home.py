"""A sandbox's own directories, and what is written down about them before anything is done.

Layout::

    <base>/<label>-<nonce>/              0700, ours
        .scholaria-sandbox.json          the marker: owner, nonce, where the data are; locked while the owner lives
        servers.json                     what was started, so that a later process can stop or attach to it
        <server>/ …                      each server's own directory

As root the servers run under an unprivileged account. If that account cannot reach ``base``, the servers' directories lie
in a second directory (``/var/tmp/scholaria-ops-<nonce>`` by default), named in the marker before it is made, and marked
itself. Nothing without the right marker is ever deleted.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from scholaria_ops.errors import SandboxError
from scholaria_ops.files import fsync_dir, make_private_dir
from scholaria_ops.sandbox.identity import Account, Owner, may_traverse

MARKER = ".scholaria-sandbox.json"
SERVERS = "servers.json"
_MARKER_BYTES = 16384
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,30}-[0-9a-f]{12}")
_LABEL = re.compile(r"[a-z0-9][a-z0-9-]{0,30}")
#: Where servers' data go as root when the servers' account cannot reach the base.
_FALLBACKS = (Path("/var/tmp"), Path("/tmp"))  # noqa: S108 - a private directory with a fresh random name is made there
#: Longest path of a unix socket on Linux is 107 bytes; ``/.s.PGSQL.65535`` is the longest name put into a directory of ours.
_SOCKET_DIR_MAX = 107 - len("/.s.PGSQL.65535")


@dataclass(frozen=True, slots=True)
class Marker:
    """The content of a marker file."""

    nonce: str
    label: str
    owner: Owner
    #: Second directory with the servers' data; equal to the first when one is enough.
    data: Path
    #: Directory of unix sockets, when the data's path is too long for them.
    sockets: Path | None
    created_at: datetime
    #: Left standing on purpose after the owner's end (until then, if a time is given).
    kept: bool = False
    keep_until: datetime | None = None

    def to_json(self) -> bytes:
        return json.dumps(
            {
                "format": 1,
                "nonce": self.nonce,
                "label": self.label,
                "owner": self.owner.as_dict(),
                "data": str(self.data),
                "sockets": str(self.sockets) if self.sockets else None,
                "created_at": self.created_at.isoformat(),
                "kept": self.kept,
                "keep_until": self.keep_until.isoformat() if self.keep_until else None,
            },
            indent=1,
        ).encode()

    @classmethod
    def read(cls, directory: Path) -> Marker | None:
        """The marker of ``directory``, or None when there is none that we wrote for it (whole, and by this user)."""
        path = directory / MARKER
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return None
        with os.fdopen(fd, "rb") as source:
            if os.fstat(source.fileno()).st_uid != os.geteuid():
                return None
            return cls._parse(source.read(_MARKER_BYTES))

    @classmethod
    def _parse(cls, raw: bytes) -> Marker | None:
        try:
            found = json.loads(raw)
            until = found["keep_until"]
            return cls(
                nonce=found["nonce"],
                label=found["label"],
                owner=Owner(**found["owner"]),
                data=Path(found["data"]),
                sockets=Path(found["sockets"]) if found["sockets"] else None,
                created_at=datetime.fromisoformat(found["created_at"]),
                kept=found["kept"],
                keep_until=datetime.fromisoformat(until) if until else None,
            )
        except (ValueError, KeyError, TypeError):
            return None

    @property
    def expired(self) -> bool:
        return self.kept and self.keep_until is not None and self.keep_until < datetime.now(UTC)


class Home:
    """The directories of one sandbox. Made by :meth:`create`, found again by :meth:`open`."""

    def __init__(self, directory: Path, marker: Marker) -> None:
        self.directory = directory
        self.marker = marker
        self._lock_fd = -1

    @classmethod
    def create(cls, base: Path, label: str, account: Account | None, *, data_root: Path | None = None) -> Home:
        """Make and mark the directories. The marker is durable, and locked by us, before anything else is made."""
        if not _LABEL.fullmatch(label):
            raise SandboxError(f"{label!r} is no label for a sandbox", hint="Use up to 31 lower-case letters, digits and hyphens.")
        nonce = secrets.token_hex(6)
        directory = base.resolve() / f"{label}-{nonce}"
        if not base.exists():
            make_private_dir(base, exist_ok=True)
        data = _data_directory(directory, nonce, account, data_root)
        sockets = None if _takes_sockets(data / "s") else _fallback() / f"scholaria-ops-sockets-{nonce}"
        home = cls(directory, Marker(nonce, label, Owner.current(), data, sockets, datetime.now(UTC)))
        make_private_dir(directory)
        home._lock_fd = os.open(directory / MARKER, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(home._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        home._write_marker()
        fsync_dir(directory)
        for extra in (data, sockets):
            if extra is not None and extra != directory:
                _make_shared(extra, account)
                (extra / MARKER).write_bytes(home.marker.to_json())
        make_for(home.socket_directory, account)
        return home

    @classmethod
    def open(cls, directory: Path) -> Home | None:
        """The sandbox in ``directory``, or None when that is not (wholly) one of ours."""
        marker = Marker.read(directory)
        if marker is None or not _NAME.fullmatch(directory.name) or directory.name != f"{marker.label}-{marker.nonce}":
            return None
        return cls(directory, marker)

    @property
    def data(self) -> Path:
        return self.marker.data

    @property
    def socket_directory(self) -> Path:
        return (self.marker.sockets or self.marker.data) / "s"

    def keep(self, until: datetime | None) -> None:
        """Write down that this sandbox outlives us."""
        self.marker = Marker(
            self.marker.nonce,
            self.marker.label,
            self.marker.owner,
            self.marker.data,
            self.marker.sockets,
            self.marker.created_at,
            kept=True,
            keep_until=until,
        )
        self._write_marker()

    def write_servers(self, servers: Mapping[str, Any]) -> None:
        """Replace the list of servers in one step."""
        fresh = self.directory / f".{SERVERS}.new"
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as out:
            out.write(json.dumps(servers, indent=1).encode())
        fresh.rename(self.directory / SERVERS)

    def read_servers(self) -> dict[str, Any]:
        """The list of servers; empty when none was written yet."""
        try:
            found = json.loads((self.directory / SERVERS).read_bytes())
        except FileNotFoundError:
            return {}
        except ValueError as exc:
            raise SandboxError(
                f"{self.directory / SERVERS} is damaged", hint="Remove the sandbox's directory once its servers are ended."
            ) from exc
        return found if isinstance(found, dict) else {}

    def take_over(self) -> bool:
        """Lock the marker as its new owner. False while the old owner (or a fork of it) still holds it.

        The kernel gives the lock back when the owner dies, whatever pid namespace or container it ran in.
        """
        if self._lock_fd >= 0:
            return True
        fd = os.open(self.directory / MARKER, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return False
        self._lock_fd = fd
        return True

    def release(self) -> None:
        """Give the marker's lock back; the directories stay."""
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    def remove(self) -> None:
        """Delete the directories, the marker last, so that an interrupted removal can be finished by the reaper."""
        for extra in (self.marker.data, self.marker.sockets):
            if extra is not None and extra != self.directory:
                self._remove_extra(extra)
        for entry in self.directory.iterdir():
            if entry.name != MARKER:
                _remove(entry)
        (self.directory / MARKER).unlink()
        self.directory.rmdir()
        self.release()

    def _remove_extra(self, extra: Path) -> None:
        """A directory outside the base: ours only if it is where we make them, by this user, and marked (or still empty)."""
        if not extra.name.endswith(self.marker.nonce):
            return
        try:
            info = extra.lstat()
        except FileNotFoundError:
            return
        if extra.is_symlink() or info.st_uid != os.geteuid():
            return
        found = Marker.read(extra)
        if found is not None and found.nonce == self.marker.nonce:
            for entry in extra.iterdir():
                if entry.name != MARKER:
                    _remove(entry)
            (extra / MARKER).unlink()
        with contextlib.suppress(OSError):  # not empty and not marked: not ours to delete
            extra.rmdir()

    def _write_marker(self) -> None:
        # Always the same length in one write: whoever is killed here leaves the old marker or the new one, never half of it.
        os.pwrite(self._lock_fd, self.marker.to_json().ljust(_MARKER_BYTES), 0)
        os.fsync(self._lock_fd)


def homes(base: Path) -> list[Home]:
    """All sandboxes in ``base``, oldest first. What is not ours is passed over."""
    found = [Home.open(entry) for entry in sorted(base.iterdir()) if entry.is_dir() and not entry.is_symlink()] if base.is_dir() else []
    return sorted((home for home in found if home), key=lambda home: home.marker.created_at)


def unmarked(base: Path) -> list[Path]:
    """Empty directories with a sandbox's name: their maker was killed between making and marking them."""
    entries = base.iterdir() if base.is_dir() else ()
    return [e for e in entries if _NAME.fullmatch(e.name) and e.is_dir() and not e.is_symlink() and not any(e.iterdir())]


def _data_directory(directory: Path, nonce: str, account: Account | None, data_root: Path | None) -> Path:
    if data_root is not None:
        root = data_root.resolve()
        if not may_traverse(root, account):
            raise SandboxError(
                f"{root} cannot be reached by the account of the scratch servers",
                hint="Choose another directory, or open it for traversal.",
            )
        return root / f"scholaria-ops-{nonce}"
    # With an account of their own the servers need a way in, and our own directory is closed to everybody else.
    return directory if account is None else _fallback() / f"scholaria-ops-{nonce}"


def _takes_sockets(path: Path) -> bool:
    """Sockets go beside the data while the path is short enough for the kernel and plain enough for libpq (a comma separates hosts)."""
    return len(os.fsencode(path)) <= _SOCKET_DIR_MAX and re.fullmatch(r"[\w./+-]+", str(path), re.ASCII) is not None


def _fallback() -> Path:
    return next((path for path in _FALLBACKS if path.is_dir()), _FALLBACKS[-1])


def _make_shared(path: Path, account: Account | None) -> None:
    """A directory that only we write to and that the servers' account may pass through."""
    path.mkdir(mode=0o700)
    if account is not None:
        os.chown(path, -1, account.gid)
        path.chmod(0o710)


def make_for(path: Path, account: Account | None) -> Path:
    """A new private directory of the servers' account (or of ours, when there is none)."""
    path.mkdir(mode=0o700)
    if account is not None:
        os.chown(path, account.uid, account.gid)
    path.chmod(0o700)
    return path


def _remove(entry: Path) -> None:
    if entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry)
    else:
        entry.unlink()
