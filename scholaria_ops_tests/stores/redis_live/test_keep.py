"""What was served before, as a file: the same keys whichever way they are read out, and never one that loads as something else."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scholaria_ops.errors import Refused, StoreError, VerificationFailed
from scholaria_ops.sandbox.redis import RedisServer
from scholaria_ops.sandbox.sandbox import Sandbox
from scholaria_ops.stores.redis.live import RedisLive, extract, keep
from scholaria_ops.stores.redis.live.classes import scan
from scholaria_ops.stores.redis.live.journal import Journal, Kept
from scholaria_ops.stores.redis.live.staging import measured
from scholaria_ops.stores.redis.rdb import RdbWriter
from scholaria_ops.stores.redis.wire import Wire, connect
from scholaria_ops_tests.conftest import ContextFactory
from scholaria_ops_tests.stores.redis_live.support import QUICK, DiskNotebook, content, grow, switched
from scholaria_ops_tests.stores.redis_support import DAY_MS, Backup, commands, fields_expire, fill, now_ms

#: Lengths at which an RDB writes them in another form.
LENGTHS = (0, 1, 63, 64, 255, 16_383, 16_384, 70_000)


@pytest.fixture
def server(box: Sandbox) -> RedisServer:
    """A live server with every type of key, in every form that an RDB knows for them; nothing of it is in the set but what was filled."""
    live = box.redis(name="live", config={**QUICK, "appendonly": "yes"})
    fill(live)
    grow(live)
    for n in LENGTHS:
        commands(live, ("SET", f"long {n}", "v" * n), ("SET", "k" * max(n, 1), "x", "PXAT", now_ms() + DAY_MS))
    commands(live, ("SADD", "numbers", *(str(i) for i in range(400))), ("RPUSH", "long list", *("item " * 50 + str(i) for i in range(500))))
    commands(live, ("HSET", "table", *(part for i in range(700) for part in (f"field {i}", f"value {i}"))))
    commands(live, ("ZADD", "ranks", *(part for i in range(300) for part in (str(i / 7), f"member {i}"))), ("PFADD", "visitors", "a", "b"))
    if fields_expire(live):
        commands(live, ("HPEXPIREAT", "table", str(now_ms() + DAY_MS), "FIELDS", "2", "field 1", "field 2"))
    return live


def finished(server: RedisServer, backup: Backup, notebook: DiskNotebook, context_factory: ContextFactory) -> RedisLive:
    live = RedisLive(server.connection)
    switched(live, backup, notebook, context_factory)
    live.finish(notebook, context_factory())
    return live


def by_hand(box: Sandbox, notebook: DiskNotebook, tmp_path: Path) -> RedisServer:
    """A server that has loaded the file as an operator would."""
    raw = tmp_path / "dump.rdb"
    raw.write_bytes(gzip.decompress((notebook.directory / "redis_kept_0.rdb.gz").read_bytes()))
    return box.redis(name="by-hand", rdb=raw)


def test_every_key_is_kept_and_goes_back_without_an_rdb_of_the_live_server(
    box: Sandbox, server: RedisServer, backup: Backup, notebook: DiskNotebook, context_factory: ContextFactory, tmp_path: Path
) -> None:
    before = content(server)
    with connect(server.connection) as wire:
        forks = forks_of(wire)
        live = finished(server, backup, notebook, context_factory)
        assert forks_of(wire) == forks
    assert content(by_hand(box, notebook, tmp_path)) == before
    live.undo(notebook, context_factory())
    assert content(server) == before


def forks_of(wire: Any) -> str:
    (line,) = [line for line in wire.call("INFO", "stats").decode().splitlines() if line.startswith("total_forks:")]
    return str(line)


def test_a_value_that_is_too_large_to_come_as_one_is_kept_all_the_same(
    server: RedisServer,
    backup: Backup,
    notebook: DiskNotebook,
    context_factory: ContextFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = content(server)
    monkeypatch.setattr(extract, "MAX_VALUE", 60_000)
    with connect(server.connection) as wire:
        forks = forks_of(wire)
        live = finished(server, backup, notebook, context_factory)
        assert forks_of(wire) != forks, "the live server has made an RDB"
    live.undo(notebook, context_factory())
    assert content(server) == before


def test_a_key_that_a_scan_returns_twice_is_kept_once(
    server: RedisServer, backup: Backup, notebook: DiskNotebook, context_factory: ContextFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def twice(*arguments: Any, **named: Any) -> Iterator[list[bytes]]:
        for keys in scan(*arguments, **named):
            yield [*keys, keys[0]]

    before = content(server)
    monkeypatch.setattr(extract, "scan", twice)
    live = finished(server, backup, notebook, context_factory)
    live.undo(notebook, context_factory())
    assert content(server) == before


def test_a_database_whose_keys_expire_while_they_are_read_out_is_none(
    server: RedisServer, backup: Backup, notebook: DiskNotebook, context_factory: ContextFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server still counts them when it is asked how many there are, and has none when it is asked for their names."""
    commands(server, ("SELECT", "7"), ("SET", "fleeting", "1"))
    live = RedisLive(server.connection)
    switched(live, backup, notebook, context_factory)

    def expired(wire: Wire, *rest: Any, **named: Any) -> Iterator[list[bytes]]:
        if wire.call("EXISTS", "fleeting"):
            wire.call("PEXPIRE", "fleeting", "-1")
        return scan(wire, *rest, **named)

    monkeypatch.setattr(extract, "scan", expired)
    live.finish(notebook, context_factory())
    kept = Journal(notebook).kept
    assert kept is not None
    assert set(kept.keys) == {0, 3, 5}


def test_a_key_that_does_not_come_leaves_everything_in_the_server(
    server: RedisServer, backup: Backup, notebook: DiskNotebook, context_factory: ContextFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def all_but_one(*arguments: Any, **named: Any) -> Iterator[list[bytes]]:
        batches = scan(*arguments, **named)
        yield next(batches)[1:]
        yield from batches

    before = content(server)
    live = RedisLive(server.connection)
    switched(live, backup, notebook, context_factory)
    with monkeypatch.context() as patch:
        patch.setattr(extract, "scan", all_but_one)
        with pytest.raises(StoreError, match=r"holds \d+ keys, \d+ could be read out"):
            live.finish(notebook, context_factory())
    live.roll_back(notebook, context_factory())
    assert content(server) == before


@pytest.mark.parametrize("damage", ["value", "expiry", "payload"])
def test_a_file_that_loads_as_something_else_is_not_believed(
    server: RedisServer,
    backup: Backup,
    notebook: DiskNotebook,
    context_factory: ContextFactory,
    monkeypatch: pytest.MonkeyPatch,
    damage: str,
) -> None:
    string, payload = RdbWriter.string, RdbWriter.payload

    def other_string(self: RdbWriter, key: bytes, value: bytes, expiry: int) -> None:
        string(self, key, value[:-1] + b"?" if damage == "value" else value, expiry + 1 if damage == "expiry" and expiry > 0 else expiry)

    def other_payload(self: RdbWriter, key: bytes, found: bytes, expiry: int) -> None:
        payload(self, key, found.replace(b"abc", b"abX") if damage == "payload" else found, expiry)

    live = RedisLive(server.connection)
    commands(server, ("RPUSH", "short", "abc"))  # too short to be compressed
    before = content(server)
    switched(live, backup, notebook, context_factory)
    with monkeypatch.context() as patch:
        patch.setattr(RdbWriter, "string", other_string)
        patch.setattr(RdbWriter, "payload", other_payload)
        with pytest.raises(VerificationFailed, match="loads as something else"):
            live.finish(notebook, context_factory())
    assert live.finish(notebook, context_factory()), "it is written anew"
    live.undo(notebook, context_factory())
    assert content(server) == before


def test_what_was_kept_with_evidence_of_its_own_is_compared_with_that(
    server: RedisServer, backup: Backup, notebook: DiskNotebook, context_factory: ContextFactory
) -> None:
    """As restores of earlier versions have kept it: no numbers in the notebook, but a file of evidence."""
    before = content(server)
    live = finished(server, backup, notebook, context_factory)
    journal = Journal(notebook)
    kept = journal.kept
    assert kept is not None
    ctx = context_factory()
    with keep.opened(kept, journal, ctx, databases=16) as scratch:
        evidence = measured(scratch, journal.get_evidence(journal.baseline), ctx, like=None)
    assert evidence.per_database() == kept.keys
    other = evidence.model_copy(update={"keys": evidence.keys[1:]})
    for name, told in (("redis_kept_0.json", evidence), ("redis_kept_other.json", other)):
        journal.put_evidence(name, told)
    notebook.write(kept=Kept(artifact=kept.artifact, evidence="redis_kept_other.json").model_dump(mode="json"))
    with pytest.raises(Refused, match="what was kept cannot be used"):
        live.undo(notebook, context_factory())
    notebook.write(kept=Kept(artifact=kept.artifact, evidence="redis_kept_0.json").model_dump(mode="json"))
    live.undo(notebook, context_factory())
    assert content(server) == before
