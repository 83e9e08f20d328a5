"""Old-style sets, made the way the replaced shell scripts made them: pg_dump, SAVE and gzip, curl and tar, no evidence."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path

import httpx
import redis as redis_client

from scholaria_ops.connections import PostgresConnection, QdrantConnection
from scholaria_ops.process import run
from scholaria_ops.sandbox.redis import RedisServer
from scholaria_ops.sandbox.tools import Tools

OLD_ID = "20241001_020000"
OLD_NAME = f"scholaria_backup_{OLD_ID}"


def make(
    root: Path, tools: Tools, postgres: PostgresConnection, redis: RedisServer, qdrant: QdrantConnection, *, plain_sql: bool = False
) -> Path:
    """A whole old-style set of live stores, below ``root``."""
    directory = root / OLD_NAME
    directory.mkdir(parents=True, mode=0o700)
    if plain_sql:
        (directory / f"postgres_{OLD_ID}.sql.gz").write_bytes(gzip.compress(pg_dump(tools, postgres, "--format=plain")))
    else:
        (directory / f"postgres_{OLD_ID}.sql.custom").write_bytes(pg_dump(tools, postgres, "--format=custom"))
    (directory / f"redis_{OLD_ID}.rdb.gz").write_bytes(gzip.compress(rdb(redis)))
    write_tar(directory / "qdrant_snapshot.tar.gz", snapshots(qdrant))
    (directory / "backup_manifest.json").write_text(json.dumps({"backup_date": OLD_ID, "components": ["postgres", "redis", "qdrant"]}))
    for path in directory.iterdir():
        path.chmod(0o600)
    return directory


def pg_dump(tools: Tools, connection: PostgresConnection, *options: str) -> bytes:
    env = {**connection.libpq_env(), **tools.pg_env}
    return run([str(tools.require_pg("pg_dump")), *options], env=env, max_output=1 << 30).stdout


def rdb(server: RedisServer) -> bytes:
    """What SAVE writes."""
    to = server.connection
    with redis_client.Redis(host=to.host, port=to.port, password=to.password.get_secret_value()) as client:
        client.save()
    return (server.directory / "data" / "dump.rdb").read_bytes()


def snapshots(connection: QdrantConnection) -> dict[str, bytes]:
    """File name, as the server gives it → snapshot, of every collection."""
    found = {}
    with httpx.Client(base_url=connection.url, timeout=120.0) as client:
        for one in client.get("/collections").json()["result"]["collections"]:
            name = one["name"]
            made = client.post(f"/collections/{name}/snapshots", params={"wait": "true"}).json()["result"]["name"]
            found[made] = client.get(f"/collections/{name}/snapshots/{made}").content
            client.delete(f"/collections/{name}/snapshots/{made}", params={"wait": "true"})
    return found


def write_tar(path: Path, members: Mapping[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    path.chmod(0o600)
