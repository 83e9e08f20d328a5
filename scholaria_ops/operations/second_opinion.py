"""A second opinion on a rehearsal's target, by code that had no part in writing the evidence.

The evidence and the probe are made by the same code, so a defect in it could agree with itself. Here the stores' ordinary
clients count again: SQL through psycopg, DBSIZE through redis-py, exact counts through qdrant-client.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

from scholaria_ops.catalogue.evidence.base import Difference
from scholaria_ops.catalogue.evidence.postgres import PostgresEvidence
from scholaria_ops.catalogue.evidence.qdrant import QdrantEvidence
from scholaria_ops.catalogue.evidence.redis import RedisEvidence
from scholaria_ops.errors import StoreError
from scholaria_ops.sandbox.postgres import PostgresServer
from scholaria_ops.sandbox.qdrant import QdrantServer
from scholaria_ops.sandbox.redis import RedisServer
from scholaria_ops.stores.postgres.names import qualified

if TYPE_CHECKING:
    import psycopg

_TABLES = """
SELECT n.nspname, c.relname FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'r' AND c.relpersistence = 'p'
"""


def second_opinion(target: object, evidence: object) -> list[Difference]:
    """What an ordinary client counts otherwise than the evidence says; empty if it agrees.

    Raises:
        StoreError: the target does not answer.
    """
    try:
        if isinstance(target, PostgresServer) and isinstance(evidence, PostgresEvidence):
            return list(_postgres(target, evidence))
        if isinstance(target, RedisServer) and isinstance(evidence, RedisEvidence):
            return list(_redis(target, evidence))
        if isinstance(target, QdrantServer) and isinstance(evidence, QdrantEvidence):
            return list(_qdrant(target, evidence))
    except Exception as exc:
        raise StoreError(f"an ordinary client cannot count in the restored store: {exc}") from exc
    raise TypeError(f"no second opinion on {type(target).__name__} with {type(evidence).__name__}")


def _postgres(target: PostgresServer, evidence: PostgresEvidence) -> Iterator[Difference]:
    from psycopg import sql

    with target.connect(evidence.database.name) as link, link.cursor() as cursor:
        for schema, name in cursor.execute(_TABLES).fetchall():
            known = evidence.tables.get(qualified(schema, name))
            if known is None or known.rows is None:
                continue
            counted = _one(cursor.execute(sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(schema, name))))
            if counted != known.rows:
                what = f"table {schema}.{name}: rows by an ordinary client"
                yield Difference(store="postgres", what=what, expected=str(known.rows), found=str(counted))


def _one(cursor: psycopg.Cursor[tuple[object, ...]]) -> int:
    row = cursor.fetchone()
    return int(str(row[0])) if row else -1


def _redis(target: RedisServer, evidence: RedisEvidence) -> Iterator[Difference]:
    import redis

    lasting: dict[int, int] = {}
    for row in evidence.keys:
        if row.expires_before is None:
            lasting[row.db] = lasting.get(row.db, 0) + row.keys
    connection = target.connection
    for db, total in evidence.per_database().items():
        with redis.Redis(host=connection.host, port=connection.port, password=connection.password.get_secret_value(), db=db) as client:
            found = int(str(client.dbsize()))
        # Keys with a time to live may have gone meanwhile; those without must all be there, and none may be new.
        if not lasting.get(db, 0) <= found <= total:
            expected = f"{lasting.get(db, 0)} to {total}"
            yield Difference(store="redis", what=f"database {db}: keys by an ordinary client", expected=expected, found=str(found))


def _qdrant(target: QdrantServer, evidence: QdrantEvidence) -> Iterator[Difference]:
    with warnings.catch_warnings():
        # The key travels over the loopback interface, to a server of ours.
        warnings.simplefilter("ignore")
        from qdrant_client import QdrantClient

        key = target.connection.api_key.get_secret_value() or None
        client = QdrantClient(url=target.connection.url, api_key=key, check_compatibility=False, timeout=60)
        try:
            for name, known in evidence.collections.items():
                counted = client.count(name, exact=True).count
                if counted != known.points:
                    what = f"collection {name}: points by an ordinary client"
                    yield Difference(store="qdrant", what=what, expected=str(known.points), found=str(counted))
        finally:
            client.close()
