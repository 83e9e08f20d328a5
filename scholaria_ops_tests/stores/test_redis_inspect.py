"""Reading an RDB artifact back: every kind of damage is a failed check, also when all checksums were recomputed."""

from __future__ import annotations

import gzip
import random
from dataclasses import replace
from pathlib import Path

import pytest

from scholaria_ops.sandbox.sandbox import Sandbox
from scholaria_ops.sandbox.tools import Tools
from scholaria_ops.stores.base import Check, Dump
from scholaria_ops.stores.redis.inspect import ARCHIVE, CONTENT, FORMAT, LOADS
from scholaria_ops_tests.conftest import ContextFactory
from scholaria_ops_tests.stores.redis_support import Backup, commands, failed, fill, take

NO_CHECKSUM = bytes(8)


@pytest.fixture
def backup(tools: Tools, tmp_path: Path, context_factory: ContextFactory) -> Backup:
    with Sandbox(tmp_path / "box", tools) as box:
        server = box.redis(config={"repl-diskless-sync-delay": "0", "rdbcompression": "no"})
        fill(server)
        # The live server is gone when this returns: no check can have asked it.
        return take(server, context_factory(), tmp_path / "set")


def unsealed(rdb: bytes) -> bytes:
    """The RDB with its checksum set to zero, which Redis loads unchecked."""
    return rdb[:-8] + NO_CHECKSUM


def without_checksum(backup: Backup) -> Backup:
    """As if the source had ``rdbchecksum no``."""
    backup.dump = replace(backup.dump, evidence=backup.evidence.model_copy(update={"rdb_checksum": False}))
    return backup


def test_a_sound_artifact_passes_every_check(backup: Backup, context_factory: ContextFactory) -> None:
    checks = backup.check(context_factory())
    assert [c.name for c in checks] == [ARCHIVE, FORMAT, LOADS, CONTENT]
    assert all(c.passed for c in checks)
    assert checks[-1].numbers["keys"] == 330


@pytest.mark.parametrize("part", [0.0, 0.1, 0.5, 0.95, 0.999])
def test_f32_a_cut_archive_fails(backup: Backup, context_factory: ContextFactory, part: float) -> None:
    path = backup.directory / backup.artifact.path
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    assert failed(backup.check(context_factory())) == [ARCHIVE]


def test_f32_one_flipped_bit_anywhere_in_the_archive_fails(backup: Backup, context_factory: ContextFactory) -> None:
    path = backup.directory / backup.artifact.path
    data = path.read_bytes()
    # Bytes 4 to 9 of the gzip header are a time, flags for people and an operating system: no content depends on them,
    # and the set's own SHA256SUMS covers them.
    places = [0, 1, 2, 3, *random.Random(7).sample(range(10, len(data)), 25), len(data) - 8, len(data) - 1]
    for at in places:
        path.write_bytes(data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :])
        assert failed(backup.check(context_factory())), f"flipped bit at {at} went unseen"


def test_bytes_behind_the_archive_fail(backup: Backup, context_factory: ContextFactory) -> None:
    path = backup.directory / backup.artifact.path
    sound = path.read_bytes()
    for more in (b"\n", gzip.compress(b"FLUSHALL\r\n"), bytes(512)):
        path.write_bytes(sound + more)
        (check,) = backup.check(context_factory())
        assert check.passed is False
        assert "behind its end" in check.detail


@pytest.mark.parametrize("part", [0.0, 0.001, 0.1, 0.5, 0.95, 0.9999])
def test_f32_a_cut_rdb_fails_though_all_digests_were_recomputed(backup: Backup, context_factory: ContextFactory, part: float) -> None:
    rdb = backup.rdb
    backup.spoil(rdb[: int(len(rdb) * part)])
    assert failed(backup.check(context_factory()))


def test_f32_flipped_bytes_fail_though_all_digests_were_recomputed(backup: Backup, context_factory: ContextFactory) -> None:
    rdb = backup.rdb
    for at in [0, 4, 5, 8, *random.Random(3).sample(range(9, len(rdb)), 12), len(rdb) - 9, len(rdb) - 1]:
        backup.spoil(rdb[:at] + bytes([rdb[at] ^ 0x01]) + rdb[at + 1 :])
        assert failed(backup.check(context_factory())), f"flipped byte at {at} went unseen"


def test_f32_a_removed_checksum_fails(backup: Backup, context_factory: ContextFactory) -> None:
    backup.spoil(unsealed(backup.rdb))
    (_, check) = backup.check(context_factory())
    assert check.passed is False
    assert "checksum was removed" in check.detail


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"answer 17", b"answer 71"),
        (b"rag_query:17", b"rag_query:71x"[:12]),
        (b"0.125, 0.125", b"0.125, 0.135"),
        (b"yesterday", b"yesterdaz"),
        (b"task 150", b"task 151"),
        (b"topic 99", b"topic 9x"),
        (b"return 1 end", b"return 2 end"),
    ],
)
def test_f32_a_changed_value_without_checksum_fails_by_its_fingerprint(
    backup: Backup, context_factory: ContextFactory, old: bytes, new: bytes
) -> None:
    # Such a file is loaded by Redis without a word: only the evidence knows better.
    without_checksum(backup)
    rdb = unsealed(backup.rdb)
    backup.spoil(rdb)
    assert failed(backup.check(context_factory())) == []
    assert old in rdb
    backup.spoil(rdb.replace(old, new, 1))
    checks = backup.check(context_factory())
    assert failed(checks) in ([CONTENT], [LOADS]), checks
    assert old != new


def test_f32_a_changed_expiry_fails(backup: Backup, context_factory: ContextFactory) -> None:
    without_checksum(backup)
    rdb = unsealed(backup.rdb)
    at = rdb.index(b"embedding_cache:ns:5") - 3  # expiry (opcode and 8 bytes), type, length of the name, name
    while rdb[at - 8] != 0xFC:
        at -= 1
    backup.spoil(rdb[: at - 7] + bytes([rdb[at - 7] ^ 1]) + rdb[at - 6 :])
    checks = backup.check(context_factory())
    assert failed(checks) == [CONTENT]
    assert "embedding_cache" in checks[-1].differences[0].what


def test_f32_a_lost_key_fails(backup: Backup, context_factory: ContextFactory, tools: Tools, tmp_path: Path) -> None:
    with Sandbox(tmp_path / "other", tools) as box:
        server = box.redis(config={"repl-diskless-sync-delay": "0"})
        commands(server, ("SET", "rag_query:1", "answer 1"))
        other = take(server, context_factory(), tmp_path / "other-set")
    backup.spoil(other.rdb)  # another server's valid RDB, honestly hashed
    checks = backup.check(context_factory())
    assert failed(checks) == [CONTENT]
    assert len(checks[-1].differences) > 5


@pytest.mark.parametrize("command", [("FLUSHALL",), ("SET", "x", "1"), ("REPLICAOF", "127.0.0.1", "1"), ("CONFIG", "SET", "dir", "/")])
def test_f32_commands_hidden_behind_the_rdb_fail(backup: Backup, context_factory: ContextFactory, command: tuple[str, ...]) -> None:
    hidden = b"*%d\r\n" % len(command) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word.encode()) for word in command)
    backup.spoil(backup.rdb + hidden)
    assert failed(backup.check(context_factory())) == [FORMAT]
    # With a last string that looks like the end of an RDB it gets as far as the scratch server, which knows better.
    ending = b"*2\r\n$4\r\nECHO\r\n$9\r\n\xff" + bytes(6)
    without_checksum(backup)
    backup.spoil(unsealed(backup.rdb[: -len(hidden)]) + hidden + ending + bytes(2))
    assert failed(backup.check(context_factory())) in ([LOADS], [CONTENT])


def test_f34_an_rdb_that_no_server_here_can_read_is_neither_good_nor_bad(backup: Backup, context_factory: ContextFactory) -> None:
    backup.dump = replace(backup.dump, evidence=backup.evidence.model_copy(update={"rdb_version": 99, "server_version": "42.0"}))
    backup.spoil(b"REDIS0099" + backup.rdb[9:])
    checks = backup.check(context_factory())
    assert failed(checks) == []
    assert [c.passed for c in checks if c.name in {LOADS, CONTENT}] == [None, None]
    assert "42.0" in checks[-1].detail


def test_without_a_redis_server_the_archive_is_still_read(backup: Backup, context_factory: ContextFactory, tools: Tools) -> None:
    ctx = context_factory(tools=replace(tools, redis_server=None))
    checks = backup.check(ctx)
    assert [c.passed for c in checks] == [True, True, None, None]
    assert "redis-server" in checks[-1].detail
    path = backup.directory / backup.artifact.path
    path.write_bytes(path.read_bytes()[:-100])
    assert failed(backup.check(context_factory(tools=ctx.tools))) == [ARCHIVE]


def test_evidence_of_another_method_is_not_judged(backup: Backup, context_factory: ContextFactory) -> None:
    backup.dump = replace(backup.dump, evidence=backup.evidence.model_copy(update={"method": "older/0"}))
    assert [c.passed for c in backup.check(context_factory())][-1] is None


def test_a_set_without_its_rdb_fails(backup: Backup, context_factory: ContextFactory) -> None:
    (backup.directory / backup.artifact.path).unlink()
    assert failed(backup.check(context_factory())) == [ARCHIVE]
    backup.dump = Dump((), backup.evidence, backup.dump.started_at, backup.dump.finished_at, {})
    checks: list[Check] = backup.check(context_factory())
    assert failed(checks) == [ARCHIVE]


def test_the_evidence_itself_is_held_to_the_artifact(backup: Backup, context_factory: ContextFactory) -> None:
    first, *rest = backup.evidence.keys
    edited = (first.model_copy(update={"keys": first.keys + 1}), *rest)
    backup.dump = replace(backup.dump, evidence=backup.evidence.model_copy(update={"keys": edited}))
    assert failed(backup.check(context_factory())) == [CONTENT]
