"""A live database on a server of its own, and a set of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from scholaria_ops.connections import PostgresConnection
from scholaria_ops.sandbox.postgres import PostgresServer
from scholaria_ops.sandbox.sandbox import Sandbox
from scholaria_ops.stores.postgres.store import PostgresStore
from scholaria_ops_tests.conftest import ContextFactory
from scholaria_ops_tests.stores.postgres_live.support import NAME, SMALL
from scholaria_ops_tests.stores.postgres_support import MadeSet, database, emptied, execute, make_set


@pytest.fixture(scope="module")
def home(request: pytest.FixtureRequest, sandbox: Sandbox) -> Iterator[PostgresServer]:
    """A server of its own: databases appear and vanish on it, and roles are made."""
    server = sandbox.postgres(
        name=f"{request.path.stem}-postgres", settings={"max_prepared_transactions": "5", "wal_level": "logical", "max_wal_senders": "5"}
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
