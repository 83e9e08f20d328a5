"""A live Qdrant server with two collections, and a set of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from scholaria_ops.catalogue.evidence.qdrant import QdrantEvidence
from scholaria_ops.sandbox.qdrant import QdrantServer
from scholaria_ops.sandbox.sandbox import Sandbox
from scholaria_ops.sandbox.tools import Tools
from scholaria_ops.stores.base import Context
from scholaria_ops.stores.live import Source
from scholaria_ops_tests.conftest import ContextFactory
from scholaria_ops_tests.stores.qdrant_live_support import (
    SET_ID,
    seed_two,
    taken,
)
from scholaria_ops_tests.stores.qdrant_support import drop_everything, fast_sandbox, snapshots_left


@pytest.fixture(scope="module")
def box(tools: Tools, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    with fast_sandbox(tmp_path_factory.mktemp("box"), tools) as made:
        yield made


@pytest.fixture(scope="module")
def server(box: Sandbox) -> QdrantServer:
    return box.qdrant(name="qdrant-live", api_key="the-key")


@pytest.fixture
def live(server: QdrantServer) -> Iterator[QdrantServer]:
    """A server with one collection behind two aliases and one that is called by its own name. Nothing of ours may stay below snapshots."""
    seed_two(server.connection)
    yield server
    assert not snapshots_left(server.connection)
    assert not list((server.directory / "snapshots").rglob("*.snapshot"))
    drop_everything(server.connection)


@pytest.fixture
def ctx(context_factory: ContextFactory) -> Context:
    return context_factory()


@pytest.fixture
def source(live: QdrantServer, tmp_path: Path, ctx: Context) -> Source[QdrantEvidence]:
    return taken(live.connection, tmp_path / "set", SET_ID, ctx)
