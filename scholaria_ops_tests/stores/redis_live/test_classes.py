"""What is left of a set once its classes of keys are dropped and parked, told from one measurement of all of it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from scholaria_ops.profiles.scholaria import KEY_CLASSES, KeyAction
from scholaria_ops.sandbox.sandbox import Sandbox
from scholaria_ops.stores.redis.live.classes import BATCH, Classes, Leaving, apply, scan
from scholaria_ops.stores.redis.live.staging import measured, prove
from scholaria_ops.stores.redis.restore import loaded_scratch
from scholaria_ops.stores.redis.wire import Wire, connect
from scholaria_ops_tests.conftest import ContextFactory
from scholaria_ops_tests.stores.redis_support import DAY_MS, commands, fields_expire, fill, now_ms, take

ALL = tuple(c.name for c in KEY_CLASSES)


@pytest.mark.parametrize(
    "actions",
    [
        {},
        dict.fromkeys(ALL, "restore"),
        dict.fromkeys(ALL, "drop"),
        dict.fromkeys(ALL, "park"),
        {"sessions": "park", "embedding_cache": "drop", "celery": "restore"},
    ],
    ids=["as the profile says", "nothing", "all dropped", "all parked", "some"],
)
def test_what_will_be_left_is_what_is_left(
    box: Sandbox, tmp_path: Path, context_factory: ContextFactory, actions: Mapping[str, KeyAction]
) -> None:
    source = box.redis(name="source", config={"save": "", "repl-diskless-sync-delay": "0"})
    fill(source)
    commands(source, ("SET", "parked:20250101_000000:celery", "of an earlier restore"), ("SET", "celery\x06\x163", "no list"))
    commands(source, ("HSET", "session:2", "user", "2"), ("SADD", "session:3", "a", "b"), ("ZADD", "unacked_index", "1.5", "x"))
    if fields_expire(source):
        commands(source, ("HPEXPIREAT", "session:2", str(now_ms() + DAY_MS), "FIELDS", "1", "user"))
    backup = take(source, context_factory(), tmp_path / "set")
    source.discard()
    classes = Classes(actions)
    ctx = context_factory()
    with loaded_scratch(backup.directory / backup.artifact.path, backup.artifact, ctx, databases=16) as scratch:
        told = prove(scratch, backup.evidence, ctx, Leaving(classes, "20260203_040506"))
        applied = apply(scratch, classes, "20260203_040506", ctx.cancel)
        assert applied.changed == any(action != "restore" for action in classes.actions.values())
        left = measured(scratch, backup.evidence, ctx, like=backup.evidence)
    assert told.keys == left.keys
    assert (told.keys != backup.evidence.keys) == applied.changed


def test_names_are_picked_by_whole_names_and_beginnings() -> None:
    classes = Classes()
    queues = [entry for entry in classes.known if entry.tasks]
    pick = classes.picker(queues)
    mine = [b"celery", b"celery\x06\x163", b"unacked", b"_kombu.binding.celery"]
    others = [b"celery\n", b"celery2", b"celery-task-meta-1", b"unacked_indexes", b"xcelery", b"_kombuXbindingYcelery", b"session:1", b""]
    assert pick([*mine, *others]) == {"celery": mine}
    assert pick(others) == {}
    assert Classes().picker([])(mine) == {}
    whatever = Classes().picker(classes.known)([b"session:1", b"celery", b"rag_query:1", b"free"])
    assert whatever == {"sessions": [b"session:1"], "celery": [b"celery"], "rag_query": [b"rag_query:1"]}


def test_the_next_names_are_asked_for_while_these_are_looked_at(box: Sandbox, context_factory: ContextFactory) -> None:
    server = box.redis()
    names = {b"key:%d" % n for n in range(3 * BATCH)}
    commands(server, *(("SET", name.decode(), "1") for name in names))
    cancel = context_factory().cancel
    with connect(server.connection) as wire, connect(server.connection) as other:
        batches = scan(wire, cancel, ahead=True)
        found = set(next(batches))
        asked = _scans(other)
        assert asked >= 2, "the second batch is being looked for while the first is in our hands"
        for keys in batches:
            found.update(keys)
        assert found == names
        assert wire.call("PING") == b"PONG", "nothing is left unread"


def _scans(wire: Wire) -> int:
    """How many SCAN commands the server has carried out; patient for a moment, since one is on its way."""
    deadline = time.monotonic() + 10
    while (calls := _calls(wire)) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    return calls


def _calls(wire: Wire) -> int:
    text: bytes = wire.call("INFO", "commandstats")
    found = [line for line in text.decode().splitlines() if line.startswith("cmdstat_scan:")]
    return int(found[0].partition("calls=")[2].partition(",")[0]) if found else 0
