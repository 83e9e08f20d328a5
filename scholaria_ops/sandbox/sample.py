"""A deterministic sample of Scholaria in all three stores, in any size."""

from __future__ import annotations

import concurrent.futures
from dataclasses import dataclass, replace

from scholaria_ops.connections import PostgresConnection, QdrantConnection, RedisConnection
from scholaria_ops.sandbox.postgres import PostgresServer
from scholaria_ops.sandbox.qdrant import QdrantServer
from scholaria_ops.sandbox.redis import RedisServer


@dataclass(frozen=True)
class Scale:
    """How much of everything. The same scale and ``seed`` give the same content, except for times to live and passwords."""

    #: Rows of ``rag_contextitem``.
    chunks: int
    #: Points in Qdrant: those of the first chunks (at most as many as there are chunks), and their dimensions.
    points: int
    dim: int
    #: Redis: sessions, cached answers and rate limits together; cached embeddings (``dim`` floats each); queued tasks.
    small_keys: int
    cached_embeddings: int
    queued_tasks: int
    topics: int = 25
    contexts: int = 50
    users: int = 60
    questions: int = 200
    #: Without the vector index a large collection is seeded many times faster (on 2 cores 40,000 × 1536 take a minute to
    #: index); searches then read everything.
    index_vectors: bool = True
    #: Bytes of text per chunk; 2,650 make 3.4 KB per row on disk (measured with PostgreSQL 16).
    chunk_bytes: int = 2650
    seed: int = 20241001


#: For tests: everything is there, little of it.
SMALL = Scale(chunks=300, points=300, dim=32, small_keys=300, cached_embeddings=20, queued_tasks=7, contexts=12, questions=80)
#: For the demo: a small production.
DEMO = Scale(chunks=5000, points=5000, dim=1536, small_keys=3000, cached_embeddings=400, queued_tasks=25, contexts=120, questions=1500)


def BENCH(factor: float = 1.0, *, index_vectors: bool = True) -> Scale:  # noqa: N802 - reads as the third of the scales
    """For benchmarks: at factor 1 about 410 MB in PostgreSQL, 203,000 keys in Redis, 40,000 × 1536 in Qdrant."""
    return Scale(
        chunks=int(120_000 * factor),
        points=int(40_000 * factor),
        dim=1536,
        small_keys=int(200_000 * factor),
        cached_embeddings=int(3_000 * factor),
        queued_tasks=200,
        contexts=max(20, int(2_000 * factor)),
        users=500,
        questions=int(6_000 * factor),
        index_vectors=index_vectors,
    )


@dataclass(frozen=True)
class SampleStack:
    """The seeded stores, as the application knows them."""

    #: The application's role ``scholaria`` (owner of all tables) on database ``scholaria``.
    postgres: PostgresConnection
    #: The superuser on the same database, and the read-only role.
    postgres_admin: PostgresConnection
    postgres_readonly: PostgresConnection
    redis: RedisConnection
    qdrant: QdrantConnection
    scale: Scale
    #: What was written: table → rows, database → keys, collection → points.
    rows: dict[str, int]
    keys: dict[int, int]
    points: dict[str, int]
    collection: str = "scholaria_documents"
    alias: str = "scholaria_current"
    hybrid_collection: str = "scholaria_hybrid"
    alembic_revision: str = ""

    @property
    def item_ids(self) -> range:
        """Ids of ``rag_contextitem``."""
        return range(1, self.scale.chunks + 1)

    @property
    def point_ids(self) -> range:
        """Ids in the main collection: equal to the ids of their rows."""
        return range(1, self.scale.points + 1)

    def environment(self, *, privileged: bool = True) -> dict[str, str]:
        """The settings that point the product at this stack, **secrets included** (for a private file or a child's environment).

        ``privileged`` names PostgreSQL's superuser, who may read role passwords; otherwise the application's own role.
        """
        postgres = self.postgres_admin if privileged else self.postgres
        found = {
            "DB_HOST": postgres.host,
            "DB_PORT": str(postgres.port),
            "DB_NAME": postgres.dbname,
            "DB_USER": postgres.user,
            "DB_PASSWORD": postgres.password.get_secret_value(),
            "REDIS_HOST": self.redis.host,
            "REDIS_PORT": str(self.redis.port),
            "REDIS_PASSWORD": self.redis.password.get_secret_value(),
            "QDRANT_URL": self.qdrant.url,
        }
        if self.qdrant.grpc_port:
            found["QDRANT_GRPC_PORT"] = str(self.qdrant.grpc_port)
        if self.qdrant.api_key.get_secret_value():
            found["QDRANT_API_KEY"] = self.qdrant.api_key.get_secret_value()
        return found


def seed(postgres: PostgresServer, redis: RedisServer, qdrant: QdrantServer, scale: Scale) -> SampleStack:
    """Fill three fresh servers side by side. Streams: memory does not grow with the scale.

    Raises:
        SandboxError: a server already holds data.
    """
    from scholaria_ops.sandbox.sample_postgres import REVISION, PostgresScale, seed_postgres
    from scholaria_ops.sandbox.sample_qdrant import QdrantScale, seed_qdrant
    from scholaria_ops.sandbox.sample_redis import RedisScale, seed_redis

    scale = replace(scale, points=min(scale.points, scale.chunks))
    pg = PostgresScale(scale.chunks, scale.contexts, scale.topics, scale.users, scale.questions, scale.chunk_bytes, scale.seed)
    vectors = QdrantScale(scale.points, scale.dim, scale.contexts, scale.chunk_bytes, scale.index_vectors, scale.seed)
    with concurrent.futures.ThreadPoolExecutor(3, thread_name_prefix="seed") as pool:
        rows = pool.submit(seed_postgres, postgres, pg)
        keys = pool.submit(
            seed_redis, redis, RedisScale(scale.small_keys, scale.cached_embeddings, scale.queued_tasks, scale.dim, scale.seed)
        )
        points = pool.submit(seed_qdrant, qdrant, vectors)
        sample = rows.result()
        return SampleStack(
            postgres=sample.owner,
            postgres_admin=sample.admin,
            postgres_readonly=sample.reader,
            redis=redis.connection,
            qdrant=qdrant.connection,
            scale=scale,
            rows=sample.rows,
            keys=keys.result(),
            points=points.result(),
            alembic_revision=REVISION,
        )
