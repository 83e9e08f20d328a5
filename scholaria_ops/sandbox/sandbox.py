"""The room itself: a context manager that makes real servers and takes every trace of them away again."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from scholaria_ops.cancel import CancelToken
from scholaria_ops.errors import SandboxError
from scholaria_ops.sandbox.home import Home, homes, unmarked
from scholaria_ops.sandbox.identity import server_account
from scholaria_ops.sandbox.postgres import PostgresServer
from scholaria_ops.sandbox.qdrant import QdrantServer
from scholaria_ops.sandbox.redis import RdbSource, RedisServer
from scholaria_ops.sandbox.s3 import Engine, S3Server
from scholaria_ops.sandbox.server import Room, Server, still_running
from scholaria_ops.sandbox.stragglers import end_stragglers
from scholaria_ops.sandbox.tools import Tools

S = TypeVar("S", bound=Server)

#: Age (seconds) at which an empty directory with a sandbox's name is taken for a leftover, not for one being made.
_UNMARKED_AGE_S = 60.0
#: How long (seconds) a dead owner's lock is waited for.
_DYING_S = 5.0


class Sandbox:
    """Real servers as local processes, isolated from everything else on the host.

    Use as a context manager: leaving the block, however it is left, ends every server and deletes every directory that
    was made. With ``ephemeral=False`` (or after :meth:`keep`) leaving it *normally* keeps servers and directories for a
    later :meth:`attach`; leaving it by an exception still removes everything.

    Args:
        base: directory below which this sandbox makes its own one. It may be shared with other sandboxes.
        tools: programs of the servers (see :func:`scholaria_ops.sandbox.tools.find_tools`).
        label: first part of the directory's name, for people.
        data_root: where the servers' data go instead (as root the default is ``/var/tmp`` when the servers' unprivileged
            account cannot be let into ``base``). Choose it when the data are larger than that disk.
        cancel: waiting for a server to start ends with ``Cancelled`` when this token is cancelled.
    """

    def __init__(
        self,
        base: Path,
        tools: Tools,
        *,
        label: str = "sandbox",
        ephemeral: bool = True,
        data_root: Path | None = None,
        cancel: CancelToken | None = None,
    ) -> None:
        self.base = base
        self.tools = tools
        self.label = label
        self.ephemeral = ephemeral
        self._data_root = data_root
        self._cancel = cancel
        self._room: Room | None = None
        self._servers: dict[str, Server] = {}
        self._keep_until: datetime | None = None
        self._lock = threading.Lock()

    # -- life --------------------------------------------------------------------------------------------------------

    def __enter__(self) -> Sandbox:
        self._open()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None and not self.ephemeral:
            self._leave_standing()
            return
        try:
            self.close()
        except KeyboardInterrupt:
            # A second Ctrl-C right behind the first may come before signals are deferred: nothing was taken down yet, or all was.
            self.close()
            raise

    def close(self) -> None:
        """End every server and delete every directory that this sandbox made. May be called again."""
        room = self._room
        if room is None:
            return
        with _signals_deferred():
            _discard_all(list(self._servers.values()))
            _end_everything(room.home)
            room.home.remove()
            self._servers.clear()
            self._room = None

    def keep(self, until: datetime | None = None) -> None:
        """Let servers and directories outlive the block; after ``until`` (if given) :func:`reap` removes them."""
        self.ephemeral = False
        self._keep_until = until

    @classmethod
    def attach(cls, base: Path, tools: Tools, *, label: str | None = None) -> Sandbox:
        """Find the newest kept sandbox in ``base`` (of that ``label``) with its servers, running or not.

        The result is not entered: call the servers' ``start()`` where needed, and :meth:`close` to end and delete it all.

        Raises:
            SandboxError: there is none.
        """
        kept = [home for home in homes(base) if home.marker.kept and label in {None, home.marker.label}]
        if not kept:
            raise SandboxError(f"no sandbox stands in {base}" + (f" under the label {label}" if label else ""), hint="Start one first.")
        home = kept[-1]
        box = cls(base, tools, label=home.marker.label, ephemeral=False)
        box._room = Room(home, tools)
        for name, state in home.read_servers().items():
            server = _restore(box._room, name, state)
            server.adopt(state)
            box._servers[name] = server
        return box

    @property
    def directory(self) -> Path:
        """This sandbox's own directory (the servers' directories may lie elsewhere, see each ``server.directory``)."""
        return self._open().home.directory

    @property
    def nonce(self) -> str:
        return self._open().home.marker.nonce

    @property
    def servers(self) -> Mapping[str, Server]:
        """Every server of this sandbox by name."""
        return dict(self._servers)

    # -- servers -----------------------------------------------------------------------------------------------------

    def postgres(
        self,
        *,
        name: str = "postgres",
        settings: Mapping[str, str] | None = None,
        locale: str = "C.UTF-8",
        fsync: bool = False,
        tcp: bool = True,
        initdb_args: Sequence[str] = (),
    ) -> PostgresServer:
        """Start PostgreSQL. ``settings`` go into its configuration; ``fsync=False`` trades durability for speed."""
        return self._start(
            name,
            lambda room: PostgresServer(room, name, settings=settings, locale=locale, fsync=fsync, tcp=tcp, initdb_args=initdb_args),
        )

    def redis(
        self,
        *,
        name: str = "redis",
        config: Mapping[str, str] | None = None,
        tcp: bool = True,
        extra_args: Sequence[str] = (),
        rdb: RdbSource | None = None,
    ) -> RedisServer:
        """Start Redis. ``config`` holds lines of redis.conf; ``rdb`` is a dataset to start from: a file that is copied, or a
        function that is given the path to write it to (so that it can be unpacked straight into place)."""
        return self._start(name, lambda room: RedisServer(room, name, config=config, tcp=tcp, extra_args=extra_args, rdb=rdb))

    def qdrant(
        self,
        *,
        name: str = "qdrant",
        api_key: str = "",
        config: Mapping[str, str] | None = None,
        extra_args: Sequence[str] = (),
        grpc: bool = False,
    ) -> QdrantServer:
        """Start Qdrant. ``config`` holds its variables without the prefix (``STORAGE__OPTIMIZERS__…``); with ``grpc`` points
        can be read in bulk at :attr:`QdrantServer.grpc_address`."""
        return self._start(name, lambda room: QdrantServer(room, name, api_key=api_key, config=config, extra_args=extra_args, grpc=grpc))

    def s3(self, *, name: str = "s3", engine: Engine = "moto") -> S3Server:
        """Start a local S3 endpoint (see :class:`S3Server` for the two engines)."""
        return self._start(name, lambda room: S3Server(room, name, engine=engine))

    def _start(self, name: str, make: Callable[[Room], S]) -> S:
        room = self._open()
        with self._lock:
            if name in self._servers or not name.replace("-", "").replace("_", "").isalnum() or name == "s":
                raise SandboxError(
                    f"{name!r} cannot name another server of this sandbox", hint="Use a fresh name of letters, digits and hyphens."
                )
            server = make(room)
            self._servers[name] = server
        try:
            server.create()
        except BaseException:
            with contextlib.suppress(SandboxError):
                server.kill()
            raise
        return server

    def _open(self) -> Room:
        with self._lock:
            if self._room is None:
                account = server_account()
                home = Home.create(self.base, self.label, account, data_root=self._data_root)
                self._room = Room(home, self.tools, self._cancel, account)
            return self._room

    def _leave_standing(self) -> None:
        if self._room is not None:
            self._room.home.keep(self._keep_until)
            self._room.home.release()


def reap(base: Path) -> list[str]:
    """End the servers and remove the directories that killed owners left in ``base``; returns a line per sandbox.

    A sandbox is reaped only with proof that nobody uses it: its owner's lock is free *and* its owner is dead by pid and
    start time, or it was kept until a time that has passed. What carries no marker of ours is left alone.
    """
    done = []
    for home in homes(base):
        marker = home.marker
        if marker.kept and not marker.expired:
            continue
        if not _taken_over(home):
            continue
        if not marker.kept and not marker.owner.dead and not _unreachable_owner(home):
            home.release()
            continue
        ended = _end_everything(home)
        home.remove()
        why = "kept until a time that has passed" if marker.kept else f"left by process {marker.owner.pid}"
        done.append(f"sandbox {home.directory.name} ({why}): {ended} process(es) ended, directories removed")
    for empty in unmarked(base):
        if time.time() - empty.stat().st_mtime > _UNMARKED_AGE_S:
            with contextlib.suppress(OSError):
                empty.rmdir()
                done.append(f"empty directory {empty.name} removed")
    return done


@contextlib.contextmanager
def _signals_deferred() -> Iterator[None]:
    """Take note of SIGINT and SIGTERM and deliver them at the end: a second Ctrl-C must not leave half a sandbox behind."""
    if threading.current_thread() is not threading.main_thread():  # signals never interrupt other threads
        yield
        return
    seen: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number, handler in before.items():
        if handler is not None:  # None: not installed from Python, and could not be put back
            signal.signal(number, lambda received, _frame: seen.append(received))
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:
                signal.signal(number, handler)
        for received in dict.fromkeys(seen):
            signal.raise_signal(received)


def _taken_over(home: Home) -> bool:
    """Take the marker's lock. A killed owner is seen dead some milliseconds before its last thread gives the lock back."""
    deadline = time.monotonic() + (_DYING_S if home.marker.owner.dead else 0.0)
    while not home.take_over():
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.01)
    return True


def _unreachable_owner(home: Home) -> bool:
    """The owner's pid cannot be judged from here (another container of this very kernel), but the kernel freed its lock."""
    owner = home.marker.owner
    return owner.same_boot and not owner.visible


def _end_everything(home: Home) -> int:
    """End all processes of a sandbox, listed or not; returns how many there were."""
    states = list(home.read_servers().values())
    ended = 0
    for state in states:
        if still_running(state):
            with contextlib.suppress(ProcessLookupError):
                os.kill(state["pid"], state["discard_signal"])
            _wait_while_running(state, Server.discard_patience_s)
            ended += 1
    pids = [int(s["pid"]) for s in states if s["pid"] is not None]
    return ended + end_stragglers(home.marker.nonce, home.data, {str(s["program"]) for s in states}, ended_before=pids)


def _wait_while_running(state: Mapping[str, Any], patience_s: float) -> None:
    deadline = time.monotonic() + patience_s
    while still_running(state) and time.monotonic() < deadline:
        time.sleep(0.01)


def _discard_all(servers: Sequence[Server]) -> None:
    """End servers side by side (each needs a moment of its own); the first problem is raised in the end."""
    problems: list[BaseException] = []

    def stop(server: Server) -> None:
        try:
            server.discard()
        except Exception as exc:  # noqa: BLE001 - collected: the others must still be stopped
            problems.append(exc)

    threads = [threading.Thread(target=stop, args=(server,), name=f"stop-{server.name}") for server in servers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if problems:
        raise problems[0]


def _restore(room: Room, name: str, state: Mapping[str, Any]) -> Server:
    kind = state.get("kind")
    if kind == "postgres":
        return PostgresServer(
            room,
            name,
            settings=state["settings"],
            locale=state["locale"],
            fsync=state["fsync"],
            tcp=state["tcp"],
            initdb_args=state["initdb_args"],
        )
    if kind == "redis":
        return RedisServer(room, name, config=state["config"], tcp=state["tcp"], extra_args=state["extra_args"])
    if kind == "qdrant":
        return QdrantServer(
            room, name, api_key=state["api_key"], config=state["config"], extra_args=state["extra_args"], grpc=state.get("grpc", False)
        )
    if kind == "s3":
        return S3Server(room, name, engine=state["engine"])
    raise SandboxError(f"{name} is of the unknown kind {kind!r}", hint="It was made by another version; stop it with that one.")
