"""Restoring into a live Qdrant, from the plan to the last thing that is cleared away. The servers are real."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest

from scholaria_ops.catalogue.evidence.qdrant import QdrantEvidence
from scholaria_ops.errors import Refused
from scholaria_ops.sandbox.qdrant import QdrantServer
from scholaria_ops.stores.base import Context
from scholaria_ops.stores.live import Source
from scholaria_ops.stores.qdrant import QdrantStore
from scholaria_ops.stores.qdrant.live import QdrantLive, QdrantPlan, kept_collections, wayback
from scholaria_ops.stores.qdrant.measure import aliases_of, collections_of
from scholaria_ops.stores.qdrant.rest import Rest, at
from scholaria_ops_tests.stores.qdrant_live_support import (
    ALIAS,
    ALIASED,
    OTHER_ALIAS,
    PLAIN,
    RESTORE_ID,
    SET_ID,
    Application,
    FileNotebook,
    change,
    exactly,
    point,
    restore,
    served,
    taken,
)
from scholaria_ops_tests.stores.qdrant_support import drop_everything, mixed, upsert


def effects(plan: QdrantPlan) -> dict[tuple[str, str], int | None]:
    return {(e.kind, e.what): e.count for e in plan.effects}


def test_a_restore_brings_the_sets_points_back_under_every_name_and_undo_goes_back(
    live: QdrantServer, source: Source[QdrantEvidence], tmp_path: Path, ctx: Context
) -> None:
    old = served(live.connection)
    change(live.connection)
    newer = served(live.connection)
    notebook = FileNotebook(tmp_path / "notebook")
    store = QdrantLive(live.connection)
    plan = store.plan(source, ctx)
    assert [(i.collection, i.case, i.plain, i.replaces) for i in plan.items] == [
        (ALIASED, "alias", "", (ALIASED,)),
        (PLAIN, "plain", PLAIN, (PLAIN,)),
    ]
    staged = store.stage(plan, source, notebook, ctx)
    assert staged.counts == {ALIASED: 200, PLAIN: 100}
    assert {name: served(live.connection).of(name) for name in newer.names} == newer.names, "what is served is left alone"
    done = store.switch(plan, notebook, ctx)
    assert done.lockout_s < 10.0
    assert {name: served(live.connection).of(name) for name in (ALIAS, OTHER_ALIAS, PLAIN)} == {
        name: old.of(name) for name in (ALIAS, OTHER_ALIAS, PLAIN)
    }
    assert store.switch(plan, notebook, ctx).kept == done.kept, "it may be repeated"
    assert {kept.partition(",")[0] for kept in done.kept} == {f"collection {ALIASED}", f"collection {PLAIN}__before_{RESTORE_ID}"}
    store.finish(notebook, ctx)
    store.finish(notebook, ctx)
    assert kept_collections(notebook.read()) == {ALIASED, f"{PLAIN}__before_{RESTORE_ID}"}
    assert store.later_writes(notebook, ctx) == ()

    change(live.connection, new=5, changed=2, gone=1)
    written = served(live.connection)
    later = {(e.kind, e.what): e.count for e in store.later_writes(notebook, ctx)}
    assert later[("lost", f"collection {ALIASED}__{RESTORE_ID}: points")] == 7
    assert later[("lost", f"collection {PLAIN}__{RESTORE_ID}: points")] == 7

    store.undo(notebook, ctx)
    assert {name: served(live.connection).of(name) for name in (ALIAS, OTHER_ALIAS, PLAIN)} == {
        name: newer.of(name) for name in (ALIAS, OTHER_ALIAS, PLAIN)
    }
    assert store.later_writes(notebook, ctx) == ()
    assert kept_collections(notebook.read()) == {f"{ALIASED}__{RESTORE_ID}", f"{PLAIN}__{RESTORE_ID}"}
    assert store.undo(notebook, ctx).lockout_s == 0
    assert served(live.connection).of(f"{PLAIN}__{RESTORE_ID}") == written.of(PLAIN), "what was served until then is kept"

    lines = store.discard(notebook, ctx)
    assert len(lines) == 2
    assert store.discard(notebook, ctx) == []
    with Rest(live.connection) as rest:
        assert collections_of(rest) == sorted([ALIASED, f"{PLAIN}__before_{RESTORE_ID}"])
    with pytest.raises(Refused, match="removed"):
        store.roll_back(notebook, ctx)


def test_in_place_the_name_stays_a_collection_and_undo_goes_back(
    live: QdrantServer, source: Source[QdrantEvidence], tmp_path: Path, ctx: Context
) -> None:
    old = served(live.connection)
    change(live.connection)
    newer = served(live.connection)
    notebook = FileNotebook(tmp_path / "notebook")
    store = restore(live, source, notebook, ctx, in_place=True)
    assert served(live.connection).of(PLAIN) == old.of(PLAIN)
    with Rest(live.connection) as rest:
        assert collections_of(rest) == sorted([ALIASED, f"{ALIASED}__{RESTORE_ID}", PLAIN, f"{PLAIN}__before_{RESTORE_ID}"])
    assert kept_collections(notebook.read()) == {ALIASED, f"{PLAIN}__before_{RESTORE_ID}"}
    change(live.connection, new=4, changed=0, gone=0)
    written = served(live.connection)
    assert ("lost", f"collection {PLAIN}: points", 4) in [(e.kind, e.what, e.count) for e in store.later_writes(notebook, ctx)]
    store.undo(notebook, ctx)
    assert served(live.connection).of(PLAIN) == newer.of(PLAIN)
    assert store.later_writes(notebook, ctx) == ()
    assert kept_collections(notebook.read()) == {f"{ALIASED}__{RESTORE_ID}", f"{PLAIN}__after_{RESTORE_ID}"}
    with Rest(live.connection) as rest:
        assert collections_of(rest) == sorted([ALIASED, f"{ALIASED}__{RESTORE_ID}", PLAIN, f"{PLAIN}__after_{RESTORE_ID}"])
    assert served(live.connection).of(f"{PLAIN}__after_{RESTORE_ID}") == written.of(PLAIN)
    store.roll_back(notebook, ctx)
    assert served(live.connection).of(PLAIN) == newer.of(PLAIN)
    with Rest(live.connection) as rest:
        assert collections_of(rest) == sorted([ALIASED, PLAIN])
        assert aliases_of(rest) == {ALIAS: ALIASED, OTHER_ALIAS: ALIASED}


def test_f47_into_an_empty_server_everything_comes_back_under_its_own_name_with_its_aliases(
    live: QdrantServer, source: Source[QdrantEvidence], tmp_path: Path, ctx: Context
) -> None:
    old = exactly(live.connection)
    drop_everything(live.connection)
    notebook = FileNotebook(tmp_path / "notebook")
    store = QdrantLive(live.connection, in_place=True)
    plan = store.plan(source, ctx)
    assert {i.case for i in plan.items} == {"absent"}
    assert effects(plan)[("back", f"collection {ALIASED}: points")] == 200
    assert effects(plan)[("back", f"alias {ALIAS}")] is None
    store.stage(plan, source, notebook, ctx)
    store.switch(plan, notebook, ctx)
    store.finish(notebook, ctx)
    assert exactly(live.connection) == old
    assert kept_collections(notebook.read()) == frozenset()
    change(live.connection)
    written = served(live.connection)
    assert sum(e.count or 0 for e in store.later_writes(notebook, ctx) if e.kind == "lost") == 20
    store.undo(notebook, ctx)
    with Rest(live.connection) as rest:
        assert collections_of(rest) == sorted([f"{ALIASED}__after_{RESTORE_ID}", f"{PLAIN}__after_{RESTORE_ID}"])
        assert aliases_of(rest) == {}
    assert served(live.connection).of(f"{PLAIN}__after_{RESTORE_ID}") == written.of(PLAIN)
    store.roll_back(notebook, ctx)
    assert exactly(live.connection).collections == {}


def test_what_is_lost_is_proven_beside_before_an_application_that_goes_on_writing_can_reach_it(
    live: QdrantServer, source: Source[QdrantEvidence], tmp_path: Path, ctx: Context
) -> None:
    old = served(live.connection)
    drop_everything(live.connection)
    notebook = FileNotebook(tmp_path / "notebook")
    store = QdrantLive(live.connection)
    plan = store.plan(source, ctx)
    assert {i.case for i in plan.items} == {"alias"}
    store.stage(plan, source, notebook, ctx)
    with Rest(live.connection) as rest:
        assert collections_of(rest) == sorted([f"{ALIASED}__{RESTORE_ID}", f"{PLAIN}__{RESTORE_ID}"])
        assert aliases_of(rest) == {}
    store.switch(plan, notebook, ctx)
    store.finish(notebook, ctx)
    now = served(live.connection)
    assert {name: now.of(name) for name in old.names} == old.names
    store.undo(notebook, ctx)
    with Rest(live.connection) as rest:
        assert aliases_of(rest) == {}
    store.discard(notebook, ctx)
    assert exactly(live.connection).collections == {}


def test_a_collection_that_is_made_anew_between_plan_and_switch_is_not_passed_over(
    live: QdrantServer, source: Source[QdrantEvidence], tmp_path: Path, ctx: Context
) -> None:
    drop_everything(live.connection)
    notebook = FileNotebook(tmp_path / "notebook")
    store = QdrantLive(live.connection)
    plan = store.plan(source, ctx)
    store.stage(plan, source, notebook, ctx)
    with Rest(live.connection) as rest:
        rest.put(at(ALIASED), {"vectors": {"size": 1, "distance": "Dot"}})
    with pytest.raises(Refused, match=f"collection {ALIASED}, which was made since"):
        store.switch(plan, notebook, ctx)
    store.roll_back(notebook, ctx)
    with Rest(live.connection) as rest:
        assert collections_of(rest) == [ALIASED]


def test_a_collection_deleted_by_mistake_comes_back_and_the_other_is_switched(
    live: QdrantServer, source: Source[QdrantEvidence], tmp_path: Path, ctx: Context
) -> None:
    old = served(live.connection)
    with Rest(live.connection) as rest:
        rest.delete(at(ALIASED))
    notebook = FileNotebook(tmp_path / "notebook")
    store = QdrantLive(live.connection)
    plan = store.plan(source, ctx)
    assert [(i.collection, i.case) for i in plan.items] == [(ALIASED, "alias"), (PLAIN, "plain")]
    restore(live, source, notebook, ctx)
    now = served(live.connection)
    assert {name: now.of(name) for name in old.names} == old.names


def test_the_application_through_an_alias_sees_no_error_and_by_a_plain_name_a_short_gap(
    live: QdrantServer, source: Source[QdrantEvidence], tmp_path: Path, ctx: Context
) -> None:
    notebook = FileNotebook(tmp_path / "notebook")
    store = QdrantLive(live.connection)
    plan = store.plan(source, ctx)
    with Application(live.connection, (ALIAS, OTHER_ALIAS, PLAIN)).running() as application:
        store.stage(plan, source, notebook, ctx)
        done = store.switch(plan, notebook, ctx)
        store.finish(notebook, ctx)
    assert min(application.done.values()) > 20
    assert application.failed.keys() <= {PLAIN}, application.said
    assert application.gap(PLAIN) < 10.0
    assert 0 < done.lockout_s < 10.0
    assert all("404" in said for said in application.said)


def test_writes_while_staging_are_in_the_way_back(live: QdrantServer, source: Source[QdrantEvidence], tmp_path: Path, ctx: Context) -> None:
    notebook = FileNotebook(tmp_path / "notebook")
    store = QdrantLive(live.connection)
    plan = store.plan(source, ctx)
    with Application(live.connection, (PLAIN,), writes=True).running() as application:
        store.stage(plan, source, notebook, ctx)
    before = served(live.connection).of(PLAIN)
    assert len(application.acknowledged[PLAIN]) > 5
    done = store.switch(plan, notebook, ctx)
    assert done.warnings == ()
    store.undo(notebook, ctx)
    assert served(live.connection).of(PLAIN) == before


@pytest.mark.parametrize("later", [False, True], ids=["writers stopped", "somebody writes on"])
def test_a_switch_copies_nothing_once_everything_is_ready(
    live: QdrantServer, source: Source[QdrantEvidence], tmp_path: Path, ctx: Context, monkeypatch: pytest.MonkeyPatch, later: bool
) -> None:
    notebook = FileNotebook(tmp_path / "notebook")
    store = QdrantLive(live.connection)
    plan = store.plan(source, ctx)
    with Application(live.connection, (PLAIN,), writes=True).running():
        store.stage(plan, source, notebook, ctx)
        store.ready(plan, notebook, ctx)
    store.ready(plan, notebook, ctx)
    before = served(live.connection).of(PLAIN)

    def too_late(*_: object, **__: object) -> None:
        raise AssertionError("PostgreSQL and Redis serve the set by now: there is no time for a copy")

    monkeypatch.setattr(wayback, "copy", too_late)
    if later:
        with Rest(live.connection) as rest:
            upsert(rest, PLAIN, [mixed(random.Random(1), 900_001)])
    done = store.switch(plan, notebook, ctx)
    assert [("may lack that" in line and PLAIN in line) for line in done.warnings] == ([True] if later else [])
    store.undo(notebook, ctx)
    assert served(live.connection).of(PLAIN) == before


def test_a_plan_tells_exactly_what_is_lost_comes_back_and_is_replaced(
    live: QdrantServer, source: Source[QdrantEvidence], ctx: Context
) -> None:
    with Rest(live.connection) as rest:
        rest.put(at("unrelated"), {"vectors": {"size": 2, "distance": "Dot"}})
    same = QdrantLive(live.connection).plan(source, ctx)
    assert not [e for e in same.effects if e.kind in {"lost", "back"}]
    assert same.untouched == ("unrelated",)
    change(live.connection, new=9, changed=0, gone=0)
    more = effects(QdrantLive(live.connection).plan(source, ctx))
    assert more[("lost", f"collection {ALIASED}: points")] == 9
    assert ("back", f"collection {ALIASED}: points") not in more
    assert ("changed", f"collection {PLAIN} becomes an alias") in more
    change(live.connection, new=9, changed=3, gone=2)
    exact = effects(QdrantLive(live.connection).plan(source, ctx))
    assert exact[("lost", f"collection {ALIASED}: points")] == 9
    assert exact[("back", f"collection {ALIASED}: points")] == 2
    assert exact[("changed", f"collection {ALIASED}: points with another payload")] == 3
    without = replace(ctx, tools=replace(ctx.tools, qdrant=None))
    bounds = effects(QdrantLive(live.connection).plan(source, without))
    assert bounds[("lost", f"collection {ALIASED}: points")] == 207, "never below the truth"


def test_a_plan_that_the_server_has_outgrown_is_refused(
    live: QdrantServer, source: Source[QdrantEvidence], tmp_path: Path, ctx: Context
) -> None:
    notebook = FileNotebook(tmp_path / "notebook")
    store = QdrantLive(live.connection)
    plan = store.plan(source, ctx)
    with Rest(live.connection) as rest:
        point(rest, ALIAS, PLAIN)
        with pytest.raises(Refused, match="changed since"):
            store.stage(plan, source, notebook, ctx)
        point(rest, ALIAS, ALIASED)
        before = exactly(live.connection)
        store.stage(plan, source, notebook, ctx)
        point(rest, ALIAS, PLAIN)
        with pytest.raises(Refused, match=f"changed since.*alias {ALIAS}"):
            store.switch(plan, notebook, ctx)
        point(rest, ALIAS, ALIASED)
        store.roll_back(notebook, ctx)
    assert exactly(live.connection) == before


def test_a_set_taken_after_a_restore_can_be_restored_and_names_do_not_grow(
    live: QdrantServer, source: Source[QdrantEvidence], tmp_path: Path, ctx: Context
) -> None:
    original = served(live.connection)
    first = FileNotebook(tmp_path / "first")
    restore(live, source, first, ctx)
    keeping = kept_collections(first.read())
    change(live.connection)
    second_set = taken(live.connection, tmp_path / "second-set", "20241003_020000", ctx, kept=lambda: keeping)
    assert set(second_set.evidence.left_out) == keeping
    assert second_set.evidence.collections.keys() == {f"{ALIASED}__{RESTORE_ID}", f"{PLAIN}__{RESTORE_ID}"}
    then = served(live.connection)
    QdrantLive(live.connection).discard(first, ctx)
    change(live.connection, new=11, changed=5, gone=0)
    newer = served(live.connection)

    second = FileNotebook(tmp_path / "second", "20241004_030000")
    store = QdrantLive(live.connection)
    plan = store.plan(second_set, ctx)
    assert [(item.base, item.case) for item in plan.items] == [(ALIASED, "alias"), (PLAIN, "alias")]
    restore(live, second_set, second, ctx)
    names = (ALIAS, OTHER_ALIAS, PLAIN)
    assert {name: served(live.connection).of(name) for name in names} == {name: then.of(name) for name in names}
    with Rest(live.connection) as rest:
        assert set(aliases_of(rest).values()) == {f"{ALIASED}__20241004_030000", f"{PLAIN}__20241004_030000"}
    store.undo(second, ctx)
    assert {name: served(live.connection).of(name) for name in names} == {name: newer.of(name) for name in names}
    store.discard(second, ctx)

    third = FileNotebook(tmp_path / "third", "20241005_030000")
    assert [i.case for i in store.plan(source, ctx).items] == ["alias", "alias"], "an older set, from before the name became an alias"
    restore(live, source, third, ctx)
    assert {name: served(live.connection).of(name) for name in names} == {name: original.of(name) for name in names}
    with Rest(live.connection) as rest:
        assert set(aliases_of(rest).values()) == {f"{ALIASED}__20241005_030000", f"{PLAIN}__20241005_030000"}


def test_what_is_served_is_never_left_out_of_a_backup(live: QdrantServer, tmp_path: Path, ctx: Context) -> None:
    made = taken(live.connection, tmp_path / "set", SET_ID, ctx, kept=lambda: {ALIASED, PLAIN})
    assert made.evidence.left_out == (PLAIN,)
    assert made.evidence.collections.keys() == {ALIASED}
    facts = QdrantStore(live.connection, kept=lambda: {PLAIN}).preflight(ctx)
    assert PLAIN in facts.details["left out"]
    assert PLAIN not in facts.details["collections"]
