"""Where the live stores are, and the programs that go with them."""

from __future__ import annotations

import urllib.parse
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, SecretStr

from scholaria_ops.connections import PostgresConnection, QdrantConnection, RedisConnection
from scholaria_ops.errors import ConfigError
from scholaria_ops.settings.field import named


class PostgresSettings(BaseModel):
    """PostgreSQL."""

    db_host: str = named(
        "DB_HOST", default="localhost", description="PostgreSQL host, or the directory of its unix socket; no pooler in transaction mode"
    )
    db_port: int = named("DB_PORT", default=5432, ge=1, le=65535, description="PostgreSQL port")
    db_name: str = named("DB_NAME", default="scholaria", min_length=1, description="Database to back up")
    db_user: str = named("DB_USER", default="scholaria", min_length=1, description="Role to connect as")
    db_password: SecretStr = named("DB_PASSWORD", "POSTGRES_PASSWORD", default=SecretStr(""), description="Password of that role")
    db_sslmode: Literal["disable", "allow", "prefer", "require", "verify-ca", "verify-full"] = named(
        "DB_SSLMODE", default="prefer", description="TLS towards PostgreSQL, as libpq's sslmode"
    )
    db_sslrootcert: Path | None = named("DB_SSLROOTCERT", default=None, description="CA certificates to verify PostgreSQL with")
    db_sslcert: Path | None = named("DB_SSLCERT", default=None, description="Client certificate for PostgreSQL")
    db_sslkey: Path | None = named("DB_SSLKEY", default=None, description="Key of that client certificate")

    @property
    def postgres(self) -> PostgresConnection:
        return PostgresConnection(
            host=self.db_host,
            port=self.db_port,
            dbname=self.db_name,
            user=self.db_user,
            password=self.db_password,
            sslmode=self.db_sslmode,
            sslrootcert=self.db_sslrootcert,
            sslcert=self.db_sslcert,
            sslkey=self.db_sslkey,
        )


class RedisSettings(BaseModel):
    """Redis."""

    redis_url: SecretStr | None = named(
        "REDIS_URL", default=None, description="Redis as one URL (redis://, rediss://, unix://); wins over the parts"
    )
    redis_host: str = named("REDIS_HOST", default="localhost", description="Redis host")
    redis_port: int = named("REDIS_PORT", default=6379, ge=1, le=65535, description="Redis port")
    redis_username: str | None = named("REDIS_USERNAME", default=None, description="ACL user; empty for the default user")
    redis_password: SecretStr = named("REDIS_PASSWORD", default=SecretStr(""), description="Password of that user")
    redis_tls: bool = named("REDIS_TLS", default=False, description="Speak TLS to Redis")
    redis_ca_file: Path | None = named("REDIS_CA_FILE", default=None, description="CA certificates to verify Redis with")
    redis_cert_file: Path | None = named("REDIS_CERT_FILE", default=None, description="Client certificate for Redis")
    redis_key_file: Path | None = named("REDIS_KEY_FILE", default=None, description="Key of that client certificate")

    @property
    def redis(self) -> RedisConnection:
        parts = RedisConnection(
            host=self.redis_host,
            port=self.redis_port,
            username=self.redis_username,
            password=self.redis_password,
            tls=self.redis_tls,
            ca_file=self.redis_ca_file,
            cert_file=self.redis_cert_file,
            key_file=self.redis_key_file,
        )
        return _from_redis_url(self.redis_url.get_secret_value(), parts) if self.redis_url else parts


class QdrantSettings(BaseModel):
    """Qdrant."""

    qdrant_url: str | None = named("QDRANT_URL", default=None, description="Qdrant's REST endpoint; wins over host and port")
    qdrant_host: str = named("QDRANT_HOST", default="localhost", description="Qdrant host")
    qdrant_port: int = named("QDRANT_PORT", default=6333, ge=1, le=65535, description="Qdrant REST port")
    qdrant_grpc_port: int | None = named(
        "QDRANT_GRPC_PORT",
        default=None,
        ge=1,
        le=65535,
        description="Qdrant's gRPC port (usually 6334), if it can be reached: restores read points faster there, and every vector",
    )
    qdrant_api_key: SecretStr = named("QDRANT_API_KEY", default=SecretStr(""), description="Qdrant API key")
    qdrant_ca_file: Path | None = named("QDRANT_CA_FILE", default=None, description="CA certificates to verify Qdrant with")
    qdrant_verify_tls: bool = named("QDRANT_VERIFY_TLS", default=True, description="Verify Qdrant's certificate")
    qdrant_nodes: str = named(
        "QDRANT_NODES", default="", description="Every peer's REST endpoint, comma separated, when Qdrant runs as a cluster"
    )

    @property
    def qdrant(self) -> QdrantConnection:
        url = self.qdrant_url or f"http://{self.qdrant_host}:{self.qdrant_port}"
        if urllib.parse.urlsplit(url).scheme not in {"http", "https"}:
            raise ConfigError(f"QDRANT_URL is {url!r}", hint="It must begin with http:// or https://.")
        return QdrantConnection(
            url=url.rstrip("/"),
            api_key=self.qdrant_api_key,
            ca_file=self.qdrant_ca_file,
            verify_tls=self.qdrant_verify_tls,
            grpc_port=self.qdrant_grpc_port,
            nodes=tuple(n.strip().rstrip("/") for n in self.qdrant_nodes.split(",") if n.strip()),
        )


class ToolSettings(BaseModel):
    """Tools."""

    pg_bin_dir: Path | None = named("PG_BIN_DIR", default=None, description="Directory of pg_dump, pg_restore, initdb, postgres")
    redis_server: Path | None = named("REDIS_SERVER", default=None, description="redis-server for scratch loads and rehearsals")
    qdrant_bin: Path | None = named("QDRANT_BIN", default=None, description="qdrant for scratch loads and rehearsals")


def _from_redis_url(url: str, parts: RedisConnection) -> RedisConnection:
    split = urllib.parse.urlsplit(url)
    unquote = urllib.parse.unquote
    if split.scheme not in {"redis", "rediss", "unix"}:
        raise ConfigError("REDIS_URL does not begin with redis://, rediss:// or unix://", hint="Example: redis://:password@host:6379/0")
    try:
        port = split.port or parts.port
    except ValueError as exc:
        raise ConfigError(f"REDIS_URL: {exc}", hint="Example: redis://:password@host:6379/0") from None
    return parts.model_copy(
        update={
            "host": split.hostname or parts.host,
            "port": port,
            "username": unquote(split.username) if split.username else parts.username,
            "password": SecretStr(unquote(split.password)) if split.password else parts.password,
            "tls": split.scheme == "rediss" or parts.tls,
            "unix_socket": Path(split.path) if split.scheme == "unix" else None,
        }
    )
