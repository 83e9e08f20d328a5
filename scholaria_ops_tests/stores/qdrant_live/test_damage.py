"""A live collection that no longer answers is replaced, not waited for: that is exactly when one restores. The servers are real."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from scholaria_ops.errors import Refused, StoreError
from scholaria_ops.sandbox.qdrant import QdrantServer
from scholaria_ops.sandbox.sandbox import Sandbox
from scholaria_ops.sandbox.tools import Tools
from scholaria_ops.stores.base import Context
from scholaria_ops.stores.qdrant.live import QdrantLive
from scholaria_ops.stores.qdrant.measure import aliases_of, collections_of, exact_count
from scholaria_ops.stores.qdrant.rest import Rest, at
from scholaria_ops_tests.stores.qdrant_live_support import ALIAS, ALIASED, OTHER_ALIAS, PLAIN, FileNotebook, seed_two, served, taken
from scholaria_ops_tests.stores.qdrant_support import fast_sandbox

SET_ID = "20241001_020000"


@pytest.fixture
def server(tools: Tools, tmp_path_factory: pytest.TempPathFactory) -> Iterator[QdrantServer]:
    box: Sandbox
    with fast_sandbox(tmp_path_factory.mktemp("box"), tools) as box:
        # As it is told to where a damaged collection must not keep the others from being served.
        yield box.qdrant(name="damaged", config={"STORAGE__HANDLE_COLLECTION_LOAD_ERRORS": "true"})


def corrupt(server: QdrantServer, collection: str) -> None:
    """What a bad disk does: the description of every segment is noise. The server starts, and every request to it fails."""
    server.stop()
    hit = list((server.directory / "storage" / "collections" / collection).rglob("segment.json"))
    assert hit
    for path in hit:
        path.write_bytes(os.urandom(path.stat().st_size))
    server.start()
    with Rest(server.connection) as rest, pytest.raises(StoreError, match="answered 500"):
        exact_count(rest, collection)


def test_a_damaged_collection_behind_an_alias_is_replaced_and_kept(server: QdrantServer, tmp_path: Path, ctx: Context) -> None:
    seed_two(server.connection, points=60)
    before = served(server.connection)
    source = taken(server.connection, tmp_path / "set", SET_ID, ctx)
    corrupt(server, ALIASED)
    store, notebook = QdrantLive(server.connection), FileNotebook(tmp_path / "notebook")
    plan = store.plan(source, ctx)
    assert plan.objections == ()
    assert list(plan.damaged) == [ALIASED]
    (lost,) = [e for e in plan.effects if e.kind == "lost"]
    assert (lost.what, lost.count) == (f"collection {ALIASED}: points", None)
    assert "unknown, the live collection does not answer: 500" in lost.detail
    assert "the set has 60" in lost.detail

    store.stage(plan, source, notebook, ctx)
    switched = store.switch(plan, notebook, ctx)
    assert f"collection {ALIASED}, which does not answer" in switched.kept
    store.finish(notebook, ctx)
    with Rest(server.connection) as rest:
        assert {alias: exact_count(rest, alias) for alias in (ALIAS, OTHER_ALIAS, PLAIN)} == {ALIAS: 60, OTHER_ALIAS: 60, PLAIN: 30}
        assert ALIASED in collections_of(rest), "what is left of it is kept"

    store.undo(notebook, ctx)
    with Rest(server.connection) as rest:
        assert aliases_of(rest)[ALIAS] == ALIASED, "going back leads to the damaged one again, as was asked for"
    assert store.discard(notebook, ctx)
    assert before.of(PLAIN)


def test_a_damaged_collection_with_its_own_name_needs_a_word_and_then_comes_back(
    server: QdrantServer, tmp_path: Path, ctx: Context
) -> None:
    seed_two(server.connection, points=60)
    before = served(server.connection)
    source = taken(server.connection, tmp_path / "set", SET_ID, ctx)
    corrupt(server, PLAIN)
    store, notebook = QdrantLive(server.connection), FileNotebook(tmp_path / "notebook")
    plan = store.plan(source, ctx)
    (objection,) = plan.objections
    assert "no way back to it" in objection.message
    assert f"curl -X DELETE {server.connection.url}/collections/{PLAIN}" in objection.hint
    assert any(e.what == f"collection {PLAIN}: points" and e.count is None for e in plan.effects if e.kind == "lost")
    with pytest.raises(Refused, match="no way back"):
        store.stage(plan, source, notebook, ctx)

    with Rest(server.connection) as rest:
        rest.delete(at(PLAIN))
    again = store.plan(source, ctx)
    assert again.objections == ()
    store.stage(again, source, notebook, ctx)
    store.switch(again, notebook, ctx)
    store.finish(notebook, ctx)
    now = served(server.connection)
    assert {name: now.of(name) for name in (ALIAS, OTHER_ALIAS, PLAIN)} == {name: before.of(name) for name in (ALIAS, OTHER_ALIAS, PLAIN)}
