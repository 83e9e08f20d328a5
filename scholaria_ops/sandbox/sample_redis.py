"""The Redis part of the sample: what the application, its queue and its caches leave behind.

Database 0 holds the application's keys and the queue, database 1 the queue's results. Times to live are counted from the
moment of seeding, so that the sample keeps its shape for the length of a test run.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import redis

from scholaria_ops.errors import SandboxError
from scholaria_ops.sandbox.redis import RedisServer

EMBEDDING_MODEL = "text-embedding-3-small"
EMBEDDING_NAMESPACE = "scholaria"
MINUTE, HOUR, DAY = 60, 3600, 86400
EMBEDDING_TTL_S = 30 * DAY
_BATCH = 2000
Command = tuple[str | bytes | int | float, ...]

#: A function library, as an application would load it once (functions belong to the dataset, scripts do not).
FUNCTIONS = """#!lua name=scholaria
redis.register_function('touch_session', function(keys, args)
  return redis.call('EXPIRE', keys[1], args[1])
end)
redis.register_function{function_name='queue_depth', callback=function(keys) return redis.call('LLEN', keys[1]) end, flags={'no-writes'}}
"""


@dataclass(frozen=True, slots=True)
class RedisScale:
    """How many keys of each kind; ``dim`` is the length of a cached embedding."""

    small_keys: int
    cached_embeddings: int
    queued_tasks: int
    dim: int
    seed: int


def embedding_key(text: str, *, model: str = EMBEDDING_MODEL, namespace: str = EMBEDDING_NAMESPACE) -> str:
    """The application's key of a cached embedding."""
    return f"embedding_cache:{namespace}:{hashlib.sha256(f'{model}::{text}'.encode()).hexdigest()}"


def seed_redis(server: RedisServer, scale: RedisScale) -> dict[int, int]:
    """Fill an empty server; returns the number of keys per database right after."""
    to = server.connection
    password = to.password.get_secret_value()
    options = {"unix_socket_path": str(to.unix_socket)} if to.unix_socket else {"host": to.host, "port": to.port}
    counts = {}
    for db, commands in ((0, _application(scale)), (1, _results(scale))):
        client = redis.Redis(db=db, password=password, socket_timeout=120, **options)
        try:
            if client.dbsize():
                raise SandboxError(f"database {db} of {server.name} is not empty", hint="Seed a fresh server.")
            _send(client, commands)
            if db == 0:
                client.function_load(FUNCTIONS)
                client.xreadgroup("notifier", "worker-1", {"events:audit": ">"}, count=5)  # read, never acknowledged: pending
            counts[db] = int(client.dbsize())
        finally:
            client.close()
    return counts


def _send(client: redis.Redis, commands: Iterable[Command]) -> None:
    """Pipelined in batches: memory stays flat, and the first refused command raises."""
    pipeline = client.pipeline(transaction=False)
    for n, command in enumerate(commands, 1):
        pipeline.execute_command(*command)  # type: ignore[no-untyped-call]
        if n % _BATCH == 0:
            pipeline.execute()
    pipeline.execute()


def _application(scale: RedisScale) -> Iterator[Command]:
    yield from _structures(scale)
    yield from _small(scale)
    yield from _embeddings(scale)


def _small(scale: RedisScale) -> Iterator[Command]:
    """Sessions (70 %), cached answers (15 %) and rate limits (15 %): all of them expire."""
    for n in range(scale.small_keys * 70 // 100):
        body = json.dumps({"user_id": n % 997 + 1, "csrf": f"{n * 2654435761 % (1 << 64):016x}", "lang": "ko" if n % 3 else "en"})
        yield "SET", f"session:{_digest(scale.seed, 'session', n)[:32]}", body, "EX", 14 * DAY - n % HOUR
    for n in range(scale.small_keys * 15 // 100):
        body = json.dumps({"answer": f"답변 {n}: 요약된 문단", "context_ids": [n % 50 + 1, n % 7 + 1]}, ensure_ascii=False)
        yield "SET", f"rag_query:{_digest(scale.seed, 'query', n)}", body, "EX", 45 * MINUTE + n % MINUTE
    for n in range(scale.small_keys - scale.small_keys * 70 // 100 - scale.small_keys * 15 // 100):
        yield "SET", f"rate_limit:user:{n}", n % 60, "EX", 2 * HOUR + n % HOUR


def _embeddings(scale: RedisScale) -> Iterator[Command]:
    import numpy as np

    rng = np.random.default_rng((scale.seed, 7))
    for n in range(scale.cached_embeddings):
        vector = rng.standard_normal(scale.dim)
        value = json.dumps((vector / np.linalg.norm(vector)).tolist())
        yield "SET", embedding_key(f"질문 {n}: 이 개념을 설명해 주세요"), value, "EX", EMBEDDING_TTL_S - n % HOUR


def _structures(scale: RedisScale) -> Iterator[Command]:
    """One of every kind, small and large enough for both of the server's internal encodings where it has two."""
    for n in range(scale.queued_tasks):
        yield "LPUSH", "celery", _task(scale.seed, n)
    yield "SADD", "_kombu.binding.celery", "celery\x06\x16\x06\x16celery"
    for n in range(3):
        tag = _digest(scale.seed, "unacked", n)[:16]
        yield "HSET", "unacked", tag, _task(scale.seed, 10_000 + n)
        yield "ZADD", "unacked_index", 1_710_000_000 + n, tag
    for n in range(300):
        yield "HINCRBY", "stats:questions:2024", f"topic:{n}", n * 3
        yield "ZADD", "popular:contexts", n * n / 7, f"context:{n}"
        yield "SADD", "seen:users", n * 31
    for n in range(24):
        yield "XADD", "events:audit", f"{1_710_000_000_000 + n}-0", "who", f"user{n % 5}", "what", "질문" if n % 2 else "upload"
    yield "XGROUP", "CREATE", "events:audit", "notifier", "0"
    yield "PFADD", "visitors:2024-03", *(f"user{n}" for n in range(500))
    yield "SETBIT", "flags:beta", 1023, 1
    yield "SET", "config:answer_model", "gpt-4o-mini"
    yield "SET", "설정:인사말", '안녕하세요 "손님"\r\n줄 바꿈'
    yield "SET", b"binary:\x00\xff\r\n key", bytes(range(256))
    yield "SET", "empty", ""


def _results(scale: RedisScale) -> Iterator[Command]:
    """The queue's result backend: one result per hundred small keys, and at least twenty."""
    for n in range(max(20, scale.small_keys // 100)):
        task = _task_id(scale.seed, n)
        body = json.dumps(
            {"status": "SUCCESS" if n % 9 else "FAILURE", "result": {"context_id": n % 50 + 1}, "task_id": task, "children": []}
        )
        yield "SET", f"celery-task-meta-{task}", body, "EX", DAY - n % HOUR
    yield "RPUSH", "celery-results:recent", *(_task_id(scale.seed, n) for n in range(10))


def _task(seed: int, n: int) -> str:
    """A message as the queue's client writes it."""
    body = base64.b64encode(json.dumps([[n % 50 + 1], {"force": False}, {"callbacks": None, "chord": None}]).encode()).decode()
    return json.dumps(
        {
            "body": body,
            "content-encoding": "utf-8",
            "content-type": "application/json",
            "headers": {"lang": "py", "task": "rag.tasks.process_document", "id": _task_id(seed, n), "retries": 0},
            "properties": {"delivery_mode": 2, "delivery_info": {"exchange": "", "routing_key": "celery"}, "priority": 0},
        }
    )


def _task_id(seed: int, n: int) -> str:
    raw = _digest(seed, "task", n)
    return f"{raw[:8]}-{raw[8:12]}-4{raw[13:16]}-a{raw[17:20]}-{raw[20:32]}"


def _digest(seed: int, kind: str, n: int) -> str:
    return hashlib.sha256(f"{seed}/{kind}/{n}".encode()).hexdigest()
