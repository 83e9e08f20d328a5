"""Durable, private files: the one home of fsync, permissions and hash-while-writing.

Directories are made 0700 and files 0600 whatever the umask. A file counts as written only after its bytes are
flushed to the device and its directory entry too.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from scholaria_ops.errors import DiskFull

BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class Written:
    """What a finished file weighs: ``size`` in bytes and the hexadecimal ``sha256`` of its content."""

    path: Path
    size: int
    sha256: str


@contextlib.contextmanager
def disk_errors(path: Path, *, needed: int | None = None) -> Iterator[None]:
    """Turn "no space left", "quota exceeded" and "file too large" into :class:`DiskFull`, naming needed and free bytes."""
    try:
        yield
    except OSError as exc:
        if exc.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
            raise disk_full(path, needed=needed) from exc
        raise


def disk_full(path: Path, *, needed: int | None = None) -> DiskFull:
    """The error for a disk that cannot take ``path``; ``needed`` is the number of bytes still wanted, if known."""
    here = path if path.is_dir() else path.parent
    free = shutil.disk_usage(here).free if here.exists() else 0
    wanted = f"at least {needed:,} bytes needed, " if needed is not None else ""
    return DiskFull(
        f"no space left while writing {path.name} in {here}: {wanted}{free:,} bytes free",
        hint="Free space there or point BACKUP_DIR at a larger disk, then run again; nothing was sealed.",
    )


class HashingWriter:
    """Write a new private file, counting and hashing on the way. Use as a context manager.

    Leaving the block normally flushes to the device and closes; leaving it by an exception removes the file.
    The file must not exist yet (a fresh name is part of the commit protocol).
    """

    def __init__(self, path: Path, *, on_bytes: Callable[[int], None] | None = None) -> None:
        self.path = path
        self._hash = hashlib.sha256()
        self._size = 0
        self._on_bytes = on_bytes
        self._fd = -1

    def __enter__(self) -> HashingWriter:
        with disk_errors(self.path):
            self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            os.fchmod(self._fd, 0o600)
        return self

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Append ``data`` (all of it); raises :class:`DiskFull` when the disk cannot take it."""
        view = memoryview(data).cast("B")
        self._hash.update(view)
        total = len(view)
        with disk_errors(self.path, needed=total):
            while view:
                view = view[os.write(self._fd, view) :]
        self._size += total
        if self._on_bytes:
            self._on_bytes(total)
        return total

    def __exit__(self, exc_type: object, exc: object, tb: object) -> None:
        try:
            if exc_type is None:
                with disk_errors(self.path):
                    os.fsync(self._fd)
        except BaseException:
            self.path.unlink(missing_ok=True)
            raise
        finally:
            os.close(self._fd)
        if exc_type is not None:
            self.path.unlink(missing_ok=True)

    @property
    def result(self) -> Written:
        return Written(self.path, self._size, self._hash.hexdigest())


def write_private(path: Path, data: bytes) -> Written:
    """Write a new private file of known content, durably."""
    with HashingWriter(path) as out:
        out.write(data)
    return out.result


def hash_file(path: Path, *, on_bytes: Callable[[int], None] | None = None) -> Written:
    """Read a file once, in blocks, and return its size and SHA-256."""
    digest = hashlib.sha256()
    size = 0
    with path.open("rb", buffering=0) as source:
        buffer = bytearray(BLOCK)
        view = memoryview(buffer)
        while n := source.readinto(buffer):
            digest.update(view[:n])
            size += n
            if on_bytes:
                on_bytes(n)
    return Written(path, size, digest.hexdigest())


def make_private_dir(path: Path, *, exist_ok: bool = False) -> Path:
    """Make one directory (and missing parents), 0700 whatever the umask."""
    missing = [p for p in (path, *path.parents) if not p.exists()]
    if not missing and not exist_ok:
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
    for directory in reversed(missing):
        with contextlib.suppress(FileExistsError):
            directory.mkdir(mode=0o700)
            directory.chmod(0o700)
    return path


def fsync_dir(path: Path) -> None:
    """Make the entries of a directory durable (a rename counts only after this)."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def rename_durably(source: Path, target: Path) -> None:
    """Rename within one file system and make it durable on both sides."""
    source.rename(target)
    fsync_dir(target.parent)
    if source.parent != target.parent:
        fsync_dir(source.parent)


def replace_durably(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Put a whole file in the place of ``path`` by one rename: who reads it meanwhile sees the old content or the new, never half."""
    # The suffix keeps it from whoever collects files by theirs.
    fresh = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.new")
    fresh.unlink(missing_ok=True)
    try:
        write_private(fresh, data)
        fresh.chmod(mode)
        rename_durably(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)


def append_durably(path: Path, line: bytes) -> None:
    """Append one line in a single write, and flush it to the device. A torn last line is healed first."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        os.fchmod(fd, 0o600)
        size = os.fstat(fd).st_size
        torn = size > 0 and os.pread(fd, 1, size - 1) != b"\n"
        payload = (b"\n" if torn else b"") + line.rstrip(b"\n") + b"\n"
        with disk_errors(path, needed=len(payload)):
            # A full disk takes a part without complaint; asking for the rest brings out the error.
            while payload:
                payload = payload[os.write(fd, payload) :]
            os.fsync(fd)
    finally:
        os.close(fd)
