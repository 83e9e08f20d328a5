"""Reading back what was staged, key by key: every kind of difference is told by name, and none is made up."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from scholaria_ops.errors import VerificationFailed
from scholaria_ops.sandbox.redis import RedisServer
from scholaria_ops.sandbox.sandbox import Sandbox
from scholaria_ops.sandbox.tools import Tools
from scholaria_ops.stores.base import Context
from scholaria_ops.stores.redis.live.read_back import Undecided, compare_with_sent
from scholaria_ops.stores.redis.load import stage_into
from scholaria_ops.stores.redis.restore import loaded_scratch
from scholaria_ops.stores.redis.scratch import Scratch
from scholaria_ops.stores.redis.wire import connect
from scholaria_ops_tests.conftest import ContextFactory
from scholaria_ops_tests.stores.redis_support import DAY_MS, commands, fill, now_ms, take

#: Served database → where it is staged.
SPARES = {0: 12, 3: 11}
NUMBERS = {spare: served for served, spare in SPARES.items()}
Line = tuple[bytes | str | int, ...]


@dataclass
class Arrived:
    """A server that holds what a scratch server has sent, and that scratch server."""

    server: RedisServer
    scratch: Scratch
    ctx: Context

    def compare(self) -> int:
        with connect(self.server.connection) as wire:
            return compare_with_sent(wire, self.scratch, NUMBERS, self.ctx)


@pytest.fixture
def arrived(tools: Tools, tmp_path: Path, context_factory: ContextFactory) -> Iterator[Arrived]:
    with Sandbox(tmp_path / "box", tools) as box:
        source = box.redis(
            name="source", config={"save": "", "appendonly": "no", "enable-debug-command": "local", "repl-diskless-sync-delay": "0"}
        )
        fill(source, small=900)
        # Large enough to be hash tables, whose order differs from server to server.
        commands(source, ("HSET", "table", *(part for i in range(700) for part in (f"field {i}", f"value {i}"))))
        commands(source, ("ZADD", "ranks", *(part for i in range(300) for part in (str(i / 7), f"member {i}"))))
        commands(
            source, ("DEBUG", "SET-ACTIVE-EXPIRE", "0"), ("SET", "soon", "gone", "PXAT", now_ms() + 1), ("SET", "large", "x" * 3_000_000)
        )
        backup = take(source, context_factory(), tmp_path / "set")
        source.discard()
        # Other limits than the scratch server's: the same elements in another shape.
        target = box.redis(name="target", config={"save": "", "list-max-listpack-size": "8"})
        ctx = context_factory()
        with loaded_scratch(backup.directory / backup.artifact.path, backup.artifact, ctx, databases=16) as scratch:
            stage_into(target.connection, scratch, SPARES, ctx, timeout_s=30, streams_in=[3])
            yield Arrived(target, scratch, ctx)


def test_what_has_arrived_as_it_was_sent_passes_whatever_its_shape_and_whatever_has_expired(arrived: Arrived) -> None:
    assert arrived.compare() == 1, "the key that had expired already"


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ([("SET", "counter", "43")], "database 0, key counter: its value differs"),
        ([("SETRANGE", "large", 2_999_999, "y")], "database 0, key large: its value differs"),
        ([("DEL", "counter")], "database 0, key counter: it is missing"),
        ([("DEL", "counter"), ("RPUSH", "counter", "42")], "database 0, key counter: its value differs"),
        ([("PEXPIREAT", "counter", now_ms() + DAY_MS)], "database 0, key counter: its expiry differs"),
        ([("PERSIST", "rag_query:7")], "database 0, key rag_query:7: its expiry differs"),
        ([("PERSIST", "session:1")], "database 0, key session:1: its expiry differs"),
        ([("SET", "stranger", "1")], "database 0 holds"),
        ([("LSET", "celery", 100, "another task")], "database 0, key celery: its content differs"),
        ([("SREM", "topics", "topic 7"), ("SADD", "topics", "topic x")], "database 0, key topics: its content differs"),
        ([("ZADD", "ranks", "5.5", "member 7")], "database 0, key ranks: its content differs"),
        ([("HSET", "table", "field 7", "value 8")], "database 0, key table: its content differs"),
        ([("DEL", "table")], "database 0, key table: it is missing"),
        ([("SELECT", 11), ("SET", "plain", "another")], "database 3, key plain: its value differs"),
    ],
)
def test_every_difference_is_told_by_name(arrived: Arrived, lines: list[Line], told: str) -> None:
    commands(arrived.server, ("SELECT", 12), *lines)
    with pytest.raises(VerificationFailed) as failure:
        arrived.compare()
    assert told in failure.value.message


@pytest.mark.parametrize(
    "line", [("XACK", "events", "workers", "1-1"), ("XADD", "events", "3-1", "kind", "c"), ("XTRIM", "events", "MAXLEN", 1)]
)
def test_a_stream_that_differs_is_left_to_a_measurement_of_the_whole(arrived: Arrived, line: Line) -> None:
    commands(arrived.server, ("SELECT", 11), line)
    with pytest.raises(Undecided):
        arrived.compare()
