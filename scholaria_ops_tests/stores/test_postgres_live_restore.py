"""A live database is exchanged whole, while the application writes; what was served is kept, and comes back when asked for."""

from __future__ import annotations

import threading
from collections.abc import Iterator
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
from scholaria_ops.stores.base import Context
from scholaria_ops.stores.postgres.live import PostgresLive, PostgresPlan, mark_of
from scholaria_ops.stores.postgres.live import server as live_server
from scholaria_ops.stores.postgres.live.names import beside
from scholaria_ops.stores.postgres.names import quoted
from scholaria_ops.stores.postgres.store import PostgresStore
from scholaria_ops_tests.conftest import ContextFactory
from scholaria_ops_tests.stores.postgres_live_support import (
    RESTORE_ID,
    SMALL,
    FileNotebook,
    applications,
    different,
    evidence_now,
    names,
    restore,
    source_of,
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

NAME = "live"
SIDE, BEFORE, AFTER = (f"{NAME}_{word}_{RESTORE_ID}" for word in ("restore", "before", "after"))


@pytest.fixture(scope="module")
def home(sandbox: Sandbox) -> Iterator[PostgresServer]:
    """A server of its own: databases appear and vanish on it, and roles are made."""
    server = sandbox.postgres(
        name="live-postgres", settings={"max_prepared_transactions": "5", "wal_level": "logical", "max_wal_senders": "5"}
    )
    yield server
    server.stop()


@pytest.fixture
def live(home: PostgresServer) -> Iterator[PostgresConnection]:
    with emptied(home), database(home, NAME, *SMALL) as connection:
        yield connection


@pytest.fixture
def sealed(live: PostgresConnection, tmp_path: Path, context_factory: ContextFactory) -> MadeSet:
    """A set of the live database; afterwards the application went on."""
    made, _ = make_set(PostgresStore(live), tmp_path / "set", context_factory())
    execute(
        live,
        "INSERT INTO topic (name) SELECT 'new ' || i FROM generate_series(1, 7) i",
        "UPDATE topic SET name = name || '!' WHERE id <= 3",
        "DELETE FROM chunk WHERE id > 990",
        "UPDATE alembic_version SET version_num = '0042_after'",
    )
    return made


def staged(live: PostgresConnection, sealed: MadeSet, notebook: FileNotebook, ctx: Context) -> tuple[PostgresLive, PostgresPlan]:
    store = PostgresLive(live)
    plan = store.plan(source_of(sealed), ctx)
    store.stage(plan, source_of(sealed), notebook, ctx)
    return store, plan


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
        for _ in range(600):
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
            lines = store.roll_back(notebook, ctx)
            assert len([line for line in lines if line.startswith("role ")]) == 3
            assert standing(target) == before
        assert store.roll_back(notebook, ctx) == []


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
    assert store.roll_back(notebook, ctx) == []
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
    assert store.roll_back(notebook, ctx)[0].startswith("database stolen, ")
    assert set(names(home)) == {NAME, BEFORE, SIDE}
    execute(home.connection, f"DROP DATABASE {SIDE}")
    restore(store, sealed, notebook, ctx)
    assert set(names(home)) == {NAME, BEFORE, f"{BEFORE}_2"}
    assert store.discard(notebook, ctx)[0].startswith(f"database {BEFORE}_2, ")
    assert set(names(home)) == {NAME, BEFORE}


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


def test_an_undo_whose_way_back_is_gone_or_renamed_touches_nothing(
    live: PostgresConnection, sealed: MadeSet, home: PostgresServer, tmp_path: Path, context_factory: ContextFactory
) -> None:
    ctx, notebook, store = context_factory(), FileNotebook(tmp_path), PostgresLive(live)
    restore(store, sealed, notebook, ctx)
    execute(home.connection, f"ALTER DATABASE {BEFORE} RENAME TO hidden")
    held = standing(home)
    with pytest.raises(Refused, match=f"the database {BEFORE}, is called hidden now"):
        store.undo(notebook, ctx)
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
