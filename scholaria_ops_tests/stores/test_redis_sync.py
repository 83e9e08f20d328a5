"""The replication stream: exact whatever the network does to it, and nothing at all when it breaks off."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from scholaria_ops.cancel import CancelToken
from scholaria_ops.errors import OpsError, Refused, StoreError, StoreUnavailable, VerificationFailed
from scholaria_ops.sandbox.sandbox import Sandbox
from scholaria_ops.sandbox.tools import Tools
from scholaria_ops.stores.redis.info import ServerInfo
from scholaria_ops.stores.redis.sync import NotStarted, RdbStream, Replica, choose_form
from scholaria_ops_tests.conftest import ContextFactory
from scholaria_ops_tests.stores.redis_support import Backup, Script, commands, cutting_proxy, fill, scripted, take

MARK = b"1f0e9b7c5d3a2846f1e0d9c8b7a695847362514f"
#: Not a real RDB, but one that holds what could be mistaken for an end: pieces of the mark, newlines, dollars.
RDB = b"REDIS0012" + b"\n$EOF:" + MARK[:39] + b"\r\n" + bytes(range(256)) * 3 + MARK[:20] + MARK[:39] + b"\xff" + b"\x00" * 8


def stream(*blocks: bytes) -> tuple[bytes, RdbStream]:
    found = RdbStream()
    return b"".join(piece for block in blocks for piece in found.feed(block)), found


def by_socket(rdb: bytes = RDB) -> bytes:
    return b"$EOF:" + MARK + b"\r\n" + rdb + MARK


def by_disk(rdb: bytes = RDB) -> bytes:
    return b"$%d\r\n" % len(rdb) + rdb


@pytest.mark.parametrize("reply", [by_socket(), by_disk()], ids=["socket", "disk"])
def test_f28_stream_is_exact_when_split_at_every_offset(reply: bytes) -> None:
    for at in range(len(reply) + 1):
        rdb, found = stream(reply[:at], reply[at:])
        assert rdb == RDB, f"split at {at}"
        assert found.finished


@pytest.mark.parametrize("reply", [by_socket(), by_disk()], ids=["socket", "disk"])
@pytest.mark.parametrize("size", [1, 2, 39, 40, 41])
def test_f28_stream_is_exact_in_blocks_of_any_size(reply: bytes, size: int) -> None:
    rdb, found = stream(*(reply[at : at + size] for at in range(0, len(reply), size)))
    assert rdb == RDB
    assert found.finished


def test_f28_mark_split_over_three_reads() -> None:
    reply = by_socket()
    for first in range(len(reply) - 45, len(reply)):
        for second in range(first, len(reply)):
            assert stream(reply[:first], reply[first:second], reply[second:])[0] == RDB


def receive(script: Script, form: Any = "socket") -> bytes:
    rdb: list[bytes] = []
    with scripted(script) as connection, Replica(connection, form, timeout_s=60, cancel=CancelToken()) as replica:
        replica.receive(rdb.append)
    return b"".join(rdb)


def test_f28_over_a_real_socket_at_every_offset_around_the_mark() -> None:
    reply = by_socket()
    for at in [*range(60), *range(len(reply) - 50, len(reply) + 1)]:
        assert receive(Script([reply[:at], reply[at:]])) == RDB, f"split at {at}"


def test_f29_newlines_before_the_length_are_tolerated() -> None:
    for reply in (by_socket(), by_disk()):
        assert stream(b"\n", b"\n\n", b"\n" + reply)[0] == RDB
        assert receive(Script([b"\n", b"\n", b"\n\n" + reply[:3], reply[3:]])) == RDB


@pytest.mark.parametrize("reply", [by_socket(), by_disk()], ids=["socket", "disk"])
def test_f30_a_stream_cut_anywhere_is_never_whole(reply: bytes) -> None:
    for at in range(len(reply)):
        assert not stream(reply[:at])[1].finished
    for at in (0, 10, 60, len(reply) // 2, len(reply) - 1):
        with pytest.raises((StoreUnavailable, NotStarted)):
            receive(Script([reply[:at]] if at else []))


@pytest.mark.parametrize("form", ["socket", "disk"])
def test_f30_connection_cut_midway_leaves_no_artifact(tools: Tools, tmp_path: Path, context_factory: ContextFactory, form: str) -> None:
    with Sandbox(tmp_path / "box", tools) as box:
        server = box.redis(config={"repl-diskless-sync-delay": "0"})
        fill(server)
        with cutting_proxy(server, after=12_000) as connection, pytest.raises(StoreUnavailable, match="broke off"):
            take(connection, context_factory(), tmp_path / "set", sync_mode=form)
        assert list((tmp_path / "set").iterdir()) == []
        assert take(server, context_factory(), tmp_path / "again", sync_mode=form).evidence.total_keys > 300


def test_a_server_that_cannot_fork_is_told_apart_from_a_broken_line() -> None:
    with pytest.raises(NotStarted, match="BGSAVE failed"):
        receive(Script([b"-ERR BGSAVE failed, replication can't continue\r\n"]))
    with pytest.raises(StoreUnavailable, match="NOMASTERLINK"):
        receive(Script([b"-NOMASTERLINK Can't SYNC while not connected with my master\r\n"]))
    with pytest.raises(Refused, match="may not run SYNC"):
        receive(Script([b"-NOPERM this user has no permissions to run the 'sync' command\r\n"]))
    with pytest.raises(StoreError, match="answered SYNC with"):
        receive(Script([b"+CONTINUE\r\n"]))


@pytest.mark.parametrize("pieces", [[b"\n"], [b"$EOF:" + MARK + b"\r\nREDIS"]], ids=["before the RDB", "within it"])
def test_a_silent_server_is_given_up_after_the_timeout(pieces: list[bytes]) -> None:
    with (
        scripted(Script(pieces, linger_s=60.0)) as connection,
        Replica(connection, "socket", timeout_s=0.3, cancel=CancelToken()) as replica,
        pytest.raises(StoreUnavailable, match=r"no (sign of life|answer)"),
    ):
        replica.receive(lambda _: None)


def test_f34_an_rdb_newer_than_the_scratch_server_is_refused_at_its_first_bytes(tmp_path: Path, context_factory: ContextFactory) -> None:
    script = Script([by_socket(b"REDIS0099" + RDB[9:])])
    with scripted(script) as connection, pytest.raises(Refused, match=r"RDB version 99.*reads up to \d+"):
        take(connection, context_factory(), tmp_path / "set")
    assert list((tmp_path / "set").iterdir()) == []


def test_what_is_no_rdb_is_no_backup(tmp_path: Path, context_factory: ContextFactory) -> None:
    for reply in (by_socket(b"HTTP/1.1 200 OK\r\n\r\n"), by_disk(RDB)):
        into = tmp_path / f"set{len(reply)}"
        with scripted(Script([reply])) as connection, pytest.raises((VerificationFailed, OpsError)):
            take(connection, context_factory(), into)
        assert list(into.iterdir()) == []


def info(config: dict[str, str] | None = None, **fields: str) -> ServerInfo:
    healthy = {"rdb_last_bgsave_status": "ok", "rdb_last_bgsave_time_sec": "0", "aof_enabled": "1", **fields}
    settings = {"save": "3600 1", "repl-diskless-sync": "yes", "repl-diskless-sync-delay": "5", **(config or {})}
    return ServerInfo(healthy, settings, (), {})


@pytest.mark.parametrize(
    ("server", "form", "why"),
    [
        (info(), "disk", "saves to its own disk anyway"),
        (info({"save": ""}), "disk", "saves to its own disk anyway"),
        (info({"save": ""}, rdb_last_bgsave_time_sec="-1"), "socket", "no save points"),
        (info({"save": ""}, aof_enabled="0"), "socket", "no save points"),
        (info({}, aof_enabled="0", rdb_last_bgsave_time_sec="-1"), "socket", "not yet shown"),
        (info({}, rdb_last_bgsave_status="err"), "socket", "last write to its own disk failed"),
        (info({}, aof_last_write_status="err"), "socket", "last write to its own disk failed"),
        (info({}, rdb_last_bgsave_time_sec="60"), "socket", "took longer"),
        (info({"repl-diskless-sync-delay": "0"}), "socket", "without delay"),
        (info({"repl-diskless-sync": "no", "save": ""}, aof_enabled="0"), "disk", "repl-diskless-sync no"),
        (ServerInfo({"aof_enabled": "1"}, None, (), {}), "socket", "cannot be read"),
    ],
)
def test_the_disk_form_is_taken_only_where_it_is_nothing_new_to_the_server(server: ServerInfo, form: str, why: str) -> None:
    chosen, reason = choose_form(server, "auto")
    assert chosen == form
    assert why in reason
    assert choose_form(server, "socket")[0] == "socket"


def test_the_disk_form_starts_at_once_and_the_socket_form_after_the_delay(
    tools: Tools, tmp_path: Path, context_factory: ContextFactory
) -> None:
    with Sandbox(tmp_path / "box", tools) as box:
        server = box.redis(config={"repl-diskless-sync-delay": "2", "save": "3600 1", "appendonly": "yes"})
        fill(server)

        def quickest(form: str, **options: str) -> Backup:
            """The first of five that nothing held up: other work on this machine may do that to one of them."""
            for number in range(5):
                backup = take(server, context_factory(), tmp_path / f"{form}-{number}", **options)
                assert backup.evidence.form == form
                if _cut_is_known(backup) and (form == "socket" or _waited(backup) < 0.9):
                    break
            return backup

        disk, socket = quickest("disk"), quickest("socket", sync_mode="socket")
    # The server counts whole seconds: a delay of two is anything from one to three.
    assert _waited(socket) > 0.9
    assert _waited(disk) < 0.9
    for backup in (disk, socket):
        assert _cut_is_known(backup), backup.evidence
        assert backup.rdb[:5] == b"REDIS"


def _waited(backup: Backup) -> float:
    """Seconds from the beginning of a dump to its cut."""
    return (backup.evidence.cut_at - backup.dump.started_at).total_seconds()


def _cut_is_known(backup: Backup) -> bool:
    """To about the 20 ms between two questions, however long the server waited; its own second agrees."""
    agrees = abs(int(backup.evidence.rdb_aux["ctime"]) - backup.evidence.cut_at.timestamp()) < 2
    return 0 <= backup.evidence.cut_uncertainty_s < 0.9 and agrees


def test_a_failed_disk_form_is_followed_by_the_socket_form(tools: Tools, tmp_path: Path, context_factory: ContextFactory) -> None:
    with Sandbox(tmp_path / "box", tools) as box:
        server = box.redis(
            config={"repl-diskless-sync-delay": "1", "save": "3600 1", "appendonly": "yes", "stop-writes-on-bgsave-error": "no"}
        )
        fill(server)
        data = server.directory / "data"
        dump = data / "dump.rdb"
        dump.unlink(missing_ok=True)
        dump.mkdir()  # the server's child cannot rename its file over a directory, whoever it runs as
        (dump / "in-the-way").touch()
        backup = take(server, context_factory(), tmp_path / "set")
        assert backup.evidence.form == "socket"
        assert "could not make an RDB" in backup.dump.warnings[0]
        with pytest.raises(StoreError, match="could not make an RDB"):
            take(server, context_factory(), tmp_path / "forced", sync_mode="disk")
        assert commands(server, ("DBSIZE",))[0] > 300
