"""Loading into a running server: exact, durable, refused where it could do harm, and by hand as RESTORE.txt says."""

from __future__ import annotations

import os
import shutil
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from scholaria_ops.cancel import CancelToken
from scholaria_ops.catalogue.evidence.redis import RedisEvidence
from scholaria_ops.connections import RedisConnection
from scholaria_ops.errors import Cancelled, Refused, StoreError, VerificationFailed
from scholaria_ops.process import end_group, process_start_time, run
from scholaria_ops.progress import Silent
from scholaria_ops.sandbox.redis import RedisServer
from scholaria_ops.sandbox.sandbox import Sandbox
from scholaria_ops.sandbox.tools import Tools
from scholaria_ops.stores.base import Loaded, Store
from scholaria_ops.stores.redis import RedisStore
from scholaria_ops.stores.redis.compare import compare
from scholaria_ops.stores.redis.load import stage_into, swap_in
from scholaria_ops.stores.redis.restore import loaded_scratch, spare_databases
from scholaria_ops.stores.redis.take import measure_running
from scholaria_ops_tests.conftest import ContextFactory, Ports
from scholaria_ops_tests.stores.redis_support import LIBRARY, Backup, commands, failed, fill, now_ms, take, wait_until


@pytest.fixture
def box(tools: Tools, tmp_path: Path) -> Iterator[Sandbox]:
    with Sandbox(tmp_path / "box", tools) as opened:
        yield opened


@pytest.fixture
def source(box: Sandbox) -> RedisServer:
    server = box.redis(name="source", config={"repl-diskless-sync-delay": "0"})
    fill(server)
    return server


@pytest.fixture
def backup(source: RedisServer, tmp_path: Path, context_factory: ContextFactory) -> Backup:
    return take(source, context_factory(), tmp_path / "set")


def load(backup: Backup, target: RedisServer, context_factory: ContextFactory) -> Loaded:
    return backup.store.load(backup.directory, backup.dump.artifacts, backup.evidence, target, context_factory())


def losses(backup: Backup, target: RedisServer, context_factory: ContextFactory) -> list[str]:
    found = backup.store.probe(target, backup.evidence, context_factory())
    return [str(d) for d in backup.store.compare(backup.evidence, found) if d.severity == "loss"]


def test_the_store_keeps_the_seam_s_promises_by_type(source: RedisServer) -> None:
    store: Store[RedisEvidence, RedisServer] = RedisStore(source.connection)
    assert store.name == "redis"
    assert store.where == source.connection.where


@pytest.mark.parametrize("crash", [False, True], ids=["restart", "SIGKILL"])
def test_f36_restored_data_are_served_also_after_a_restart(
    box: Sandbox, backup: Backup, context_factory: ContextFactory, crash: bool
) -> None:
    target = box.redis(name="target", config={"appendonly": "yes", "appendfsync": "everysec"})
    loaded = load(backup, target, context_factory)
    assert loaded.warnings == ()
    assert set(loaded.seconds) >= {"unpack", "load", "stage", "swap", "durable"}
    assert losses(backup, target, context_factory) == []
    if crash:
        target.kill()
        target.start()
    else:
        target.restart()
    assert losses(backup, target, context_factory) == []
    assert commands(target, ("SELECT", 3), ("GET", "plain"))[1] == b"value"
    assert commands(target, ("FCALL", "f", 0))[0] == 1


def test_save_points_make_a_load_durable_too(box: Sandbox, backup: Backup, context_factory: ContextFactory) -> None:
    target = box.redis(name="target", config={"save": "3600 1000000"})
    assert load(backup, target, context_factory).warnings == ()
    target.kill()
    target.start()
    assert losses(backup, target, context_factory) == []


def test_a_target_that_keeps_nothing_is_said_to(box: Sandbox, backup: Backup, context_factory: ContextFactory) -> None:
    target = box.redis(name="target")
    assert "a restart loses everything" in load(backup, target, context_factory).warnings[0]
    assert losses(backup, target, context_factory) == []


def test_f39_functions_come_back(box: Sandbox, backup: Backup, context_factory: ContextFactory) -> None:
    target = box.redis(name="target")
    commands(target, ("FUNCTION", "LOAD", LIBRARY.replace("lib", "old").replace("'f'", "'g'")))
    load(backup, target, context_factory)
    libraries = commands(target, ("FUNCTION", "LIST"))[0]
    assert [dict(zip(entry[::2], entry[1::2], strict=True))[b"library_name"] for entry in libraries] == [b"lib"]


def test_f37_keys_that_expire_meanwhile_are_not_reported_as_loss(
    box: Sandbox, source: RedisServer, tmp_path: Path, context_factory: ContextFactory
) -> None:
    for patience_ms in (1500, 6000, 24_000):  # they are to expire after the load, however long that takes here
        soon = now_ms() + patience_ms
        commands(source, *(("SET", f"soon:{i}", i, "PXAT", soon) for i in range(100)))
        backup = take(source, context_factory(), tmp_path / f"set-{patience_ms}")
        target = box.redis(name=f"target-{patience_ms}")
        load(backup, target, context_factory)
        if now_ms() < soon:
            break
    assert losses(backup, target, context_factory) == []
    time.sleep(max(0.0, soon / 1000 - time.time()) + 0.1)
    found = backup.store.probe(target, backup.evidence, context_factory())
    differences = backup.store.compare(backup.evidence, found)
    assert [d.severity for d in differences] == ["note"]
    assert 1 <= int(differences[0].found.split()[0]) <= 100  # the server removes them little by little
    # The artifact itself is still judged exactly, expired keys included.
    assert failed(backup.check(context_factory())) == []
    # And what has not expired must still be there.
    commands(target, ("DEL", "embedding_cache:ns:3"))
    assert any("embedding_cache" in loss for loss in losses(backup, target, context_factory))


def test_pending_entries_of_deleted_messages_survive(
    box: Sandbox, source: RedisServer, tmp_path: Path, context_factory: ContextFactory
) -> None:
    commands(source, ("SELECT", 3), ("XDEL", "events", "1-1"))
    backup = take(source, context_factory(), tmp_path / "set")
    target = box.redis(name="target", config={"appendonly": "yes"})
    load(backup, target, context_factory)
    assert losses(backup, target, context_factory) == []
    assert commands(target, ("SELECT", 3), ("XPENDING", "events", "workers"))[1][0] == 2


def test_an_emptied_or_changed_target_is_found_by_the_probe(box: Sandbox, backup: Backup, context_factory: ContextFactory) -> None:
    target = box.redis(name="target")
    load(backup, target, context_factory)
    commands(target, ("SETRANGE", "embedding_cache:ns:1", 5, "x"))
    assert len(losses(backup, target, context_factory)) == 1
    commands(target, ("FLUSHALL",))
    assert len(losses(backup, target, context_factory)) >= 8


def test_f16_a_target_that_holds_anything_is_refused_untouched(box: Sandbox, backup: Backup, context_factory: ContextFactory) -> None:
    target = box.redis(name="target")
    commands(target, ("SELECT", 9), ("SET", "precious", "1"))
    with pytest.raises(Refused, match=r"not empty \(database 9: 1 keys\)"):
        load(backup, target, context_factory)
    assert commands(target, ("DBSIZE",), ("SELECT", 9), ("GET", "precious")) == [0, b"OK", b"1"]


def test_f34_a_newer_rdb_is_refused_before_the_target_is_touched(box: Sandbox, backup: Backup, context_factory: ContextFactory) -> None:
    target = box.redis(name="target")
    newer = backup.evidence.model_copy(update={"rdb_version": 99, "server_version": "42.0"})
    with pytest.raises(Refused, match=r"42\.0 \(RDB version 99\).*7\.\d+\.\d+"):
        backup.store.load(backup.directory, backup.dump.artifacts, newer, target, context_factory())
    assert commands(target, ("DBSIZE",)) == [0]


def test_a_target_with_too_few_databases_or_too_little_memory_is_refused(
    box: Sandbox, backup: Backup, context_factory: ContextFactory
) -> None:
    with pytest.raises(Refused, match="keys in database 3"):
        load(backup, box.redis(name="few", config={"databases": "2"}), context_factory)
    small = box.redis(name="small", config={"maxmemory": "200kb", "maxmemory-policy": "allkeys-lru"})
    with pytest.raises(Refused, match="maxmemory 204,800"):
        load(backup, small, context_factory)


def test_a_target_that_runs_out_of_memory_fails_the_load(box: Sandbox, backup: Backup, context_factory: ContextFactory) -> None:
    target = box.redis(name="target", config={"maxmemory": "1mb", "maxmemory-policy": "noeviction"})
    modest = backup.evidence.model_copy(update={"used_memory_bytes": 1000})
    with pytest.raises(StoreError, match="OOM command not allowed"):
        backup.store.load(backup.directory, backup.dump.artifacts, modest, target, context_factory())


def test_evicted_keys_fail_the_load(box: Sandbox, backup: Backup, context_factory: ContextFactory) -> None:
    (line,) = (x for x in commands(box.redis(name="idle"), ("INFO", "memory"))[0].splitlines() if x.startswith(b"used_memory:"))
    limit = int(line.partition(b":")[2]) + 100_000
    target = box.redis(name="target", config={"maxmemory": str(limit), "maxmemory-policy": "allkeys-lru"})
    modest = backup.evidence.model_copy(update={"used_memory_bytes": 1000})
    with pytest.raises(StoreError, match=r"evicted \d+ keys"):
        backup.store.load(backup.directory, backup.dump.artifacts, modest, target, context_factory())


def test_a_damaged_artifact_never_reaches_the_target(box: Sandbox, backup: Backup, context_factory: ContextFactory) -> None:
    target = box.redis(name="target")
    backup.spoil(backup.rdb.replace(b"answer 1", b"answer 2", 1), honest=False)
    with pytest.raises(VerificationFailed):
        load(backup, target, context_factory)
    backup.spoil(backup.rdb, honest=True)
    with pytest.raises(VerificationFailed, match="cannot load the RDB"):
        load(backup, target, context_factory)
    assert commands(target, ("DBSIZE",)) == [0]


def test_staging_beside_live_data_and_swapping(box: Sandbox, backup: Backup, context_factory: ContextFactory) -> None:
    """What a restore of a live server does: nothing of its data changes until the swap, and the swap is one instant."""
    # Synchronously: with every second's fsync, a write to the file may be put off by two seconds where the disk is busy.
    live = box.redis(name="live", config={"appendonly": "yes", "appendfsync": "always", "repl-diskless-sync-delay": "0"})
    commands(live, ("SET", "old", "0"), ("SELECT", 3), ("SET", "old", "3"))
    mapping = {0: 10, 3: 11}
    ctx = context_factory()
    with loaded_scratch(backup.directory / backup.artifact.path, backup.artifact, ctx, databases=16) as scratch:
        staged = stage_into(live.connection, scratch, mapping, ctx, timeout_s=20, streams_in=[3])
    assert staged.keys == 330
    assert commands(live, ("GET", "old"), ("DBSIZE",), ("SELECT", 3), ("GET", "old")) == [b"0", 1, b"OK", b"3"]
    found = measure_running(
        live.connection, backup.evidence, context_factory(), form="socket", timeout_s=20, renumber={10: 0, 11: 3, 0: 100, 3: 103}
    )
    staged_only = found.model_copy(
        update={"keys": tuple(row for row in found.keys if row.db < 100), "functions": backup.evidence.functions}
    )
    assert [d for d in compare(backup.evidence, staged_only) if d.severity == "loss"] == []
    assert swap_in(live.connection, mapping, ctx, timeout_s=60) < 10
    assert commands(live, ("EXISTS", "old"), ("DBSIZE",), ("SELECT", 10), ("GET", "old")) == [0, 328, b"OK", b"0"]
    live.kill()
    live.start()
    assert commands(live, ("DBSIZE",), ("SELECT", 10), ("GET", "old")) == [328, b"OK", b"0"]


def test_staging_into_a_filled_database_is_refused(box: Sandbox, backup: Backup, context_factory: ContextFactory) -> None:
    live = box.redis(name="live")
    commands(live, ("SELECT", 11), ("SET", "old", "0"))
    ctx = context_factory()
    with loaded_scratch(backup.directory / backup.artifact.path, backup.artifact, ctx, databases=16) as scratch:
        with pytest.raises(Refused, match=r"not empty \(11: 1 keys\)"):
            stage_into(live.connection, scratch, {0: 10, 3: 11}, ctx, timeout_s=20)
        with pytest.raises(Refused, match="no database of the target"):
            stage_into(live.connection, scratch, {0: 10}, ctx, timeout_s=20)
    assert commands(live, ("SELECT", 10), ("DBSIZE",)) == [b"OK", 0]


def test_databases_may_be_renumbered_crosswise(box: Sandbox, backup: Backup, context_factory: ContextFactory) -> None:
    live = box.redis(name="live")
    ctx = context_factory()
    with loaded_scratch(backup.directory / backup.artifact.path, backup.artifact, ctx, databases=16) as scratch:
        stage_into(live.connection, scratch, {0: 3, 3: 0}, ctx, timeout_s=20)
    assert commands(live, ("GET", "plain"), ("SELECT", 3), ("GET", "counter")) == [b"value", b"OK", b"42"]


def test_staging_uses_the_highest_free_databases(backup: Backup, box: Sandbox) -> None:
    from scholaria_ops.stores.redis.info import ServerInfo

    assert spare_databases({0: 1, 3: 1}, ServerInfo({}, {"databases": "16"}, (), {})) == {0: 15, 3: 14}
    assert spare_databases({0: 1, 1: 1}, ServerInfo({}, {"databases": "3"}, (), {})) == {0: 0, 1: 1}


def test_f83_cancelling_a_load_ends_it(box: Sandbox, backup: Backup, context_factory: ContextFactory) -> None:
    token = CancelToken()

    class StopWhenStaging(Silent):
        def start(self, task: str, *, total: int | None = None, unit: str = "bytes") -> None:
            if task == "redis: load":
                token.cancel("SIGTERM")

    ctx = context_factory(cancel=token, progress=StopWhenStaging())
    target = box.redis(name="target")
    with pytest.raises(Cancelled):
        backup.store.load(backup.directory, backup.dump.artifacts, backup.evidence, target, ctx)
    assert list(ctx.scratch.iterdir()) == []


def test_f36_restore_txt_works_word_by_word_on_a_server_with_an_append_only_file(
    tools: Tools, backup: Backup, tmp_path: Path, context_factory: ContextFactory, hold_port: Ports
) -> None:
    home = tmp_path / "by-hand"
    home.mkdir()
    port = hold_port()
    conf = home / "redis.conf"
    conf.write_text(f"port {port}\nbind 127.0.0.1\ndir {home}\nappendonly yes\nsave 3600 1\npidfile {home}/redis.pid\nlogfile {home}/log\n")
    connection = RedisConnection(host="127.0.0.1", port=port)
    env = {"PATH": f"{tools.require_redis().parent}:{os.environ['PATH']}"}

    def start() -> None:
        run(["redis-server", str(conf), "--daemonize", "yes"], env=env, cwd=home)
        wait_until(lambda: _answers(connection))

    def stop() -> None:
        pid = int((home / "redis.pid").read_text())
        end_group(pid, process_start_time(pid))

    start()
    commands(connection, ("SET", "old", "1"))
    stop()
    try:
        run(["bash", "-euo", "pipefail", "-c", _commands_of(backup, home, conf, port)], env=env, cwd=backup.directory, timeout_s=60)
        start()
        found = measure_running(connection, backup.evidence, context_factory(), form="disk", timeout_s=20)
        assert [d for d in compare(backup.evidence, found) if d.severity == "loss"] == []
        assert (home / "before-restore" / "appendonlydir").is_dir()
    finally:
        stop()
    shutil.rmtree(home)


def _answers(connection: RedisConnection) -> bool:
    try:
        commands(connection, ("PING",))
    except StoreError:
        return False
    return True


def _commands_of(backup: Backup, home: Path, conf: Path, port: int) -> str:
    """The indented lines of RESTORE.txt, the last one aside (it looks at the server that is started as usual)."""
    text = backup.store.manual_restore(backup.dump.artifacts)
    lines = [line[4:] for line in text.splitlines() if line.startswith("    ")]
    script = textwrap.dedent("\n".join(lines[:-1]))
    for name, value in (
        ("REDIS_DIR=/var/lib/redis", f"REDIS_DIR={home}"),
        ("/etc/redis/redis.conf", str(conf)),
        ("PORT=6379", f"PORT={port}"),
    ):
        assert name in script
        script = script.replace(name, value)
    return script
