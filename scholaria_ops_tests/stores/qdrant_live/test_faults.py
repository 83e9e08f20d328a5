"""Faults while a live Qdrant is being restored: whatever happens, what is served goes on being served. The servers are real."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from scholaria_ops.catalogue.evidence.qdrant import QdrantEvidence
from scholaria_ops.connections import QdrantConnection
from scholaria_ops.errors import DiskFull, OpsError, Refused, StoreError, VerificationFailed
from scholaria_ops.sandbox.qdrant import QdrantServer
from scholaria_ops.sandbox.sandbox import Sandbox
from scholaria_ops.stores.base import Context
from scholaria_ops.stores.live import Source
from scholaria_ops.stores.qdrant.live import QdrantLive
from scholaria_ops_tests.stores.qdrant_live_support import ALIASED, PLAIN, FileNotebook, exactly, seed_two, taken
from scholaria_ops_tests.stores.qdrant_support import Exchange, drop_everything, envelope, proxy, snapshots_left

SET_ID = "20241001_020000"


@pytest.fixture(scope="module")
def server(box: Sandbox) -> QdrantServer:
    return box.qdrant(name="qdrant-live-faults")


@pytest.fixture
def source(server: QdrantServer, tmp_path: Path, ctx: Context) -> Iterator[Source[QdrantEvidence]]:
    seed_two(server.connection, points=60)
    before = exactly(server.connection)
    yield taken(server.connection, tmp_path / "set", SET_ID, ctx)
    assert exactly(server.connection) == before, "collections and aliases are as they were"
    assert not snapshots_left(server.connection)
    assert not list((server.directory / "snapshots").rglob("*.snapshot"))
    drop_everything(server.connection)


@pytest.mark.parametrize("version", ["1.7.4", "1.14.1", "1.17.0"])
def test_f49_a_set_of_an_incompatible_version_is_refused_with_both_versions(
    server: QdrantServer, source: Source[QdrantEvidence], tmp_path: Path, ctx: Context, version: str
) -> None:
    other = Source(source.set_id, source.directory, source.artifacts, source.evidence.model_copy(update={"server_version": version}))
    store = QdrantLive(server.connection)
    plan = store.plan(other, ctx)
    assert version in plan.objections[0].message
    assert server.version in plan.objections[0].message
    with pytest.raises(Refused, match=version):
        store.stage(plan, other, FileNotebook(tmp_path / "notebook"), ctx)


def test_f50_a_recovery_that_is_accepted_but_fails_is_a_failure(
    server: QdrantServer, source: Source[QdrantEvidence], tmp_path: Path, ctx: Context
) -> None:
    def accepted(exchange: Exchange) -> bool:
        if f"{PLAIN}__" not in exchange.path or "/snapshots/upload" not in exchange.path:
            return False
        exchange.answer(202, envelope(None, "accepted"))
        return True

    with proxy(server.connection.url) as between:
        store = QdrantLive(QdrantConnection(url=between.url))
        plan = store.plan(source, ctx)
        between.rules.append(accepted)
        with pytest.raises(StoreError, match="did not recover"):
            store.stage(plan, source, FileNotebook(tmp_path / "notebook"), ctx)


def test_f51_a_server_whose_disk_is_full_is_told_as_such(
    server: QdrantServer, source: Source[QdrantEvidence], tmp_path: Path, ctx: Context
) -> None:
    """The answer was recorded from a server on a full file system; the first collection stands beside by then."""

    def full(exchange: Exchange) -> bool:
        if f"{PLAIN}__" not in exchange.path or "/snapshots/upload" not in exchange.path:
            return False
        exchange.answer(500, envelope(None, {"error": "Service internal error: No space left on device (os error 28)"}))
        return True

    with proxy(server.connection.url) as between:
        store = QdrantLive(QdrantConnection(url=between.url))
        plan = store.plan(source, ctx)
        between.rules.append(full)
        with pytest.raises(DiskFull, match="Qdrant's own disk is full"):
            store.stage(plan, source, FileNotebook(tmp_path / "notebook"), ctx)


def test_f52_a_cluster_is_refused(server: QdrantServer, source: Source[QdrantEvidence], ctx: Context) -> None:
    def cluster(exchange: Exchange) -> bool:
        if exchange.path != "/cluster":
            return False
        exchange.answer(200, envelope({"status": "enabled", "peer_id": 1, "peers": {"1": {"uri": "http://a"}, "2": {"uri": "http://b"}}}))
        return True

    with proxy(server.connection.url) as between:
        between.rules.append(cluster)
        plan = QdrantLive(QdrantConnection(url=between.url)).plan(source, ctx)
    assert any("cluster mode with 2 peers" in objection.message for objection in plan.objections)


def test_what_is_not_what_its_evidence_says_is_removed(
    server: QdrantServer, source: Source[QdrantEvidence], tmp_path: Path, ctx: Context
) -> None:
    known = source.evidence.collections[ALIASED]
    forged = known.model_copy(update={"fingerprint": known.fingerprint.model_copy(update={"payloads": "0" * 64})})
    evidence = source.evidence.model_copy(update={"collections": {**source.evidence.collections, ALIASED: forged}})
    other = Source(source.set_id, source.directory, source.artifacts, evidence)
    store = QdrantLive(server.connection)
    with pytest.raises(VerificationFailed, match="payloads of all points"):
        store.stage(store.plan(other, ctx), other, FileNotebook(tmp_path / "notebook"), ctx)


@pytest.mark.parametrize("request_part", ["/snapshots/upload", "/points/scroll", "/points/count"])
def test_a_server_that_breaks_off_during_staging_keeps_what_it_serves(
    server: QdrantServer, source: Source[QdrantEvidence], tmp_path: Path, ctx: Context, request_part: str
) -> None:
    def broken(exchange: Exchange) -> bool:
        if request_part not in exchange.path:
            return False
        exchange.hang_up()
        return True

    notebook = FileNotebook(tmp_path / "notebook")
    with proxy(server.connection.url) as between:
        store = QdrantLive(QdrantConnection(url=between.url))
        plan = store.plan(source, ctx)
        between.rules.append(broken)
        with pytest.raises(OpsError):
            store.stage(plan, source, notebook, ctx)
    QdrantLive(server.connection).roll_back(notebook, ctx)
