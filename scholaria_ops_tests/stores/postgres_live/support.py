"""What the tests of live restores of PostgreSQL share: a notebook, an application that never stops writing, a child to kill."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg

from scholaria_ops.catalogue.evidence.postgres import PostgresEvidence
from scholaria_ops.connections import PostgresConnection
from scholaria_ops.files import make_private_dir, rename_durably, write_private
from scholaria_ops.sandbox.postgres import PostgresServer
from scholaria_ops.stores.base import Context
from scholaria_ops.stores.live import Fact, Source
from scholaria_ops.stores.postgres.compare import compare
from scholaria_ops.stores.postgres.live import PostgresLive, PostgresPlan
from scholaria_ops.stores.postgres.measure import Scope, Watch, begin_snapshot, measure, take_snapshot
from scholaria_ops.stores.postgres.session import open_session
from scholaria_ops_tests.stores.postgres_support import MadeSet, ask

RESTORE_ID = "20241002_030405"
NAME = "live"
SIDE, BEFORE, AFTER = (f"{NAME}_{word}_{RESTORE_ID}" for word in ("restore", "before", "after"))
#: A table numbered by a sequence, one numbered by identity, one without a key.
SMALL = (
    "CREATE TABLE topic (id serial PRIMARY KEY, name text NOT NULL)",
    "INSERT INTO topic (name) SELECT '주제 ' || i FROM generate_series(1, 100) i",
    "CREATE TABLE chunk (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, topic_id int REFERENCES topic, body text)",
    "INSERT INTO chunk (topic_id, body) SELECT 1 + i % 100, repeat('글 ', 20) || i FROM generate_series(1, 1000) i",
    "CREATE TABLE loose (a int)",
    "INSERT INTO loose SELECT generate_series(1, 10)",
    "CREATE TABLE alembic_version (version_num varchar(32) PRIMARY KEY)",
    "INSERT INTO alembic_version VALUES ('0041_before')",
)


class FileNotebook:
    """A notebook in one JSON file, replaced whole. ``hook`` is called before and after each write with its number from 1."""

    def __init__(self, directory: Path, restore_id: str = RESTORE_ID, hook: Callable[[str, int], None] | None = None) -> None:
        self._directory = directory
        self._id = restore_id
        self._hook = hook
        self.writes = 0

    @property
    def restore_id(self) -> str:
        return self._id

    @property
    def directory(self) -> Path:
        return make_private_dir(self._directory / "files", exist_ok=True)

    def read(self) -> Mapping[str, Fact]:
        path = self._directory / f"{self._id}.json"
        facts: dict[str, Any] = json.loads(path.read_bytes()) if path.exists() else {}
        return facts

    def write(self, **facts: Fact) -> None:
        self.writes += 1
        if self._hook:
            self._hook("before", self.writes)
        make_private_dir(self._directory, exist_ok=True)
        fresh = self._directory / f".{self._id}.{os.getpid()}.{self.writes}"
        write_private(fresh, json.dumps({**self.read(), **facts}).encode())
        rename_durably(fresh, self._directory / f"{self._id}.json")
        if self._hook:
            self._hook("after", self.writes)


def source_of(made: MadeSet) -> Source[PostgresEvidence]:
    return Source("20241001_020000", made.directory, made.artifacts, made.evidence)


def evidence_now(connection: PostgresConnection, ctx: Context) -> PostgresEvidence:
    """Everything measured of a database as it is now."""
    with open_session(connection) as session:
        begin_snapshot(session)
        return measure(session, take_snapshot(session), Scope(), Watch(ctx.progress))


def different(before: PostgresEvidence, after: PostgresEvidence) -> list[str]:
    """Differences of any severity."""
    return [str(d) for d in compare(before, after)]


def standing(server: PostgresServer) -> set[tuple[object, ...]]:
    """Every database with its object id and whether it takes connections; every role."""
    found = ask(server.connection, "SELECT oid, datname::text, datallowconn FROM pg_database")
    return {*found, *ask(server.connection, "SELECT oid, rolname::text, rolsuper FROM pg_roles")}


def names(server: PostgresServer) -> dict[str, bool]:
    """Database → whether it takes connections, the server's own left out."""
    rows = ask(server.connection, "SELECT datname::text, datallowconn FROM pg_database WHERE datname !~ '^(postgres|template.)$'")
    return {str(name): bool(is_open) for name, is_open in rows}


@dataclass
class Application:
    """A superuser that writes all the time and connects again at once; it remembers what was acknowledged, and when it was refused."""

    connection: PostgresConnection
    number: int = 0
    acknowledged: list[tuple[float, int]] = field(default_factory=list)
    refused: list[tuple[float, str]] = field(default_factory=list)
    gap_s: float = 0.0
    _stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        last = time.monotonic()
        count = 0
        while not self._stop.is_set():
            try:
                with self._connect() as live:
                    while not self._stop.is_set():
                        count += 1
                        live.execute("INSERT INTO loose VALUES (%s)", (1_000_000 * (self.number + 1) + count,))
                        now = time.monotonic()
                        self.acknowledged.append((now, count))
                        self.gap_s, last = max(self.gap_s, now - last), now
                        time.sleep(0.001)
            except psycopg.Error as exc:
                self.refused.append((time.monotonic(), str(exc)))

    def _connect(self) -> psycopg.Connection[tuple[Any, ...]]:
        to = self.connection
        return psycopg.connect(
            host=to.host,
            port=to.port,
            dbname=to.dbname,
            user=to.user,
            password=to.password.get_secret_value(),
            application_name="scholaria",
            connect_timeout=60,
            autocommit=True,
        )

    def stop(self) -> None:
        self._stop.set()


@contextlib.contextmanager
def applications(connection: PostgresConnection, number: int = 4) -> Iterator[list[Application]]:
    """Several of them at once; all write before the block begins and are stopped behind it."""
    apps = [Application(connection, i) for i in range(number)]
    threads = [threading.Thread(target=app.run, daemon=True) for app in apps]
    for thread in threads:
        thread.start()
    try:
        deadline = time.monotonic() + 120
        while not all(app.acknowledged for app in apps):
            assert time.monotonic() < deadline, [app.refused for app in apps]
            time.sleep(0.01)
        yield apps
    finally:
        for app in apps:
            app.stop()
        for thread in threads:
            thread.join(120)


def killed_in_child(action: Callable[[], object]) -> bool:
    """Run ``action`` in a forked child; whether it ended by SIGKILL (True) or came to its end (False)."""

    def body() -> None:
        try:
            action()
        except BaseException as exc:  # noqa: BLE001 - it is the end of this process, which says why
            os.write(2, f"child: {exc!r}\n".encode())
            os._exit(3)
        os._exit(0)

    child = multiprocessing.get_context("fork").Process(target=body)
    child.start()
    child.join(120)
    assert child.exitcode in {0, -signal.SIGKILL}, f"the child ended with {child.exitcode}"
    return child.exitcode != 0


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def restore(live: PostgresLive, made: MadeSet, notebook: FileNotebook, ctx: Context) -> float:
    """Plan, stage, switch, finish; returns the measured lock-out."""
    plan = live.plan(source_of(made), ctx)
    assert plan.objections == ()
    live.stage(plan, source_of(made), notebook, ctx)
    switched = live.switch(plan, notebook, ctx)
    live.finish(notebook, ctx)
    return switched.lockout_s


def staged(live: PostgresConnection, sealed: MadeSet, notebook: FileNotebook, ctx: Context) -> tuple[PostgresLive, PostgresPlan]:
    store = PostgresLive(live)
    plan = store.plan(source_of(sealed), ctx)
    store.stage(plan, source_of(sealed), notebook, ctx)
    return store, plan
