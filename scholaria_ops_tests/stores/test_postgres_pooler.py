"""Through a pooler that gives each transaction to another session of the server nothing is begun, and nothing is left there."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from scholaria_ops.connections import PostgresConnection
from scholaria_ops.errors import Refused
from scholaria_ops.sandbox.postgres import PostgresServer
from scholaria_ops.stores.postgres.live import PostgresLive
from scholaria_ops.stores.postgres.live.server import guarded
from scholaria_ops.stores.postgres.session import open_session
from scholaria_ops.stores.postgres.store import PostgresStore
from scholaria_ops_tests.conftest import ContextFactory
from scholaria_ops_tests.stores.postgres_live.support import source_of
from scholaria_ops_tests.stores.postgres_pooler import pooler
from scholaria_ops_tests.stores.postgres_support import database, make_set


@pytest.fixture
def live(pg_server: PostgresServer) -> Iterator[PostgresConnection]:
    with database(pg_server, "pooled", "CREATE TABLE a (id serial PRIMARY KEY)") as connection:
        yield connection


@pytest.mark.parametrize("sessions", [1, 2, 3, 5])
def test_a_pooler_in_transaction_mode_is_refused_before_anything_is_set_in_its_sessions(live: PostgresConnection, sessions: int) -> None:
    with pooler(live, "transaction", sessions) as (pooled, there):
        began = time.monotonic()
        with (
            pytest.raises(Refused, match=r"a connection pooler that gives each transaction to another session") as caught,
            open_session(pooled),
        ):
            pass
        assert time.monotonic() - began < 5
        assert "Point DB_HOST and DB_PORT at the server itself" in caught.value.hint
        assert [server.execute("SHOW search_path").fetchall() for server in there] == [[('"$user", public',)]] * sessions


def test_backups_and_restores_say_so_before_they_begin(live: PostgresConnection, tmp_path: Path, context_factory: ContextFactory) -> None:
    ctx = context_factory()
    made, _ = make_set(PostgresStore(live), tmp_path / "set", ctx)
    with pooler(live, "transaction", 2) as (pooled, _):
        with pytest.raises(Refused, match="connection pooler"):
            PostgresStore(pooled).preflight(ctx)
        with pytest.raises(Refused, match="connection pooler"):
            PostgresLive(pooled).plan(source_of(made), ctx)


def test_a_pooler_in_session_mode_is_as_good_as_the_server(live: PostgresConnection) -> None:
    with pooler(live, "session", 3) as (pooled, _), open_session(pooled) as one, open_session(pooled) as two:
        assert one.one("SELECT pg_backend_pid()") != two.one("SELECT pg_backend_pid()")
        assert one.one("SHOW search_path") == ("",)
    with pooler(live.with_db("postgres"), "session", 4) as (pooled, _), guarded(pooled.with_db("pooled")) as session:
        assert session.one("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()") == (1,)
