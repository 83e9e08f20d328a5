"""What the tests of restoring a live Redis share: a notebook on disk, a pair of servers, and the whole content of a server."""

from __future__ import annotations

import base64
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from scholaria_ops.catalogue.evidence.redis import RedisEvidence
from scholaria_ops.connections import RedisConnection
from scholaria_ops.errors import Refused
from scholaria_ops.files import make_private_dir, rename_durably, write_private
from scholaria_ops.sandbox.redis import RedisServer
from scholaria_ops.sandbox.sandbox import Sandbox
from scholaria_ops.stores.live import Fact, Source
from scholaria_ops.stores.redis.live import RedisLive, RedisPlan
from scholaria_ops.stores.redis.live.swap import function_code
from scholaria_ops.stores.redis.wire import connect
from scholaria_ops_tests.conftest import ContextFactory
from scholaria_ops_tests.stores.forked import in_a_child
from scholaria_ops_tests.stores.redis_support import DAY_MS, Backup, now_ms

RESTORE_ID = "20260203_040506"
#: The server answers a request for a snapshot at once.
QUICK = {"repl-diskless-sync-delay": "0"}


class DiskNotebook:
    """Facts in one JSON file, replaced durably at every write."""

    def __init__(self, directory: Path, restore_id: str = RESTORE_ID) -> None:
        self._directory = make_private_dir(directory, exist_ok=True)
        self._id = restore_id
        self._file = directory / "notebook.json"
        self.writes = 0

    @property
    def restore_id(self) -> str:
        return self._id

    @property
    def directory(self) -> Path:
        return self._directory

    def read(self) -> Mapping[str, Fact]:
        facts: dict[str, Fact] = json.loads(self._file.read_bytes()) if self._file.exists() else {}
        return facts

    def write(self, **facts: Fact) -> None:
        fresh = self._file.with_suffix(".new")
        fresh.unlink(missing_ok=True)
        write_private(fresh, json.dumps({**self.read(), **facts}).encode())
        rename_durably(fresh, self._file)
        self.writes += 1


class MortalNotebook(DiskNotebook):
    """Kills its own process (SIGKILL) before, or right after, its n-th write."""

    def __init__(self, directory: Path, *, at: int, after: bool) -> None:
        super().__init__(directory)
        self._at = at
        self._after = after

    def write(self, **facts: Fact) -> None:
        dies = self.writes + 1 == self._at
        if dies and not self._after:
            os.kill(os.getpid(), 9)
        super().write(**facts)
        if dies:
            os.kill(os.getpid(), 9)


def source_of(backup: Backup) -> Source[RedisEvidence]:
    return Source("20260102_030405", backup.directory, backup.dump.artifacts, backup.evidence)


def content(server: RedisServer | RedisConnection, databases: range = range(16)) -> dict[str, Any]:
    """Everything that a server holds: type, value and expiry of each key, functions, eviction policy."""
    found: dict[str, Any] = {}
    with connect(server if isinstance(server, RedisConnection) else server.connection) as wire:
        for db in databases:
            wire.call("SELECT", db)
            for key in sorted(wire.call("KEYS", "*")):
                kind, payload, expiry = wire.batch([("TYPE", key), ("DUMP", key), ("PEXPIRETIME", key)])
                found[f"{db} {key!r}"] = (kind, _value(wire, key, kind) if kind != b"stream" else payload, expiry)
        found["functions"] = function_code(wire)
        found["policy"] = wire.call("CONFIG", "GET", "maxmemory-policy")[1]
    return found


def _value(wire: Any, key: bytes, kind: bytes) -> Any:
    if kind == b"string":
        return wire.call("GET", key)
    if kind == b"list":
        return wire.call("LRANGE", key, 0, -1)
    if kind == b"set":
        return sorted(wire.call("SMEMBERS", key))
    if kind == b"zset":
        return wire.call("ZRANGE", key, 0, -1, "WITHSCORES")
    pairs = wire.call("HGETALL", key)
    return sorted(zip(pairs[::2], pairs[1::2], strict=True))


def celery_message(task: str, task_id: str, args: list[Any], kwargs: dict[str, Any] | None = None) -> str:
    """What Celery 5 puts into its queue (message protocol 2)."""
    body = base64.b64encode(json.dumps([args, kwargs or {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}]).encode())
    headers = {"lang": "py", "task": task, "id": task_id, "retries": 0, "argsrepr": repr(args), "kwargsrepr": repr(kwargs or {})}
    properties = {"correlation_id": task_id, "delivery_mode": 2, "body_encoding": "base64", "delivery_info": {"routing_key": "celery"}}
    envelope = {
        "body": body.decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": headers,
        "properties": properties,
    }
    return json.dumps(envelope)


def grow(server: RedisServer) -> None:
    """What becomes of a store after its backup: new keys, changed ones, lost ones, another function, a database of its own."""
    now = now_ms()
    with connect(server.connection) as wire:
        wire.call("SET", "embedding_cache:ns:new", "[1.0]", "PXAT", now + 20 * DAY_MS)
        wire.call("SET", "session:live", "x", "PXAT", now + DAY_MS)
        wire.call("DEL", "session:1", "topics")
        wire.call("SET", "counter", "43")
        wire.call("RPUSH", "celery", celery_message("ingest", "live-task", [99]))
        wire.call("FUNCTION", "FLUSH")
        wire.call("FUNCTION", "LOAD", "#!lua name=newer\nredis.register_function('g', function(keys, args) return 2 end)")
        wire.call("SELECT", 5)
        wire.call("SET", "only:here", "1")


@dataclass
class Application:
    """Reads and writes all the time, as the application would; collects everything that went wrong."""

    connection: RedisConnection
    #: Keys that must be readable at every moment, whatever their value.
    always: tuple[str, ...]
    errors: list[str] = field(default_factory=list)
    writes: int = 0
    reads: int = 0
    longest_s: float = 0.0

    def __enter__(self) -> Application:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(30)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        with connect(self.connection) as wire:
            while not self._stop.is_set():
                began = time.monotonic()
                replies = wire.batch([("SET", f"written:{self.writes % 50}", self.writes), ("DBSIZE",), *(("GET", k) for k in self.always)])
                self.longest_s = max(self.longest_s, time.monotonic() - began)
                self.writes += 1
                self.reads += 1
                problems = [str(r) for r in replies if isinstance(r, Exception)]
                problems += [f"{k} vanished" for k, r in zip(self.always, replies[2:], strict=True) if r is None]
                if replies[1] == 0:
                    problems.append("the keyspace was empty")
                self.errors += problems
                time.sleep(0.001)


def die_in_child(work: Callable[[], object]) -> bool:
    """Run ``work`` in a forked process; whether it was killed (SIGKILL). Any other bad end fails the test."""
    code = in_a_child(work)
    assert code in {0, -signal.SIGKILL}, f"the child ended with {code}"
    return code != 0


def grown(box: Sandbox, config: Mapping[str, str] | None = None) -> tuple[RedisServer, dict[str, Any]]:
    """A live server that holds what became of a store after its backup, and all its content."""
    server = box.redis(name="live", config={**QUICK, **(config or {})})
    grow(server)
    return server, content(server)


def planned(live: RedisLive, backup: Backup, context_factory: ContextFactory) -> RedisPlan:
    plan = live.plan(source_of(backup), context_factory())
    assert plan.objections == ()
    return plan


def switched(live: RedisLive, backup: Backup, notebook: DiskNotebook, context_factory: ContextFactory) -> RedisPlan:
    plan = planned(live, backup, context_factory)
    live.stage(plan, source_of(backup), notebook, context_factory())
    live.switch(plan, notebook, context_factory())
    return plan


def objection(server: RedisServer, backup: Backup, context_factory: ContextFactory) -> str:
    plan = RedisLive(server.connection).plan(source_of(backup), context_factory())
    assert plan.objections
    assert plan.objections[0].hint
    with pytest.raises(Refused):
        RedisLive(server.connection).stage(plan, source_of(backup), DiskNotebook(backup.directory / "n"), context_factory())
    return plan.objections[0].message
