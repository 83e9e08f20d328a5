"""The stage of a benchmark: real servers with sample data below one work directory that is removed in the end."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from scholaria_ops.errors import DiskFull, Refused
from scholaria_ops.files import make_private_dir
from scholaria_ops.process import is_alive, process_start_time, which
from scholaria_ops.progress import Progress
from scholaria_ops.sandbox.postgres import PostgresServer
from scholaria_ops.sandbox.qdrant import QdrantServer
from scholaria_ops.sandbox.redis import RedisServer
from scholaria_ops.sandbox.s3 import S3Server
from scholaria_ops.sandbox.sample import SampleStack, Scale, seed
from scholaria_ops.sandbox.sandbox import Sandbox, reap
from scholaria_ops.sandbox.tools import Tools
from scholaria_ops.settings import ENV_FILE_VARIABLE

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parent
BUCKET = "bench"
_OWNER = "owner.json"
#: Measured at factor 1: servers 2.7 GB, one round of copies 3.2 GB, a rehearsal 2.1 GB; with a reserve. A tenth of a GB is fixed.
GB_PER_FACTOR = 9.0
_GB_FIXED = 1.5
#: Like production: durable, the append-only file on, saving to disk, keys evicted when memory is short.
_REDIS = {"appendonly": "yes", "maxmemory-policy": "allkeys-lru", "save": "3600 1"}


@dataclass(frozen=True)
class Servers:
    """The seeded servers, the live system of the benchmark."""

    postgres: PostgresServer
    redis: RedisServer
    qdrant: QdrantServer
    s3: S3Server
    stack: SampleStack


@dataclass(frozen=True)
class Stage:
    """Servers and directories of one benchmark. Made by :func:`stage`."""

    root: Path
    tools: Tools
    servers: Servers
    python: Path

    @property
    def sandboxes(self) -> Path:
        return self.root / "servers"

    @property
    def backups(self) -> Path:
        return self.root / "backups"

    def env_file(self, backups: Path, *, prefix: str = "") -> Path:
        """Settings in the form an operator writes them, in a private file; with a ``prefix`` in the bucket there is an offsite place."""
        tools, s3 = self.tools, self.servers.s3
        values: dict[str, object] = {**self.servers.stack.environment(), "BACKUP_DIR": backups}
        values |= {"PG_BIN_DIR": tools.pg_bin_dir, "REDIS_SERVER": tools.redis_server, "QDRANT_BIN": tools.qdrant}
        if prefix:
            values |= {"BACKUP_S3_BUCKET": BUCKET, "BACKUP_S3_PREFIX": prefix, "BACKUP_S3_ENDPOINT_URL": s3.endpoint_url}
            values |= self.aws_environment()
        path = self.root / f"{backups.name}-{prefix or 'local'}.env"
        path.write_text("".join(f"{name}={value}\n" for name, value in values.items() if value is not None))
        path.chmod(0o600)
        return path

    def aws_environment(self) -> dict[str, str]:
        """Credentials of the S3 endpoint, and nobody's own configuration."""
        s3 = self.servers.s3
        nothing = str(self.root / "no-aws-configuration")
        return {
            "AWS_ACCESS_KEY_ID": s3.access_key,
            "AWS_SECRET_ACCESS_KEY": s3.secret_key,
            "AWS_REGION": s3.region,
            "AWS_DEFAULT_REGION": s3.region,
            "AWS_CONFIG_FILE": nothing,
            "AWS_SHARED_CREDENTIALS_FILE": nothing,
        }

    def product_environment(self, env_file: Path) -> dict[str, str]:
        """What ``scholaria-ops`` is started with: its settings and a Dagster history of its own."""
        home = make_private_dir(self.root / "dagster", exist_ok=True)
        if not (home / "dagster.yaml").exists():
            shutil.copyfile(PROJECT / "dagster.yaml", home / "dagster.yaml")
        return {"DAGSTER_HOME": str(home), ENV_FILE_VARIABLE: str(env_file)}

    def script_environment(self, postgres: PostgresServer, redis: RedisServer, qdrant: QdrantServer, *, dbname: str) -> dict[str, str]:
        """What the shell scripts are told about the tools and one trio of servers."""
        pg, keys = postgres.connection, redis.connection
        igzip = which("igzip")
        fast = str(igzip) if igzip else f"{self.python} -m isal.igzip"
        return {
            "PG_BIN": str(self.tools.require_pg("pg_dump").parent),
            "PG_LIBS": self.tools.pg_env.get("LD_LIBRARY_PATH", ""),
            "PGHOST": pg.host,
            "PGPORT": str(pg.port),
            "PGUSER": pg.user,
            "PGPASSWORD": pg.password.get_secret_value(),
            "PGDATABASE": dbname,
            "REDIS_CLI": str(self.tools.require_redis_tool("redis-cli")),
            "REDIS_HOST": keys.host,
            "REDIS_PORT": str(keys.port),
            "REDISCLI_AUTH": keys.password.get_secret_value(),
            "REDIS_DUMP": str(redis.directory / "data" / "dump.rdb"),
            "QDRANT_URL": qdrant.connection.url,
            "COLLECTIONS": f"{self.servers.stack.collection} {self.servers.stack.hybrid_collection}",
            "PYTHON": str(self.python),
            "HTTP_TOOL": "" if which("curl") else str(HERE / "http_tool.py"),
            "FAST_GZIP": f"{fast} -1 -c",
            "FAST_GUNZIP": f"{fast} -d -c",
        }


@contextlib.contextmanager
def stage(
    base: Path, tools: Tools, scale: Scale, *, factor: float, progress: Progress, gb_per_factor: float = GB_PER_FACTOR
) -> Iterator[Stage]:
    """Seeded servers below ``base``; leaving the block, however it is left, ends and removes everything.

    Raises:
        Refused: another benchmark is at work there.
        DiskFull: there is too little room; nothing was made.
    """
    root = base / "run"
    _clear(root, progress)
    require_room(base, factor, gb_per_factor)
    make_private_dir(root)
    try:
        _own(root)
        with Sandbox(root / "servers", tools, label="bench") as box:
            yield Stage(root, tools, _seeded(box, scale, progress), Path(sys.executable))
    finally:
        _clear(root, progress, ours=True)
        with contextlib.suppress(OSError):
            base.rmdir()


def _seeded(box: Sandbox, scale: Scale, progress: Progress) -> Servers:
    task = (
        f"sample data: {scale.chunks:,} chunks, {scale.small_keys + scale.cached_embeddings:,} keys, {scale.points:,} × {scale.dim} points"
    )
    progress.start(task)
    postgres = box.postgres(fsync=True, settings={"max_connections": "50"})
    redis = box.redis(config=_REDIS)
    qdrant = box.qdrant(grpc=True)
    s3 = box.s3(engine="rclone")
    s3.create_bucket(BUCKET)
    with ThreadPoolExecutor(1, thread_name_prefix="seed") as pool:
        seeding = pool.submit(seed, postgres, redis, qdrant, scale)
        try:
            stack = seeding.result()
        except BaseException:
            box.close()  # without its servers the seeding ends at once; the pool waits for it
            raise
    with postgres.connect(stack.postgres.dbname) as connection:
        connection.execute("VACUUM ANALYZE")  # or autovacuum would come in the middle of a measurement
        connection.execute("CHECKPOINT")
    progress.finish(task)
    return Servers(postgres, redis, qdrant, s3, stack)


def require_room(base: Path, factor: float, gb_per_factor: float = GB_PER_FACTOR) -> None:
    """Raise :class:`DiskFull` unless the disks can take a benchmark of that size."""
    needed = int((_GB_FIXED + gb_per_factor * factor) * 1e9)
    places = [_existing(base)]
    if os.geteuid() == 0:
        places.append(Path(tempfile.gettempdir() if not Path("/var/tmp").is_dir() else "/var/tmp"))  # noqa: S108 - where the sandbox puts servers as root
    for place in places:
        free = shutil.disk_usage(place).free
        if free < needed:
            raise DiskFull(
                f"the benchmark needs about {needed / 1e9:.1f} GB, but only {free / 1e9:.1f} GB are free in {place}",
                hint="Free space, choose another place with --dir, or measure less with --factor.",
            )


def _existing(path: Path) -> Path:
    return next(p for p in (path, *path.parents) if p.exists())


def _own(root: Path) -> None:
    me = os.getpid()
    (root / _OWNER).write_text(json.dumps({"pid": me, "start_time": process_start_time(me)}))


def _clear(root: Path, progress: Progress, *, ours: bool = False) -> None:
    """Remove a benchmark's directory, its servers ended first. Somebody else's that is at work is refused."""
    if not root.exists():
        return
    with contextlib.suppress(FileNotFoundError, ValueError, KeyError):
        owner = json.loads((root / _OWNER).read_text())
        if not ours and is_alive(owner["pid"], owner["start_time"]):
            raise Refused(f"another benchmark is at work in {root} (process {owner['pid']})", hint="Wait for its end, or use --dir.")
    for scratch in (root / "servers", *root.glob("*/.scratch")):
        if scratch.is_dir():
            for line in reap(scratch):
                progress.say(line)
    shutil.rmtree(root)
