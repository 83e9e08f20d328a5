"""Restoring a Redis that serves: planned, staged, switched, and back to exactly what it was."""

from __future__ import annotations

from pathlib import Path

import pytest

from scholaria_ops.catalogue.evidence.redis import RedisEvidence
from scholaria_ops.errors import Refused, StoreError
from scholaria_ops.sandbox.redis import RedisServer
from scholaria_ops.sandbox.sandbox import Sandbox
from scholaria_ops.stores.live import Effect, LiveStore
from scholaria_ops.stores.redis.live import RedisLive, RedisPlan
from scholaria_ops_tests.conftest import ContextFactory
from scholaria_ops_tests.stores.redis_live.support import (
    RESTORE_ID,
    Application,
    DiskNotebook,
    celery_message,
    content,
    grow,
    source_of,
)
from scholaria_ops_tests.stores.redis_support import LIBRARY, Backup, commands, fill, now_ms, take

POLICY = {"repl-diskless-sync-delay": "0", "maxmemory-policy": "allkeys-lru", "appendonly": "yes"}


@pytest.fixture
def server(box: Sandbox) -> RedisServer:
    """The live server: backed up once (see ``backup``), then changed."""
    live = box.redis(name="live", config=POLICY)
    fill(live)
    commands(live, ("DEL", "celery"), ("RPUSH", "celery", *(celery_message("ingest", f"id-{i}", [7000 + i, "text"]) for i in range(7))))
    return live


@pytest.fixture
def backup(server: RedisServer, tmp_path: Path, context_factory: ContextFactory) -> Backup:
    backup = take(server, context_factory(), tmp_path / "set")
    grow(server)
    return backup


def effects(plan: RedisPlan, kind: str) -> dict[str, int | None]:
    return {e.what: e.count for e in plan.effects if e.kind == kind}


def test_it_keeps_the_protocol_by_type(server: RedisServer) -> None:
    live: LiveStore[RedisEvidence, RedisPlan] = RedisLive(server.connection)
    assert live.name == "redis"


def test_a_plan_counts_what_is_lost_and_what_comes_back_and_changes_nothing(
    server: RedisServer, backup: Backup, context_factory: ContextFactory
) -> None:
    before = content(server)
    plan = RedisLive(server.connection).plan(source_of(backup), context_factory())
    assert content(server) == before
    assert plan.objections == ()
    assert plan.identity == server.run_id
    assert plan.policy == "allkeys-lru"
    assert all(need.met for need in plan.needs)
    assert [served for served, _ in plan.pairs] == [0, 3, 5]
    assert effects(plan, "lost") == {
        "database 0, (no prefix)": 1,  # the live queue
        "database 0, embedding_cache": 1,
        "database 0, rag_query": 300,
        "database 0, session": 1,
        "database 5, only": 1,
        "tasks that wait now and will not run": 8,
        "function library newer": None,
    }
    assert effects(plan, "back") == {
        "database 0, (no prefix)": 1,  # topics
        "database 0, parked": 1,
        "database 0, session": 1,
        "function library lib": None,
    }
    assert effects(plan, "dropped") == {"database 0, the set's keys of class rag_query": 300}
    assert list(effects(plan, "parked").values()) == [1, 7]
    assert effects(plan, "revived") == {"sessions of the set that the live store does not have": 1}
    assert [(t.name, t.id, t.mentions) for t in plan.tasks[:2]] == [("ingest", "id-0", (7000,)), ("ingest", "id-1", (7001,))]
    assert plan.tasks_total == 7
    assert [(e.what, e.count) for e in plan.effects if e.kind == "note"] == [
        ("database 0, keys in both", 25),
        ("database 3, keys in both", 2),
    ]
    (rag_query,) = [e for e in plan.effects if e.what == "database 0, rag_query"]
    assert rag_query.detail == "no key of class rag_query is restored"
    (waiting,) = [e for e in plan.effects if e.kind == "parked" and e.count == 7]
    assert waiting.detail.startswith("ingest(7000, 'text'); ingest(7001, 'text')")
    assert waiting.detail.endswith("and 2 more")


def test_a_restore_serves_the_set_and_keeps_what_was_served(
    server: RedisServer, backup: Backup, notebook: DiskNotebook, context_factory: ContextFactory
) -> None:
    before = content(server)
    live = RedisLive(server.connection)
    plan = live.plan(source_of(backup), context_factory())
    staged = live.stage(plan, source_of(backup), notebook, context_factory())
    assert staged.counts["dropped rag_query"] == 300
    assert staged.counts["parked celery"] == 1
    during = content(server)
    assert during["policy"] == b"noeviction"
    assert {k: v for k, v in during.items() if k in before and k != "policy"} == {k: v for k, v in before.items() if k != "policy"}

    switched = live.switch(plan, notebook, context_factory())
    assert 0 < switched.lockout_s < 10
    assert live.finish(notebook, context_factory())[0].startswith("Redis: 3")
    assert live.finish(notebook, context_factory()) == []

    now = content(server)
    assert now["policy"] == b"allkeys-lru"
    assert now["functions"] == [LIBRARY.encode()]
    keys = {k for k in now if " " in k}
    assert not any("rag_query" in k or "only:here" in k or "restore" in k or k == "0 b'celery'" for k in keys)
    assert f"0 b'parked:{RESTORE_ID}:celery'" in keys
    assert {"0 b'session:1'", "0 b'topics'", "3 b'events'", "3 b'plain'"} <= keys
    assert now["0 b'counter'"][1] == b"42"
    assert now["3 b'events'"] == before["3 b'events'"]
    assert {k.split(" ")[0] for k in keys} == {"0", "3"}

    again = live.undo(notebook, context_factory())
    assert content(server) == before
    assert again.kept[0].startswith("redis_kept_1.rdb.gz")
    assert live.undo(notebook, context_factory()).lockout_s == 0
    assert content(server) == before
    assert live.discard(notebook, context_factory())
    assert live.discard(notebook, context_factory()) == []
    assert content(server) == before
    assert list(notebook.directory.glob("*redis_kept*")) == []


def test_what_was_discarded_cannot_be_undone(
    server: RedisServer, backup: Backup, notebook: DiskNotebook, context_factory: ContextFactory
) -> None:
    live = RedisLive(server.connection)
    plan = live.plan(source_of(backup), context_factory())
    live.stage(plan, source_of(backup), notebook, context_factory())
    live.switch(plan, notebook, context_factory())
    assert any("emptied" in line for line in live.discard(notebook, context_factory()))
    now = content(server)
    assert {k.split(" ")[0] for k in now if " " in k} == {"0", "3"}
    with pytest.raises(Refused, match="nothing is kept"):
        live.undo(notebook, context_factory())
    assert content(server) == now


@pytest.mark.parametrize("switched", [False, True], ids=["staged", "switched"])
def test_rolling_back_is_exact_and_repeatable(
    server: RedisServer, backup: Backup, notebook: DiskNotebook, context_factory: ContextFactory, switched: bool
) -> None:
    before = content(server)
    live = RedisLive(server.connection)
    plan = live.plan(source_of(backup), context_factory())
    live.stage(plan, source_of(backup), notebook, context_factory())
    if switched:
        live.switch(plan, notebook, context_factory())
        assert content(server, range(8)) != before
    lines = RedisLive(server.connection).roll_back(notebook, context_factory()).lines
    assert any("put back to allkeys-lru" in line for line in lines)
    assert content(server) == before
    assert live.roll_back(notebook, context_factory()).lines == []
    assert content(server) == before


def test_rolling_back_after_the_end_serves_what_was_served_before(
    server: RedisServer, backup: Backup, notebook: DiskNotebook, context_factory: ContextFactory
) -> None:
    before = content(server)
    live = RedisLive(server.connection)
    plan = live.plan(source_of(backup), context_factory())
    live.stage(plan, source_of(backup), notebook, context_factory())
    live.switch(plan, notebook, context_factory())
    live.finish(notebook, context_factory())
    assert live.roll_back(notebook, context_factory()).lines
    assert content(server) == before
    assert live.roll_back(notebook, context_factory()).lines == []


def test_rolling_back_says_how_many_keys_are_lost_and_discarding_afterwards_touches_nothing(
    server: RedisServer, backup: Backup, notebook: DiskNotebook, context_factory: ContextFactory
) -> None:
    before = content(server)
    live = RedisLive(server.connection)
    plan = live.plan(source_of(backup), context_factory())
    live.stage(plan, source_of(backup), notebook, context_factory())
    live.switch(plan, notebook, context_factory())
    commands(server, ("SET", "new:1", 1), ("SET", "new:2", 1), ("SELECT", 3), ("SET", "new:3", 1))
    lines = live.roll_back(notebook, context_factory()).lines
    assert any("since the switch is lost: at least 3 new keys (2 in database 0, 1 in database 3)" in line for line in lines), lines
    assert live.discard(notebook, context_factory()) == []
    assert content(server) == before


def test_later_writes_are_named(server: RedisServer, backup: Backup, notebook: DiskNotebook, context_factory: ContextFactory) -> None:
    live = RedisLive(server.connection)
    plan = live.plan(source_of(backup), context_factory())
    live.stage(plan, source_of(backup), notebook, context_factory())
    live.switch(plan, notebook, context_factory())
    assert live.later_writes(notebook, context_factory()) == ()
    live.finish(notebook, context_factory())
    assert live.later_writes(notebook, context_factory()) == ()
    commands(server, ("SET", "session:later", "1"), ("SET", "session:later2", "1"), ("DEL", "topics"), ("SELECT", 7), ("SET", "a:b", 1))
    found = live.later_writes(notebook, context_factory())
    assert Effect(kind="lost", what="database 0, (other): keys written since the switch, at most", count=2) not in found
    assert sum(e.count or 0 for e in found if e.kind == "lost") >= 3
    assert [(e.what.partition(":")[0], e.count) for e in found if e.kind == "back"] == [("database 0, (no prefix)", 1)]


def test_an_empty_server_is_restored_too(box: Sandbox, backup: Backup, notebook: DiskNotebook, context_factory: ContextFactory) -> None:
    target = box.redis(name="made-anew", config=POLICY)
    before = content(target)
    live = RedisLive(target.connection, key_actions={"rag_query": "restore", "celery": "restore"})
    plan = live.plan(source_of(backup), context_factory())
    assert not any(e.kind == "lost" for e in plan.effects)
    live.stage(plan, source_of(backup), notebook, context_factory())
    live.switch(plan, notebook, context_factory())
    live.finish(notebook, context_factory())
    found = backup.store.probe(target, backup.evidence, context_factory())
    assert [str(d) for d in backup.store.compare(backup.evidence, found) if d.severity == "loss"] == []
    live.undo(notebook, context_factory())
    assert content(target) == before


def test_the_application_never_sees_an_empty_keyspace(
    server: RedisServer, backup: Backup, notebook: DiskNotebook, context_factory: ContextFactory
) -> None:
    live = RedisLive(server.connection)
    with Application(server.connection, always=("counter", "embedding_cache:ns:3")) as application:
        plan = live.plan(source_of(backup), context_factory())
        live.stage(plan, source_of(backup), notebook, context_factory())
        live.switch(plan, notebook, context_factory())
        live.finish(notebook, context_factory())
        live.undo(notebook, context_factory())
    assert application.errors == []
    assert application.writes > 20
    assert application.longest_s < 30


def test_databases_that_came_into_use_after_the_plan_are_emptied_and_kept_too(
    server: RedisServer, backup: Backup, notebook: DiskNotebook, context_factory: ContextFactory
) -> None:
    live = RedisLive(server.connection)
    plan = live.plan(source_of(backup), context_factory())
    live.stage(plan, source_of(backup), notebook, context_factory())
    commands(server, ("SELECT", 9), ("SET", "new:here", "1", "PXAT", now_ms() + 600_000))
    live.switch(plan, notebook, context_factory())
    assert commands(server, ("SELECT", 9), ("DBSIZE",))[1] == 0
    live.finish(notebook, context_factory())
    live.undo(notebook, context_factory())
    assert commands(server, ("SELECT", 9), ("GET", "new:here"))[1] == b"1"


def test_an_undo_without_room_is_refused_before_it_begins(
    server: RedisServer, backup: Backup, notebook: DiskNotebook, context_factory: ContextFactory
) -> None:
    live = RedisLive(server.connection)
    plan = live.plan(source_of(backup), context_factory())
    live.stage(plan, source_of(backup), notebook, context_factory())
    live.switch(plan, notebook, context_factory())
    live.finish(notebook, context_factory())
    live.check_undo(notebook, context_factory())
    served, facts = content(server), notebook.read()
    (used,) = commands(server, ("INFO", "memory"))
    memory = int(used.decode().split("used_memory:")[1].split("\r\n")[0])
    commands(server, ("CONFIG", "SET", "maxmemory", memory + 1000))
    with pytest.raises(Refused, match="both copies do not fit: memory of Redis within its maxmemory"):
        live.check_undo(notebook, context_factory())
    assert (content(server), notebook.read()) == (served, facts)
    commands(server, ("CONFIG", "SET", "maxmemory", 0))
    live.undo(notebook, context_factory())
    live.check_undo(notebook, context_factory())


def test_how_it_stands_is_told_in_every_state(
    server: RedisServer, backup: Backup, notebook: DiskNotebook, context_factory: ContextFactory
) -> None:
    ctx = context_factory
    live = RedisLive(server.connection)
    served = live.standing(notebook, ctx()).served
    assert any(line.startswith("database 5: 1 keys") for line in served)
    plan = live.plan(source_of(backup), ctx())
    live.stage(plan, source_of(backup), notebook, ctx())
    for side, switched in (("what was staged", False), ("what was served before", True)):
        if switched:
            live.switch(plan, notebook, ctx())
        told = live.standing(notebook, ctx())
        assert any(f"database {plan.pairs[0][1]}: " in line and side in line for line in told.left)
        assert f"database {plan.ledger}: the marker of the restore {RESTORE_ID}" in told.left
        assert any(f"SELECT {plan.ledger}, DEL " in line and "no restore of this Redis begins" in line for line in told.by_hand)
        assert any("CONFIG SET maxmemory-policy allkeys-lru" in line for line in told.by_hand)
        assert (told.served == served) is not switched
    commands(server, ("FLUSHALL",))
    with pytest.raises(StoreError, match="holds nothing"):
        live.roll_back(notebook, ctx())
    told = live.standing(notebook, ctx())
    assert told.served == (f"Redis at {server.connection.where} holds nothing",)
    assert told.left == ()
