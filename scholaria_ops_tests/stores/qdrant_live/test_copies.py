"""Copies of a live collection: the server fetches its own snapshot, and where it cannot, or gets other bytes, it goes over this host."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from scholaria_ops.connections import QdrantConnection
from scholaria_ops.sandbox.qdrant import QdrantServer
from scholaria_ops.sandbox.sandbox import Sandbox
from scholaria_ops.stores.qdrant.live.copies import copy
from scholaria_ops.stores.qdrant.live.marks import note
from scholaria_ops.stores.qdrant.rest import Rest
from scholaria_ops_tests.conftest import ContextFactory
from scholaria_ops_tests.stores.qdrant_support import DOCUMENTS, Exchange, drop_everything, proxy, seed_documents, snapshots_left


@pytest.fixture
def live(sandbox: Sandbox) -> Iterator[QdrantServer]:
    server = sandbox.qdrant(name="qdrant-copies", api_key="the-key") if "qdrant-copies" not in sandbox.servers else None
    found = server or sandbox.servers["qdrant-copies"]
    assert isinstance(found, QdrantServer)
    seed_documents(found.connection)
    yield found
    drop_everything(found.connection)


@pytest.mark.parametrize("fetched", ["by the server", "refused", "other bytes"])
def test_a_copy_is_exact_whoever_fetches_the_snapshot(live: QdrantServer, context_factory: ContextFactory, fetched: str) -> None:
    files: list[str] = []

    def first_file(exchange: Exchange) -> bool:
        if exchange.method != "GET" or not exchange.path.endswith(".snapshot"):
            return False
        files.append(exchange.path)
        if fetched == "by the server" or len(files) > 1:
            return False
        status, headers, body = exchange.upstream()
        spoilt = body[: len(body) // 2] + bytes([body[len(body) // 2] ^ 0x10]) + body[len(body) // 2 + 1 :]
        exchange.answer(502 if fetched == "refused" else status, b"" if fetched == "refused" else spoilt, headers=headers)
        return True

    with proxy(live.connection.url) as before:
        before.rules.append(first_file)
        through = QdrantConnection(url=before.url, api_key=live.connection.api_key)
        with Rest(through) as rest:
            assert copy(rest, DOCUMENTS, "the-copy", context_factory(), timeout_s=60.0) == 120
            assert note(rest, "the-copy", payloads=True, vectors=True) == note(rest, DOCUMENTS, payloads=True, vectors=True)
    assert len(files) == (1 if fetched == "by the server" else 2)
    assert snapshots_left(live.connection) == []
    assert not list((live.directory / "snapshots").rglob("*.snapshot"))
