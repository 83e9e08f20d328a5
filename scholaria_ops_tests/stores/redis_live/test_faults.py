"""What a live restore of Redis survives: crashes, full disks and memory, keys that expire, servers that refuse."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from pathlib import Path

import pytest

from scholaria_ops.cancel import CancelToken
from scholaria_ops.errors import Cancelled, Refused, StoreError, VerificationFailed
from scholaria_ops.process import run
from scholaria_ops.sandbox.sandbox import Sandbox
from scholaria_ops.stores.redis import load
from scholaria_ops.stores.redis.live import RedisLive
from scholaria_ops.stores.redis.live.journal import STAGED
from scholaria_ops_tests.conftest import ContextFactory
from scholaria_ops_tests.stores.redis_live.support import (
    QUICK,
    DiskNotebook,
    content,
    grow,
    grown,
    planned,
    source_of,
    switched,
)
from scholaria_ops_tests.stores.redis_support import LIBRARY, Backup, commands, fill, now_ms, take, wait_until


@pytest.mark.parametrize("persistence", ["appendonly", "save"])
def test_f36_what_was_restored_is_served_also_after_a_crash(
    box: Sandbox, backup: Backup, notebook: DiskNotebook, context_factory: ContextFactory, persistence: str
) -> None:
    kept = {"appendonly": "yes"} if persistence == "appendonly" else {"save": "3600 100000"}
    server, before = grown(box, {**kept})
    live = RedisLive(server.connection)
    plan = planned(live, backup, context_factory)
    live.stage(plan, source_of(backup), notebook, context_factory())
    result = live.switch(plan, notebook, context_factory())
    assert result.warnings == ()
    now = content(server, range(5))
    server.kill()
    server.start()
    assert content(server, range(5)) == now
    assert now["0 b'counter'"][1] == b"42"
    # The next one finds its way although the process is another: to the end, and back.
    live.finish(notebook, context_factory())
    server.kill()
    server.start()
    assert content(server) == {**now, "policy": before["policy"]}
    live.undo(notebook, context_factory())
    server.kill()
    server.start()
    assert content(server) == before


def test_a_crash_of_the_server_between_switch_and_rolling_back_changes_nothing(
    box: Sandbox, backup: Backup, notebook: DiskNotebook, context_factory: ContextFactory
) -> None:
    server, before = grown(box, {"appendonly": "yes", "maxmemory-policy": "allkeys-lru"})
    live = RedisLive(server.connection)
    switched(live, backup, notebook, context_factory)
    server.kill()
    server.start()
    live.roll_back(notebook, context_factory())
    assert content(server) == before


def test_a_restart_before_the_switch_makes_the_plan_void(
    box: Sandbox, backup: Backup, notebook: DiskNotebook, context_factory: ContextFactory
) -> None:
    server, before = grown(box, {"appendonly": "yes"})
    live = RedisLive(server.connection)
    plan = planned(live, backup, context_factory)
    live.stage(plan, source_of(backup), notebook, context_factory())
    server.kill()
    server.start()
    with pytest.raises(Refused, match="was restarted since"):
        live.switch(plan, notebook, context_factory())
    with pytest.raises(Refused, match="was restarted since"):
        live.stage(plan, source_of(backup), DiskNotebook(notebook.directory / "other"), context_factory())
    live.roll_back(notebook, context_factory())
    assert content(server) == before


def test_rolling_back_needs_no_memory(box: Sandbox, backup: Backup, notebook: DiskNotebook, context_factory: ContextFactory) -> None:
    server, before = grown(box, {"maxmemory": "100mb", "maxmemory-policy": "allkeys-lru"})
    live = RedisLive(server.connection)
    switched(live, backup, notebook, context_factory)
    commands(server, ("CONFIG", "SET", "maxmemory", "1mb"))
    with pytest.raises(StoreError, match="OOM"):
        commands(server, ("SET", "too:much", "x"))
    with pytest.raises(StoreError, match="take its functions back: OOM"):  # loading code does need some
        live.roll_back(notebook, context_factory())
    assert {**content(server), "functions": [], "policy": ""} == {**before, "functions": [], "policy": ""}
    commands(server, ("CONFIG", "SET", "maxmemory", "100mb"))
    live.roll_back(notebook, context_factory())
    assert content(server) == before


def test_f37_keys_that_expire_while_they_are_staged_are_no_loss(
    box: Sandbox, tmp_path: Path, notebook: DiskNotebook, context_factory: ContextFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = box.redis(name="source", config=QUICK)
    fill(source, small=10)
    soon = now_ms() + 6000
    commands(source, *(("SET", f"soon:{i}", i, "PXAT", soon + i % 300) for i in range(300)))
    backup = take(source, context_factory(), tmp_path / "set")
    server = box.redis(name="live", config={**QUICK, "appendonly": "yes"})
    live = RedisLive(server.connection)
    plan = planned(live, backup, context_factory)
    stage_into = load.stage_into

    def slow(*arguments: object, **options: object) -> object:
        staged = stage_into(*arguments, **options)  # type: ignore[arg-type]
        time.sleep(max(0.0, (soon + 300) / 1000 - time.time()) + 0.2)
        return staged

    with monkeypatch.context() as patch:
        patch.setattr(load, "stage_into", slow)
        staged = live.stage(plan, source_of(backup), notebook, context_factory())
    assert all(d.severity == "note" for d in staged.differences)
    live.switch(plan, notebook, context_factory())
    assert commands(server, ("EXISTS", "soon:1"), ("GET", "counter")) == [0, b"42"]
    expiry = commands(source, ("PEXPIRETIME", "session:1"))[0]
    assert commands(server, ("PEXPIRETIME", "session:1"))[0] == expiry


def test_f39_functions_come_and_go_with_the_switch_and_acl_users_are_named(
    box: Sandbox, tmp_path: Path, notebook: DiskNotebook, context_factory: ContextFactory
) -> None:
    source = box.redis(name="source", config=QUICK)
    commands(source, ("FUNCTION", "LOAD", LIBRARY), ("SET", "a", 1), ("ACL", "SETUSER", "celery", "on", ">x", "+@all", "~*"))
    backup = take(source, context_factory(), tmp_path / "set")
    server = box.redis(name="live", config=QUICK)
    commands(server, ("FUNCTION", "LOAD", LIBRARY.replace("return 1", "return 3")))
    live = RedisLive(server.connection)
    plan = planned(live, backup, context_factory)
    assert [(e.kind, e.what) for e in plan.effects if "function" in e.what or "ACL" in e.what] == [
        ("changed", "function library lib"),
        ("note", "ACL users celery"),
    ]
    live.stage(plan, source_of(backup), notebook, context_factory())
    assert commands(server, ("FCALL", "f", 0)) == [3]
    live.switch(plan, notebook, context_factory())
    assert commands(server, ("FCALL", "f", 0)) == [1]
    live.roll_back(notebook, context_factory())
    assert commands(server, ("FCALL", "f", 0)) == [3]


def test_a_staged_copy_that_differs_is_removed(
    box: Sandbox, backup: Backup, notebook: DiskNotebook, context_factory: ContextFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, before = grown(box, {"maxmemory-policy": "allkeys-lru"})
    live = RedisLive(server.connection)
    plan = planned(live, backup, context_factory)
    stage_into = load.stage_into

    def spoil(*arguments: object, **options: object) -> object:
        staged = stage_into(*arguments, **options)  # type: ignore[arg-type]
        commands(server, ("SELECT", dict(plan.pairs)[3]), ("SET", "plain", "valuf"))
        return staged

    monkeypatch.setattr(load, "stage_into", spoil)
    with pytest.raises(VerificationFailed, match="database 3, key plain: its value differs"):
        live.stage(plan, source_of(backup), notebook, context_factory())
    assert content(server) == before
    assert live.roll_back(notebook, context_factory()).lines == []


def test_a_cancelled_stage_leaves_nothing(
    box: Sandbox, backup: Backup, notebook: DiskNotebook, context_factory: ContextFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, before = grown(box, {"maxmemory-policy": "allkeys-lru"})
    live = RedisLive(server.connection)
    plan = planned(live, backup, context_factory)
    token = CancelToken()
    stage_into = load.stage_into

    def cancelled(*arguments: object, **options: object) -> object:
        threading.Timer(0.05, token.cancel, ["enough"]).start()
        staged = stage_into(*arguments, **options)  # type: ignore[arg-type]
        token.wait(10)
        return staged

    monkeypatch.setattr(load, "stage_into", cancelled)
    with pytest.raises(Cancelled):
        live.stage(plan, source_of(backup), notebook, context_factory(cancel=token))
    assert content(server) == before


def test_functions_that_the_server_refuses_are_taken_back_with_everything_else(
    box: Sandbox, backup: Backup, notebook: DiskNotebook, context_factory: ContextFactory
) -> None:
    server, before = grown(box, {"appendonly": "yes"})
    live = RedisLive(server.connection)
    plan = planned(live, backup, context_factory)
    live.stage(plan, source_of(backup), notebook, context_factory())
    (notebook.directory / "redis_functions_0.json").write_text(json.dumps(["bm90IGEgbGlicmFyeQ=="]))
    with pytest.raises(StoreError, match="swap the databases"):
        live.switch(plan, notebook, context_factory())
    live.roll_back(notebook, context_factory())
    assert content(server) == before


def test_what_is_kept_loads_by_hand(
    box: Sandbox, backup: Backup, notebook: DiskNotebook, context_factory: ContextFactory, tmp_path: Path
) -> None:
    import gzip

    server, before = grown(box, {"appendonly": "yes"})
    live = RedisLive(server.connection)
    switched(live, backup, notebook, context_factory)
    live.finish(notebook, context_factory())
    raw = tmp_path / "dump.rdb"
    raw.write_bytes(gzip.decompress((notebook.directory / "redis_kept_0.rdb.gz").read_bytes()))
    assert content(box.redis(name="by-hand", rdb=raw)) == before


def test_a_server_that_lost_everything_in_between_is_not_called_rolled_back(
    box: Sandbox, backup: Backup, notebook: DiskNotebook, context_factory: ContextFactory
) -> None:
    server = box.redis(name="live", config=QUICK)
    grow(server)
    live = RedisLive(server.connection)
    switched(live, backup, notebook, context_factory)
    commands(server, ("FLUSHALL",))
    with pytest.raises(StoreError, match="holds nothing"):
        live.roll_back(notebook, context_factory())


def test_staged_data_without_their_marker_are_left_for_people(
    box: Sandbox, backup: Backup, notebook: DiskNotebook, context_factory: ContextFactory
) -> None:
    server = box.redis(name="live", config=QUICK)
    live = RedisLive(server.connection)
    plan = planned(live, backup, context_factory)
    live.stage(plan, source_of(backup), notebook, context_factory())
    commands(server, ("SELECT", plan.ledger), ("DEL", STAGED))
    with pytest.raises(Refused, match="nothing is staged"):
        live.switch(plan, notebook, context_factory())
    with pytest.raises(StoreError, match="cannot be told"):
        live.roll_back(notebook, context_factory())


def test_a_switch_that_cannot_be_made_durable_fails_and_is_rolled_back(
    box: Sandbox, backup: Backup, notebook: DiskNotebook, context_factory: ContextFactory
) -> None:
    server, before = grown(box, {"save": "3600 100000"})
    live = RedisLive(server.connection, sync_mode="socket")
    plan = planned(live, backup, context_factory)
    live.stage(plan, source_of(backup), notebook, context_factory())
    # Its directory takes no new file any more: what it would save is lost at the next restart.
    data = server.directory / "data"
    data.chmod(0o500)
    with pytest.raises(StoreError, match="BGSAVE failed"):
        live.switch(plan, notebook, context_factory())
    data.chmod(0o700)
    commands(server, ("BGSAVE",))
    wait_until(lambda: b"rdb_last_bgsave_status:ok" in commands(server, ("INFO", "persistence"))[0], 30)
    live.roll_back(notebook, context_factory())
    assert content(server) == before


def _small_disk(place: Path, size: int) -> bool:
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=0777", "tmpfs", str(place)]
    return os.geteuid() == 0 and run(command, check=False).returncode == 0


def test_a_disk_that_fills_while_data_come_in_leaves_the_served_data_alone(
    box: Sandbox, backup: Backup, notebook: DiskNotebook, context_factory: ContextFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Path("/var/tmp") / f"small-{tmp_path.name}-{os.getpid()}"  # noqa: S108 - the servers' account must reach it
    if not _small_disk(disk, 400_000):
        disk.rmdir()
        pytest.skip("needs a file system of its own, which only root can mount")
    server = box.redis(name="live", config={**QUICK, "appendonly": "yes", "dir": str(disk), "auto-aof-rewrite-percentage": "0"})
    try:
        grow(server)
        before = content(server)
        live = RedisLive(server.connection, sync_mode="socket")
        plan = live.plan(source_of(backup), context_factory())
        assert "disk of the Redis server" in plan.objections[0].message
        unaware = plan.model_copy(update={"objections": ()})
        monkeypatch.setattr("scholaria_ops.stores.redis.live.budget.local_process", lambda *_: None)
        filler = disk / "filler"
        filler.write_bytes(b"x" * (shutil.disk_usage(disk).free - 8192))
        with pytest.raises(StoreError, match="No space left"):
            live.stage(unaware, source_of(backup), notebook, context_factory())
        assert commands(server, ("GET", "counter"))[0] == b"43"
        filler.unlink()
        wait_until(lambda: b"aof_last_write_status:ok" in commands(server, ("INFO", "persistence"))[0], 30)
        live.roll_back(notebook, context_factory())
        assert content(server) == before
    finally:
        server.kill()
        run(["umount", str(disk)])
        disk.rmdir()
