"""What all scratch servers have in common: start, wait until ready, stop, crash, start again."""

from __future__ import annotations

import abc
import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar

from scholaria_ops.cancel import CancelToken
from scholaria_ops.errors import SandboxError, ToolMissing
from scholaria_ops.process import Daemon, Finished, end_group, is_alive, run, start_daemon
from scholaria_ops.sandbox.home import Home, make_for
from scholaria_ops.sandbox.identity import Account, may_execute, server_account
from scholaria_ops.sandbox.stragglers import NONCE_VARIABLE, end_stragglers
from scholaria_ops.sandbox.tools import Tools

LOOPBACK = "127.0.0.1"
_PORT_ATTEMPTS = 6
_LOG_TAIL_LINES = 30
_POLL_S = 0.01


class Readiness(Enum):
    """What a starting server says of itself. ``BUSY`` (loading, recovering) is progress: it has no deadline."""

    NO = "no"
    BUSY = "busy"
    YES = "yes"


@dataclass
class Room:
    """What a server needs to know of its sandbox."""

    home: Home
    tools: Tools
    cancel: CancelToken | None = None
    account: Account | None = field(default_factory=server_account)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def record(self, server: Server) -> None:
        """Write the server's present state down, before or right after something about it changes."""
        with self._lock:
            servers = self.home.read_servers()
            servers[server.name] = server.state()
            self.home.write_servers(servers)


class Server(abc.ABC):
    """A real server as a local process, with a directory of its own, reachable from this host only."""

    kind: ClassVar[str]
    #: How it is told to end in good order.
    stop_signal: ClassVar[signal.Signals] = signal.SIGTERM
    stop_patience_s: ClassVar[float] = 20.0
    #: How it is told to end when its data are about to be deleted.
    discard_signal: ClassVar[signal.Signals] = signal.SIGKILL
    discard_patience_s: ClassVar[float] = 5.0
    #: Patience for a server that answers nothing at all (seconds); loading and recovery do not count.
    ready_timeout_s: float = 60.0
    #: Scratch servers run unprivileged as root; the S3 endpoint of the tests runs as ourselves.
    unprivileged: ClassVar[bool] = True

    def __init__(self, room: Room, name: str, *, tcp: bool = True) -> None:
        self._room = room
        self.name = name
        self.tcp = tcp
        self.directory = room.home.data / name
        self.log = self.directory / "server.log"
        self.port = 0
        self.daemon: Daemon | None = None
        self._stopped = False

    # -- what the kinds of servers differ in -------------------------------------------------------------------------

    @abc.abstractmethod
    def _program(self) -> Path:
        """The server's program."""

    @abc.abstractmethod
    def _arguments(self) -> list[str]:
        """Its arguments, without secrets."""

    @abc.abstractmethod
    def _create(self) -> None:
        """Fill the new directory (once)."""

    @abc.abstractmethod
    def _configure(self) -> None:
        """Write the configuration for :attr:`port` (before every start)."""

    @abc.abstractmethod
    def _readiness(self) -> Readiness:
        """Ask the starting server how far it is."""

    def _environment(self) -> dict[str, str]:
        return {}

    def _forget(self) -> None:  # noqa: B027 - most servers cache nothing
        """Drop what was cached of the last running process."""

    # -- life --------------------------------------------------------------------------------------------------------

    def create(self) -> None:
        """Make the directory, start the server and wait until it serves."""
        make_for(self.directory, self.account)
        self._room.record(self)  # the intent: whoever finds us dead knows where to look
        self._create()
        self.start()

    def start(self) -> None:
        """Start (again) and wait until the server serves; the same port is kept while it is free.

        Raises:
            SandboxError: it ended, or stayed silent; the message carries the end of its log.
            Cancelled: the sandbox's token was cancelled meanwhile.
        """
        if self.running:
            return
        self._require_reachable_program()
        problem: SandboxError | None = None
        for _ in range(_PORT_ATTEMPTS):
            if self.tcp and (self.port == 0 or problem is not None):
                self.port = free_port()
            mark = self.log.stat().st_size if self.log.exists() else 0
            try:
                self._launch()
                self._wait_until_ready(mark)
            except SandboxError as exc:
                self.kill()
                if not (self.tcp and _port_was_taken(self._tail(mark))):
                    raise
                problem = exc
            except BaseException:
                self.kill()
                raise
            else:
                return
        raise problem or SandboxError(f"{self.name} did not start")

    def stop(self) -> None:
        """End in good order (killed when it does not). The data stay."""
        if self.daemon is not None and self.daemon.alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.daemon.pid, self.stop_signal)
            self._wait_for_end(self.daemon, self.stop_patience_s)
            if self.daemon.alive:
                end_group(self.daemon.pid, self.daemon.start_time)
        self._sweep()

    def kill(self) -> None:
        """End at once, as a crash would (SIGKILL to every process of this server). The data stay."""
        if self.daemon is not None and self.daemon.alive:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.daemon.pid, signal.SIGKILL)
            self._wait_for_end(self.daemon, self.stop_patience_s)
        self._sweep()

    def discard(self) -> None:
        """End as fast as it goes without leaving anything outside the directory, which is about to be deleted."""
        if self.daemon is not None and self.daemon.alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.daemon.pid, self.discard_signal)
            self._wait_for_end(self.daemon, self.discard_patience_s)
        self.kill()

    def restart(self) -> None:
        """Stop in good order and start again with the same data (and port, unless somebody took it)."""
        self.stop()
        self.start()

    @property
    def running(self) -> bool:
        return self.daemon is not None and self.daemon.alive

    @property
    def made_by_sandbox(self) -> str:
        """Nonce of the sandbox that made this server: proof that it is nobody's live one."""
        return self._room.home.marker.nonce

    @property
    def account(self) -> Account | None:
        """The account this server runs under, when it is not ours."""
        return self._room.account if self.unprivileged else None

    def state(self) -> dict[str, Any]:
        """What a later process needs to find, stop or restart this server."""
        alive = self.daemon
        return {
            "kind": self.kind,
            "name": self.name,
            "tcp": self.tcp,
            "port": self.port,
            "program": os.fspath(self._program().resolve()),
            "pid": alive.pid if alive else None,
            "start_time": alive.start_time if alive else None,
            "discard_signal": int(self.discard_signal),
        }

    def adopt(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state` wrote down in another process."""
        self.port = state["port"]
        self.daemon = Daemon(state["pid"], state["start_time"]) if state["pid"] is not None else None

    # -- helpers -----------------------------------------------------------------------------------------------------

    def _launch(self) -> None:
        self._forget()
        self._configure()
        self._private(self.log)
        tmp = self.directory / "tmp"
        if not tmp.exists():
            make_for(tmp, self.account)
        account = self.account
        try:
            self.daemon = start_daemon(
                [str(self._program()), *self._arguments()],
                log=self.log,
                env=self._child_environment(),
                cwd=self.directory,
                user=account.uid if account else None,
                group=account.gid if account else None,
            )
        except SandboxError as exc:
            raise self._failed(exc.message) from exc
        self._room.record(self)

    def _child_environment(self) -> dict[str, str]:
        return {
            "HOME": str(self.directory),
            "TMPDIR": str(self.directory / "tmp"),
            "LC_ALL": "C.UTF-8",
            "TZ": "UTC",
            NONCE_VARIABLE: f"{self.made_by_sandbox}/{self.name}",
            **self._environment(),
        }

    def _run(self, argv: list[str], *, env: Mapping[str, str] | None = None, timeout_s: float = 120.0) -> Finished:
        """Run a helper program in this server's directory, under its account."""
        account = self.account
        return run(
            argv,
            env={**self._child_environment(), **(env or {})},
            cwd=self.directory,
            user=account.uid if account else None,
            group=account.gid if account else None,
            cancel=self._room.cancel,
            timeout_s=timeout_s,
        )

    def _private(self, path: Path, content: bytes | None = None) -> None:
        """Make (or, with ``content``, replace) a file that only this server's account and root can read."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | (os.O_TRUNC if content is not None else 0)
        fd = os.open(path, flags, 0o600)
        with os.fdopen(fd, "wb") as out:
            os.fchmod(out.fileno(), 0o600)
            if self.account is not None:
                os.fchown(out.fileno(), self.account.uid, self.account.gid)
            out.write(content or b"")

    def _wait_until_ready(self, log_mark: int) -> None:
        deadline = time.monotonic() + self.ready_timeout_s
        while True:
            if self._room.cancel:
                self._room.cancel.check()
            if self.daemon is None or not self.daemon.alive:
                raise self._failed("ended while starting", log_mark)
            # Nobody else's server is ever asked (and told our password) because it got the port first.
            state = self._readiness() if not self.tcp or listens(self.daemon.pid, self.port) else Readiness.NO
            if state is Readiness.YES:
                break
            if state is Readiness.BUSY:
                deadline = time.monotonic() + self.ready_timeout_s
            if time.monotonic() > deadline:
                raise self._failed(f"did not become ready within {self.ready_timeout_s:.0f} s", log_mark)
            time.sleep(_POLL_S)

    def _failed(self, what: str, log_mark: int = 0) -> SandboxError:
        tail = self._tail(log_mark).strip()
        return SandboxError(
            f"scratch server {self.name} ({self.kind}) {what}" + (f"; the end of its log:\n{tail}" if tail else "; its log is empty"),
            hint=f"Its log is {self.log}.",
        )

    def _tail(self, mark: int) -> str:
        try:
            with self.log.open("rb") as log:
                size = log.seek(0, os.SEEK_END)
                log.seek(max(mark, size - 16384))
                return "\n".join(log.read().decode("utf-8", "replace").splitlines()[-_LOG_TAIL_LINES:])
        except FileNotFoundError:
            return ""

    def _wait_for_end(self, daemon: Daemon, patience_s: float) -> None:
        deadline = time.monotonic() + patience_s
        while daemon.alive and time.monotonic() < deadline:
            time.sleep(_POLL_S)

    def _sweep(self) -> None:
        """After the end of the main process: end what it left, and write down that nothing runs."""
        try:
            program = self._program()
        except ToolMissing:
            return  # without its program it was never started
        ended = (self.daemon.pid,) if self.daemon else ()
        programs = {os.fspath(program.resolve())}
        end_stragglers(f"{self.made_by_sandbox}/{self.name}", self.directory, programs, ended_before=ended)
        if self.daemon is not None:
            self.daemon = None
            self._forget()
            if self._room.home.directory.exists():
                self._room.record(self)

    def _require_reachable_program(self) -> None:
        program = self._program()
        if not may_execute(program, self.account):
            name = self.account.name if self.account else "we"
            raise SandboxError(
                f"{program} cannot be started by {name}, the unprivileged account that scratch servers run under as root",
                hint="Install it where every user may reach it (for instance below /opt), or run as an ordinary user.",
            )


def free_port() -> int:
    """A loopback port that was free a moment ago. Whoever uses it must be ready to lose the race and ask again."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port


def listens(pid: int, port: int) -> bool:
    """Whether that very process listens on ``port`` (True also when this host does not let us look)."""
    import psutil

    try:
        sockets = psutil.Process(pid).net_connections(kind="tcp")
    except psutil.AccessDenied:
        return True
    except psutil.NoSuchProcess:
        return False
    return any(s.status == psutil.CONN_LISTEN and s.laddr.port == port for s in sockets)


def still_running(state: Mapping[str, Any]) -> bool:
    """Whether the process that :meth:`Server.state` wrote down still runs."""
    return state.get("pid") is not None and is_alive(state["pid"], state.get("start_time"))


def _port_was_taken(log: str) -> bool:
    return "address already in use" in log.lower()
