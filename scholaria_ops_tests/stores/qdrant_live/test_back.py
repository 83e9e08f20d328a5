"""Going back from a restore of a live Qdrant: rolling back, undoing, and what is said and kept of it. The servers are real."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from scholaria_ops.catalogue.evidence.qdrant import QdrantEvidence
from scholaria_ops.errors import Refused
from scholaria_ops.sandbox.qdrant import QdrantServer
from scholaria_ops.stores.base import Context
from scholaria_ops.stores.live import Source
from scholaria_ops.stores.qdrant.live import QdrantLive, kept_collections
from scholaria_ops.stores.qdrant.measure import aliases_of, collections_of
from scholaria_ops.stores.qdrant.rest import Rest, at
from scholaria_ops_tests.stores.qdrant_live_support import (
    ALIAS,
    ALIASED,
    OTHER_ALIAS,
    PLAIN,
    RESTORE_ID,
    FileNotebook,
    change,
    exactly,
    point,
    restore,
    served,
)
from scholaria_ops_tests.stores.qdrant_support import MIXED_CONFIG, mixed, upsert


def test_rolling_back_from_staged_leaves_nothing_and_may_be_repeated(
    live: QdrantServer, source: Source[QdrantEvidence], tmp_path: Path, ctx: Context
) -> None:
    change(live.connection)
    before = exactly(live.connection)
    notebook = FileNotebook(tmp_path / "notebook")
    store = QdrantLive(live.connection)
    plan = store.plan(source, ctx)
    assert store.roll_back(notebook, ctx).lines == []
    store.stage(plan, source, notebook, ctx)
    assert kept_collections(notebook.read()) == {f"{ALIASED}__{RESTORE_ID}", f"{PLAIN}__{RESTORE_ID}", f"{PLAIN}__before_{RESTORE_ID}"}
    lines = store.roll_back(notebook, ctx).lines
    assert len(lines) == 3
    assert exactly(live.connection) == before
    assert store.roll_back(notebook, ctx).lines == []
    assert exactly(live.connection) == before
    store.stage(store.plan(source, ctx), source, notebook, ctx)
    store.roll_back(notebook, ctx)
    assert exactly(live.connection) == before


def test_rolling_back_from_switched_serves_what_was_served(
    live: QdrantServer, source: Source[QdrantEvidence], tmp_path: Path, ctx: Context
) -> None:
    change(live.connection)
    before = served(live.connection)
    notebook = FileNotebook(tmp_path / "notebook")
    store = restore(live, source, notebook, ctx)
    store.roll_back(notebook, ctx)
    store.roll_back(notebook, ctx)
    now = served(live.connection)
    assert {name: now.of(name) for name in before.names} == before.names
    with Rest(live.connection) as rest:
        assert aliases_of(rest) == {ALIAS: ALIASED, OTHER_ALIAS: ALIASED, PLAIN: f"{PLAIN}__before_{RESTORE_ID}"}
        assert collections_of(rest) == sorted([ALIASED, f"{PLAIN}__before_{RESTORE_ID}"])
    assert kept_collections(notebook.read()) == frozenset()


def test_a_plan_to_undo_is_refused_when_what_was_kept_is_gone(
    live: QdrantServer, source: Source[QdrantEvidence], tmp_path: Path, ctx: Context
) -> None:
    notebook = FileNotebook(tmp_path / "notebook")
    store = restore(live, source, notebook, ctx)
    with Rest(live.connection) as rest:
        rest.delete(f"/collections/{ALIASED}")
    with pytest.raises(Refused, match=f"collection {ALIASED}, which was kept .* is gone"):
        store.later_writes(notebook, ctx)


def test_rolling_back_says_what_is_lost_of_what_was_written_while_the_set_was_served(
    live: QdrantServer, source: Source[QdrantEvidence], tmp_path: Path, ctx: Context
) -> None:
    change(live.connection)
    before = served(live.connection)
    notebook = FileNotebook(tmp_path / "notebook")
    store = QdrantLive(live.connection)
    plan = store.plan(source, ctx)
    store.stage(plan, source, notebook, ctx)
    store.switch(plan, notebook, ctx)
    change(live.connection, new=4, changed=3, gone=2)
    back = store.roll_back(notebook, ctx)
    for base in (ALIASED, PLAIN):
        wanted = f"collection {base}__{RESTORE_ID}: what was written to it while it was served is lost: 4 points new, 3 changed, 2 deleted"
        assert wanted in back.lines
    assert back.kept == ()
    now = served(live.connection)
    assert [now.of(n) for n in (ALIAS, PLAIN)] == [before.of(n) for n in (ALIAS, PLAIN)]
    assert store.discard(notebook, ctx) == []
    assert served(live.connection) == now


def test_a_collection_that_the_application_made_anew_during_the_switch_is_kept_until_it_is_discarded(
    live: QdrantServer, source: Source[QdrantEvidence], tmp_path: Path, ctx: Context
) -> None:
    before = served(live.connection)
    notebook = FileNotebook(tmp_path / "notebook")
    store = QdrantLive(live.connection)
    plan = store.plan(source, ctx)
    store.stage(plan, source, notebook, ctx)
    store.switch(plan, notebook, ctx)
    with Rest(live.connection) as rest:  # as after a kill between the deletion of the plain collection and the making of its alias
        rest.post("/collections/aliases", {"actions": [{"delete_alias": {"alias_name": PLAIN}}]})
        rest.put(at(PLAIN), MIXED_CONFIG)
        upsert(rest, PLAIN, [mixed(random.Random(1), n) for n in range(5)])
    beside = f"{PLAIN}__meanwhile_{RESTORE_ID}"
    back = store.roll_back(notebook, ctx)
    assert back.kept == (f"collection {beside}, 5 points",)
    assert served(live.connection).of(PLAIN) == before.of(PLAIN)
    assert beside in kept_collections(notebook.read()), "no backup takes it for the application's"
    assert store.roll_back(notebook, ctx).kept == back.kept
    assert store.discard(notebook, ctx) == [f"removed collection {beside}, 5 points"]
    assert store.discard(notebook, ctx) == []
    assert served(live.connection).of(PLAIN) == before.of(PLAIN)
    assert store.roll_back(notebook, ctx).kept == ()


def test_an_undo_that_would_be_refused_is_known_beforehand(
    live: QdrantServer, source: Source[QdrantEvidence], tmp_path: Path, ctx: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    change(live.connection)
    notebook = FileNotebook(tmp_path / "notebook")
    store = restore(live, source, notebook, ctx, in_place=True)
    store.check_undo(notebook, ctx)
    now = exactly(live.connection)
    with monkeypatch.context() as patch:
        patch.setattr("scholaria_ops.stores.qdrant.live.plan._most_free_memory", lambda _: 1000)
        with pytest.raises(Refused, match=r"memory of the Qdrant server: .* bytes needed, 1,000 free"):
            store.check_undo(notebook, ctx)
    with Rest(live.connection) as rest:
        rest.post(at(ALIASED, "points", "delete"), {"points": [1]}, wait="true")
    with pytest.raises(Refused, match="was kept with 205 points and has 204 now"):
        store.check_undo(notebook, ctx)
    assert exactly(live.connection).aliases == now.aliases


def test_how_it_stands_is_told_in_every_state(live: QdrantServer, source: Source[QdrantEvidence], tmp_path: Path, ctx: Context) -> None:
    notebook = FileNotebook(tmp_path / "notebook")
    store = QdrantLive(live.connection)
    assert store.standing(notebook, ctx).served == ("this restore has not touched Qdrant",)
    plan = store.plan(source, ctx)
    store.stage(plan, source, notebook, ctx)
    told = store.standing(notebook, ctx)
    assert f"alias {ALIAS} leads to {ALIASED}, 200 points" in told.served
    assert f"collection {PLAIN}, 100 points" in told.served
    assert f"collection {ALIASED}__{RESTORE_ID}, 200 points" in told.left
    store.switch(plan, notebook, ctx)
    now = exactly(live.connection)
    told = store.standing(notebook, ctx)
    assert f"alias {PLAIN} leads to {PLAIN}__{RESTORE_ID}, 100 points" in told.served
    assert set(told.left) == {f"collection {ALIASED}, 200 points", f"collection {PLAIN}__before_{RESTORE_ID}, 100 points"}
    assert f"DELETE /collections/{PLAIN}__before_{RESTORE_ID}, once nobody needs it" in told.by_hand
    with Rest(live.connection) as rest:
        rest.post("/collections/aliases", {"actions": [{"delete_alias": {"alias_name": PLAIN}}]})
    assert f"{PLAIN}: neither a collection nor an alias" in store.standing(notebook, ctx).served
    with Rest(live.connection) as rest:
        point(rest, PLAIN, f"{PLAIN}__{RESTORE_ID}")
    assert exactly(live.connection) == now
