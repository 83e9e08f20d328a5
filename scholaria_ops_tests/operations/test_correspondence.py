"""Rows and points are compared by id, by context and by text; every kind of disagreement is found where it is made."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import httpx
import psycopg
import pytest

from scholaria_ops.catalogue.sets import BackupSet
from scholaria_ops.connections import PostgresConnection, QdrantConnection
from scholaria_ops.operations.correspondence import correspondence, largest_point
from scholaria_ops.operations.restore.after import After
from scholaria_ops.operations.restore.tasks import Waiting
from scholaria_ops.operations.services import Services
from scholaria_ops.sandbox.postgres import PostgresServer
from scholaria_ops.sandbox.qdrant import QdrantServer
from scholaria_ops.stores.redis.live import QueuedTask
from scholaria_ops_tests.conftest import ContextFactory
from scholaria_ops_tests.operations.conftest import ServicesFactory
from scholaria_ops_tests.stores.postgres_support import ask

COLLECTION = "context_items"
DATABASE = "correspondence"


@pytest.fixture
def pair(pg_server: PostgresServer, qdrant_server: QdrantServer) -> Iterator[tuple[PostgresConnection, QdrantConnection]]:
    """Five rows and the same five points."""
    admin = pg_server.connection
    _sql(admin, f"CREATE DATABASE {DATABASE}")
    own = admin.with_db(DATABASE)
    _sql(own, "CREATE TABLE public.rag_contextitem (id bigint PRIMARY KEY, context_id bigint, content text)")
    _sql(own, "INSERT INTO public.rag_contextitem SELECT n, n % 2, '조각 ' || n FROM generate_series(1, 5) n")
    url = qdrant_server.connection.url
    httpx.put(f"{url}/collections/{COLLECTION}", json={"vectors": {"size": 1, "distance": "Dot"}}).raise_for_status()
    _points(url, *range(1, 6))
    try:
        yield own, qdrant_server.connection
    finally:
        httpx.delete(f"{url}/collections/{COLLECTION}").raise_for_status()
        _sql(admin, f"DROP DATABASE {DATABASE} WITH (FORCE)")


def _sql(connection: PostgresConnection, statement: str) -> None:
    with psycopg.connect(
        host=connection.host,
        port=connection.port,
        dbname=connection.dbname,
        user=connection.user,
        password=connection.password.get_secret_value(),
        autocommit=True,
    ) as session:
        session.execute(statement.encode())


def _points(url: str, *ids: int, text: str = "조각 {}", context: int | None = None) -> None:
    points = [
        {"id": n, "vector": [1.0], "payload": {"context_id": n % 2 if context is None else context, "content": text.format(n)}} for n in ids
    ]
    httpx.put(f"{url}/collections/{COLLECTION}/points?wait=true", json={"points": points}).raise_for_status()


def test_equal_stores_agree_in_every_id_and_text(pair: tuple[PostgresConnection, QdrantConnection]) -> None:
    found = correspondence(*pair)
    assert found is not None
    assert (found.rows, found.points, found.texts_compared, found.largest_point) == (5, 5, 5, 5)
    assert set(found.counts.values()) == {0}
    assert found.worse_than(None) == {}


def test_every_kind_of_disagreement_is_counted_and_shown(pair: tuple[PostgresConnection, QdrantConnection]) -> None:
    postgres, qdrant = pair
    _sql(postgres, "DELETE FROM public.rag_contextitem WHERE id = 2")
    _sql(postgres, "INSERT INTO public.rag_contextitem VALUES (9, 1, 'only a row')")
    _points(qdrant.url, 3, text="another text {}")
    _points(qdrant.url, 4, context=77)
    found = correspondence(postgres, qdrant)
    assert found is not None
    assert found.counts == {"row without point": 1, "point without row": 1, "other context": 1, "other text": 1}
    assert found.examples == {"point without row": (2,), "other text": (3,), "other context": (4,), "row without point": (9,)}
    assert found.worse_than(None) == dict.fromkeys(found.counts, 1)
    assert found.worse_than(found) == {}


def test_the_largest_point_is_found_without_reading_all(pair: tuple[PostgresConnection, QdrantConnection]) -> None:
    _, qdrant = pair
    assert largest_point(qdrant) == 5
    for id_ in (4_000_000_000, (1 << 62) + 3):
        _points(qdrant.url, id_)
        assert largest_point(qdrant) == id_
    assert largest_point(qdrant, below=4_000_000_000) == 5
    assert largest_point(qdrant, below=4_000_000_001) == 4_000_000_000


def test_another_application_has_no_correspondence(pg_server: PostgresServer, qdrant_server: QdrantServer) -> None:
    assert correspondence(pg_server.connection, qdrant_server.connection) is None
    assert largest_point(qdrant_server.connection) == 0


def _services(make: ServicesFactory, postgres: PostgresConnection, qdrant_url: str) -> Services:
    password = postgres.password.get_secret_value()
    database = {"DB_HOST": postgres.host, "DB_PORT": str(postgres.port), "DB_USER": postgres.user, "DB_PASSWORD": password}
    return make(**database, DB_NAME=DATABASE, QDRANT_URL=qdrant_url)


@pytest.mark.parametrize("stray", [2**31 - 1, 10**12])
def test_a_point_that_can_be_no_row_neither_uses_up_all_ids_nor_makes_a_restore_fail(
    pair: tuple[PostgresConnection, QdrantConnection], services_factory: ServicesFactory, context_factory: ContextFactory, stray: int
) -> None:
    postgres, qdrant = pair
    _sql(postgres, "CREATE SEQUENCE public.ids AS integer OWNED BY public.rag_contextitem.id")
    _points(qdrant.url, stray)
    After(_services(services_factory, postgres, qdrant.url), context_factory())._raise_sequences()
    assert ask(postgres, "SELECT last_value FROM public.ids") == [(5,)]


def test_a_dead_qdrant_is_told_and_no_reason_to_do_without_postgres(
    pair: tuple[PostgresConnection, QdrantConnection], services_factory: ServicesFactory, context_factory: ContextFactory
) -> None:
    postgres, _ = pair
    _sql(postgres, "CREATE SEQUENCE public.ids AS integer OWNED BY public.rag_contextitem.id")
    after = After(_services(services_factory, postgres, "http://127.0.0.1:9"), context_factory(), given_out={"public.ids": 3})
    after._raise_sequences()
    assert ask(postgres, "SELECT last_value FROM public.ids") == [(3,)]
    assert "the ids that Qdrant knows could not be read" in after.told[0]


def _queued(*numbers: int) -> Waiting:
    tasks = [QueuedTask(db=0, queue="celery", id=str(n), name="rag.tasks.embed_context_item", args=str(n), unnamed=(n,)) for n in numbers]
    return Waiting(tuple(tasks), len(tasks), "it will run")


def test_ids_that_queued_tasks_speak_of_are_not_given_out_again(
    pair: tuple[PostgresConnection, QdrantConnection], services_factory: ServicesFactory, context_factory: ContextFactory
) -> None:
    """The database that gave them out is gone, and no point bears them yet: the queue alone knows."""
    postgres, qdrant = pair
    _sql(postgres, "CREATE SEQUENCE public.ids AS integer OWNED BY public.rag_contextitem.id")
    found = _queued(999, 2**31 - 2)
    after = After(_services(services_factory, postgres, qdrant.url), context_factory(), tasks=lambda: found)
    after._raise_sequences(found)
    assert ask(postgres, "SELECT last_value FROM public.ids") == [(999,)]
    assert "a queued task speaks of context item 2147483646, which can be no id" in after.told[0]


def test_tasks_that_were_not_read_are_told_where_ids_go_on(
    pair: tuple[PostgresConnection, QdrantConnection], services_factory: ServicesFactory, context_factory: ContextFactory
) -> None:
    postgres, qdrant = pair
    after = After(_services(services_factory, postgres, qdrant.url), context_factory())
    after._raise_sequences(replace(_queued(3), total=1001))
    assert after.told == ["1,000 queued tasks were not read: ids that they alone speak of may be given out again"]


def test_a_sequence_is_not_raised_above_what_its_column_can_hold(
    pair: tuple[PostgresConnection, QdrantConnection], services_factory: ServicesFactory, context_factory: ContextFactory
) -> None:
    """Databases of before PostgreSQL 10 have wide sequences behind narrow columns."""
    postgres, qdrant = pair
    _sql(postgres, "ALTER TABLE public.rag_contextitem ALTER COLUMN id TYPE integer")
    _sql(postgres, "CREATE SEQUENCE public.ids AS bigint OWNED BY public.rag_contextitem.id")
    _points(qdrant.url, 2**40)
    After(_services(services_factory, postgres, qdrant.url), context_factory())._raise_sequences(_queued(7, 2**40))
    assert ask(postgres, "SELECT last_value FROM public.ids") == [(7,)]


def test_where_qdrant_alone_was_restored_sequences_are_raised_if_postgres_can_be_asked(
    pair: tuple[PostgresConnection, QdrantConnection],
    services_factory: ServicesFactory,
    context_factory: ContextFactory,
    pristine: BackupSet,
) -> None:
    postgres, qdrant = pair
    _sql(postgres, "CREATE SEQUENCE public.ids AS integer OWNED BY public.rag_contextitem.id")
    After(_services(services_factory, postgres, qdrant.url), context_factory()).before_writers(pristine, ("qdrant",))
    assert ask(postgres, "SELECT last_value FROM public.ids") == [(5,)]
    nowhere = postgres.model_copy(update={"port": 9})
    after = After(_services(services_factory, nowhere, qdrant.url), context_factory())
    after.before_writers(pristine, ("qdrant",))
    assert after.told[0].startswith("ids that points bear may be given out again: ")
