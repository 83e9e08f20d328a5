"""What a live restore of PostgreSQL refuses, and what it leaves when it fails: the live database, and nothing else."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from scholaria_ops.cancel import CancelToken
from scholaria_ops.catalogue.evidence.postgres import ExtensionEvidence, ObjectEvidence
from scholaria_ops.connections import PostgresConnection
from scholaria_ops.errors import Busy, Cancelled, Refused, ToolFailed, VerificationFailed
from scholaria_ops.sandbox.postgres import PostgresServer
from scholaria_ops.sandbox.sandbox import Sandbox
from scholaria_ops.sandbox.tools import Tools
from scholaria_ops.stores.live import StillKept
from scholaria_ops.stores.postgres.live import PostgresLive
from scholaria_ops.stores.postgres.live import server as live_server
from scholaria_ops.stores.postgres.session import open_session
from scholaria_ops.stores.postgres.store import PostgresStore
from scholaria_ops_tests.conftest import ContextFactory
from scholaria_ops_tests.stores.postgres_live.support import (
    BEFORE,
    NAME,
    SIDE,
    FileNotebook,
    different,
    evidence_now,
    names,
    restore,
    source_of,
    staged,
    standing,
)
from scholaria_ops_tests.stores.postgres_support import (
    MadeSet,
    ask,
    database,
    emptied,
    execute,
    fake_bin,
    make_set,
    our_children,
    rich_database,
    target_server,
)


def test_f12_missing_roles_are_made_named_and_taken_back(
    pg_server: PostgresServer, sandbox: Sandbox, tmp_path: Path, context_factory: ContextFactory
) -> None:
    """A whole database with everything in it onto a server that was lost: no database, no roles; and back to nothing."""
    ctx, notebook = context_factory(), FileNotebook(tmp_path)
    with rich_database(pg_server, "rich live") as rich, emptied(target_server(sandbox)) as target:
        made, _ = make_set(PostgresStore(rich), tmp_path / "set", ctx)
        before = standing(target)
        store = PostgresLive(target.connection.with_db("rich live"))
        plan = store.plan(source_of(made), ctx)
        assert set(plan.missing_roles) == {"rich_owner", "rich_reader", 'rich "; odd'}
        assert plan.live_oid is None
        assert plan.objections == ()
        assert [e for e in plan.effects if e.kind == "lost"] == []
        for _ in range(2):
            store.stage(plan, source_of(made), notebook, ctx)
            assert store.switch(plan, notebook, ctx).lockout_s == 0.0
            assert [
                d for d in different(made.evidence, evidence_now(store.connection, ctx)) if "by_mood" not in d and "not_filled" not in d
            ] == []
            lines = store.roll_back(notebook, ctx).lines
            assert len([line for line in lines if line.startswith("role ")]) == 3
            assert standing(target) == before
        assert store.roll_back(notebook, ctx).lines == []


def test_roles_that_are_there_keep_what_they_have_and_that_is_no_loss(
    live: PostgresConnection, home: PostgresServer, tmp_path: Path, context_factory: ContextFactory
) -> None:
    ctx = context_factory()
    execute(home.connection, "CREATE ROLE reader LOGIN CONNECTION LIMIT 3")
    execute(live, "GRANT SELECT ON topic TO reader")
    made, _ = make_set(PostgresStore(live), tmp_path / "set", ctx)
    execute(home.connection, "ALTER ROLE reader CONNECTION LIMIT 9")
    store, plan = staged(live, made, FileNotebook(tmp_path), ctx)
    store.switch(plan, FileNotebook(tmp_path), ctx)
    assert ask(home.connection, "SELECT rolconnlimit FROM pg_roles WHERE rolname = 'reader'") == [(9,)]
    assert different(made.evidence, evidence_now(live, ctx)) == [
        "postgres: role reader: attributes: expected LOGIN CONNECTION LIMIT 3, found LOGIN CONNECTION LIMIT 9"
    ]


def test_f14_a_missing_extension_is_an_objection_and_stage_refuses_it(
    live: PostgresConnection, sealed: MadeSet, home: PostgresServer, tmp_path: Path, context_factory: ContextFactory
) -> None:
    ctx, before = context_factory(), standing(home)
    wanted = {**sealed.evidence.extensions, "vector_of_tomorrow": ExtensionEvidence(version="1", schema_name="public")}
    needing = replace(sealed, evidence=sealed.evidence.model_copy(update={"extensions": wanted}))
    store, notebook = PostgresLive(live), FileNotebook(tmp_path)
    plan = store.plan(source_of(needing), ctx)
    assert "vector_of_tomorrow" in plan.objections[0].message
    with pytest.raises(Refused, match="vector_of_tomorrow"):
        store.stage(plan, source_of(needing), notebook, ctx)
    assert standing(home) == before
    newer = replace(sealed, evidence=sealed.evidence.model_copy(update={"server_version": "99.1", "server_version_num": 990001}))
    assert "99.1" in store.plan(source_of(newer), ctx).objections[0].message


def test_f15_a_load_that_fails_midway_leaves_the_live_database_and_nothing_else(
    live: PostgresConnection, sealed: MadeSet, home: PostgresServer, tools: Tools, tmp_path: Path, context_factory: ContextFactory
) -> None:
    ctx = context_factory(
        tools=fake_bin(
            tools,
            tmp_path / "bin",
            "pg_restore",
            '''case "$*" in *dbname=*) "$REAL" "$@"; echo "out of luck" >&2; exit 1;; esac
exec "$REAL" "$@"''',
        )
    )
    before, held = evidence_now(live, ctx), standing(home)
    store, notebook = PostgresLive(live), FileNotebook(tmp_path)
    plan = store.plan(source_of(sealed), ctx)
    with pytest.raises(ToolFailed, match="out of luck"):
        store.stage(plan, source_of(sealed), notebook, ctx)
    assert standing(home) == held
    assert different(before, evidence_now(live, ctx)) == []
    assert store.roll_back(notebook, ctx).lines == []
    assert our_children() == []


def test_f25_what_is_not_as_the_evidence_says_is_never_served(
    live: PostgresConnection, sealed: MadeSet, home: PostgresServer, tmp_path: Path, context_factory: ContextFactory
) -> None:
    ctx, held = context_factory(), standing(home)
    objects = {**sealed.evidence.objects, "index public.topic_name_idx": ObjectEvidence(owner="", definition="0" * 32)}
    expecting = replace(sealed, evidence=sealed.evidence.model_copy(update={"objects": objects}))
    store, notebook = PostgresLive(live), FileNotebook(tmp_path)
    plan = store.plan(source_of(expecting), ctx)
    with pytest.raises(VerificationFailed, match=r"index public\.topic_name_idx: expected present, found absent"):
        store.stage(plan, source_of(expecting), notebook, ctx)
    assert standing(home) == held
    with pytest.raises(Refused, match="nothing staged"):
        store.switch(plan, notebook, ctx)
    assert standing(home) == held


def test_f16_a_database_that_was_not_planned_for_is_not_replaced(
    live: PostgresConnection, sealed: MadeSet, home: PostgresServer, tmp_path: Path, context_factory: ContextFactory
) -> None:
    ctx = context_factory()
    with emptied(home):
        store = PostgresLive(live.with_db("elsewhere"))
        plan = store.plan(source_of(sealed), ctx)
        execute(home.connection, "CREATE DATABASE elsewhere")
        execute(store.connection, "CREATE TABLE precious AS SELECT 42 AS a")
        with pytest.raises(Refused, match="not what it was when this was planned: it was not there"):
            store.stage(plan, source_of(sealed), FileNotebook(tmp_path), ctx)
        assert ask(store.connection, "SELECT a FROM precious") == [(42,)]
        plan = store.plan(source_of(sealed), ctx)
        assert [(e.what, e.count) for e in plan.effects if e.kind == "lost"] == [("table public.precious", 1)]
        notebook = FileNotebook(tmp_path)
        store.stage(plan, source_of(sealed), notebook, ctx)
        execute(home.connection, "ALTER DATABASE elsewhere RENAME TO moved", "CREATE DATABASE elsewhere")
        with pytest.raises(Refused, match="not the one for which this was planned"):
            store.switch(plan, notebook, ctx)
        with pytest.raises(Refused, match="neither the restored nor the former one"):
            store.roll_back(notebook, ctx)
        assert ask(store.connection.with_db("moved"), "SELECT a FROM precious") == [(42,)]


def test_f17_every_change_is_refused_on_another_server(
    live: PostgresConnection, sealed: MadeSet, home: PostgresServer, sandbox: Sandbox, tmp_path: Path, context_factory: ContextFactory
) -> None:
    ctx, notebook = context_factory(), FileNotebook(tmp_path)
    store, plan = staged(live, sealed, notebook, ctx)
    with emptied(target_server(sandbox)) as other, database(other, NAME, "CREATE TABLE precious AS SELECT 42 AS a") as there:
        wrong, held = PostgresLive(there), standing(other)
        for change in (
            lambda: wrong.stage(plan, source_of(sealed), FileNotebook(tmp_path / "new"), ctx),
            lambda: wrong.stage(plan, source_of(sealed), notebook, ctx),
            lambda: wrong.switch(plan, notebook, ctx),
            lambda: wrong.roll_back(notebook, ctx),
            lambda: wrong.later_writes(notebook, ctx),
            lambda: wrong.undo(notebook, ctx),
            lambda: wrong.discard(notebook, ctx),
        ):
            with pytest.raises(Refused, match=f"another server.*instead of {home.system_identifier}"):
                change()
        assert standing(other) == held
    store.switch(plan, notebook, ctx)


def test_two_restores_at_once_are_refused_by_name(
    live: PostgresConnection,
    sealed: MadeSet,
    home: PostgresServer,
    tmp_path: Path,
    context_factory: ContextFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ctx, first, second = context_factory(), FileNotebook(tmp_path), FileNotebook(tmp_path, "20241002_040000")
    store, plan = staged(live, sealed, first, ctx)
    held = standing(home)
    assert SIDE in store.plan(source_of(sealed), ctx).objections[0].message
    with pytest.raises(Refused, match=SIDE):
        store.stage(plan, source_of(sealed), second, ctx)
    assert standing(home) == held
    monkeypatch.setattr(live_server, "_LOCK_PATIENCE_S", 0.2)
    with live_server.guarded(live), pytest.raises(Busy, match=r"another restore of live .* is under way: server process \d+"):
        store.switch(plan, first, ctx)
    store.switch(plan, first, ctx)


def test_a_database_that_we_did_not_make_is_never_dropped_whatever_its_name(
    live: PostgresConnection, sealed: MadeSet, home: PostgresServer, tmp_path: Path, context_factory: ContextFactory
) -> None:
    ctx, notebook = context_factory(), FileNotebook(tmp_path)
    execute(home.connection, f"CREATE DATABASE {BEFORE}")
    store, plan = staged(live, sealed, notebook, ctx)
    execute(home.connection, f"ALTER DATABASE {SIDE} RENAME TO stolen", f"CREATE DATABASE {SIDE}")
    with pytest.raises(Refused, match="nothing staged"):
        store.switch(plan, notebook, ctx)
    assert store.roll_back(notebook, ctx).lines[0].startswith("database stolen, ")
    assert set(names(home)) == {NAME, BEFORE, SIDE}
    execute(home.connection, f"DROP DATABASE {SIDE}")
    restore(store, sealed, notebook, ctx)
    assert set(names(home)) == {NAME, BEFORE, f"{BEFORE}_2"}
    assert store.discard(notebook, ctx)[0].startswith(f"database {BEFORE}_2, ")
    assert set(names(home)) == {NAME, BEFORE}


def test_a_prepared_transaction_is_an_objection_and_stops_the_switch_before_the_fence(
    live: PostgresConnection, sealed: MadeSet, home: PostgresServer, tmp_path: Path, context_factory: ContextFactory
) -> None:
    ctx, notebook = context_factory(), FileNotebook(tmp_path)
    store, plan = staged(live, sealed, notebook, ctx)
    execute(live, "BEGIN; INSERT INTO loose VALUES (77); PREPARE TRANSACTION 'half'")
    try:
        assert any("prepared transactions (half)" in o.message for o in store.plan(source_of(sealed), ctx).objections)
        with pytest.raises(Refused, match=r"prepared transactions \(half\)"):
            store.switch(plan, notebook, ctx)
        assert names(home) == {NAME: True, SIDE: False}
    finally:
        execute(live, "ROLLBACK PREPARED 'half'")
    store.switch(plan, notebook, ctx)


def test_an_undo_whose_way_back_is_gone_or_renamed_touches_nothing(
    live: PostgresConnection, sealed: MadeSet, home: PostgresServer, tmp_path: Path, context_factory: ContextFactory
) -> None:
    ctx, notebook, store = context_factory(), FileNotebook(tmp_path), PostgresLive(live)
    restore(store, sealed, notebook, ctx)
    execute(home.connection, f"ALTER DATABASE {BEFORE} RENAME TO hidden")
    held = standing(home)
    with pytest.raises(Refused, match=f"the database {BEFORE}, is called hidden now"):
        store.undo(notebook, ctx)
    with pytest.raises(Refused, match="is called hidden now"):
        store.later_writes(notebook, ctx)  # the plan, before the other stores go back
    assert standing(home) == held
    execute(home.connection, "DROP DATABASE hidden")
    with pytest.raises(Refused, match=f"the database {BEFORE}, is gone"):
        store.undo(notebook, ctx)
    with pytest.raises(Refused, match="is gone from the server"):
        store.roll_back(notebook, ctx)
    assert different(sealed.evidence, evidence_now(live, ctx)) == []
    execute(home.connection, f"DROP DATABASE {NAME} WITH (FORCE)")


def test_what_is_kept_is_not_discarded_when_it_is_all_that_is_left(
    live: PostgresConnection, sealed: MadeSet, home: PostgresServer, tmp_path: Path, context_factory: ContextFactory
) -> None:
    ctx, notebook, store = context_factory(), FileNotebook(tmp_path), PostgresLive(live)
    restore(store, sealed, notebook, ctx)
    execute(home.connection, f"DROP DATABASE {NAME} WITH (FORCE)")
    with pytest.raises(Refused, match="may be all that is left"):
        store.discard(notebook, ctx)
    assert names(home) == {BEFORE: False}
    store.undo(notebook, ctx)
    assert names(home) == {NAME: True}


def test_what_somebody_has_renamed_or_uses_is_not_discarded(
    live: PostgresConnection, sealed: MadeSet, home: PostgresServer, tmp_path: Path, context_factory: ContextFactory
) -> None:
    ctx, notebook, store = context_factory(), FileNotebook(tmp_path), PostgresLive(live)
    restore(store, sealed, notebook, ctx)
    execute(home.connection, f"ALTER DATABASE {BEFORE} RENAME TO wanted")
    held = standing(home)
    with pytest.raises(StillKept, match=f"wanted, .*it had been called {BEFORE}, and somebody has renamed it") as caught:
        store.discard(notebook, ctx)
    assert (caught.value.removed, len(caught.value.kept)) == ((), 1)
    assert f'DROP DATABASE "wanted", or name it {BEFORE} again' in caught.value.hint
    assert standing(home) == held
    execute(home.connection, f"ALTER DATABASE wanted RENAME TO {BEFORE}", f"ALTER DATABASE {BEFORE} WITH ALLOW_CONNECTIONS true")
    with open_session(live.with_db(BEFORE)) as somebody:
        held = standing(home)
        with pytest.raises(StillKept, match=r"it is in use by process \d+ of postgres \(scholaria-ops\)"):
            store.discard(notebook, ctx)
        assert somebody.one("SELECT 1") == (1,)
        assert standing(home) == held
    _ended(home, BEFORE)
    assert store.discard(notebook, ctx)[0].startswith(f"database {BEFORE}, ")
    assert names(home) == {NAME: True}


def _ended(home: PostgresServer, dbname: str) -> None:
    """Wait until nobody is in a database: a session goes a moment after its connection."""
    deadline = time.monotonic() + 30
    while ask(home.connection, f"SELECT 1 FROM pg_stat_activity WHERE datname = '{dbname}'"):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_f83_a_cancelled_stage_leaves_nothing(
    live: PostgresConnection, sealed: MadeSet, home: PostgresServer, tmp_path: Path, context_factory: ContextFactory
) -> None:
    held, token = standing(home), CancelToken()
    notebook = FileNotebook(tmp_path, hook=lambda when, _: token.cancel("told to stop") if when == "after" else None)
    store = PostgresLive(live)
    plan = store.plan(source_of(sealed), context_factory())
    with pytest.raises(Cancelled):
        store.stage(plan, source_of(sealed), notebook, context_factory(cancel=token))
    assert standing(home) == held
    assert our_children() == []


def test_a_plan_for_another_database_of_the_server_is_refused(
    live: PostgresConnection, sealed: MadeSet, home: PostgresServer, tmp_path: Path, context_factory: ContextFactory
) -> None:
    held, ctx = standing(home), context_factory()
    plan = PostgresLive(live).plan(source_of(sealed), ctx)
    with pytest.raises(Refused, match="the plan is for the database live, not for other"):
        PostgresLive(live.with_db("other")).stage(plan, source_of(sealed), FileNotebook(tmp_path), ctx)
    assert standing(home) == held
