"""How to reach a store: plain values shared by settings, stores and the sandbox. Passwords are ``SecretStr``."""

from __future__ import annotations

import urllib.parse
from pathlib import Path

from pydantic import BaseModel, ConfigDict, SecretStr


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PostgresConnection(_Frozen):
    """A PostgreSQL database. ``host`` may be a directory: then it is a unix socket."""

    host: str
    port: int = 5432
    dbname: str
    user: str
    password: SecretStr = SecretStr("")
    sslmode: str = "prefer"
    sslrootcert: Path | None = None
    sslcert: Path | None = None
    sslkey: Path | None = None

    def with_db(self, dbname: str) -> PostgresConnection:
        return self.model_copy(update={"dbname": dbname})

    def libpq_env(self) -> dict[str, str]:
        """Environment for libpq tools (pg_dump …), so that nothing secret stands in an argument list."""
        env = {
            "PGHOST": self.host,
            "PGPORT": str(self.port),
            "PGDATABASE": self.dbname,
            "PGUSER": self.user,
            "PGSSLMODE": self.sslmode,
            "PGCONNECT_TIMEOUT": "10",
            "PGAPPNAME": "scholaria-ops",
        }
        if self.password.get_secret_value():
            env["PGPASSWORD"] = self.password.get_secret_value()
        for name, value in (("PGSSLROOTCERT", self.sslrootcert), ("PGSSLCERT", self.sslcert), ("PGSSLKEY", self.sslkey)):
            if value is not None:
                env[name] = str(value)
        return env

    @property
    def where(self) -> str:
        """``host:port/dbname``, safe to print."""
        return f"{self.host}:{self.port}/{self.dbname}"


class RedisConnection(_Frozen):
    """A Redis server (all its databases). ``unix_socket`` wins over host and port."""

    host: str = "localhost"
    port: int = 6379
    username: str | None = None
    password: SecretStr = SecretStr("")
    tls: bool = False
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    unix_socket: Path | None = None

    @property
    def where(self) -> str:
        return str(self.unix_socket) if self.unix_socket else f"{self.host}:{self.port}"


class QdrantConnection(_Frozen):
    """A Qdrant server's REST endpoint, for example ``http://localhost:6333``.

    ``grpc_port`` is that of the same host's gRPC endpoint, where it can be reached. ``nodes`` holds the REST endpoints of every
    peer when the server runs in cluster mode.
    """

    url: str
    api_key: SecretStr = SecretStr("")
    ca_file: Path | None = None
    verify_tls: bool = True
    grpc_port: int | None = None
    nodes: tuple[str, ...] = ()

    @property
    def where(self) -> str:
        return self.url

    @property
    def grpc_address(self) -> str | None:
        """``host:port``, if there is a port."""
        host = urllib.parse.urlsplit(self.url).hostname or ""
        return f"{f'[{host}]' if ':' in host else host}:{self.grpc_port}" if self.grpc_port else None
