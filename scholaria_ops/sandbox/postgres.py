"""A scratch PostgreSQL server."""

from __future__ import annotations

import secrets
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import SecretStr

from scholaria_ops.connections import PostgresConnection
from scholaria_ops.errors import SandboxError, ToolFailed
from scholaria_ops.sandbox.server import LOOPBACK, Readiness, Room, Server

if TYPE_CHECKING:
    import psycopg

#: For every scratch server: reproducible, quiet, private.
_COMMON = {
    "max_connections": "100",
    "shared_buffers": "128MB",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "lc_messages": "C",
    "password_encryption": "scram-sha-256",
    "logging_collector": "off",
    "jit": "off",
    # In the data directory: /dev/shm is small in containers, and a killed server would leave its files there.
    "dynamic_shared_memory_type": "mmap",
    "max_wal_size": "4GB",
    "maintenance_work_mem": "128MB",
}
#: Nothing that a throw-away server holds must survive a power cut, so it need not wait for the disk. Minimal WAL also lets
#: COPY into a table made in the same transaction skip the log altogether.
_THROW_AWAY = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "checkpoint_timeout": "30min",
    "archive_mode": "off",
    # It would compete with the restore and the measurements for no benefit.
    "autovacuum": "off",
}
#: Line of postmaster.pid that holds the status, and what stands there once connections are taken (as pg_ctl reads it).
_STATUS_LINE = 7
_READY = ("ready", "standby")


class PostgresServer(Server):
    """PostgreSQL with SCRAM passwords, UTF-8 and a system identifier of its own."""

    kind = "postgres"
    stop_signal = signal.SIGINT  # "fast": open sessions are ended, the data are consistent
    stop_patience_s = 60.0
    # "immediate": no checkpoint, but shared memory is given back to the kernel, which SIGKILL does not do
    discard_signal = signal.SIGQUIT

    def __init__(
        self,
        room: Room,
        name: str,
        *,
        settings: Mapping[str, str] | None = None,
        locale: str = "C.UTF-8",
        fsync: bool = False,
        tcp: bool = True,
        initdb_args: Sequence[str] = (),
    ) -> None:
        super().__init__(room, name, tcp=tcp)
        self.data = self.directory / "data"
        self._settings = dict(settings or {})
        self._locale = locale
        self._fsync = fsync
        self._initdb_args = tuple(initdb_args)
        self._password = secrets.token_hex(16)
        self._facts: tuple[str, int] | None = None

    @property
    def connection(self) -> PostgresConnection:
        """The superuser ``postgres`` on database ``postgres``."""
        return PostgresConnection(
            host=LOOPBACK if self.tcp else str(self._room.home.socket_directory),
            port=self.port or 5432,
            dbname="postgres",
            user="postgres",
            password=SecretStr(self._password),
            sslmode="disable",
        )

    def connect(self, dbname: str = "postgres", *, autocommit: bool = True) -> psycopg.Connection[tuple[Any, ...]]:
        """A psycopg connection of the superuser; the caller closes it (``with``)."""
        import psycopg

        to = self.connection
        return psycopg.connect(
            host=to.host,
            port=to.port,
            dbname=dbname,
            user=to.user,
            password=to.password.get_secret_value(),
            sslmode="disable",
            connect_timeout=10,
            autocommit=autocommit,
        )

    @property
    def version(self) -> str:
        """Server version, for example ``16.15``."""
        return self._known()[0]

    @property
    def system_identifier(self) -> int:
        """What ``pg_control_system()`` reports: different for every server ever initialised."""
        return self._known()[1]

    def state(self) -> dict[str, Any]:
        return {
            **super().state(),
            "settings": self._settings,
            "locale": self._locale,
            "fsync": self._fsync,
            "initdb_args": list(self._initdb_args),
            "password": self._password,
        }

    def adopt(self, state: Mapping[str, Any]) -> None:
        super().adopt(state)
        self._password = state["password"]

    def _program(self) -> Path:
        return self._room.tools.require_pg("postgres")

    def _arguments(self) -> list[str]:
        return ["-D", str(self.data), "-c", f"config_file={self.directory / 'sandbox.conf'}"]

    def _environment(self) -> dict[str, str]:
        return dict(self._room.tools.pg_env)

    def _create(self) -> None:
        self._require_reachable_program()
        password_file = self.directory / "initial-password"
        self._private(password_file, self._password.encode())
        argv = [str(self._room.tools.require_pg("initdb")), "--pgdata", str(self.data), "--username=postgres"]
        argv += [f"--pwfile={password_file}", "--auth=scram-sha-256", "--encoding=UTF8", f"--locale={self._locale}"]
        argv += ["--no-sync", "--no-instructions"]
        for setting in ("max_connections", "shared_buffers", "dynamic_shared_memory_type"):  # for initdb's own servers, too
            argv.append(f"--set={setting}={_COMMON[setting]}")
        argv += self._initdb_args
        try:
            self._run(argv)
        except ToolFailed as exc:
            hint = (
                f"Locales that this host offers are listed by `locale -a`; {self._locale} was asked for." if "locale" in exc.message else ""
            )
            raise SandboxError(f"cannot initialise scratch server {self.name}: {exc.message}", hint=hint) from exc
        finally:
            password_file.unlink(missing_ok=True)

    def _configure(self) -> None:
        chosen = {**_COMMON, **({} if self._fsync else _THROW_AWAY), **self._settings}
        chosen |= {
            "listen_addresses": LOOPBACK if self.tcp else "",
            "port": str(self.port or 5432),
            # A list: the one path in it stands in double quotes, whatever it contains.
            "unix_socket_directories": "" if self.tcp else '"' + str(self._room.home.socket_directory).replace('"', '""') + '"',
            "unix_socket_permissions": "0700",
            "cluster_name": f"sandbox-{self.made_by_sandbox}",
        }
        lines = [f"include '{_quoted(str(self.data / 'postgresql.conf'))}'"]
        lines += [f"{name} = '{_quoted(value)}'" for name, value in chosen.items()]
        self._private(self.directory / "sandbox.conf", ("\n".join(lines) + "\n").encode())

    def _readiness(self) -> Readiness:
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return Readiness.NO
        if self.daemon is None or len(lines) <= _STATUS_LINE or lines[0].strip() != str(self.daemon.pid):
            return Readiness.NO
        return Readiness.YES if lines[_STATUS_LINE].strip() in _READY else Readiness.BUSY

    def _forget(self) -> None:
        self._facts = None

    def _known(self) -> tuple[str, int]:
        if self._facts is None:
            with self.connect() as connection:
                row = connection.execute(
                    "select current_setting('server_version'), system_identifier from pg_catalog.pg_control_system()"
                ).fetchone()
            if row is None:  # pragma: no cover - that query has one row
                raise SandboxError(f"scratch server {self.name} does not tell its version")
            self._facts = (str(row[0]).split(maxsplit=1)[0], int(row[1]))
        return self._facts


def _quoted(value: str) -> str:
    if "\n" in value:
        raise SandboxError("a PostgreSQL setting must be one line")
    return value.replace("\\", "\\\\").replace("'", "''")
