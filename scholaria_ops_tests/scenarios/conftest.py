"""A whole installation per scenario: three real stores with the sample, an application, a bucket, the installed command."""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from scholaria_ops.process import run
from scholaria_ops.sandbox.postgres import PostgresServer
from scholaria_ops.sandbox.qdrant import QdrantServer
from scholaria_ops.sandbox.redis import RedisServer
from scholaria_ops.sandbox.s3 import S3Server
from scholaria_ops.sandbox.sample import SMALL, SampleStack, seed
from scholaria_ops.sandbox.sandbox import Sandbox
from scholaria_ops.sandbox.tools import Tools
from scholaria_ops_tests.cli.conftest import COMMAND, PROJECT, Answer
from scholaria_ops_tests.operations.support import environment

STORES = ("postgres", "redis", "qdrant")
#: Names of servers must differ within a test run.
_NUMBERS = itertools.count(1)


@dataclass
class Gap:
    """The longest time in which the application got nothing done in one store (seconds), and its failures."""

    seconds: float
    errors: int


@dataclass
class Application:
    """The writer and reader process, started and stopped as Docker Compose would."""

    directory: Path
    compose: Path

    def docker(self, verb: str) -> None:
        run([sys.executable, str(docker_stand_in()), "compose", "-f", str(self.compose), verb, "backend", "celery-worker"])

    def start(self) -> None:
        self.docker("start")

    def stop(self) -> None:
        self.docker("stop")

    @property
    def running(self) -> bool:
        return (self.directory / "pid").exists()

    def lines(self, store: str) -> list[tuple[float, str, str]]:
        path = self.directory / f"{store}.log"
        if not path.exists():
            return []
        parts = (line.split(" ", 2) for line in path.read_text().splitlines() if line.count(" ") >= 2)
        return [(float(at), kind, text) for at, kind, text in parts]

    def acknowledged(self, store: str, since: float = 0.0, until: float = float("inf")) -> list[int]:
        return [int(text) for at, kind, text in self.lines(store) if kind == "ok" and since <= at <= until]

    def gap(self, store: str, since: float, until: float) -> Gap:
        """Between two acknowledged steps, or from ``since`` to the first and from the last to ``until``."""
        moments = [since, *(at for at, kind, _ in self.lines(store) if kind == "ok" and since <= at <= until), until]
        errors = sum(kind == "error" and since <= at <= until for at, kind, _ in self.lines(store))
        return Gap(max(b - a for a, b in itertools.pairwise(moments)), errors)

    def wait_for(self, store: str, more: int, since: float, patience_s: float = 120.0) -> None:
        """Until the application has got ``more`` steps done in a store since an instant."""
        self._until(lambda: len(self.acknowledged(store, since)) >= more, store, patience_s)

    def wait_for_an_error(self, store: str, since: float, patience_s: float = 120.0) -> None:
        """Until the application has failed in a store since an instant."""
        self._until(lambda: any(kind == "error" and at >= since for at, kind, _ in self.lines(store)), store, patience_s)

    def _until(self, true: Callable[[], bool], store: str, patience_s: float) -> None:
        deadline = time.monotonic() + patience_s
        while not true():
            assert time.monotonic() < deadline, f"{store}: {self.lines(store)[-3:]}"
            time.sleep(0.05)


def docker_stand_in() -> Path:
    return Path(__file__).with_name("docker.py")


@dataclass
class Installation:
    """Everything of one site."""

    postgres: PostgresServer
    redis: RedisServer
    qdrant: QdrantServer
    bucket: S3Server
    stack: SampleStack
    tools: Tools
    application: Application
    directory: Path
    settings: dict[str, str]
    told: list[str] = field(default_factory=list)

    def write_settings(self, **more: str) -> Path:
        path = self.directory / "ops.env"
        path.write_text("".join(f"{k}={v}\n" for k, v in {**self.settings, **more}.items()))
        path.chmod(0o600)
        return path

    def ops(self, *words: str, code: int = 0) -> Answer:
        """Run the installed command, which must end with ``code``."""
        finished = run(
            [str(COMMAND), "--env-file", str(self.directory / "ops.env"), *words],
            env={"DAGSTER_HOME": str(self.directory)},
            cwd=self.directory,
            check=False,
        )
        answer = Answer(finished.returncode, finished.stdout.decode(), finished.stderr_tail)
        assert answer.code == code, f"{' '.join(words)} ended with {answer.code}\n{answer.out}\n{answer.err}"
        return answer

    def json(self, *words: str) -> Any:
        return self.ops(*words, "--json").json()

    def sql(self, query: str) -> list[tuple[Any, ...]]:
        with self.postgres.connect("scholaria") as session:
            return session.execute(query.encode()).fetchall()

    def tell(self, text: str) -> None:
        """What was measured, for the page of the scenario: shown with ``pytest -rP``."""
        self.told.append(text)
        sys.stdout.write(f"measured: {text}\n")


Install = Callable[..., Installation]


@pytest.fixture
def install(sandbox: Sandbox, tools: Tools, tmp_path: Path) -> Iterator[Install]:
    """Make an installation. ``collection`` is the name that the application uses for its points: an alias, or a collection's own."""
    made: list[Installation] = []

    def make(*, collection: str = "scholaria_current", empty: bool = False) -> Installation:
        name = f"site{next(_NUMBERS)}"
        postgres = sandbox.postgres(name=f"{name}-postgres")
        redis = sandbox.redis(name=f"{name}-redis", config={"repl-diskless-sync-delay": "0", "appendonly": "yes"})
        qdrant = sandbox.qdrant(name=f"{name}-qdrant")
        bucket = made[0].bucket if made else sandbox.s3(name=f"{name}-s3")
        if not made:
            bucket.create_bucket("offsite")
        stack = made[0].stack if empty else seed(postgres, redis, qdrant, SMALL)
        directory = tmp_path / f"site{len(made)}"
        directory.mkdir()
        (directory / "dagster.yaml").write_bytes((PROJECT / "dagster.yaml").read_bytes())
        application = _application(stack, directory / "application", collection)
        settings = {
            **environment(stack, tools, directory / "backups"),
            "BACKUP_S3_BUCKET": "offsite",
            "BACKUP_S3_ENDPOINT_URL": bucket.endpoint_url,
            "AWS_ACCESS_KEY_ID": bucket.access_key,
            "AWS_SECRET_ACCESS_KEY": bucket.secret_key,
            "AWS_REGION": bucket.region,
            "BACKUP_FENCE": "compose",
            "BACKUP_FENCE_DOCKER": f"{sys.executable} {docker_stand_in()}",
            "BACKUP_FENCE_COMPOSE_FILE": str(application.compose),
        }
        if empty:
            settings |= {
                "DB_HOST": postgres.connection.host,
                "DB_PORT": str(postgres.connection.port),
                "DB_USER": postgres.connection.user,
                "DB_PASSWORD": postgres.connection.password.get_secret_value(),
                "REDIS_HOST": redis.connection.host,
                "REDIS_PORT": str(redis.connection.port),
                "REDIS_PASSWORD": redis.connection.password.get_secret_value(),
                "QDRANT_URL": qdrant.connection.url,
            }
        site = Installation(postgres, redis, qdrant, bucket, stack, tools, application, directory, settings)
        site.write_settings()
        made.append(site)
        return site

    try:
        yield make
    finally:
        for site in made:
            site.application.stop()
            for server in (site.postgres, site.redis, site.qdrant):
                server.discard()


def _application(stack: SampleStack, directory: Path, collection: str) -> Application:
    directory.mkdir()
    postgres = stack.postgres
    config = directory / "application.json"
    config.write_text(
        json.dumps(
            {
                "postgres": f"host={postgres.host} port={postgres.port} dbname={postgres.dbname} user={postgres.user}"
                f" password={postgres.password.get_secret_value()}",
                "redis": {"host": stack.redis.host, "port": stack.redis.port, "password": stack.redis.password.get_secret_value()},
                "qdrant": {"url": stack.qdrant.url, "collection": collection},
                "items": stack.scale.chunks,
                "dim": stack.scale.dim,
            }
        )
    )
    config.chmod(0o600)
    compose = directory / "docker-compose.yml"
    compose.write_text(
        yaml.safe_dump({"services": {"backend": {"image": "x"}, "celery-worker": {"image": "x"}}, "x-application": str(config)})
    )
    return Application(directory, compose)
