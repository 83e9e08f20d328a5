"""Points in bulk: over gRPC, many pages at once, they are those that REST gives one page after the other."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

from scholaria_ops.errors import StoreError
from scholaria_ops.sandbox.qdrant import QdrantServer
from scholaria_ops.sandbox.tools import Tools
from scholaria_ops.stores.qdrant.points import GrpcSource, Point, RestSource, Source, Wanted
from scholaria_ops.stores.qdrant.rest import Rest, at
from scholaria_ops_tests.stores.qdrant_support import fast_sandbox, upsert

NAME = "pages"


@pytest.fixture
def server(tools: Tools, tmp_path_factory: pytest.TempPathFactory) -> Iterator[QdrantServer]:
    with fast_sandbox(tmp_path_factory.mktemp("box"), tools) as box:
        made = box.qdrant(name="qdrant-pages", grpc=True)
        with Rest(made.connection) as rest:
            rest.put(at(NAME), {"vectors": {"size": 4, "distance": "Dot"}})
            ids = [*range(0, 600, 3), *(str(uuid.UUID(int=number << 100)) for number in range(1, 120))]
            upsert(rest, NAME, [{"id": i, "vector": [n, 1.5, -n, 0.25], "payload": {"n": n}} for n, i in enumerate(ids)])
        yield made


def _source(server: QdrantServer) -> GrpcSource:
    assert server.grpc_address
    return GrpcSource(server.grpc_address, server.connection.api_key.get_secret_value())


def _all(source: Source, wanted: Wanted) -> list[Point]:
    return [point for page in source.pages(wanted) for point in page]


@pytest.mark.parametrize("page", [None, 1, 37, 319, 320])
def test_many_pages_at_once_are_every_point_once_and_in_order(server: QdrantServer, page: int | None) -> None:
    wanted = Wanted(NAME, payloads=True, vectors=True, floats=4, max_page=page)
    found = list(_source(server).pages(wanted))
    assert [len(one) for one in found[:-1]] == [page or 319] * (len(found) - 1)
    with Rest(server.connection) as rest:
        assert [point for one in found for point in one] == _all(RestSource(rest), Wanted(NAME, payloads=True, vectors=True, floats=4))


def test_an_empty_collection_has_no_points(server: QdrantServer) -> None:
    with Rest(server.connection) as rest:
        rest.put(at("empty"), {"vectors": {"size": 4, "distance": "Dot"}})
    assert _all(_source(server), Wanted("empty", payloads=True, vectors=True, floats=4)) == []


@pytest.mark.parametrize("change", ["delete", "insert"])
def test_points_that_come_or_go_while_they_are_read_are_noticed(server: QdrantServer, change: str) -> None:
    pages = _source(server).pages(Wanted(NAME, payloads=True, vectors=True, floats=4, max_page=10))
    next(pages)
    with Rest(server.connection) as rest:
        if change == "delete":
            rest.post(at(NAME, "points", "delete"), {"points": [450]}, wait="true")
        else:
            upsert(rest, NAME, [{"id": 451, "vector": [1, 2, 3, 4], "payload": {}}])
    with pytest.raises(StoreError, match="changed while they were read"):
        list(pages)
