"""A scratch Redis server."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from scholaria_ops.connections import RedisConnection
from scholaria_ops.errors import SandboxError
from scholaria_ops.sandbox.server import LOOPBACK, Readiness, Room, Server

#: Where a dataset to start from comes: a file to copy, or a function that writes it to the path it is given.
RdbSource = Path | Callable[[Path], object]

_DEFAULTS = {
    "save": "",
    "appendonly": "no",
    "dbfilename": "dump.rdb",
    "daemonize": "no",
    "protected-mode": "yes",
    "enable-debug-command": "local",  # DEBUG DIGEST compares whole datasets on the server
    # The end of the log must say what was wrong with a damaged RDB, not test this host's memory for half a page.
    "crash-log-enabled": "no",
    "crash-memcheck-enabled": "no",
}


class RedisServer(Server):
    """Redis with a random password, no persistence unless asked for, and DEBUG allowed from this host."""

    kind = "redis"

    def __init__(
        self,
        room: Room,
        name: str,
        *,
        config: Mapping[str, str] | None = None,
        tcp: bool = True,
        extra_args: Sequence[str] = (),
        rdb: RdbSource | None = None,
    ) -> None:
        super().__init__(room, name, tcp=tcp)
        self._config = dict(config or {})
        self._extra_args = tuple(extra_args)
        self._rdb = rdb
        self._password = secrets.token_hex(16)
        self._info: dict[str, str] | None = None

    @property
    def connection(self) -> RedisConnection:
        """The default user, who may do everything."""
        password = SecretStr(self._password)
        if self.tcp:
            return RedisConnection(host=LOOPBACK, port=self.port, password=password)
        return RedisConnection(password=password, unix_socket=self._socket)

    @property
    def version(self) -> str:
        """Server version, for example ``7.4.1``."""
        return self._known()["redis_version"]

    @property
    def run_id(self) -> str:
        """The running process' id: different after every start."""
        return self._known()["run_id"]

    def state(self) -> dict[str, Any]:
        return {**super().state(), "config": self._config, "extra_args": list(self._extra_args), "password": self._password}

    def adopt(self, state: Mapping[str, Any]) -> None:
        super().adopt(state)
        self._password = state["password"]

    @property
    def _socket(self) -> Path:
        return self._room.home.socket_directory / f"{self.name}.sock"

    def _program(self) -> Path:
        return self._room.tools.require_redis()

    def _arguments(self) -> list[str]:
        return [str(self.directory / "redis.conf"), *self._extra_args]

    def _create(self) -> None:
        (self.directory / "data").mkdir(mode=0o700)
        self._own(self.directory / "data")
        if self._rdb is None:
            return
        if self._settings["appendonly"] != "no":
            raise SandboxError(
                "a server with an append-only file ignores dump.rdb and would start empty",
                hint="Start it without, then switch it on with CONFIG SET appendonly yes.",
            )
        target = self.directory / "data" / self._settings["dbfilename"]
        if callable(self._rdb):
            self._rdb(target)
        else:
            shutil.copyfile(self._rdb, target)
        target.chmod(0o600)
        self._own(target)

    def _own(self, path: Path) -> None:
        if self.account is not None:
            os.chown(path, self.account.uid, self.account.gid)

    @property
    def _settings(self) -> dict[str, str]:
        return {**_DEFAULTS, **self._config}

    def _configure(self) -> None:
        fixed = {"dir": _quoted(self.directory / "data"), "requirepass": self._password, "masterauth": self._password}
        fixed |= (
            {"port": str(self.port), "bind": LOOPBACK}
            if self.tcp
            else {"port": "0", "unixsocket": _quoted(self._socket), "unixsocketperm": "700"}
        )
        # What the caller asks for comes last: of a name given twice Redis takes the last one.
        lines = [_line(name, value) for name, value in {**_DEFAULTS, **fixed, **self._config}.items()]
        self._private(self.directory / "redis.conf", ("\n".join(lines) + "\n").encode())

    def _readiness(self) -> Readiness:
        try:
            answer = self._ask("PING")
        except OSError:
            return Readiness.NO
        if answer.startswith("-LOADING") or "-LOADING" in answer:
            return Readiness.BUSY
        return Readiness.YES if "+PONG" in answer else Readiness.NO

    def _ask(self, command: str) -> str:
        """Send one inline command after authenticating; returns everything up to the end of the connection."""
        with contextlib.closing(socket.socket(socket.AF_INET if self.tcp else socket.AF_UNIX)) as link:
            link.settimeout(5.0)
            link.connect((LOOPBACK, self.port) if self.tcp else str(self._socket))
            link.sendall(f"AUTH {self._password}\r\n{command}\r\nQUIT\r\n".encode())
            answer = bytearray()
            while block := link.recv(65536):
                answer += block
        return answer.decode("utf-8", "replace")

    def _forget(self) -> None:
        self._info = None

    def _known(self) -> dict[str, str]:
        if self._info is None:
            pairs = (line.partition(":") for line in self._ask("INFO server").splitlines())
            self._info = {name: value.strip() for name, colon, value in pairs if colon}
        return self._info


def _quoted(path: Path) -> str:
    """A path as one argument of a configuration line, whatever it contains."""
    return '"' + str(path).replace("\\", "\\\\").replace('"', '\\"') + '"'


def _line(name: str, value: str) -> str:
    if "\n" in value or "\r" in value:
        raise SandboxError(f"the Redis setting {name} must be one line")
    return f"{name} {value}" if value else f'{name} ""'
