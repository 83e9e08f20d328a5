"""Where scratch servers work, and what they do when there is no room."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scholaria_ops.errors import DiskFull, ToolFailed
from scholaria_ops.process import run
from scholaria_ops.sandbox.qdrant import QdrantServer
from scholaria_ops.sandbox.sandbox import Sandbox
from scholaria_ops.sandbox.tools import Tools
from scholaria_ops.stores.base import Context
from scholaria_ops.stores.qdrant import QdrantStore, room, scratch
from scholaria_ops.stores.qdrant.rest import BadRequest, Rest
from scholaria_ops_tests.conftest import ContextFactory
from scholaria_ops_tests.stores.qdrant_support import fast_sandbox, seed_documents

SET_ID = "20241001_020000"


@pytest.fixture(scope="module")
def box(tools: Tools, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    with fast_sandbox(tmp_path_factory.mktemp("box"), tools) as made:
        yield made


@pytest.fixture(scope="module")
def live(box: Sandbox) -> QdrantServer:
    server = box.qdrant(name="qdrant-scratch-source")
    seed_documents(server.connection, points=400, size=1024)
    return server


def test_memory_is_used_only_while_there_is_plenty_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not os.path.ismount(room.SHARED_MEMORY):
        pytest.skip("needs /dev/shm, which is not mounted here")
    monkeypatch.setattr(room, "_free_memory", lambda: 64 << 30)
    if room.in_memory(1 << 20) is None:
        pytest.skip("needs some free space in /dev/shm")
    monkeypatch.setattr(room, "_free_memory", lambda: (3 * room.COPIES) << 20)
    assert room.in_memory(1 << 20) is None
    monkeypatch.setattr(room, "_free_memory", lambda: None)
    assert room.in_memory(1) is None, "nothing known is not plenty"
    monkeypatch.setattr(room, "_free_memory", lambda: 64 << 30)
    monkeypatch.setattr(room, "SHARED_MEMORY", tmp_path)
    assert room.in_memory(1) is None, "an ordinary directory is not memory"


def test_a_limit_of_the_container_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit, used = tmp_path / "max", tmp_path / "current"
    used.write_text("1000\n")
    monkeypatch.setattr(room, "_CGROUP_LIMITS", ((limit, used),))
    limit.write_text("5000\n")
    assert room._free_memory() == 4000
    limit.write_text("max\n")
    free = room._free_memory()
    assert free is not None
    assert free > 1 << 20


@contextlib.contextmanager
def _small_disk(directory: Path) -> Iterator[Path]:
    """A file system of 8 MB, where mounting one is allowed."""
    directory.mkdir(mode=0o755)
    try:
        run(["mount", "-t", "tmpfs", "-o", "size=8m,mode=1777", "none", str(directory)], timeout_s=10.0)
    except ToolFailed:
        directory.rmdir()
        pytest.skip("needs a file system of its own, which only root can mount")
    try:
        yield directory
    finally:
        run(["umount", "-l", str(directory)], timeout_s=10.0)
        directory.rmdir()


def _open_all(store: QdrantStore, ctx: Context, directory: Path) -> set[str]:
    taken = store.dump(directory, SET_ID, ctx)
    return {check.name for check in store.inspect(directory, taken.artifacts, taken.evidence, ctx) if not check.passed}


def test_a_scratch_server_that_finds_too_little_memory_moves_to_the_disk(
    live: QdrantServer, tmp_path: Path, context_factory: ContextFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "set").mkdir()
    with _small_disk(Path("/tmp") / f"qdrant-small-memory-{os.getpid()}") as small:  # noqa: S108 - reachable by the servers' account
        monkeypatch.setattr(room, "in_memory", lambda _: small)
        assert not _open_all(QdrantStore(live.connection), context_factory(), tmp_path / "set")
        assert not list(small.iterdir()), "nothing is left there"


def test_without_room_for_a_scratch_server_a_backup_fails_and_an_inspection_is_unjudged(
    live: QdrantServer, tmp_path: Path, context_factory: ContextFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No room says nothing about the file: never "broken"."""
    monkeypatch.setattr(room, "in_memory", lambda _: None)
    (tmp_path / "set").mkdir()
    (tmp_path / "other").mkdir()
    store = QdrantStore(live.connection)
    taken = store.dump(tmp_path / "set", SET_ID, context_factory())
    with _small_disk(Path("/tmp") / f"qdrant-small-scratch-{os.getpid()}") as small:  # noqa: S108
        cramped = context_factory(scratch=small)
        monkeypatch.setattr(scratch, "Sandbox", _in(small))
        with pytest.raises(DiskFull, match="no room for the scratch Qdrant server"):
            store.dump(tmp_path / "other", SET_ID, cramped)
        with Rest(live.connection) as rest:
            assert rest.get("/collections/scholaria_documents/snapshots") == []
        checks = {c.name: c for c in store.inspect(tmp_path / "set", taken.artifacts, taken.evidence, cramped)}
        assert checks["snapshot_structure"].passed
        assert checks["vectors"].passed is None
        assert "no room" in checks["vectors"].detail


def test_a_server_that_takes_no_file_from_its_own_directory_is_given_an_upload(
    live: QdrantServer, tmp_path: Path, context_factory: ContextFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Newer versions restrict where files may come from; the refusal here is made up, everything after it is real."""
    refused: list[str] = []
    put = Rest.put

    def restricted(self: Rest, path: str, body: Any = None, **options: Any) -> Any:
        if path.endswith("/snapshots/recover"):
            refused.append(path)
            raise BadRequest("only files in the snapshots directory")
        return put(self, path, body, **options)

    monkeypatch.setattr(Rest, "put", restricted)
    (tmp_path / "set").mkdir()
    assert not _open_all(QdrantStore(live.connection), context_factory(), tmp_path / "set")
    assert len(refused) == 2


def _in(directory: Path) -> type[Sandbox]:
    """A sandbox whose servers lie in ``directory`` also where their default would be elsewhere (as root)."""

    class Cramped(Sandbox):
        def __init__(self, base: Path, tools: Tools, **options: object) -> None:
            super().__init__(base, tools, label="cramped", data_root=directory)

    return Cramped
