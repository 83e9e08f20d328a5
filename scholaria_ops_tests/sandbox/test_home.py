"""The sandbox's own directories: private, marked before they are used, reachable by the servers only."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from scholaria_ops.errors import SandboxError
from scholaria_ops.sandbox.home import MARKER, Home, Marker, homes
from scholaria_ops.sandbox.identity import Account, may_execute, may_traverse, server_account
from scholaria_ops.sandbox.sandbox import Sandbox
from scholaria_ops.sandbox.tools import Tools


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home.create(tmp_path / "base", "room", server_account())


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_f86_directories_and_files_are_private_whatever_the_umask(tools: Tools, tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with Sandbox(tmp_path / "base", tools) as box:
            servers = (box.postgres(), box.redis(), box.qdrant())
            assert mode(box.base) == 0o700
            assert mode(box.directory) == 0o700
            files = [p for p in box.directory.iterdir() if p.is_file()]
            for server in servers:
                assert mode(server.directory) == 0o700
                files += [server.log, *server.directory.glob("*.conf"), *server.directory.glob("*.yaml")]
            assert {mode(p) for p in files} == {0o600}
            assert mode(servers[0].directory.parent) in {0o700, 0o710}
    finally:
        os.umask(before)


def test_the_marker_tells_who_made_it_and_can_be_read_back(home: Home) -> None:
    marker = Marker.read(home.directory)
    assert marker == home.marker
    assert marker is not None
    assert marker.owner.pid == os.getpid()
    assert not marker.owner.dead
    assert [h.directory for h in homes(home.directory.parent)] == [home.directory]
    home.remove()
    assert not home.data.exists()


def test_a_marker_is_locked_while_its_owner_lives(home: Home) -> None:
    other = Home.open(home.directory)
    assert other is not None
    assert not other.take_over()
    home.release()
    assert other.take_over()
    other.remove()


def test_keeping_rewrites_the_marker_whole(home: Home) -> None:
    size = (home.directory / MARKER).stat().st_size
    home.keep(None)
    assert (home.directory / MARKER).stat().st_size == size
    found = Marker.read(home.directory)
    assert found is not None
    assert found.kept
    home.remove()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"format": 1}'])
def test_a_damaged_marker_makes_a_directory_not_ours(home: Home, content: bytes) -> None:
    good = (home.directory / MARKER).read_bytes()
    (home.directory / MARKER).write_bytes(content)
    assert Home.open(home.directory) is None
    (home.directory / MARKER).write_bytes(good)
    home.remove()


@pytest.mark.parametrize("label", ["", "Upper", "a/b", "..", "x" * 40])
def test_a_label_is_no_path(tmp_path: Path, label: str) -> None:
    with pytest.raises(SandboxError, match="label"):
        Home.create(tmp_path, label, server_account())


def test_what_others_may_reach_is_judged_by_mode_bits(tmp_path: Path) -> None:
    account = Account("nobody", 65534, 65534)
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    assert not may_traverse(closed / "below", account)
    assert may_traverse(closed, None)
    assert may_traverse(Path("/usr/bin"), account)
    assert may_execute(Path("/bin/sh"), account)
    assert not may_execute(closed / "program", account)


def test_servers_data_can_be_put_elsewhere(tools: Tools, tmp_path: Path) -> None:
    account = server_account()
    if account is not None and not may_traverse(tmp_path, account):
        with pytest.raises(SandboxError, match="cannot be reached"), Sandbox(tmp_path, tools, data_root=tmp_path) as box:
            box.redis()
        return
    with Sandbox(tmp_path / "base", tools, data_root=tmp_path) as box:
        assert box.redis().directory.is_relative_to(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["base"]


@pytest.fixture
def open_dir() -> Iterator[Path]:
    """A directory that every account may reach, with a name that wants quoting everywhere."""
    top = Path(tempfile.mkdtemp())
    top.chmod(0o711)
    odd = top / "odd 'name', \"quoted\" \\ 한글"
    odd.mkdir(mode=0o711)
    odd.chmod(0o711)
    yield odd
    shutil.rmtree(top)


@pytest.mark.parametrize("tcp", [True, False], ids=["tcp", "socket"])
def test_paths_that_want_quoting_are_quoted(tools: Tools, tmp_path: Path, open_dir: Path, tcp: bool) -> None:
    with Sandbox(tmp_path, tools, data_root=open_dir) as box:
        pg, rd, qd = box.postgres(tcp=tcp), box.redis(tcp=tcp), box.qdrant()
        assert pg.directory.is_relative_to(open_dir)
        assert pg.version.startswith("1")
        assert rd.version
        assert qd.version
    assert list(open_dir.iterdir()) == []


def test_everything_works_without_privileges(tools: Tools) -> None:
    """As root this runs in a child that has given root up for good; otherwise the whole suite is the proof."""
    base = Path(tempfile.mkdtemp())
    account = server_account()
    if account is not None:
        os.chown(base, account.uid, account.gid)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        with os.fdopen(writing, "w") as out:
            try:
                if account is not None:
                    os.setgroups([])
                    os.setresgid(account.gid, account.gid, account.gid)
                    os.setresuid(account.uid, account.uid, account.uid)
                out.write(_use_all_servers(base, tools))
            except BaseException as exc:  # noqa: BLE001 - reported to the parent, which fails
                out.write(repr(exc))
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as answers:
        told = answers.read()
    os.waitpid(child, 0)
    left = list(base.iterdir())
    shutil.rmtree(base)
    assert told == "fine"
    assert left == []


def _use_all_servers(base: Path, tools: Tools) -> str:
    with Sandbox(base, tools) as box:
        servers = (box.postgres(), box.redis(), box.qdrant())
        wrong = [s.name for s in servers if not s.directory.is_relative_to(box.directory)]
        versions = [s.version for s in servers]
        servers[0].restart()
    return "fine" if not wrong and all(versions) else f"{wrong} {versions}"
