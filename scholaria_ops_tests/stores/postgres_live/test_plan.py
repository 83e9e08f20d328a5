"""What a restore would cost is said before it happens, and planning changes nothing."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from scholaria_ops.connections import PostgresConnection
from scholaria_ops.errors import AuthenticationFailed, DiskFull, StoreUnavailable
from scholaria_ops.sandbox.postgres import PostgresServer
from scholaria_ops.sandbox.sandbox import Sandbox
from scholaria_ops.settings import load_settings
from scholaria_ops.stores.live import Effect
from scholaria_ops.stores.postgres.live import PostgresLive
from scholaria_ops.stores.postgres.live.names import being_restored, beside, free_beside
from scholaria_ops.stores.postgres.store import PostgresStore
from scholaria_ops_tests.conftest import ContextFactory
from scholaria_ops_tests.stores.postgres_live.support import (
    NAME,
    SMALL,
    FileNotebook,
    different,
    evidence_now,
    names,
    restore,
    source_of,
    standing,
)
from scholaria_ops_tests.stores.postgres_support import MadeSet, ask, database, execute, make_set


@pytest.fixture
def sealed(live: PostgresConnection, tmp_path: Path, context_factory: ContextFactory) -> MadeSet:
    return make_set(PostgresStore(live), tmp_path / "set", context_factory())[0]


def counted(effects: tuple[Effect, ...]) -> dict[tuple[str, str], int | None]:
    return {(e.kind, e.what): e.count for e in effects if not e.what.startswith("sessions of")}


def test_a_plan_against_what_was_just_dumped_costs_nothing(
    live: PostgresConnection, sealed: MadeSet, home: PostgresServer, context_factory: ContextFactory
) -> None:
    held = standing(home)
    free = [psutil.disk_usage(str(home.data)).free]
    plan = PostgresLive(live).plan(source_of(sealed), context_factory())
    free.append(psutil.disk_usage(str(home.data)).free)  # others write to that disk, too
    assert counted(plan.effects) == {}
    assert plan.objections == ()
    assert plan.identity == str(home.system_identifier)
    assert plan.live_oid == ask(live, "SELECT oid FROM pg_database WHERE datname = current_database()")[0][0]
    assert plan.needs[0].needed_bytes == 2 * sealed.evidence.database.size_bytes
    assert 0.8 * min(free) <= (plan.needs[0].free_bytes or 0) <= 1.2 * max(free), "the server's directory is on this host, and its own"
    assert plan.needs[0].met
    assert plan.expected_s > 0
    assert plan.artifacts == tuple(a.path for a in sealed.artifacts)
    assert standing(home) == held
    assert type(plan).model_validate_json(plan.model_dump_json()) == plan


def test_rows_that_would_be_lost_come_back_or_have_their_ids_given_out_again_are_counted_exactly(
    live: PostgresConnection, sealed: MadeSet, context_factory: ContextFactory
) -> None:
    execute(
        live,
        "INSERT INTO topic (name) SELECT 'new' FROM generate_series(1, 7)",
        "UPDATE topic SET name = name || '!' WHERE id <= 3",
        "DELETE FROM chunk WHERE id > 990",
        "INSERT INTO chunk (topic_id, body) SELECT 1, 'new' FROM generate_series(1, 4)",
        "CREATE TABLE fresh AS SELECT generate_series(1, 5) AS a",
        "DROP TABLE loose",
        "ALTER TABLE alembic_version ADD COLUMN more int",
        "UPDATE alembic_version SET version_num = '0042_after'",
        "CREATE INDEX topic_name_idx ON topic (name)",
        "VACUUM FREEZE",
    )
    plan = PostgresLive(live).plan(source_of(sealed), context_factory())
    found = counted(plan.effects)
    assert {key: found.pop(key) for key in list(found) if key[0] != "changed"} == {
        ("lost", "table public.topic"): 10,
        ("back", "table public.topic"): 3,
        ("lost", "table public.chunk"): 4,
        ("back", "table public.chunk"): 10,
        ("lost", "table public.fresh"): 5,
        ("back", "table public.loose"): 10,
        ("lost", "table public.alembic_version"): 1,
        ("back", "table public.alembic_version"): 1,
        ("reused", "ids of public.topic.id"): 7,
        ("reused", "ids of public.chunk.id"): 4,
    }
    details = {e.what: e.detail for e in plan.effects if e.kind == "changed"}
    assert details["index public.topic_name_idx"] == "is not in the set and will be gone"
    assert details["table public.loose"] == "comes back"
    assert details["table public.alembic_version"].startswith("gets its former definition")
    assert details["Alembic revision"].startswith("0042_after → 0041_before")
    lost = next(e for e in plan.effects if (e.kind, e.what) == ("lost", "table public.topic"))
    assert lost.detail.endswith("7 with a new id, 3 others")
    assert next(e for e in plan.effects if e.kind == "reused" and "topic" in e.what).detail.startswith("101 to 107")


def test_where_rows_cannot_be_dated_the_loss_is_never_below_the_truth(
    live: PostgresConnection, sealed: MadeSet, tmp_path: Path, context_factory: ContextFactory
) -> None:
    """After one restore the live database is another one than that of the cut."""
    ctx = context_factory()
    restore(PostgresLive(live), sealed, FileNotebook(tmp_path), ctx)
    store = PostgresLive(live)
    assert counted(store.plan(source_of(sealed), ctx).effects) == {}
    execute(
        live,
        "INSERT INTO topic (name) VALUES ('new'), ('new')",
        "UPDATE topic SET name = 'x' WHERE id < 50",
        "DELETE FROM loose WHERE a > 8",
    )
    plan = store.plan(source_of(sealed), ctx)
    assert counted(plan.effects) == {
        ("lost", "table public.topic"): 102,
        ("lost", "table public.loose"): 8,
        ("back", "table public.loose"): 2,
        ("reused", "ids of public.topic.id"): 2,
    }
    assert "at least 2 with a new id" in next(e.detail for e in plan.effects if e.what == "table public.topic")


def test_sessions_that_the_switch_would_end_are_named(
    live: PostgresConnection, sealed: MadeSet, home: PostgresServer, context_factory: ContextFactory
) -> None:
    with home.connect(NAME) as session:
        session.execute("SET application_name TO 'celery'")
        effects = PostgresLive(live).plan(source_of(sealed), context_factory()).effects
    assert ("sessions of postgres (celery)", 1) in [(e.what, e.count) for e in effects]


def test_a_role_that_may_not_is_told_what_it_lacks(
    live: PostgresConnection, sealed: MadeSet, home: PostgresServer, context_factory: ContextFactory
) -> None:
    execute(home.connection, "CREATE ROLE weak LOGIN PASSWORD 'w' IN ROLE pg_read_all_data")
    weak = live.model_copy(update={"user": "weak", "password": type(live.password)("w")})
    with home.connect(NAME):
        messages = [o.message for o in PostgresLive(weak).plan(source_of(sealed), context_factory()).objections]
    assert len(messages) == 1
    for part in (
        "create databases",
        f"rename {NAME}",
        "make what belongs to postgres",
        "end the sessions of others",
        "superusers postgres",
    ):
        assert part in messages[0]
    wrong = live.model_copy(update={"user": "weak", "password": type(live.password)("no")})
    with pytest.raises(AuthenticationFailed) as caught:
        PostgresLive(wrong).plan(source_of(sealed), context_factory())
    assert "DB_RESTORE_USER" in caught.value.hint


def test_an_unreachable_server_cannot_be_planned_for(live: PostgresConnection, sealed: MadeSet, context_factory: ContextFactory) -> None:
    with pytest.raises(StoreUnavailable):
        PostgresLive(live.model_copy(update={"port": 1})).plan(source_of(sealed), context_factory())


@pytest.mark.parametrize("what", ["a table", "the catalogue", "everything"])
def test_a_damaged_live_database_is_planned_for_and_replaced(
    what: str, live: PostgresConnection, sealed: MadeSet, home: PostgresServer, tmp_path: Path, context_factory: ContextFactory
) -> None:
    ctx, notebook, store = context_factory(), FileNotebook(tmp_path), PostgresLive(live)
    relation = {"a table": "chunk", "the catalogue": "pg_class", "everything": "pg_class"}[what]
    ((path,),) = ask(live, f"SELECT pg_relation_filepath('{relation}')")
    execute(live, "CHECKPOINT")
    file = home.data / str(path)
    for damaged in file.parent.iterdir() if what == "everything" else [file]:
        damaged.unlink()
    plan = store.plan(source_of(sealed), ctx)
    unreadable = [e for e in plan.effects if e.kind == "lost"]
    assert [e.count for e in unreadable] == [None]
    assert unreadable[0].what == ("table public.chunk" if what == "a table" else f"everything in {NAME}")
    assert plan.objections == ()
    store.stage(plan, source_of(sealed), notebook, ctx)
    store.switch(plan, notebook, ctx)
    assert different(sealed.evidence, evidence_now(live, ctx)) == []
    store.undo(notebook, ctx)
    store.undo(notebook, ctx)
    store.discard(notebook, ctx)
    assert names(home) == {NAME: True}


@pytest.fixture
def narrow(sandbox: Sandbox) -> Iterator[PostgresServer]:
    """A server that may not write files larger than 17 MB, which it meets as it would a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (17_000_000, limits[1]))
    try:
        server = sandbox.postgres(name="narrow-postgres")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    yield server
    server.stop()


def test_a_full_disk_on_the_server_is_told_and_leaves_nothing(
    live: PostgresConnection, narrow: PostgresServer, tmp_path: Path, context_factory: ContextFactory
) -> None:
    ctx, notebook = context_factory(), FileNotebook(tmp_path)
    execute(
        live,
        "CREATE TABLE big (a text)",
        "ALTER TABLE big ALTER a SET STORAGE PLAIN",
        "INSERT INTO big SELECT repeat(md5(i::text), 60) FROM generate_series(1, 12000) i",
    )
    made, _ = make_set(PostgresStore(live), tmp_path / "set", ctx)
    with database(narrow, NAME, *SMALL) as there:
        store = PostgresLive(there)
        plan = store.plan(source_of(made), ctx)
        before, held = evidence_now(there, ctx), standing(narrow)
        with pytest.raises(DiskFull, match=r"needs about [\d,]+ bytes"):
            store.stage(plan, source_of(made), notebook, ctx)
        assert standing(narrow) == held
        assert different(before, evidence_now(there, ctx)) == []


def test_too_little_room_is_a_need_that_is_not_met(live: PostgresConnection, sealed: MadeSet, context_factory: ContextFactory) -> None:
    huge = sealed.evidence.database.model_copy(update={"size_bytes": 10**18})
    vast = replace(sealed, evidence=sealed.evidence.model_copy(update={"database": huge}))
    (need,) = PostgresLive(live).plan(source_of(vast), context_factory()).needs
    assert not need.met


def test_names_beside_are_whole_and_told_apart() -> None:
    assert beside("scholaria", "before", "20241001_020000") == "scholaria_before_20241001_020000"
    long = ["가" * 21, "가" * 20 + "나"]
    made = {beside(name, "restore", "20241001_020000") for name in long}
    assert len(made) == 2
    assert all(len(name.encode()) <= 63 for name in made)
    assert free_beside("a", "before", "20241001_020000", {"a_before_20241001_020000"}) == "a_before_20241001_020000_2"
    others = ["a_restore_20241001_020000", "a_restore_20241001_020000_2", "b_restore_20241001_020000", "a_before_20241001_020000", "a"]
    assert being_restored("a", others) == others[:2]


def test_restores_may_have_a_role_of_their_own() -> None:
    settings = load_settings({"DB_USER": "reader", "DB_PASSWORD": "r", "DB_RESTORE_USER": "admin", "DB_RESTORE_PASSWORD": "hunter2"})
    assert (settings.postgres.user, settings.postgres_restore.user) == ("reader", "admin")
    assert settings.postgres_restore.password.get_secret_value() == "hunter2"
    assert "hunter2" in settings.secrets
    assert load_settings({"DB_USER": "both"}).postgres_restore == load_settings({"DB_USER": "both"}).postgres
