"""The demo's servers: made once below ``.demo/``, stopped and started again with their data."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scholaria_ops.errors import SandboxError
from scholaria_ops.files import make_private_dir
from scholaria_ops.progress import Progress
from scholaria_ops.sandbox.fetch import fetch_tools
from scholaria_ops.sandbox.postgres import PostgresServer
from scholaria_ops.sandbox.qdrant import QdrantServer
from scholaria_ops.sandbox.redis import RedisServer
from scholaria_ops.sandbox.s3 import S3Server
from scholaria_ops.sandbox.sample import DEMO, SampleStack, seed
from scholaria_ops.sandbox.sandbox import Sandbox, reap
from scholaria_ops.sandbox.tools import Tools

_LABEL = "demo"
BUCKET = "scholaria-offsite"


@dataclass(frozen=True, slots=True)
class Place:
    """Where the demo keeps its things, below the project's directory."""

    root: Path

    @property
    def servers(self) -> Path:
        return self.root / "servers"

    @property
    def env_file(self) -> Path:
        return self.root / "demo.env"

    @property
    def backups(self) -> Path:
        return self.root / "backups"

    @property
    def seeded(self) -> Path:
        """Exists once the sample data are complete; holds the application's connections."""
        return self.root / "seeded.json"

    @property
    def ui_state(self) -> Path:
        return self.root / "ui.json"


@contextlib.contextmanager
def running_stack(place: Place, progress: Progress) -> Iterator[Tools]:
    """Servers up with sample data, and ``demo.env`` pointing at them; they stop (keeping their data) at the end of the block."""
    make_private_dir(place.root, exist_ok=True)
    make_private_dir(place.servers, exist_ok=True)
    tools = fetch_tools(progress, rclone=True)
    for line in reap(place.servers):
        progress.say(line)
    box = _attached(place, tools)
    if box is None:
        box = _made(place, tools, progress)
    try:
        for server in box.servers.values():
            if not server.running:
                server.start()
        _write_env(place, box, tools)
        yield tools
    finally:
        stop_servers(box)


def _attached(place: Place, tools: Tools) -> Sandbox | None:
    """The sandbox of an earlier demo, if it was seeded to the end; an unfinished one is removed."""
    try:
        box = Sandbox.attach(place.servers, tools, label=_LABEL)
    except SandboxError:
        place.seeded.unlink(missing_ok=True)
        return None
    if place.seeded.exists():
        return box
    box.close()
    return None


def _made(place: Place, tools: Tools, progress: Progress) -> Sandbox:
    place.seeded.unlink(missing_ok=True)
    box = Sandbox(place.servers, tools, label=_LABEL, ephemeral=False)
    with box:
        progress.say("starting PostgreSQL, Redis, Qdrant and an S3 endpoint on free loopback ports")
        postgres = box.postgres(fsync=True, settings={"max_connections": "50"})
        redis = box.redis(config={"appendonly": "yes", "maxmemory-policy": "allkeys-lru", "save": "3600 1"})
        qdrant = box.qdrant(api_key="demo-key", grpc=True)
        s3 = box.s3(engine="rclone")
        s3.create_bucket(BUCKET)
        progress.start("sample data")
        stack = seed(postgres, redis, qdrant, DEMO)
        progress.finish("sample data", f"{stack.scale.chunks:,} text chunks")
    place.seeded.write_text(json.dumps(_application(stack)))
    place.seeded.chmod(0o600)
    return Sandbox.attach(place.servers, tools, label=_LABEL)


def _application(stack: SampleStack) -> dict[str, Any]:
    return {
        "dbname": stack.postgres.dbname,
        "user": stack.postgres.user,
        "password": stack.postgres.password.get_secret_value(),
    }


def stop_servers(box: Sandbox) -> None:
    """Stop every server, keeping its data; the first error is raised after all were tried."""
    errors = []
    for server in box.servers.values():
        try:
            if server.running:
                server.stop()
        except SandboxError as exc:
            errors.append(exc)
    if errors:
        raise errors[0]


def stop(place: Place, tools: Tools) -> list[str]:
    """End whatever a demo left running; returns the names of the servers that stand with their data."""
    if not place.servers.is_dir():
        return []
    reap(place.servers)
    try:
        box = Sandbox.attach(place.servers, tools, label=_LABEL)
    except SandboxError:
        return []
    stop_servers(box)
    return list(box.servers)


def _write_env(place: Place, box: Sandbox, tools: Tools) -> None:
    """Settings of the demo, in the very form an operator writes them."""
    servers = box.servers
    postgres, redis, qdrant, s3 = (servers[n] for n in ("postgres", "redis", "qdrant", "s3"))
    if not (
        isinstance(postgres, PostgresServer)
        and isinstance(redis, RedisServer)
        and isinstance(qdrant, QdrantServer)
        and isinstance(s3, S3Server)
    ):
        raise SandboxError("the demo's servers are not those that were made", hint="Run `make clean` and start again.")
    app = json.loads(place.seeded.read_text())
    values = {
        "DB_HOST": postgres.connection.host,
        "DB_PORT": postgres.connection.port,
        "DB_NAME": app["dbname"],
        # The demo backs up as the server's owner, so that role passwords are part of the set too.
        "DB_USER": postgres.connection.user,
        "DB_PASSWORD": postgres.connection.password.get_secret_value(),
        "REDIS_HOST": redis.connection.host,
        "REDIS_PORT": redis.connection.port,
        "REDIS_PASSWORD": redis.connection.password.get_secret_value(),
        "QDRANT_URL": qdrant.connection.url,
        "QDRANT_GRPC_PORT": qdrant.connection.grpc_port,
        "QDRANT_API_KEY": qdrant.connection.api_key.get_secret_value(),
        "BACKUP_DIR": place.backups,
        "BACKUP_S3_BUCKET": BUCKET,
        "BACKUP_S3_ENDPOINT_URL": s3.endpoint_url,
        "AWS_ACCESS_KEY_ID": s3.access_key,
        "AWS_SECRET_ACCESS_KEY": s3.secret_key,
        "AWS_REGION": s3.region,
        **({"PG_BIN_DIR": tools.pg_bin_dir} if tools.pg_bin_dir else {}),
        **({"REDIS_SERVER": tools.redis_server} if tools.redis_server else {}),
        **({"QDRANT_BIN": tools.qdrant} if tools.qdrant else {}),
    }
    text = "# Written by the demo; overwritten at every start.\n" + "".join(f"{k}={v}\n" for k, v in values.items())
    place.env_file.write_text(text)
    place.env_file.chmod(0o600)
