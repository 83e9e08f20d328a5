"""The sample is the application's shape, the same on every machine, and agrees across the stores."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import psycopg
import pytest
import redis

from scholaria_ops.connections import PostgresConnection
from scholaria_ops.errors import SandboxError
from scholaria_ops.sandbox.sample import BENCH, SMALL, SampleStack, seed
from scholaria_ops.sandbox.sample_qdrant import COLLECTION, QdrantScale, _Rest, query_vector
from scholaria_ops.sandbox.sample_redis import EMBEDDING_MODEL, embedding_key
from scholaria_ops.sandbox.sample_text import BLOCK, chunks
from scholaria_ops_tests.conftest import SampleServers


def connect(to: PostgresConnection) -> psycopg.Connection[tuple[Any, ...]]:
    return psycopg.connect(host=to.host, port=to.port, dbname=to.dbname, user=to.user, password=to.password.get_secret_value())


@pytest.fixture
def keys(sample_stack: SampleStack) -> redis.Redis:
    to = sample_stack.redis
    return redis.Redis(host=to.host, port=to.port, password=to.password.get_secret_value())


def test_the_application_owns_seven_tables_and_sees_its_rows(sample_stack: SampleStack) -> None:
    with connect(sample_stack.postgres) as connection:
        owned = connection.execute("SELECT tablename FROM pg_tables WHERE tableowner = 'scholaria' ORDER BY 1").fetchall()
        assert [name for (name,) in owned] == sorted(sample_stack.rows)
        assert len(owned) == 7
        for table, expected in sample_stack.rows.items():
            assert connection.execute(f"SELECT count(*) FROM {table}".encode()).fetchone() == (expected,)
        assert connection.execute("SELECT version_num FROM alembic_version").fetchone() == (sample_stack.alembic_revision,)
        assert connection.execute("SHOW timezone").fetchone() == ("Asia/Seoul",)
        assert connection.execute("SELECT items > 0 FROM rag_topic_overview ORDER BY id LIMIT 1").fetchone() == (True,)


def test_sequences_stand_behind_the_largest_id(sample_stack: SampleStack) -> None:
    with connect(sample_stack.postgres) as connection:
        row = connection.execute("SELECT nextval('rag_contextitem_id_seq')").fetchone()
    assert row is not None
    assert row[0] > sample_stack.scale.chunks


def test_every_kind_of_schema_object_is_there(sample_stack: SampleStack) -> None:
    with connect(sample_stack.postgres) as connection:

        def one(query: str) -> Any:
            row = connection.execute(query.encode()).fetchone()
            return row[0] if row else None

        assert one("SELECT count(*) FROM pg_constraint WHERE contype = 'f'") == 5
        assert one("SELECT count(*) FROM pg_constraint WHERE contype = 'c' AND conrelid <> 0") == 3
        assert one("SELECT count(*) FROM pg_trigger WHERE NOT tgisinternal") == 3
        assert one("SELECT count(*) FROM pg_indexes WHERE indexdef LIKE '%gin_trgm_ops%'") == 1
        assert one("SELECT count(*) FROM pg_indexes WHERE indexdef LIKE '%WHERE (feedback_score%'") == 1
        assert one("SELECT count(*) FROM pg_extension WHERE extname IN ('uuid-ossp', 'pg_trgm')") == 2
        assert one("SELECT count(*) FROM pg_default_acl") == 2
        before = one("SELECT updated_at FROM rag_topic WHERE id = 1")
        connection.execute("UPDATE rag_topic SET name = name WHERE id = 1")
        assert one("SELECT updated_at FROM rag_topic WHERE id = 1") > before
        connection.rollback()


def test_the_readonly_role_reads_and_cannot_write(sample_stack: SampleStack) -> None:
    with connect(sample_stack.postgres_readonly) as connection:
        assert connection.execute("SELECT count(*) FROM rag_topic").fetchone() == (sample_stack.scale.topics,)
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            connection.execute("DELETE FROM rag_topic")
        connection.rollback()
        connection.execute("SET default_transaction_read_only = off")
        connection.commit()
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("DELETE FROM rag_topic")


def test_points_are_the_rows(sample_stack: SampleStack) -> None:
    rest = _Rest(sample_stack.qdrant)
    for item in (1, sample_stack.scale.points // 2, sample_stack.scale.points):
        point = rest.call("GET", f"/collections/{COLLECTION}/points/{item}")
        with connect(sample_stack.postgres) as connection:
            row = connection.execute(
                "SELECT i.id, i.title, i.content, i.context_id, c.context_type FROM rag_contextitem i"
                " JOIN rag_context c ON c.id = i.context_id WHERE i.id = %s",
                [item],
            ).fetchone()
        names = ("context_item_id", "title", "content", "context_id", "context_type")
        assert row == tuple(point["payload"][name] for name in names)


def test_qdrant_has_an_alias_a_payload_index_and_a_hybrid_collection(sample_stack: SampleStack) -> None:
    rest = _Rest(sample_stack.qdrant)
    aliases = rest.call("GET", "/aliases")["aliases"]
    assert aliases == [{"alias_name": sample_stack.alias, "collection_name": sample_stack.collection}]
    main = rest.call("GET", f"/collections/{sample_stack.collection}")
    assert main["payload_schema"]["context_id"]["data_type"] == "integer"
    hybrid = rest.call("GET", f"/collections/{sample_stack.hybrid_collection}")["config"]["params"]
    assert set(hybrid["vectors"]) == {"dense", "title"}
    assert set(hybrid["sparse_vectors"]) == {"keywords"}
    for name, expected in sample_stack.points.items():
        assert rest.call("POST", f"/collections/{name}/points/count", {"exact": True})["count"] == expected


def test_a_question_finds_its_own_context(sample_stack: SampleStack) -> None:
    scale = sample_stack.scale
    vectors = QdrantScale(scale.points, scale.dim, scale.contexts, scale.chunk_bytes, scale.index_vectors, scale.seed)
    body = {"vector": query_vector(vectors, 3), "limit": 5, "with_payload": True, "params": {"exact": True}}
    found = _Rest(sample_stack.qdrant).call("POST", f"/collections/{COLLECTION}/points/search", body)
    assert [hit["payload"]["context_id"] for hit in found] == [4] * 5


def test_redis_holds_every_kind_of_key_in_two_databases(sample_stack: SampleStack, keys: redis.Redis) -> None:
    kinds = {str(keys.type(name)) for name in keys.scan_iter(count=1000)}
    assert kinds == {str(kind) for kind in (b"string", b"list", b"hash", b"set", b"zset", b"stream")}
    assert keys.dbsize() == sample_stack.keys[0]
    assert keys.info("keyspace")["db1"]["keys"] == sample_stack.keys[1]
    assert keys.llen("celery") == sample_stack.scale.queued_tasks
    assert json.loads(keys.lindex("celery", 0) or "")["headers"]["task"] == "rag.tasks.process_document"
    assert keys.xpending("events:audit", "notifier")["pending"] == 5
    assert keys.fcall("queue_depth", 1, "celery") == sample_stack.scale.queued_tasks
    assert keys.get(b"binary:\x00\xff\r\n key") == bytes(range(256))


def test_cached_embeddings_have_the_applications_key_and_thirty_days(sample_stack: SampleStack, keys: redis.Redis) -> None:
    text = "질문 0: 이 개념을 설명해 주세요"
    name = f"embedding_cache:scholaria:{hashlib.sha256(f'{EMBEDDING_MODEL}::{text}'.encode()).hexdigest()}"
    assert name == embedding_key(text)
    vector = json.loads(keys.get(name) or "")
    assert len(vector) == sample_stack.scale.dim
    assert sum(x * x for x in vector) == pytest.approx(1.0)
    assert 29 * 86400 < keys.ttl(name) <= 30 * 86400
    assert sum(1 for _ in keys.scan_iter("embedding_cache:*")) == sample_stack.scale.cached_embeddings


def test_text_is_the_same_in_any_order_of_asking() -> None:
    blocks = list(chunks(3 * BLOCK, 7, 42))
    later = next(chunks(3 * BLOCK, 7, 42, start=2 * BLOCK))
    assert later == blocks[2]
    assert next(chunks(BLOCK, 7, 43))[1].content != blocks[0][1].content
    sizes = [len(c.content.encode()) for b in blocks for c in b]
    assert 2600 < sum(sizes) / len(sizes) < 3400


def test_a_server_with_data_is_not_seeded_again(sample_stack: SampleStack, sample_servers: SampleServers) -> None:
    with pytest.raises(SandboxError, match=r"already|not empty"):
        seed(sample_servers.postgres, sample_servers.redis, sample_servers.qdrant, SMALL)


def test_scales_grow_in_proportion() -> None:
    one, four = BENCH(1), BENCH(4)
    assert (four.chunks, four.points, four.small_keys) == (4 * one.chunks, 4 * one.points, 4 * one.small_keys)
    assert one.chunks == 120_000


def test_the_environment_names_the_stack_for_the_product(sample_stack: SampleStack) -> None:
    env = sample_stack.environment()
    assert env["DB_USER"] == "postgres"
    assert sample_stack.environment(privileged=False)["DB_USER"] == "scholaria"
    assert env["QDRANT_URL"] == sample_stack.qdrant.url
    assert env["DB_PASSWORD"] not in repr(sample_stack)
