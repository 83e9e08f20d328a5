"""A restore that is taken back after its database was served: what was written to it meanwhile is not dropped."""

from __future__ import annotations

from pathlib import Path

import pytest

from scholaria_ops.connections import PostgresConnection
from scholaria_ops.errors import Refused
from scholaria_ops.sandbox.postgres import PostgresServer
from scholaria_ops.stores.postgres.live import PostgresLive, take_back
from scholaria_ops.stores.postgres.sequences import raise_all
from scholaria_ops_tests.conftest import ContextFactory
from scholaria_ops_tests.stores.postgres_live.support import (
    AFTER,
    BEFORE,
    NAME,
    SIDE,
    FileNotebook,
    die,
    different,
    evidence_now,
    killed_in_child,
    names,
    source_of,
    staged,
)
from scholaria_ops_tests.stores.postgres_support import MadeSet, ask, execute


def test_a_database_that_was_served_and_written_to_is_set_aside_until_it_is_discarded(
    live: PostgresConnection, sealed: MadeSet, home: PostgresServer, tmp_path: Path, context_factory: ContextFactory
) -> None:
    ctx, notebook = context_factory(), FileNotebook(tmp_path)
    before = evidence_now(live, ctx)
    store, plan = staged(live, sealed, notebook, ctx)
    store.switch(plan, notebook, ctx)
    execute(live, "INSERT INTO topic (name) SELECT 'meanwhile' FROM generate_series(1, 3)", "DELETE FROM chunk WHERE id <= 4")
    back = store.roll_back(notebook, ctx)
    assert different(before, evidence_now(live, ctx)) == []
    assert names(home) == {NAME: True, AFTER: False}
    (kept,) = back.kept
    assert kept.startswith(f"database {AFTER}, ")
    assert "table public.topic 3 (rows added" in kept
    assert "table public.chunk: deletions 4 (" in kept
    assert any("is set aside, because it was written to" in line for line in back.lines)
    with pytest.raises(Refused, match=f"was taken back, and has left database {AFTER}"):
        store.stage(plan, source_of(sealed), notebook, ctx)
    again = store.roll_back(notebook, ctx)
    assert (again.lines, again.kept) == ([], back.kept)
    execute(home.connection, f"ALTER DATABASE {AFTER} WITH ALLOW_CONNECTIONS true")
    assert ask(live.with_db(AFTER), "SELECT count(*) FROM topic WHERE name = 'meanwhile'") == [(3,)]
    assert store.discard(notebook, ctx)[0].startswith(f"database {AFTER}, ")
    assert names(home) == {NAME: True}
    assert different(before, evidence_now(live, ctx)) == []
    assert store.discard(notebook, ctx) == []
    assert store.roll_back(notebook, ctx).kept == ()


def test_what_we_do_to_a_served_database_ourselves_does_not_keep_it(
    live: PostgresConnection, sealed: MadeSet, home: PostgresServer, tmp_path: Path, context_factory: ContextFactory
) -> None:
    ctx, notebook = context_factory(), FileNotebook(tmp_path)
    store, plan = staged(live, sealed, notebook, ctx)
    store.switch(plan, notebook, ctx)
    assert raise_all(live, {"public.topic_id_seq": 5000}) == 1
    execute(live, "VACUUM ANALYZE")  # as the server does by itself
    back = store.roll_back(notebook, ctx)
    assert back.kept == ()
    assert any(line.startswith(f"database {AFTER}, ") and line.endswith("removed") for line in back.lines)
    assert names(home) == {NAME: True}


def test_where_there_was_no_database_before_what_was_written_is_kept_as_well(
    live: PostgresConnection, sealed: MadeSet, home: PostgresServer, tmp_path: Path, context_factory: ContextFactory
) -> None:
    ctx, notebook = context_factory(), FileNotebook(tmp_path)
    execute(home.connection, f"DROP DATABASE {NAME} WITH (FORCE)")
    store, plan = staged(live, sealed, notebook, ctx)
    store.switch(plan, notebook, ctx)
    execute(live, "INSERT INTO loose VALUES (11)")
    assert "table public.loose 1" in store.roll_back(notebook, ctx).kept[0]
    assert names(home) == {AFTER: False}
    store.discard(notebook, ctx)
    assert names(home) == {}


def test_what_cannot_be_read_is_kept(
    live: PostgresConnection, sealed: MadeSet, home: PostgresServer, tmp_path: Path, context_factory: ContextFactory
) -> None:
    ctx, notebook = context_factory(), FileNotebook(tmp_path)
    store, plan = staged(live, sealed, notebook, ctx)
    store.switch(plan, notebook, ctx)
    ((path,),) = ask(live, "SELECT pg_relation_filepath('loose')")
    execute(home.connection, "CHECKPOINT")
    (home.data / str(path)).unlink()
    (kept,) = store.roll_back(notebook, ctx).kept
    assert "table public.loose (cannot be read now" in kept
    assert names(home) == {NAME: True, AFTER: False}
    store.discard(notebook, ctx)
    assert names(home) == {NAME: True}


@pytest.mark.parametrize("written", [False, True])
@pytest.mark.parametrize("function", ["exchange", "since_the_switch", "size_for_people", "_drop_roles"])
def test_killed_while_it_looks_at_what_was_written_the_next_one_decides_the_same(
    live: PostgresConnection,
    sealed: MadeSet,
    home: PostgresServer,
    tmp_path: Path,
    context_factory: ContextFactory,
    function: str,
    written: bool,
) -> None:
    ctx, notebook = context_factory(), FileNotebook(tmp_path)
    before = evidence_now(live, ctx)
    store, plan = staged(live, sealed, notebook, ctx)
    store.switch(plan, notebook, ctx)
    if written:
        execute(live, "DELETE FROM loose WHERE a = 1")

    def armed() -> None:
        real = getattr(take_back, function)

        def last(*given: object) -> None:
            real(*given)
            die()

        setattr(take_back, function, last)
        store.roll_back(notebook, ctx)

    assert killed_in_child(armed)
    assert different(before, evidence_now(live, ctx)) == []
    back = store.roll_back(notebook, ctx)
    assert bool(back.kept) is written
    assert names(home) == {NAME: True, **({AFTER: False} if written else {})}
    store.discard(notebook, ctx)
    assert names(home) == {NAME: True}


def test_killed_once_it_is_dropped_the_ids_that_it_gave_out_are_known(
    live: PostgresConnection, sealed: MadeSet, home: PostgresServer, tmp_path: Path, context_factory: ContextFactory
) -> None:
    ctx, notebook = context_factory(), FileNotebook(tmp_path)
    store, plan = staged(live, sealed, notebook, ctx)
    assert store.roll_back(notebook, ctx).given_out is None, "it was never served"
    store, plan = staged(live, sealed, notebook, ctx)
    store.switch(plan, notebook, ctx)
    ask(live, "SELECT nextval('topic_id_seq') FROM generate_series(1, 900)")

    def armed() -> None:
        real = getattr(take_back, "drop")  # noqa: B009 - the module does not export it

        def last(*given: object) -> None:
            real(*given)
            die()

        setattr(take_back, "drop", last)  # noqa: B010
        store.roll_back(notebook, ctx)

    assert killed_in_child(armed)
    assert names(home) == {NAME: True}
    for _ in range(2):
        assert store.roll_back(notebook, ctx).given_out == {"public.topic_id_seq": 1000, "public.chunk_id_seq": 1000}


def test_how_it_stands_is_told_in_every_state(
    live: PostgresConnection, sealed: MadeSet, home: PostgresServer, tmp_path: Path, context_factory: ContextFactory
) -> None:
    ctx, notebook = context_factory(), FileNotebook(tmp_path)
    assert PostgresLive(live).standing(notebook, ctx).served == ("this restore has not touched PostgreSQL",)
    store, plan = staged(live, sealed, notebook, ctx)
    told = store.standing(notebook, ctx)
    assert told.served[0].startswith(f"database {NAME}, ")
    assert told.served[0].endswith("what was served before the restore")
    assert told.left[0].endswith("what the restore loaded, takes no connections")
    assert told.by_hand == (f'DROP DATABASE "{SIDE}", once nobody needs it: until then no restore of this database begins',)
    store.switch(plan, notebook, ctx)
    execute(home.connection, f"DROP DATABASE {BEFORE}", f"ALTER DATABASE {NAME} WITH ALLOW_CONNECTIONS false")
    with pytest.raises(Refused, match="is gone from the server"):
        store.roll_back(notebook, ctx)
    held = names(home)
    told = store.standing(notebook, ctx)
    assert told.served[0].endswith("what the restore loaded, takes no connections")
    assert told.left == ("what was served before the restore is gone from the server",)
    assert told.by_hand == (f'ALTER DATABASE "{NAME}" WITH ALLOW_CONNECTIONS true lets people in again',)
    assert names(home) == held
    elsewhere = FileNotebook(tmp_path / "other")
    elsewhere.write(**{**notebook.read(), "identity": "1"})
    assert "is another server" in store.standing(elsewhere, ctx).served[0]
