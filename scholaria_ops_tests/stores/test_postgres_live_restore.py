"""A live database is exchanged whole, while the application writes; what was served is kept, and comes back when asked for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from scholaria_ops.connections import PostgresConnection
from scholaria_ops.sandbox.postgres import PostgresServer
from scholaria_ops.sandbox.sandbox import Sandbox
from scholaria_ops.stores.postgres.live import PostgresLive
from scholaria_ops.stores.postgres.store import PostgresStore
from scholaria_ops_tests.conftest import ContextFactory
from scholaria_ops_tests.stores.postgres_live_support import (
    RESTORE_ID,
    SMALL,
    FileNotebook,
    different,
    evidence_now,
    names,
    restore,
)
from scholaria_ops_tests.stores.postgres_support import (
    MadeSet,
    ask,
    database,
    emptied,
    execute,
    make_set,
)

NAME = "live"


@pytest.fixture(scope="module")
def home(sandbox: Sandbox) -> Iterator[PostgresServer]:
    """A server of its own: databases appear and vanish on it, and a role is created."""
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
    assert different(before, evidence_now(live, ctx)) == []
