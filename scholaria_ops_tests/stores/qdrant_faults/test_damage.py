"""A dump or a recovery that goes wrong under way. The servers are real; a proxy before them or a full disk makes the fault."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from scholaria_ops.catalogue.ledger import Ledger
from scholaria_ops.connections import QdrantConnection
from scholaria_ops.errors import DiskFull, Refused, StoreError, StoreUnavailable, VerificationFailed
from scholaria_ops.process import which
from scholaria_ops.sandbox.qdrant import QdrantServer
from scholaria_ops.sandbox.sandbox import Sandbox
from scholaria_ops.sandbox.tools import Tools
from scholaria_ops.stores.qdrant import QdrantStore, recover_as
from scholaria_ops.stores.qdrant.rest import NotFound, Rest, at
from scholaria_ops_tests.conftest import ContextFactory
from scholaria_ops_tests.stores.qdrant_support import (
    DOCUMENTS,
    Exchange,
    Proxy,
    drop_everything,
    envelope,
    is_download,
    is_snapshot_post,
    open_entries,
    plain_config,
    proxy,
    seed_documents,
    snapshots_left,
    store_at,
)

SET_ID = "20241001_020000"


def _cut(exchange: Exchange) -> None:
    _, headers, body = exchange.upstream()
    exchange.answer(200, body[: len(body) // 2], announce=len(body), headers=headers)
    exchange.hang_up()


def _short(exchange: Exchange) -> None:
    _, headers, body = exchange.upstream()
    exchange.answer(200, body[: len(body) // 2], headers=headers)


def _changed(exchange: Exchange) -> None:
    _, headers, body = exchange.upstream()
    changed = bytearray(body)
    changed[len(body) // 2] ^= 1
    exchange.answer(200, bytes(changed), headers=headers)


def _with_checksum(told: str) -> Callable[[Exchange], None]:
    """A server that has not written the checksum for good yet when it reads it back for its answer (Qdrant up to 1.16)."""

    def answered(exchange: Exchange) -> None:
        status, headers, body = exchange.upstream()
        exchange.answer(status, envelope({**json.loads(body)["result"], "checksum": told}), headers=headers)

    return answered


def _error_page(exchange: Exchange) -> None:
    _, _, body = exchange.upstream()
    page = b'{"status":{"error":"Not found: Snapshot"},"time":0}'
    exchange.answer(200, page.ljust(len(body)))


@pytest.mark.parametrize(
    ("fault", "error", "said"),
    [
        (_cut, StoreUnavailable, "broke off"),
        (_short, VerificationFailed, "bytes instead of"),
        (_changed, VerificationFailed, "other content"),
        (_error_page, VerificationFailed, "a saved error message"),
    ],
)
@pytest.mark.parametrize("gzip", [False, True])
def test_f45_a_download_that_is_cut_short_or_changed_fails_and_is_cleaned_up(
    before: Proxy,
    tmp_path: Path,
    context_factory: ContextFactory,
    fault: Callable[[Exchange], None],
    error: type[Exception],
    said: str,
    gzip: bool,
) -> None:
    def rule(exchange: Exchange) -> bool:
        if not is_download(exchange):
            return False
        fault(exchange)
        return True

    before.rules.append(rule)
    ctx = context_factory()
    with pytest.raises(error, match=said):
        QdrantStore(QdrantConnection(url=before.url), gzip=gzip).dump(tmp_path, SET_ID, ctx)
    assert not list(tmp_path.rglob("*.snapshot*"))
    assert open_entries(ctx) == 0


@pytest.mark.parametrize("told", ["", "e3b0c44298fc"], ids=["empty", "cut"])
def test_a_checksum_that_was_not_told_whole_is_looked_up_and_compared(
    before: Proxy, tmp_path: Path, context_factory: ContextFactory, told: str
) -> None:
    answered = _with_checksum(told)

    def rule(exchange: Exchange) -> bool:
        if damage and is_download(exchange):
            _changed(exchange)
        elif is_snapshot_post(exchange):
            answered(exchange)
        else:
            return False
        return True

    damage = False
    before.rules.append(rule)
    store = QdrantStore(QdrantConnection(url=before.url))
    taken = store.dump(tmp_path / "sound", SET_ID, context_factory())
    snapshot = taken.evidence.collections[DOCUMENTS].snapshot
    assert snapshot is not None
    assert snapshot.server_sha256 == next(a.sha256 for a in taken.artifacts if a.subject == DOCUMENTS)
    damage = True
    with pytest.raises(VerificationFailed, match="other content"):
        store.dump(tmp_path / "damaged", SET_ID, context_factory())


@pytest.fixture
def target(box: Sandbox, request: pytest.FixtureRequest) -> Iterator[QdrantServer]:
    found = box.servers.get("qdrant-fault-target")
    server = found if isinstance(found, QdrantServer) else box.qdrant(name="qdrant-fault-target")
    yield server
    drop_everything(server.connection)


def test_f49_a_target_of_an_incompatible_version_is_refused_with_both_versions(
    live: QdrantServer, target: QdrantServer, tmp_path: Path, context_factory: ContextFactory
) -> None:
    store = QdrantStore(live.connection)
    taken = store.dump(tmp_path, SET_ID, context_factory())
    for version in ("1.7.4", "1.14.1", "1.17.0"):
        evidence = taken.evidence.model_copy(update={"server_version": version})
        with pytest.raises(Refused) as refused:
            store.load(tmp_path, taken.artifacts, evidence, target, context_factory())
        assert version in str(refused.value)
        assert target.version in str(refused.value)
    with Rest(target.connection) as rest:
        assert rest.get("/collections")["collections"] == []


def test_f50_a_recovery_that_is_accepted_but_fails_is_a_failure_and_what_serves_goes_on_serving(
    live: QdrantServer, target: QdrantServer, tmp_path: Path, context_factory: ContextFactory
) -> None:
    taken = QdrantStore(live.connection).dump(tmp_path, SET_ID, context_factory())
    artifact = next(a for a in taken.artifacts if a.kind == "snapshot")
    seed_documents(target.connection, points=7)

    def accepted(exchange: Exchange) -> bool:
        if "/snapshots/upload" not in exchange.path:
            return False
        exchange.answer(202, envelope(None, "accepted"))
        return True

    with proxy(target.connection.url) as between, Rest(QdrantConnection(url=between.url)) as rest:
        beside = f"{DOCUMENTS}__{SET_ID}"
        between.rules.append(accepted)
        with pytest.raises(StoreError, match="did not recover"):
            recover_as(rest, tmp_path / artifact.path, artifact, beside, expected_points=120, ctx=context_factory(), timeout_s=30.0)
        between.rules.clear()
        with pytest.raises(StoreError, match="120 points instead of 121"):
            recover_as(rest, tmp_path / artifact.path, artifact, beside, expected_points=121, ctx=context_factory(), timeout_s=30.0)
        damaged = tmp_path / "damaged.snapshot"
        content = bytearray((tmp_path / artifact.path).read_bytes())
        content[len(content) // 3] ^= 0xFF
        damaged.write_bytes(content)
        with pytest.raises(StoreError, match=r"400.*[Cc]hecksum"):
            recover_as(rest, damaged, artifact, beside, expected_points=120, ctx=context_factory(), timeout_s=30.0)
        damaged.write_bytes(content[: len(content) // 2])
        cut = artifact.model_copy(update={"size_bytes": len(content) // 2, "sha256": _sha256(damaged)})
        with pytest.raises(StoreError):
            recover_as(rest, damaged, cut, beside, expected_points=120, ctx=context_factory(), timeout_s=30.0)
        assert [c["name"] for c in rest.get("/collections")["collections"]] == [DOCUMENTS]
        assert rest.post(at(DOCUMENTS, "points", "count"), {"exact": True})["count"] == 7
        with pytest.raises(NotFound):
            rest.get(at(beside))
    assert not snapshots_left(target.connection)
    uploaded = list((target.directory / "snapshots").rglob("*.snapshot"))
    assert not uploaded, "no copy of an upload stays behind, not even of one that failed"


def _sha256(path: Path) -> str:
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_f51_a_full_disk_of_the_server_is_told_and_nothing_is_left_behind(
    tools: Tools, tmp_path: Path, context_factory: ContextFactory
) -> None:
    """A real server whose directory for temporary files is a file system of 2 MB."""
    if which("unshare") is None or not _may_mount(tmp_path):
        pytest.skip("no private mounts here: see the test with the recorded answer")
    program = Path("/tmp") / f"qdrant-on-a-small-disk-{os.getpid()}"  # noqa: S108 - must be reachable by the servers' account
    script = f"""#!/bin/sh
[ "$1" = --version ] && exec {tools.require_qdrant()} --version
exec unshare -rm sh -c 'mount -t tmpfs -o size=2m none ./tmp && exec {tools.require_qdrant()} "$@"' qdrant "$@"
"""
    program.write_text(script)
    program.chmod(0o755)
    try:
        with Sandbox(tmp_path / "small", replace(tools, qdrant=program)) as small:
            server = small.qdrant(name="small-disk")
            seed_documents(server.connection, points=700, size=1024)
            ctx = context_factory()
            (tmp_path / "set").mkdir()
            with pytest.raises(DiskFull, match="Qdrant's own disk is full") as told:
                QdrantStore(server.connection).dump(tmp_path / "set", SET_ID, ctx)
            assert "No space left" in str(told.value)
            assert not snapshots_left(server.connection)
            assert open_entries(ctx) == 0
            with Rest(server.connection) as rest:
                assert rest.post(at(DOCUMENTS, "points", "count"), {"exact": True})["count"] == 700
    finally:
        program.unlink()


def _may_mount(directory: Path) -> bool:
    from scholaria_ops.errors import ToolFailed
    from scholaria_ops.process import run

    try:
        run(["unshare", "-rm", "mount", "-t", "tmpfs", "-o", "size=1m", "none", str(directory)], timeout_s=10.0)
    except ToolFailed:
        return False
    return True


#: Recorded from Qdrant 1.16.3 on a full file system (paths shortened).
_RECORDED_NO_SPACE = (
    "Service internal error: failed to create snapshot: Service internal error: Applying function to a proxied shard segment 1 failed: "
    "Service runtime error: failed to add vector storage file ./storage/collections/a/0/segments/x/vector_storage/vectors/chunk_0.mmap "
    "into snapshot: failed to write to file `./tmp/a-579814795881645-2026-11-22-21-16-33.snapshot-arc-XxGwQd`: "
    "No space left on device (os error 28)"
)


def test_f51_the_recorded_answer_of_a_full_server_is_told_as_such(before: Proxy, tmp_path: Path, context_factory: ContextFactory) -> None:
    def full(exchange: Exchange) -> bool:
        if not is_snapshot_post(exchange):
            return False
        exchange.answer(500, envelope(None, {"error": _RECORDED_NO_SPACE}))
        return True

    before.rules.append(full)
    ctx = context_factory()
    with pytest.raises(DiskFull):
        store_at(before.url).dump(tmp_path, SET_ID, ctx)
    assert open_entries(ctx) == 0
    assert len(before.posts()) == 1


def test_a_full_disk_here_is_told_and_nothing_is_left_on_the_server(
    before: Proxy, tmp_path: Path, context_factory: ContextFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    def full(fd: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("scholaria_ops.files.os.write", full)
    ctx = context_factory(ledger=_Unwritten(tmp_path / "ledger.jsonl"))
    with pytest.raises(DiskFull):
        store_at(before.url).dump(tmp_path, SET_ID, ctx)


class _Unwritten(Ledger):
    """A ledger that does without the disk, which is full in that test."""

    def _append(self, record: dict[str, object]) -> None:
        return


def test_the_first_failure_is_told_when_one_collection_fails_while_another_is_under_way(
    box: Sandbox, tmp_path: Path, context_factory: ContextFactory
) -> None:
    server = box.qdrant(name="qdrant-two")
    seed_documents(server.connection, points=20)
    with Rest(server.connection) as rest:
        rest.put(at("a first one"), plain_config(2))  # the smaller one: made beside the other, and there before it

    def rule(exchange: Exchange) -> bool:
        if is_download(exchange):
            _short(exchange)
            return True
        if is_snapshot_post(exchange) and DOCUMENTS in exchange.path:
            exchange.upstream()
            time.sleep(3)
        return False

    ctx = context_factory()
    with proxy(server.connection.url) as between:
        between.rules.append(rule)
        began = time.monotonic()
        with pytest.raises(VerificationFailed, match="a first one"):
            store_at(between.url).dump(tmp_path, SET_ID, ctx)
        assert time.monotonic() - began < 25, "it ran into no time limit"
        assert not snapshots_left(server.connection)
        assert open_entries(ctx) == 0
    server.kill()


def test_two_snapshots_are_made_at_once_and_no_more_stand_on_the_server(
    box: Sandbox, tmp_path: Path, context_factory: ContextFactory
) -> None:
    """None of the first two is made before both were asked for: one after the other, they would wait in vain."""
    server = box.qdrant(name="qdrant-side-by-side")
    names = {"a", "b", "c", "d"}
    with Rest(server.connection) as rest:
        for name in names:
            rest.put(at(name), plain_config(2))
    both, asked, standing, most = threading.Event(), set[str](), set[str](), [0]
    lock = threading.Lock()

    def rule(exchange: Exchange) -> bool:
        if is_snapshot_post(exchange):
            name = exchange.path.split("/")[2]
            with lock:
                asked.add(name)
                standing.add(name)
                most[0] = max(most[0], len(standing))
            if len(asked) >= 2:
                both.set()
            assert both.wait(60), "the second one is asked for only after the first one was made"
        elif exchange.method == "DELETE" and "/snapshots/" in exchange.path:
            status, headers, body = exchange.upstream()
            with lock:
                standing.discard(exchange.path.split("/")[2])
            exchange.answer(status, body, headers=headers)  # only now may the next one be asked for
            return True
        return False

    with proxy(server.connection.url) as between:
        between.rules.append(rule)
        made = store_at(between.url).dump(tmp_path, SET_ID, context_factory())
    assert set(made.evidence.collections) == names == asked
    assert most == [2]
    server.kill()


def test_a_snapshot_that_holds_fewer_points_than_are_served_is_a_failure(
    before: Proxy, tmp_path: Path, context_factory: ContextFactory
) -> None:
    """Nothing was written meanwhile (equal counts before and after), yet the file holds another number: it is not whole."""

    def miscounted(exchange: Exchange) -> bool:
        if not exchange.path.endswith("/points/count"):
            return False
        exchange.answer(200, envelope({"count": 121}))
        return True

    before.rules.append(miscounted)
    with pytest.raises(StoreError, match="holds 120 points, while Qdrant served 121"):
        store_at(before.url).dump(tmp_path, SET_ID, context_factory())
