"""The Qdrant part of the sample: the chunks as points, an alias, and a second collection with named and sparse vectors."""

from __future__ import annotations

import concurrent.futures
import http.client
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from scholaria_ops.connections import QdrantConnection
from scholaria_ops.errors import SandboxError
from scholaria_ops.sandbox.qdrant import QdrantServer
from scholaria_ops.sandbox.sample_text import Chunk, chunks

COLLECTION = "scholaria_documents"
ALIAS = "scholaria_current"
HYBRID = "scholaria_hybrid"
#: Points of the second collection at most: it is there for its shape, not for its size.
_HYBRID_POINTS = 200
_BATCH = 250
_UPLOADERS = 2
_GREEN_TIMEOUT_S = 900.0
#: Vector components are multiples of 1/1000, so that each is one look-up in a table of ready-made texts
#: (formatting floats would dominate seeding). The server normalises cosine vectors, which makes them odd floats again.
_STEPS = 1000


@dataclass(frozen=True, slots=True)
class QdrantScale:
    """How many points of how many dimensions, out of the same chunks as PostgreSQL's."""

    points: int
    dim: int
    contexts: int
    chunk_bytes: int
    index_vectors: bool
    seed: int


def seed_qdrant(server: QdrantServer, scale: QdrantScale) -> dict[str, int]:
    """Fill an empty server and wait until its collections are green; returns collection → exact number of points."""
    rest = _Rest(server.connection)
    if rest.call("GET", "/collections")["collections"]:
        raise SandboxError(f"{server.name} already holds collections", hint="Seed a fresh server.")
    _make_collections(rest, scale)
    counts = {COLLECTION: scale.points, HYBRID: min(scale.points, _HYBRID_POINTS)}
    with concurrent.futures.ThreadPoolExecutor(_UPLOADERS) as pool:
        waiting: set[concurrent.futures.Future[None]] = set()
        for path, body in _batches(scale):
            if len(waiting) >= 2 * _UPLOADERS:  # memory stays flat: never more than a few bodies at once
                done, waiting = concurrent.futures.wait(waiting, return_when=concurrent.futures.FIRST_COMPLETED)
                for job in done:
                    job.result()
            waiting.add(pool.submit(_upload, server.connection, path, body))
        for job in waiting:
            job.result()
    for name, expected in counts.items():
        found = rest.call("POST", f"/collections/{name}/points/count", {"exact": True})["count"]
        if found != expected:
            raise SandboxError(f"collection {name} holds {found} points after seeding, {expected} were sent")
        rest.wait_until_green(name)
    return counts


def _upload(to: QdrantConnection, path: str, body: bytes) -> None:
    _Rest(to).call("PUT", path, body)


def query_vector(scale: QdrantScale, number: int) -> list[float]:
    """A vector that is no stored point: the ``number``-th question of a fixed list, near one of the contexts."""
    import numpy as np

    rng = np.random.default_rng((scale.seed, 99, number))
    return [float(x) for x in _centroid(scale, number % scale.contexts + 1) + 0.5 * rng.standard_normal(scale.dim)]


def _make_collections(rest: _Rest, scale: QdrantScale) -> None:
    graph = {} if scale.index_vectors else {"hnsw_config": {"m": 0}}  # no links per point: no graph is built
    main = {"vectors": {"size": scale.dim, "distance": "Cosine"}, "on_disk_payload": True, **graph}
    rest.call("PUT", f"/collections/{COLLECTION}", main)
    rest.call("PUT", f"/collections/{COLLECTION}/index?wait=true", {"field_name": "context_id", "field_schema": "integer"})
    rest.call("PUT", f"/collections/{COLLECTION}/index?wait=true", {"field_name": "context_type", "field_schema": "keyword"})
    named = {"dense": {"size": scale.dim, "distance": "Cosine"}, "title": {"size": 8, "distance": "Dot", "on_disk": True}}
    rest.call("PUT", f"/collections/{HYBRID}", {"vectors": named, "sparse_vectors": {"keywords": {"modifier": "idf"}}})
    rest.call("POST", "/collections/aliases", {"actions": [{"create_alias": {"collection_name": COLLECTION, "alias_name": ALIAS}}]})


def _batches(scale: QdrantScale) -> Iterator[tuple[str, bytes]]:
    """Request paths and bodies, made one after another."""
    for block in chunks(scale.points, scale.contexts, scale.seed, bytes_each=scale.chunk_bytes):
        texts = _vector_texts(scale, block)
        for first in range(0, len(block), _BATCH):
            part, vectors = block[first : first + _BATCH], texts[first : first + _BATCH]
            points = [f'{{"id":{c.id},"vector":[{v}],"payload":{_payload(c)}}}' for c, v in zip(part, vectors, strict=True)]
            yield f"/collections/{COLLECTION}/points?wait=true", f'{{"points":[{",".join(points)}]}}'.encode()
        hybrid = [_hybrid_point(c, v) for c, v in zip(block, texts, strict=True) if c.id <= _HYBRID_POINTS]
        if hybrid:
            yield f"/collections/{HYBRID}/points?wait=true", f'{{"points":[{",".join(hybrid)}]}}'.encode()


def _payload(chunk: Chunk) -> str:
    return json.dumps(
        {
            "context_item_id": chunk.id,
            "title": chunk.title,
            "content": chunk.content,
            "context_id": chunk.context_id,
            "context_type": chunk.context_type,
        },
        ensure_ascii=False,
    )


def _hybrid_point(chunk: Chunk, vector: str) -> str:
    words = sorted({sum(word.encode()) * 7 % 5000 for word in chunk.content.split()[:40]})
    vectors = {"title": [(chunk.id * k % 17) / 17 for k in range(1, 9)], "keywords": {"indices": words, "values": [0.5] * len(words)}}
    named = f'{{"dense":[{vector}],{json.dumps(vectors)[1:]}'
    return f'{{"id":{chunk.id},"vector":{named},"payload":{_payload(chunk)}}}'


def _vector_texts(scale: QdrantScale, block: Sequence[Chunk]) -> list[str]:
    """Each chunk's vector as JSON text: its context's centre with noise, so that neighbours are meaningful."""
    import numpy as np

    rng = np.random.default_rng((scale.seed, 5, block[0].id))
    table = [f"{n / _STEPS:.3f}" for n in range(-_STEPS, _STEPS + 1)]
    centres = np.stack([_centroid(scale, chunk.context_id) for chunk in block])
    raw = centres + 0.3 * rng.standard_normal(centres.shape, dtype=np.float32)
    steps = np.clip(np.rint(raw / 4 * _STEPS) + _STEPS, 0, 2 * _STEPS).astype(np.int32)
    return [",".join([table[i] for i in row]) for row in steps.tolist()]


def _centroid(scale: QdrantScale, context_id: int) -> Any:
    import numpy as np

    return np.random.default_rng((scale.seed, 3, context_id)).standard_normal(scale.dim, dtype=np.float32)


class _Rest:
    """Just enough of Qdrant's REST interface, over the standard library."""

    def __init__(self, to: QdrantConnection) -> None:
        parts = urlsplit(to.url)
        self._address = (parts.hostname or "127.0.0.1", parts.port or 6333)
        self._headers = {"content-type": "application/json"}
        if to.api_key.get_secret_value():
            self._headers["api-key"] = to.api_key.get_secret_value()

    def call(self, method: str, path: str, body: bytes | dict[str, Any] | None = None) -> Any:
        """The ``result`` of the answer. Raises SandboxError unless the server says it is well."""
        raw = json.dumps(body).encode() if isinstance(body, dict) else body
        link = http.client.HTTPConnection(*self._address, timeout=300.0)
        try:
            link.request(method, path, body=raw, headers=self._headers)
            answer = link.getresponse()
            content = answer.read()
        finally:
            link.close()
        if answer.status != http.client.OK:
            raise SandboxError(f"seeding Qdrant: {method} {path} answered {answer.status}: {content[:300].decode('utf-8', 'replace')}")
        return json.loads(content)["result"]

    def wait_until_green(self, name: str) -> None:
        """Until the optimisers are done: a benchmark must not measure the building of an index."""
        deadline = time.monotonic() + _GREEN_TIMEOUT_S
        while self.call("GET", f"/collections/{name}")["status"] != "green":
            if time.monotonic() > deadline:
                raise SandboxError(f"collection {name} did not become green within {_GREEN_TIMEOUT_S:.0f} s")
            time.sleep(0.1)
