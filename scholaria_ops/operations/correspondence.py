"""Compare the rows of PostgreSQL with the points of Qdrant, as the application's profile says that they correspond.

Both sides give their ids in order, so the two streams are merged and memory stays flat. Texts are compared for a sample
that the ids themselves choose: Qdrant would otherwise have to send every text.
"""

from __future__ import annotations

import hashlib
import zlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from scholaria_ops.cancel import CancelToken
from scholaria_ops.catalogue.evidence.correspondence import KINDS, Correspondence, Kind
from scholaria_ops.connections import PostgresConnection, QdrantConnection
from scholaria_ops.profiles.scholaria import CHUNK_COLUMNS, CHUNK_ID, CHUNK_TABLE, COLLECTIONS
from scholaria_ops.stores.postgres.session import Session, open_session
from scholaria_ops.stores.qdrant.measure import aliases_of, collections_of
from scholaria_ops.stores.qdrant.rest import Rest, at

_EXAMPLES = 5
_TEXTS = 2000
_PAGE = 5000
_BATCH = 200


def correspondence(postgres: PostgresConnection, qdrant: QdrantConnection, *, cancel: CancelToken | None = None) -> Correspondence | None:
    """Compare the two; None if the table or the collection is not there (another application, or a store that was lost).

    Raises:
        StoreError, StoreUnavailable: a store could not be read.
    """
    with open_session(postgres, cancel=cancel) as session, Rest(qdrant, cancel=cancel) as rest:
        collection = _collection(rest)
        if collection is None or not session.rows("SELECT 1 WHERE to_regclass(%s) IS NOT NULL", (CHUNK_TABLE,)):
            return None
        return _Merge(session, rest, collection).run()


def _collection(rest: Rest) -> str | None:
    have = {*collections_of(rest), *aliases_of(rest)}
    return next((name for name in COLLECTIONS if name in have), None)


class _Merge:
    def __init__(self, session: Session, rest: Rest, collection: str) -> None:
        self._session = session
        self._rest = rest
        self._collection = collection
        self._counts: dict[Kind, int] = dict.fromkeys(KINDS, 0)
        self._examples: defaultdict[Kind, list[int]] = defaultdict(list)
        self._sample: list[int] = []
        self._texts = 0
        self._rows = self._points = self._largest = 0

    def run(self) -> Correspondence:
        began = datetime.now(UTC)
        (estimate,) = self._session.one("SELECT greatest(reltuples, 0)::bigint FROM pg_class WHERE oid = %s::regclass", (CHUNK_TABLE,))
        step = max(1, int(estimate) // _TEXTS)
        rows, points = self._all_rows(), self._all_points()
        row, point = next(rows, None), next(points, None)
        while row is not None or point is not None:
            if point is None or (row is not None and row[0] < point[0]):
                assert row is not None  # noqa: S101 - one of the two is there
                self._wrong("row without point", row[0])
                row = next(rows, None)
            elif row is None or point[0] < row[0]:
                self._wrong("point without row", point[0])
                point = next(points, None)
            else:
                self._both(row[0], row[1], point[1], step)
                row, point = next(rows, None), next(points, None)
        self._compare_texts()
        return Correspondence(
            at=began,
            table=CHUNK_TABLE,
            collection=self._collection,
            rows=self._rows,
            points=self._points,
            counts=self._counts,
            examples={k: tuple(v) for k, v in self._examples.items()},
            texts_compared=self._texts,
            largest_point=self._largest,
        )

    def _wrong(self, kind: Kind, id_: int) -> None:
        self._counts[kind] += 1
        if len(self._examples[kind]) < _EXAMPLES:
            self._examples[kind].append(id_)

    def _both(self, id_: int, row_context: int | None, point_context: int | None, step: int) -> None:
        if row_context != point_context:
            self._wrong("other context", id_)
        if zlib.crc32(str(id_).encode()) % step == 0:
            self._sample.append(id_)

    def _all_rows(self) -> Iterator[tuple[int, int | None]]:
        from psycopg.sql import SQL, Identifier

        query = SQL("SELECT {}, {} FROM {} ORDER BY 1").format(Identifier(CHUNK_ID), Identifier("context_id"), _table())
        with self._session.told(), self._session.connection.cursor(name="rows_and_points", withhold=True) as cursor:
            cursor.itersize = _PAGE
            for id_, context in cursor.execute(query):
                self._rows += 1
                yield int(id_), context

    def _all_points(self) -> Iterator[tuple[int, int | None]]:
        offset: Any = None
        while True:
            page = self._rest.post(
                at(self._collection, "points", "scroll"),
                {"limit": _PAGE, "offset": offset, "with_payload": {"include": [CHUNK_COLUMNS["context_id"]]}, "with_vector": False},
            )
            for record in page["points"]:
                self._points += 1
                if isinstance(record["id"], int):  # another kind of id is no row's
                    self._largest = max(self._largest, record["id"])
                    yield record["id"], (record.get("payload") or {}).get(CHUNK_COLUMNS["context_id"])
                else:
                    self._counts["point without row"] += 1
            offset = page.get("next_page_offset")
            if offset is None:
                return

    def _compare_texts(self) -> None:
        for begin in range(0, len(self._sample), _BATCH):
            ids = self._sample[begin : begin + _BATCH]
            rows, points = self._row_texts(ids), self._point_texts(ids)
            for id_ in ids:
                if id_ in rows and id_ in points:
                    self._texts += 1
                    if rows[id_] != points[id_]:
                        self._wrong("other text", id_)

    def _row_texts(self, ids: Sequence[int]) -> dict[int, str]:
        from psycopg.sql import SQL, Identifier

        query = SQL("SELECT {0}, md5({1}) FROM {2} WHERE {0} = ANY(%s)").format(Identifier(CHUNK_ID), Identifier("content"), _table())
        return dict(self._session.rows(query, (list(ids),)))

    def _point_texts(self, ids: Sequence[int]) -> dict[int, str]:
        field = CHUNK_COLUMNS["content"]
        found = self._rest.post(
            at(self._collection, "points"), {"ids": list(ids), "with_payload": {"include": [field]}, "with_vector": False}
        )
        return {r["id"]: hashlib.md5(str((r.get("payload") or {}).get(field)).encode(), usedforsecurity=False).hexdigest() for r in found}


def largest_point(qdrant: QdrantConnection, *, below: int = 1 << 63, cancel: CancelToken | None = None) -> int:
    """The largest number less than ``below`` that a point of the application has as its id, 0 if there is none.

    Asks some 70 times, whatever the size.
    """
    with Rest(qdrant, cancel=cancel) as rest:
        collection = _collection(rest)
        if collection is None:
            return 0
        low, high = 0, below  # a point with an id of at least ``low`` is there (or low is 0), none from ``high`` up to ``below``
        while low < high - 1:
            middle = (low + high) // 2 if low else min(high - 1, 1 << 31) if high > 1 << 32 else high // 2
            found = _first_from(rest, collection, middle)
            if found is None or found >= below:
                high = middle
            else:
                low = max(found, middle)
        return low


def _first_from(rest: Rest, collection: str, id_: int) -> int | None:
    page = rest.post(at(collection, "points", "scroll"), {"limit": 1, "offset": id_, "with_payload": False, "with_vector": False})
    found = page["points"][0]["id"] if page["points"] else None
    return found if isinstance(found, int) else None


def _table() -> Any:
    from psycopg.sql import SQL, Identifier

    schema, _, name = CHUNK_TABLE.partition(".")
    return SQL("{}.{}").format(Identifier(schema), Identifier(name))
