"""A throw-away Qdrant on this host that opens snapshots, so that they are judged by the store's own software.

It never sees the live server. Its background optimizers are silenced: they would spend minutes of processor time on
indexes that nobody will use, and they change no content.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import re
import secrets
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from scholaria_ops.errors import DiskFull, OpsError, StoreError, ToolFailed
from scholaria_ops.files import BLOCK, disk_errors
from scholaria_ops.process import run
from scholaria_ops.sandbox.home import make_for
from scholaria_ops.sandbox.qdrant import QdrantServer
from scholaria_ops.sandbox.sandbox import Sandbox
from scholaria_ops.sandbox.tools import Tools
from scholaria_ops.stores.base import Context
from scholaria_ops.stores.qdrant import room
from scholaria_ops.stores.qdrant.load import upload
from scholaria_ops.stores.qdrant.names import opens, version_tuple
from scholaria_ops.stores.qdrant.points import GrpcSource, Source, warm_up
from scholaria_ops.stores.qdrant.rest import BadRequest, NotFound, Rest, at
from scholaria_ops.stores.qdrant.snapshot_file import opened

_QUIET = {
    "STORAGE__OPTIMIZERS_OVERWRITE__INDEXING_THRESHOLD": "0",
    "STORAGE__OPTIMIZERS_OVERWRITE__DEFAULT_SEGMENT_NUMBER": "100000",
    "STORAGE__OPTIMIZERS_OVERWRITE__DELETED_THRESHOLD": "1.0",
    "STORAGE__OPTIMIZERS_OVERWRITE__VACUUM_MIN_VECTOR_NUMBER": "1000000000",
}


def program_version(tools: Tools) -> str | None:
    """Version of the qdrant program on this host (``1.16.3``), or None if there is none that runs."""
    return None if tools.qdrant is None else _asked(tools.qdrant)


@functools.lru_cache(maxsize=8)
def _asked(program: Path) -> str | None:
    try:
        answer = run([str(program), "--version"], timeout_s=20.0).stdout.decode("utf-8", "replace")
    except ToolFailed:
        return None
    found = re.search(r"\d+\.\d+\.\d+", answer)
    return found[0] if found else None


def unfit(tools: Tools, source_version: str) -> str:
    """Why no scratch server here can open snapshots of a server of ``source_version``; empty if one can."""
    ours = program_version(tools)
    need = _needed(source_version)
    if ours is None:
        return f"no qdrant program on this host: {need} (set QDRANT_BIN)"
    if not opens(source_version, ours):
        return f"the qdrant program here is {ours}, the snapshots are of {source_version}: {need} (set QDRANT_BIN)"
    return ""


def _needed(source_version: str) -> str:
    major, minor, _ = version_tuple(source_version)
    return f"one of version {major}.{minor} or {major}.{minor + 1} is needed to open them"


class Scratch:
    """A running scratch server. A context manager; everything it made is gone when it is left.

    ``largest`` is the expected size in bytes of the largest snapshot that it will open: it decides whether the server
    works in memory. If that turns out too small, it moves to the disk.
    """

    def __init__(self, ctx: Context, *, largest: int) -> None:
        self._ctx = ctx
        self._memory = room.in_memory(largest)
        self._exit = contextlib.ExitStack()
        self._box: Sandbox | None = None
        self._server: QdrantServer | None = None
        self._rest: Rest | None = None
        self._links = contextlib.ExitStack()
        self._numbers = itertools.count(1)
        self._key = secrets.token_urlsafe(24)

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            warming = threading.Thread(target=warm_up, name="qdrant-warm-up")
            warming.start()
            stack.callback(warming.join)
            stack.push(self._close)
            self._start()
            self._exit = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._exit.__exit__(kind, error, trace)

    @property
    def rest(self) -> Rest:
        if self._rest is None:
            raise RuntimeError("use Scratch as a context manager")
        return self._rest

    @property
    def source(self) -> Source:
        """Its points, with their vectors, in bulk."""
        address = self._running().grpc_address
        if address is None:
            raise RuntimeError("the scratch server has no gRPC port")
        return GrpcSource(address, self._key, self._ctx.cancel)

    @property
    def version(self) -> str:
        return self._running().version

    def recover(self, path: Path, collection: str, *, size: int, compressed: bool) -> None:
        """Open a snapshot file of ``size`` bytes (uncompressed) as ``collection``.

        Raises:
            StoreError: the server does not take it; the message is the server's.
            DiskFull: no room here to open it, which says nothing about the file.
        """
        if not self._running().running:
            self._start()
        if self._memory is not None and not self._has_room(size):
            self._close()
            self._memory = None
            self._start()
        if not self._has_room(size):
            raise self._full(path, size)
        try:
            with self._handed_over(path, compressed=compressed) as file:
                self._recover(file, collection)
        except DiskFull as exc:
            raise self._full(path, size) from exc
        except StoreError as exc:
            if not self._running().running:
                raise StoreError(f"the scratch server broke down while it opened {path.name}", store="qdrant") from exc
            if not self._has_room(size):  # servers do not always say that this is why they cannot unpack it
                raise self._full(path, size) from exc
            raise

    def _has_room(self, size: int) -> bool:
        return shutil.disk_usage(self._running().directory).free >= room.COPIES * size

    def _full(self, path: Path, size: int) -> DiskFull:
        directory = self._running().directory
        return DiskFull(
            f"no room for the scratch Qdrant server in {directory} to open {path.name}: {room.COPIES * size:,} bytes needed, "
            f"{shutil.disk_usage(directory).free:,} bytes free",
            hint="Free space there or move the scratch directory.",
            store="qdrant",
        )

    def forget(self, collection: str) -> None:
        """Delete a collection again, for its space. A server that cannot any more is replaced by the next :meth:`recover`."""
        with contextlib.suppress(OpsError):
            self.rest.delete(at(collection), timeout_s=120.0)

    def _recover(self, file: Path, collection: str) -> None:
        body = {"location": file.as_uri(), "priority": "snapshot"}
        try:
            self.rest.put(at(collection, "snapshots", "recover"), body, timeout_s=3600.0, wait="true")
        except BadRequest:
            # A version may take files from nowhere but an upload; if the file itself is bad, this refuses it again.
            with file.open("rb") as content:
                upload(self.rest, collection, content, file.stat().st_size, filename="scratch.snapshot", sha256=None, timeout_s=3600.0)
            with contextlib.suppress(NotFound):
                self.rest.delete(at(collection, "snapshots", "scratch.snapshot"), timeout_s=120.0, wait="true")

    @contextlib.contextmanager
    def _handed_over(self, path: Path, *, compressed: bool) -> Iterator[Path]:
        """The snapshot as a file in the server's own snapshot directory, readable by its account.

        Giving it a file saves sending and storing it once more. As ourselves a hard link will do; under the other
        account (as root) it needs a copy of its own, because the artifact's permissions stay as they are.
        """
        server = self._running()
        directory = server.directory / "snapshots"
        if not directory.exists():
            make_for(directory, server.account)
        handed = directory / f"handed-over-{next(self._numbers)}.snapshot"
        try:
            if compressed or server.account is not None or not _linked(path, handed):
                with disk_errors(handed):
                    _copy(path, handed, compressed=compressed)
            if server.account is not None:
                os.chown(handed, server.account.uid, server.account.gid)
            yield handed
        finally:
            handed.unlink(missing_ok=True)

    def _start(self) -> None:
        """Start a server (another one, if the last one broke down on what it was given)."""
        self._links.close()
        if self._box is None:
            self._box = Sandbox(self._ctx.scratch, self._ctx.tools, label="qdrant-scratch", data_root=self._memory, cancel=self._ctx.cancel)
        with contextlib.ExitStack() as links:
            server = self._box.qdrant(name=f"scratch-{next(self._numbers)}", api_key=self._key, config=_QUIET, grpc=True)
            self._server = server
            self._rest = links.enter_context(Rest(server.connection, cancel=self._ctx.cancel))
            self._links = links.pop_all()

    def _close(self, *exc: object) -> None:
        self._links.close()
        if self._box is not None:
            self._box.close()
            self._box = None

    def _running(self) -> QdrantServer:
        if self._server is None:
            raise RuntimeError("use Scratch as a context manager")
        return self._server


def _linked(path: Path, link: Path) -> bool:
    try:
        os.link(path, link)
    except OSError:  # another file system, or one without hard links
        return False
    return True


def _copy(path: Path, copy: Path, *, compressed: bool) -> None:
    fd = os.open(copy, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as out, opened(path, compressed=compressed) as content:
        if compressed:
            shutil.copyfileobj(content, out, BLOCK)
            return
        size = path.stat().st_size
        while size > 0:
            sent = os.sendfile(out.fileno(), content.fileno(), None, min(size, 64 * BLOCK))
            if sent == 0:
                return
            size -= sent
