"""Restores into a live Qdrant whose gRPC port is known: points are read there, every vector is compared, and nothing else differs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from scholaria_ops.errors import StoreUnavailable, VerificationFailed
from scholaria_ops.sandbox.qdrant import QdrantServer
from scholaria_ops.sandbox.sandbox import Sandbox
from scholaria_ops.stores.qdrant.live import QdrantLive
from scholaria_ops.stores.qdrant.live.marks import note
from scholaria_ops.stores.qdrant.rest import Rest
from scholaria_ops_tests.conftest import ContextFactory, Ports
from scholaria_ops_tests.stores.qdrant_live_support import ALIAS, ALIASED, PLAIN, Application, FileNotebook, change, seed_two, served, taken
from scholaria_ops_tests.stores.qdrant_support import drop_everything

SET_ID = "20241001_020000"


@pytest.fixture(scope="module")
def server(box: Sandbox) -> QdrantServer:
    return box.qdrant(name="qdrant-live-grpc", api_key="the-key", grpc=True)


@pytest.fixture
def live(server: QdrantServer) -> Iterator[QdrantServer]:
    seed_two(server.connection)
    yield server
    drop_everything(server.connection)


def test_points_read_over_grpc_are_those_that_rest_gives(live: QdrantServer) -> None:
    over_rest = live.connection.model_copy(update={"grpc_port": None})
    assert live.connection.grpc_address == live.grpc_address
    assert served(live.connection) == served(over_rest)
    with Rest(live.connection) as one, Rest(over_rest) as other:
        for payloads, vectors in ((False, False), (True, False), (True, True)):
            assert note(one, PLAIN, payloads=payloads, vectors=vectors) == note(other, PLAIN, payloads=payloads, vectors=vectors)


def test_a_restore_compares_every_vector_and_undo_goes_back(
    live: QdrantServer, tmp_path: Path, context_factory: ContextFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    ctx = context_factory()
    source = taken(live.connection, tmp_path / "set", SET_ID, ctx)
    old = served(live.connection)
    change(live.connection)
    newer = served(live.connection)
    notebook, store = FileNotebook(tmp_path / "notebook"), QdrantLive(live.connection)
    with Application(live.connection, (ALIAS,), writes=True).running():
        plan = store.plan(source, ctx)  # while points come and go
    lost = {e.what: e.count or 0 for e in plan.effects if e.kind == "lost"}
    assert lost[f"collection {ALIASED}: points"] >= 7
    newer = served(live.connection)
    staged = store.stage(plan, source, notebook, ctx)
    assert not [d for d in staged.differences if "vectors" in d.what], "none was left out"
    store.switch(plan, notebook, ctx)
    store.finish(notebook, ctx)
    assert {name: served(live.connection).of(name) for name in (ALIAS, PLAIN)} == {name: old.of(name) for name in (ALIAS, PLAIN)}
    assert store.later_writes(notebook, ctx) == ()
    store.undo(notebook, ctx)
    assert {name: served(live.connection).of(name) for name in (ALIAS, PLAIN)} == {name: newer.of(name) for name in (ALIAS, PLAIN)}


def test_one_vector_that_is_not_the_sets_is_seen(live: QdrantServer, tmp_path: Path, context_factory: ContextFactory) -> None:
    ctx = context_factory()
    source = taken(live.connection, tmp_path / "set", SET_ID, ctx)
    known = source.evidence.collections[ALIASED]
    assert known.fingerprint.vectors is not None
    forged = known.model_copy(update={"fingerprint": known.fingerprint.model_copy(update={"vectors": "0" * 64})})
    evidence = source.evidence.model_copy(update={"collections": {**source.evidence.collections, ALIASED: forged}})
    store = QdrantLive(live.connection)
    plan = store.plan(source, ctx)
    with pytest.raises(VerificationFailed, match="vectors"):
        store.stage(plan, replace(source, evidence=evidence), FileNotebook(tmp_path / "notebook"), ctx)


def test_a_port_that_is_not_qdrants_is_an_error_that_names_the_setting(
    live: QdrantServer, tmp_path: Path, context_factory: ContextFactory, hold_port: Ports
) -> None:
    ctx = context_factory()
    source = taken(live.connection, tmp_path / "set", SET_ID, ctx)
    wrong = live.connection.model_copy(update={"grpc_port": hold_port()})
    with pytest.raises(StoreUnavailable) as caught:
        QdrantLive(wrong).plan(source, ctx)
    assert "QDRANT_GRPC_PORT" in caught.value.hint
