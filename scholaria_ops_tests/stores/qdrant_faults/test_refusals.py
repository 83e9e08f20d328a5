"""Servers that a backup is refused by, or that it refuses."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import SecretStr

from scholaria_ops.connections import QdrantConnection
from scholaria_ops.errors import AuthenticationFailed, Refused, StoreError, StoreUnavailable
from scholaria_ops.sandbox.qdrant import QdrantServer
from scholaria_ops.sandbox.sandbox import Sandbox
from scholaria_ops.stores.qdrant import QdrantStore
from scholaria_ops.stores.qdrant.rest import Rest, at
from scholaria_ops_tests.conftest import ContextFactory, Ports
from scholaria_ops_tests.stores.qdrant_support import (
    DOCUMENTS,
    Exchange,
    Proxy,
    proxy,
    seed_documents,
    store_at,
)

SET_ID = "20241001_020000"


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
