"""A live Qdrant server for the faults around it, and a proxy before it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from scholaria_ops.sandbox.qdrant import QdrantServer
from scholaria_ops.sandbox.sandbox import Sandbox
from scholaria_ops.sandbox.tools import Tools
from scholaria_ops_tests.stores.qdrant_support import (
    Proxy,
    fast_sandbox,
    proxy,
    seed_documents,
    snapshots_left,
)


@pytest.fixture(scope="package")
def box(tools: Tools, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    with fast_sandbox(tmp_path_factory.mktemp("box"), tools) as made:
        yield made


@pytest.fixture(scope="package")
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
