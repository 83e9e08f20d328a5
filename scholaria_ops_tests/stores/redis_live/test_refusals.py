"""What a live restore of Redis refuses, and what it makes of keys and tasks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import SecretStr

from scholaria_ops.connections import RedisConnection
from scholaria_ops.errors import ConfigError, Refused, StoreUnavailable, VerificationFailed
from scholaria_ops.profiles.scholaria import KEY_CLASSES
from scholaria_ops.sandbox.sandbox import Sandbox
from scholaria_ops.settings import load_settings
from scholaria_ops.stores.redis.info import look
from scholaria_ops.stores.redis.live import RESTORE_RULES, RedisLive
from scholaria_ops.stores.redis.live.budget import group_free, headroom_bytes, staged_bytes
from scholaria_ops.stores.redis.live.classes import Classes
from scholaria_ops.stores.redis.live.tasks import UNREADABLE, decode
from scholaria_ops.stores.redis.wire import connect
from scholaria_ops_tests.conftest import ContextFactory
from scholaria_ops_tests.stores.redis_live.support import (
    QUICK,
    Application,
    DiskNotebook,
    celery_message,
    content,
    grow,
    grown,
    objection,
    planned,
    source_of,
    switched,
)
from scholaria_ops_tests.stores.redis_support import DAY_MS, Backup, commands, wait_until


def test_f38_beyond_the_budget_staging_is_refused_and_no_live_key_goes(
    box: Sandbox, backup: Backup, notebook: DiskNotebook, context_factory: ContextFactory
) -> None:
    server = box.redis(name="live", config={**QUICK, "maxmemory-policy": "allkeys-lru"})
    commands(server, *(("SET", f"live:{i}", "x" * 1000) for i in range(3000)))
    plan = planned(RedisLive(server.connection), backup, context_factory)
    with connect(server.connection) as wire:
        info = look(wire)
    enough = info.number("used_memory") + staged_bytes(plan.staged_bytes) + headroom_bytes(info, plan.staged_bytes)
    commands(server, ("CONFIG", "SET", "maxmemory", enough - 4_000_000))
    before = content(server)
    assert "do not fit" in objection(server, backup, context_factory)
    assert f"{enough - 4_000_000:,}" in objection(server, backup, context_factory)
    with pytest.raises(Refused, match="do not fit"):  # a plan from better times
        RedisLive(server.connection).stage(plan, source_of(backup), notebook, context_factory())
    assert content(server) == before
    assert commands(server, ("INFO", "stats"))[0].count(b"evicted_keys:0\r\n") == 1
    # With the room that the objection asks for it goes through, and still nothing was evicted.
    hint = RedisLive(server.connection).plan(source_of(backup), context_factory()).objections[0].hint
    commands(server, ("CONFIG", "SET", "maxmemory", int(hint.split("maxmemory ")[2].split(")")[0]) + 1_000_000))
    live = RedisLive(server.connection)
    with Application(server.connection, always=("live:0", "live:2999")) as application:
        plan = planned(live, backup, context_factory)
        live.stage(plan, source_of(backup), notebook, context_factory())
    assert application.errors == []
    assert commands(server, ("INFO", "stats"))[0].count(b"evicted_keys:0\r\n") == 1
    live.roll_back(notebook, context_factory())
    now = content(server)
    assert {k: v for k, v in now.items() if "written:" not in k} == before


def test_f34_an_rdb_newer_than_the_server_is_refused_with_both_versions(
    box: Sandbox, backup: Backup, context_factory: ContextFactory
) -> None:
    server, before = grown(box)
    newer = backup.evidence.model_copy(update={"rdb_version": 99, "server_version": "12.0.0"})
    backup.dump = type(backup.dump)(backup.dump.artifacts, newer, backup.dump.started_at, backup.dump.finished_at, {})
    message = objection(server, backup, context_factory)
    assert "12.0.0 (RDB version 99)" in message
    assert server.version in message
    assert content(server) == before


def test_unfit_servers_are_objected_to(box: Sandbox, backup: Backup, context_factory: ContextFactory) -> None:
    few = box.redis(name="few", config={**QUICK, "databases": "4"})
    assert "too few databases (4)" in objection(few, backup, context_factory)
    master = box.redis(name="master", config=QUICK)
    replica = box.redis(name="replica", config={**QUICK, "replicaof": f"127.0.0.1 {master.port}"})
    commands(replica, ("CONFIG", "SET", "masterauth", master.connection.password.get_secret_value()))
    wait_until(lambda: b"connected_slaves:1" in commands(master, ("INFO", "replication"))[0], 60)
    assert "1 replica(s)" in objection(master, backup, context_factory)
    assert "is a replica" in objection(replica, backup, context_factory)


def test_a_server_that_is_down_cannot_be_planned_for(box: Sandbox, backup: Backup, context_factory: ContextFactory) -> None:
    server = box.redis(name="live", config=QUICK)
    server.kill()
    with pytest.raises(StoreUnavailable):
        RedisLive(server.connection).plan(source_of(backup), context_factory())


def test_a_user_without_the_rights_is_told_which_and_one_with_the_rules_restores(
    box: Sandbox, backup: Backup, notebook: DiskNotebook, context_factory: ContextFactory
) -> None:
    server, before = grown(box, {"appendonly": "yes", "maxmemory-policy": "allkeys-lru"})
    commands(server, ("ACL", "SETUSER", "weak", "on", ">secret", "~*", "+@all", "-swapdb", "-config"))
    weak = server.connection.model_copy(update={"username": "weak", "password": SecretStr("secret")})
    plan = RedisLive(weak).plan(source_of(backup), context_factory())
    assert "may not run SWAPDB, CONFIG GET, CONFIG SET" in plan.objections[0].message
    assert RESTORE_RULES in plan.objections[0].hint
    commands(server, ("ACL", "SETUSER", "restorer", "on", ">secret", *RESTORE_RULES.split()))
    strong = RedisLive(server.connection.model_copy(update={"username": "restorer", "password": SecretStr("secret")}))
    switched(strong, backup, notebook, context_factory)
    strong.finish(notebook, context_factory())
    strong.later_writes(notebook, context_factory())
    strong.undo(notebook, context_factory())
    assert content(server) == before


def test_a_damaged_set_is_found_before_the_server_is_touched(
    box: Sandbox, backup: Backup, notebook: DiskNotebook, context_factory: ContextFactory
) -> None:
    server, before = grown(box, {"maxmemory-policy": "allkeys-lru"})
    live = RedisLive(server.connection)
    plan = planned(live, backup, context_factory)
    rows = [row.model_copy(update={"fingerprint": "0" * 32}) if row.prefix == "session" else row for row in backup.evidence.keys]
    other = backup.evidence.model_copy(update={"keys": tuple(rows)})
    source = source_of(backup)
    with pytest.raises(VerificationFailed, match="session"):
        live.stage(plan, type(source)(source.set_id, source.directory, source.artifacts, other), notebook, context_factory())
    assert content(server) == before
    assert notebook.writes == 0


def test_what_is_kept_and_was_changed_is_refused_before_anything_is_touched(
    box: Sandbox, backup: Backup, notebook: DiskNotebook, context_factory: ContextFactory
) -> None:
    server = box.redis(name="live", config={**QUICK, "appendonly": "yes"})
    grow(server)
    live = RedisLive(server.connection)
    switched(live, backup, notebook, context_factory)
    live.finish(notebook, context_factory())
    now = content(server)
    path = notebook.directory / "redis_kept_0.rdb.gz"
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(Refused, match="is not the file that was written"):
        live.undo(notebook, context_factory())
    path.unlink()
    with pytest.raises(Refused, match="is gone"):
        live.undo(notebook, context_factory())
    with pytest.raises(Refused, match="is gone"):
        live.later_writes(notebook, context_factory())  # the plan, before the other stores go back
    assert content(server) == now


def test_two_restores_do_not_meet(
    box: Sandbox, backup: Backup, notebook: DiskNotebook, context_factory: ContextFactory, tmp_path: Path
) -> None:
    server = box.redis(name="live", config={**QUICK, "appendonly": "yes"})
    grow(server)
    live = RedisLive(server.connection)
    first = planned(live, backup, context_factory)
    live.stage(first, source_of(backup), notebook, context_factory())
    second = DiskNotebook(tmp_path / "second", "20260203_090909")
    with pytest.raises(Refused, match="left unfinished"):
        live.stage(first, source_of(backup), second, context_factory())
    live.switch(first, notebook, context_factory())
    with pytest.raises(Refused, match="has been switched already"):
        live.stage(first, source_of(backup), notebook, context_factory())
    assert live.roll_back(second, context_factory()).lines == []
    assert commands(server, ("GET", "counter"))[0] == b"42"


def test_a_switch_before_staging_and_an_end_before_the_switch_are_refused(
    box: Sandbox, backup: Backup, notebook: DiskNotebook, context_factory: ContextFactory
) -> None:
    server = box.redis(name="live", config=QUICK)
    live = RedisLive(server.connection)
    plan = planned(live, backup, context_factory)
    with pytest.raises(Refused, match="Stage it first"):
        live.switch(plan, notebook, context_factory())
    live.stage(plan, source_of(backup), notebook, context_factory())
    with pytest.raises(Refused, match="has not been switched"):
        live.finish(notebook, context_factory())
    assert live.undo(notebook, context_factory()).lockout_s == 0
    commands(server, ("SELECT", dict(plan.pairs)[0]), ("DEL", "topics", "scores", "profile:1", "counter"))
    with pytest.raises(Refused, match="that never expire, 6 were staged"):
        live.switch(plan, notebook, context_factory())


def test_every_class_of_keys_is_switchable(box: Sandbox, backup: Backup, notebook: DiskNotebook, context_factory: ContextFactory) -> None:
    server = box.redis(name="live", config=QUICK)
    live = RedisLive(
        server.connection, key_actions={"sessions": "drop", "rag_query": "restore", "celery": "drop", "embedding_cache": "park"}
    )
    switched(live, backup, notebook, context_factory)
    names = commands(server, ("KEYS", "*"))[0]
    assert b"session:1" not in names
    assert b"celery" not in names
    assert not any(name.startswith(b"embedding_cache") for name in names)
    assert sum(name.startswith(b"parked:20260203_040506:embedding_cache:ns:") for name in names) == 20
    assert b"celery-task-meta-3f2b8c1e-0000-4000-8000-123456789abc" in names
    expiries = commands(server, *(("PTTL", name) for name in names if name.startswith(b"parked:")))
    assert min(expiries) > 29 * DAY_MS
    for wrong in ({"none": "drop"}, {"sessions": "sell"}):
        with pytest.raises(ConfigError, match="no class of Redis keys"):
            RedisLive(server.connection, key_actions=wrong)  # type: ignore[arg-type]


def test_the_first_class_that_matches_counts() -> None:
    classes = Classes()
    names = {
        key: entry.name if (entry := classes.of(key)) else None
        for key in (b"celery", b"celery\x06\x163", b"celery-task-meta-1", b"celeryx")
    }
    assert names == {b"celery": "celery", b"celery\x06\x163": "celery", b"celery-task-meta-1": "celery_results", b"celeryx": None}
    assert {c.name for c in KEY_CLASSES} == set(classes.actions)


def test_tasks_are_read_whatever_they_look_like() -> None:
    task = decode(
        0, "celery", celery_message("app.ingest", "u-1", [41, "42", {"ids": [43, True]}], {"context_id": "44", "n": 1.5}).encode()
    )
    assert (task.name, task.id, task.mentions) == ("app.ingest", "u-1", (41, 42, 43, 44))
    assert task.args.startswith("41, '42'")
    assert (task.unnamed, task.named) == ((41, 42, None), {"context_id": 44}), "whose ids they are is for the profile to say"
    unacked = json.dumps([json.loads(celery_message("app.ingest", "u-2", [7])), "", "celery"])
    assert decode(0, "unacked", unacked.encode()).mentions == (7,)
    old = json.dumps({"body": json.dumps({"task": "t", "id": "u-3", "args": [5], "kwargs": {}}), "headers": {}, "properties": {}})
    assert decode(0, "celery", old.encode()).id == "u-3"
    bare = json.loads(celery_message("app.ingest", "u-4", [8]))
    del bare["properties"]["body_encoding"]
    assert decode(0, "celery", json.dumps(bare).encode()).mentions == (8,)
    for nonsense in (b"task 7", b"\xff\x00", b"[]", b"null", b'{"body": "%%", "properties": {"body_encoding": "base64"}}', b"3"):
        assert decode(0, "celery", nonsense).name == UNREADABLE


def test_the_tightest_limit_of_the_control_groups_counts(tmp_path: Path) -> None:
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    for place, limit, used in ((tmp_path / "a", "1000", "700"), (inner, "max", "650")):
        (place / "memory.max").write_text(f"{limit}\n")
        (place / "memory.current").write_text(f"{used}\n")
        (place / "memory.stat").write_text("anon 1\ninactive_file 50\n")
    assert group_free(inner, tmp_path) == 350
    assert group_free(None) is None
    assert group_free(tmp_path, tmp_path) is None


def test_the_settings_name_a_user_that_restores() -> None:
    connection = RedisConnection(username="backup", password=SecretStr("b"))
    assert load_settings({}).restoring_redis(connection) == connection
    named = load_settings({"REDIS_RESTORE_USERNAME": "restorer", "REDIS_RESTORE_PASSWORD": "r"})
    assert named.restoring_redis(connection) == RedisConnection(username="restorer", password=SecretStr("r"))
    assert "r" in named.secrets
