"""A rehearsal never writes to a live store. The type of its target makes sure of that; this looks again.

Whether a target and a live store are one and the same is decided by identity, not by address: an address can be
forwarded. PostgreSQL has a system identifier, Redis a run id. Qdrant has none: a nonce collection is written to the
target, and must not appear on the live server.
"""

from __future__ import annotations

from scholaria_ops.catalogue.evidence.base import StoreName
from scholaria_ops.errors import OpsError, Refused
from scholaria_ops.sandbox.postgres import PostgresServer
from scholaria_ops.sandbox.qdrant import QdrantServer
from scholaria_ops.sandbox.redis import RedisServer
from scholaria_ops.sandbox.server import Server
from scholaria_ops.settings import Settings
from scholaria_ops.stores.qdrant.load import has_nonce, remove_nonce, write_nonce

_CONNECT_TIMEOUT_S = 5


def check_isolation(store: StoreName, settings: Settings, target: object) -> None:
    """Raise :class:`Refused` unless ``target`` was made by the sandbox and is not the live ``store``.

    A live store that cannot be reached (the disaster a rehearsal prepares for) cannot be compared; then the fact that
    we started the target ourselves has to do.
    """
    if not isinstance(target, Server) or not target.made_by_sandbox:
        raise Refused(f"{store}: a rehearsal writes only to servers that it started itself", store=store)
    same = {"postgres": _same_postgres, "redis": _same_redis, "qdrant": _same_qdrant}[store](settings, target)
    if same:
        raise Refused(
            f"the rehearsal's target is the live {store} at {getattr(settings, store).where}",
            hint="Nothing was written. Find out what forwards that address before you rehearse again.",
            store=store,
        )


def _same_postgres(settings: Settings, target: Server) -> bool:
    if not isinstance(target, PostgresServer):
        raise Refused("the target is no PostgreSQL server of the sandbox", store="postgres")
    import psycopg

    live = settings.postgres
    try:
        with psycopg.connect(
            host=live.host,
            port=live.port,
            dbname=live.dbname,
            user=live.user,
            password=live.password.get_secret_value() or None,
            sslmode=live.sslmode,
            connect_timeout=_CONNECT_TIMEOUT_S,
        ) as connection:
            row = connection.execute("SELECT system_identifier FROM pg_control_system()").fetchone()
    except psycopg.Error:
        return False
    return row is not None and int(row[0]) == target.system_identifier


def _same_redis(settings: Settings, target: Server) -> bool:
    if not isinstance(target, RedisServer):
        raise Refused("the target is no Redis server of the sandbox", store="redis")
    import redis as redis_client

    live = settings.redis
    try:
        with redis_client.Redis(
            host=live.host,
            port=live.port,
            username=live.username,
            password=live.password.get_secret_value() or None,
            ssl=live.tls,
            unix_socket_path=str(live.unix_socket) if live.unix_socket else None,
            socket_timeout=_CONNECT_TIMEOUT_S,
        ) as client:
            info = client.info("server")
    except redis_client.RedisError:
        return False
    return str(dict(info).get("run_id")) == target.run_id


def _same_qdrant(settings: Settings, target: Server) -> bool:
    if not isinstance(target, QdrantServer):
        raise Refused("the target is no Qdrant server of the sandbox", store="qdrant")
    nonce = write_nonce(target.connection)
    try:
        return has_nonce(settings.qdrant, nonce)
    except OpsError:
        return False
    finally:
        remove_nonce(target.connection, nonce)
