"""A live database is exchanged whole, while the application writes; what was served is kept, and comes back when asked for."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pytest

from scholaria_ops.connections import PostgresConnection
from scholaria_ops.errors import Refused
from scholaria_ops.sandbox.postgres import PostgresServer
from scholaria_ops.stores.postgres.live import PostgresLive, mark_of
from scholaria_ops.stores.postgres.live.names import beside
from scholaria_ops.stores.postgres.names import quoted
from scholaria_ops.stores.postgres.store import PostgresStore
from scholaria_ops_tests.conftest import ContextFactory
from scholaria_ops_tests.stores.postgres_live.support import (
    AFTER,
    BEFORE,
    NAME,
    RESTORE_ID,
    FileNotebook,
    applications,
    different,
    evidence_now,
    names,
    restore,
    source_of,
    staged,
)
from scholaria_ops_tests.stores.postgres_support import (
    MadeSet,
    ask,
    emptied,
    execute,
    make_set,
)


def test_a_restore_serves_the_set_and_keeps_what_was_served(
    live: PostgresConnection, sealed: MadeSet, home: PostgresServer, tmp_path: Path, context_factory: ContextFactory
) -> None:
    store, notebook, ctx = PostgresLive(live), FileNotebook(tmp_path), context_factory()
    before = evidence_now(live, ctx)
    lockout = restore(store, sealed, notebook, ctx)
    assert 0 < lockout < 30
    assert different(sealed.evidence, evidence_now(live, ctx)) == []
    assert names(home) == {NAME: True, f"{NAME}_before_{RESTORE_ID}": False}
    with pytest.raises(Exception, match="not currently accepting connections"):
        ask(live.with_db(f"{NAME}_before_{RESTORE_ID}"), "SELECT 1")
    undone = store.undo(notebook, ctx)
    assert 0 < undone.lockout_s < 30
    assert undone.kept[0].startswith(f"database {NAME}_after_{RESTORE_ID}, ")
    assert different(before, evidence_now(live, ctx)) == []
    assert names(home) == {NAME: True, f"{NAME}_after_{RESTORE_ID}": False}
    assert store.discard(notebook, ctx)[0].startswith(f"database {NAME}_after_{RESTORE_ID}, ")
    assert names(home) == {NAME: True}
    assert store.discard(notebook, ctx) == []
    again = store.undo(notebook, ctx)
    assert (again.lockout_s, again.kept) == (0.0, ())
    assert different(before, evidence_now(live, ctx)) == []


def test_the_application_writes_throughout_and_is_locked_out_for_the_switch_only(
    live: PostgresConnection, sealed: MadeSet, home: PostgresServer, tmp_path: Path, context_factory: ContextFactory
) -> None:
    """Four superusers that connect again at once. What they were told is written is in the old database or in the new one."""
    notebook, ctx = FileNotebook(tmp_path), context_factory()
    with applications(live) as apps:
        store, plan = staged(live, sealed, notebook, ctx)
        assert [app.refused for app in apps] == [[], [], [], []], "nobody notices that something is loaded beside"
        switched = store.switch(plan, notebook, ctx)
        reached = [len(app.acknowledged) for app in apps]
        wait = threading.Event()
        for _ in range(2400):
            if all(len(app.acknowledged) > n for app, n in zip(apps, reached, strict=True)):
                break
            wait.wait(0.05)
    print(f"lock-out {switched.lockout_s * 1000:.0f} ms, longest gap {max(a.gap_s for a in apps) * 1000:.0f} ms")  # noqa: T201
    assert all(app.refused for app in apps), "the fence keeps superusers out, too"
    assert all(len(app.acknowledged) > n for app, n in zip(apps, reached, strict=True)), "they write on in the restored database"
    execute(home.connection, f"ALTER DATABASE {BEFORE} WITH ALLOW_CONNECTIONS true")
    there = {a for where in (live, live.with_db(BEFORE)) for (a,) in ask(where, "SELECT a FROM loose WHERE a > 1000000")}
    for app in apps:
        missing = [n for _, n in app.acknowledged if 1_000_000 * (app.number + 1) + n not in there]
        assert missing == []


@pytest.mark.parametrize("name", ['odd "live"=; x', "질의응답", "x" * 63, "가" * 21, "postgres"])
def test_names_may_be_awkward_or_as_long_as_names_can_be(
    name: str, home: PostgresServer, tmp_path: Path, context_factory: ContextFactory
) -> None:
    ctx, notebook = context_factory(), FileNotebook(tmp_path)
    with emptied(home):
        if name != "postgres":
            execute(home.connection, f"CREATE DATABASE {quoted(name)} TEMPLATE template0")
        connection = home.connection.with_db(name)
        execute(connection, "CREATE TABLE t AS SELECT 1 AS a")
        made, _ = make_set(PostgresStore(connection), tmp_path / "set", ctx)
        execute(connection, "UPDATE t SET a = 2")
        store = PostgresLive(connection)
        restore(store, made, notebook, ctx)
        assert ask(connection, "SELECT a FROM t") == [(1,)]
        before = beside(name, "before", RESTORE_ID)
        assert len(before.encode()) <= 63
        assert names(home)[before] is False
        store.undo(notebook, ctx)
        assert ask(connection, "SELECT a FROM t") == [(2,)]
        store.discard(notebook, ctx)
        assert set(names(home)) == {name} - {"postgres"}
        execute(connection, "DROP TABLE t")


def test_a_server_that_lost_its_database_gets_it_back_and_an_undo_takes_it_away(
    live: PostgresConnection, sealed: MadeSet, home: PostgresServer, tmp_path: Path, context_factory: ContextFactory
) -> None:
    ctx, notebook, store = context_factory(), FileNotebook(tmp_path), PostgresLive(live)
    execute(home.connection, f"DROP DATABASE {NAME} WITH (FORCE)")
    plan = store.plan(source_of(sealed), ctx)
    assert (plan.live_oid, plan.expected_lockout_s) == (None, 0.0)
    store.stage(plan, source_of(sealed), notebook, ctx)
    assert store.switch(plan, notebook, ctx).kept == ()
    assert different(sealed.evidence, evidence_now(live, ctx)) == []
    assert store.undo(notebook, ctx).kept[0].startswith(f"database {AFTER}, ")
    assert names(home) == {AFTER: False}
    assert store.undo(notebook, ctx).lockout_s == 0.0
    store.discard(notebook, ctx)
    assert names(home) == {}


def test_settings_and_grants_of_the_database_survive_the_switch(
    live: PostgresConnection, home: PostgresServer, tmp_path: Path, context_factory: ContextFactory
) -> None:
    ctx, notebook = context_factory(), FileNotebook(tmp_path)
    execute(
        home.connection,
        "CREATE ROLE app LOGIN",
        f"ALTER DATABASE {NAME} SET statement_timeout TO '77s'",
        f"ALTER ROLE app IN DATABASE {NAME} SET work_mem TO '9MB'",
        f"REVOKE CONNECT ON DATABASE {NAME} FROM PUBLIC",
        f"GRANT CONNECT ON DATABASE {NAME} TO app",
        f"ALTER DATABASE {NAME} OWNER TO app",
    )
    made, _ = make_set(PostgresStore(live), tmp_path / "set", ctx)
    execute(home.connection, f"ALTER DATABASE {NAME} RESET ALL", f"GRANT CONNECT ON DATABASE {NAME} TO PUBLIC")
    store = PostgresLive(live)
    effects = {e.what: e.detail for e in store.plan(source_of(made), ctx).effects}
    assert effects["database setting statement_timeout"] == "not set → 77s"
    assert effects["privileges"] == "database"
    restore(store, made, notebook, ctx)
    assert different(made.evidence, evidence_now(live, ctx)) == []
    assert ask(live, "SHOW statement_timeout") == [("77s",)]


def test_replication_needs_a_yes_and_the_slot_stays_with_the_former_database(
    live: PostgresConnection, home: PostgresServer, tmp_path: Path, context_factory: ContextFactory
) -> None:
    ctx, notebook = context_factory(), FileNotebook(tmp_path)
    execute(
        live,
        "CREATE PUBLICATION everything FOR ALL TABLES",
        "CREATE SUBSCRIPTION elsewhere CONNECTION 'host=127.0.0.1 port=1' PUBLICATION p WITH (connect = false, slot_name = 'there')",
        "SELECT pg_create_logical_replication_slot('reader', 'pgoutput')",
    )
    made, _ = make_set(PostgresStore(live), tmp_path / "set", ctx)
    try:
        (objection,) = PostgresLive(live).plan(source_of(made), ctx).objections
        assert objection.option == "--accept-replication"
        assert all(word in objection.message for word in ("reader", "everything", "elsewhere"))
        store = PostgresLive(live, accept_replication=True)
        restore(store, made, notebook, ctx)
        assert ask(home.connection, "SELECT database::text FROM pg_replication_slots") == [(BEFORE,)]
        assert ask(live, "SELECT pubname::text FROM pg_publication") == [("everything",)]
        assert ask(live, "SELECT subname::text, subenabled FROM pg_subscription") == [("elsewhere", False)] * 2
        store.undo(notebook, ctx)
        assert ask(home.connection, "SELECT database::text FROM pg_replication_slots") == [(NAME,)]
        assert store.discard(notebook, ctx)[0].startswith(f"database {AFTER}, ")
    finally:
        execute(live, "ALTER SUBSCRIPTION elsewhere SET (slot_name = NONE)", "DROP SUBSCRIPTION elsewhere")
        execute(live, "SELECT pg_drop_replication_slot('reader')")


def test_later_writes_are_counted_never_below_the_truth(
    live: PostgresConnection, sealed: MadeSet, tmp_path: Path, context_factory: ContextFactory
) -> None:
    ctx, notebook, store = context_factory(), FileNotebook(tmp_path), PostgresLive(live)
    restore(store, sealed, notebook, ctx)
    assert store.later_writes(notebook, ctx) == ()
    execute(
        live,
        "INSERT INTO topic (name) SELECT 'later' FROM generate_series(1, 5)",
        "UPDATE chunk SET body = 'later' WHERE id <= 20",
        "DELETE FROM chunk WHERE id > 970",
        "VACUUM FREEZE topic",
        "TRUNCATE loose",
        "DROP TABLE alembic_version",
        "CREATE TABLE fresh AS SELECT 1 AS a",
        "SELECT lo_create(0)",
    )
    found = {(e.kind, e.what): e.count for e in store.later_writes(notebook, ctx)}
    assert found == {
        ("lost", "table public.topic"): 5,
        ("lost", "table public.chunk"): 20,
        ("lost", "table public.chunk: deletions"): 50,
        ("lost", "table public.loose: deletions"): 10,
        ("lost", "table public.alembic_version: dropped"): 1,
        ("lost", "table public.fresh"): 1,
        ("changed", "relation public.fresh"): None,
        ("lost", "large objects"): 1,
    } | {key: None for key in found if key == ("changed", "relation public.loose")}
    store.undo(notebook, ctx)
    assert store.later_writes(notebook, ctx) == ()


def test_the_same_set_again_loses_exactly_what_was_written_since_it_was_restored(
    live: PostgresConnection, sealed: MadeSet, tmp_path: Path, context_factory: ContextFactory
) -> None:
    notebook = FileNotebook(tmp_path / "notebook")

    def earlier(*, identity: str, oid: int, set_id: str) -> int | None:
        return mark_of(notebook, identity=identity, oid=oid) if set_id == source_of(sealed).set_id else None

    restore(PostgresLive(live), sealed, notebook, context_factory())
    execute(live, "INSERT INTO topic (name) SELECT 'new' FROM generate_series(1, 3)", "DELETE FROM loose WHERE a > 8")
    plan = PostgresLive(live, restored=earlier).plan(source_of(sealed), context_factory())
    found = {(e.kind, e.what): (e.count, "at most" in e.detail) for e in plan.effects if e.kind in {"lost", "back"}}
    assert found == {("lost", "table public.topic"): (3, False), ("back", "table public.loose"): (2, False)}
    other = replace(source_of(sealed), set_id="20241001_030000")
    by_content = PostgresLive(live, restored=earlier).plan(other, context_factory()).effects
    assert [(e.count, "at most" in e.detail) for e in by_content if (e.kind, e.what) == ("lost", "table public.topic")] == [(103, True)]
    assert mark_of(notebook, identity="of another server", oid=plan.live_oid or 0) is None


def test_a_database_that_was_a_template_is_restored_undone_and_discarded(
    live: PostgresConnection, home: PostgresServer, tmp_path: Path, context_factory: ContextFactory
) -> None:
    """PostgreSQL does not drop a template."""
    execute(live, f"ALTER DATABASE {NAME} IS_TEMPLATE true")
    ctx, store, notebook = context_factory(), PostgresLive(live), FileNotebook(tmp_path)
    try:
        made, _ = make_set(PostgresStore(live), tmp_path / "set", ctx)
        restore(store, made, notebook, ctx)
        store.undo(notebook, ctx)
        assert store.discard(notebook, ctx)[0].startswith(f"database {AFTER}, ")
        assert names(home) == {NAME: True}
    finally:
        for name in names(home):
            execute(home.connection, f"ALTER DATABASE {quoted(name)} IS_TEMPLATE false")


def test_an_undo_that_would_be_refused_is_known_beforehand(
    live: PostgresConnection, sealed: MadeSet, home: PostgresServer, tmp_path: Path, context_factory: ContextFactory
) -> None:
    ctx, notebook, store = context_factory(), FileNotebook(tmp_path), PostgresLive(live)
    restore(store, sealed, notebook, ctx)
    store.check_undo(notebook, ctx)
    held = names(home)
    execute(live, "BEGIN", "INSERT INTO loose VALUES (1)", "PREPARE TRANSACTION 'in the way'")
    with pytest.raises(Refused, match="has prepared transactions"):
        store.check_undo(notebook, ctx)
    execute(live, "ROLLBACK PREPARED 'in the way'")
    execute(home.connection, f"ALTER DATABASE {BEFORE} RENAME TO elsewhere")
    with pytest.raises(Refused, match="is called elsewhere now"):
        store.check_undo(notebook, ctx)
    execute(home.connection, f"ALTER DATABASE elsewhere RENAME TO {BEFORE}")
    assert names(home) == held
    store.undo(notebook, ctx)
    store.check_undo(notebook, ctx)
