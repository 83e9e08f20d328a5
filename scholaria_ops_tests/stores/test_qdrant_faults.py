"""Faults around a live Qdrant server. The servers are real; a proxy before them, a full disk or a signal makes the fault."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import SecretStr

from scholaria_ops.catalogue.ledger import Ledger
from scholaria_ops.connections import QdrantConnection
from scholaria_ops.errors import AuthenticationFailed, DiskFull, Refused, StoreError, StoreUnavailable, VerificationFailed
from scholaria_ops.process import which
from scholaria_ops.sandbox.qdrant import QdrantServer
from scholaria_ops.sandbox.sandbox import Sandbox
from scholaria_ops.sandbox.tools import Tools
from scholaria_ops.stores.qdrant import QdrantStore, recover_as
from scholaria_ops.stores.qdrant.rest import NotFound, Rest, at
from scholaria_ops_tests.conftest import ContextFactory, Ports
from scholaria_ops_tests.stores.qdrant_support import (
    DOCUMENTS,
    Exchange,
    Proxy,
    drop_everything,
    envelope,
    fast_sandbox,
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


@pytest.fixture(scope="module")
def box(tools: Tools, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    with fast_sandbox(tmp_path_factory.mktemp("box"), tools) as made:
        yield made


@pytest.fixture(scope="module")
def live(box: Sandbox) -> Iterator[QdrantServer]:
    server = box.qdrant(name="qdrant-faults")
    seed_documents(server.connection)
    yield server
    server.stop()


@pytest.fixture
def before(live: QdrantServer) -> Iterator[Proxy]:
    """A proxy before the live server; whatever a test does, nothing of ours may stand on the server afterwards."""
    with proxy(live.connection.url) as made:
        yield made
    assert not snapshots_left(live.connection)


# -- F45 ---------------------------------------------------------------------------------------------------------------


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


# -- F49, F50 ----------------------------------------------------------------------------------------------------------


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


# -- F51 ---------------------------------------------------------------------------------------------------------------


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


# -- F52 ---------------------------------------------------------------------------------------------------------------


def test_f52_cluster_mode_with_one_of_two_nodes_configured_is_refused(
    box: Sandbox, context_factory: ContextFactory, hold_port: Ports
) -> None:
    """Two real peers. A snapshot of one of them would silently lack the other one's shards."""
    ports = hold_port(), hold_port()
    first = _peer(box, 1, ports[0], [f"--uri=http://127.0.0.1:{ports[0]}"])
    second = _peer(box, 2, ports[1], [f"--bootstrap=http://127.0.0.1:{ports[0]}", f"--uri=http://127.0.0.1:{ports[1]}"])
    try:
        _wait_for(lambda: len(_cluster(first)["peers"]) == 2)
        alone = QdrantStore(first.connection)
        with pytest.raises(Refused, match=rf"1 of them are not configured: http://127\.0\.0\.1:{ports[1]}"):
            alone.preflight(context_factory())
        with pytest.raises(Refused, match="not configured"):
            alone.dump(context_factory().scratch, SET_ID, context_factory())
        with Rest(first.connection) as rest:
            rest.put(at("sharded"), {"vectors": {"size": 2, "distance": "Dot"}, "shard_number": 4}, timeout_s=60.0)
        both = QdrantStore(first.connection.model_copy(update={"nodes": (first.connection.url, second.connection.url)}))
        with pytest.raises(Refused, match=r"no single node .* holds every shard"):
            both.preflight(context_factory())
        with Rest(first.connection) as rest:
            rest.delete(at("sharded"), timeout_s=60.0)
            rest.put(at("copied"), {"vectors": {"size": 2, "distance": "Dot"}, "replication_factor": 2}, timeout_s=60.0)
        _wait_for(lambda: _is_whole(first))
        facts = both.preflight(context_factory())
        assert facts.details["cluster"] == "2 peers"
        assert any("cluster mode" in warning for warning in facts.warnings)
    finally:
        second.kill()
        first.kill()


def _peer(box: Sandbox, number: int, port: int, arguments: list[str]) -> QdrantServer:
    config = {"CLUSTER__ENABLED": "true", "CLUSTER__P2P__PORT": str(port), "CLUSTER__CONSENSUS__TICK_PERIOD_MS": "50"}
    return box.qdrant(name=f"peer-{number}", config=config, extra_args=arguments)


def _cluster(server: QdrantServer) -> dict[str, dict[str, object]]:
    with Rest(server.connection) as rest:
        found: dict[str, dict[str, object]] = rest.get("/cluster")
        return found


def _is_whole(server: QdrantServer) -> bool:
    with Rest(server.connection) as rest:
        told = rest.get(at("copied", "cluster"))
    return all(s["state"] == "Active" for s in [*told["local_shards"], *told["remote_shards"]]) and bool(told["local_shards"])


def _wait_for(condition: Callable[[], bool], patience_s: float = 120.0) -> None:
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.1)


# -- F54 ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["", "wrong"])
def test_f54_a_wrong_key_is_a_permanent_error_after_one_request(
    box: Sandbox, tmp_path: Path, context_factory: ContextFactory, key: str
) -> None:
    found = box.servers.get("qdrant-with-key")
    server = found if isinstance(found, QdrantServer) else box.qdrant(name="qdrant-with-key", api_key="right")
    with proxy(server.connection.url) as between:
        store = QdrantStore(QdrantConnection(url=between.url, api_key=SecretStr(key)))
        for action in (lambda: store.preflight(context_factory()), lambda: store.dump(tmp_path, SET_ID, context_factory())):
            between.seen.clear()
            with pytest.raises(AuthenticationFailed, match="QDRANT_API_KEY") as told:
                action()
            assert not told.value.retryable
            assert len(between.seen) == 1
            assert "wrong" not in told.value.message


def test_a_key_that_may_only_read_is_told_in_preflight(box: Sandbox, context_factory: ContextFactory) -> None:
    server = box.qdrant(name="qdrant-read-only", api_key="right", config={"SERVICE__READ_ONLY_API_KEY": "reader"})
    seed_documents(server.connection, points=3)
    reader = server.connection.model_copy(update={"api_key": SecretStr("reader")})
    with pytest.raises(AuthenticationFailed, match="read-only"):
        QdrantStore(reader).preflight(context_factory())
    assert QdrantStore(server.connection).preflight(context_factory()).server_version == server.version
    server.kill()


# -- others -------------------------------------------------------------------------------------------------------------


def test_the_first_failure_is_told_when_one_collection_fails_while_another_is_under_way(
    box: Sandbox, tmp_path: Path, context_factory: ContextFactory
) -> None:
    server = box.qdrant(name="qdrant-two")
    seed_documents(server.connection, points=20)
    with Rest(server.connection) as rest:
        rest.put(at("a first one"), plain_config(2))  # the smaller one comes first

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


def test_a_server_that_is_not_there_is_unavailable(context_factory: ContextFactory) -> None:
    with pytest.raises(StoreUnavailable, match="QDRANT_URL"):
        store_at("http://127.0.0.1:9").preflight(context_factory())


def test_something_else_that_answers_is_not_taken_for_qdrant(box: Sandbox, context_factory: ContextFactory) -> None:
    from http.server import SimpleHTTPRequestHandler

    from scholaria_ops_tests.stores.qdrant_support import serving

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            return

        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-length", "2")
            self.end_headers()
            self.wfile.write(b"hi")

    with serving(Quiet) as url, pytest.raises(StoreError, match="not one of a Qdrant server"):
        store_at(url).preflight(context_factory())


def test_a_red_collection_is_refused(before: Proxy, context_factory: ContextFactory) -> None:
    def red(exchange: Exchange) -> bool:
        if exchange.method != "GET" or not exchange.path.endswith(f"/collections/{DOCUMENTS}"):
            return False
        status, headers, body = exchange.upstream()
        exchange.answer(
            status, body.replace(b'"green"', b'"red"').replace(b'"grey"', b'"red"').replace(b'"yellow"', b'"red"'), headers=headers
        )
        return True

    before.rules.append(red)
    with pytest.raises(Refused, match=f"status red.*{DOCUMENTS}"):
        store_at(before.url).preflight(context_factory())
