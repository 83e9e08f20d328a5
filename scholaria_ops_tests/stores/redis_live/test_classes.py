"""What is left of a set once its classes of keys are dropped and parked, told from one measurement of all of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from scholaria_ops.profiles.scholaria import KEY_CLASSES, KeyAction
from scholaria_ops.sandbox.sandbox import Sandbox
from scholaria_ops.stores.redis.live.classes import Classes, Leaving, apply
from scholaria_ops.stores.redis.live.staging import measured, prove
from scholaria_ops.stores.redis.restore import loaded_scratch
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
