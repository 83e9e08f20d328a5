"""Golden searches: exact searches with made-up vectors, whose results a restored server must give again.

The vectors are not stored points, so a server cannot answer them from a cached or copied result; and because they are
made from a seed, a manifest keeps only their results. The generator is plain arithmetic on SHA-256, the same on every
machine and Python: block ``k`` of a stream is SHA-256 of ``<seed>\\n<field>\\n<number>\\n<k>`` (UTF-8, numbers in
decimal), read as eight big-endian 32-bit words; the upper 24 bits of a word, divided by 2**23, minus 1, are a component
(float32 holds it exactly). Integer vectors (``uint8``) take the upper eight bits.
"""

from __future__ import annotations

import hashlib
import itertools
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scholaria_ops.catalogue.evidence.qdrant import GoldenSearch, Hit, VectorField
from scholaria_ops.errors import StoreError
from scholaria_ops.stores.qdrant.rest import BadRequest, Rest, at

#: Results kept per search.
TOP = 10
#: Scores are floating-point sums whose last digits depend on the processor's instructions; relative to max(1, |score|).
TOLERANCE = 1e-4
#: Non-zero dimensions of a sparse query.
SPARSE_TERMS = 8
#: Rows of a query for a multi-vector.
MULTI_ROWS = 2


def words(seed: str, field: str, number: int) -> Iterator[int]:
    """The endless stream of 32-bit words for one search."""
    for block in itertools.count():
        yield from struct.unpack(">8I", hashlib.sha256(f"{seed}\n{field}\n{number}\n{block}".encode()).digest())


def components(seed: str, field: str, number: int, count: int, *, integers: bool = False) -> list[float]:
    """``count`` components of the made-up vector ``number`` of ``field``, in [-1, 1) (or whole numbers below 256)."""
    stream = itertools.islice(words(seed, field, number), count)
    if integers:
        return [float(word >> 24) for word in stream]
    return [(word >> 8) / (1 << 23) - 1 for word in stream]


def choose_indices(seed: str, field: str, number: int, vocabulary: Sequence[int]) -> tuple[int, ...]:
    """Up to :data:`SPARSE_TERMS` of the dimensions that occur in the data, by the seed."""
    ranked = sorted(set(vocabulary), key=lambda index: hashlib.sha256(f"{seed}\n{field}\n{number}\n#{index}".encode()).digest())
    return tuple(sorted(ranked[:SPARSE_TERMS]))


@dataclass(frozen=True, slots=True)
class Question:
    """One golden search before it is asked."""

    field: VectorField
    number: int
    indices: tuple[int, ...] = ()


def ask(
    rest: Rest, collection: str, questions: Iterable[Question], *, seed: str, integers: frozenset[str], top: int = TOP
) -> tuple[list[GoldenSearch], dict[str, str]]:
    """Ask all questions; returns their results, and per vector field why it could not be searched.

    ``integers`` names the fields whose vectors are whole numbers.
    """
    done: list[GoldenSearch] = []
    skipped: dict[str, str] = {}
    for field, asked in itertools.groupby(questions, key=lambda q: q.field):
        batch = list(asked)
        queries = [_query(q, seed, integers=field.name in integers) for q in batch]
        try:
            answers = _search(rest, collection, field.name, queries, top)
        except BadRequest as exc:
            skipped[field.name] = exc.message
            continue
        for question, hits in zip(batch, answers, strict=True):
            done.append(GoldenSearch(using=field.name, number=question.number, indices=question.indices, hits=tuple(hits)))
    return done, skipped


def _query(question: Question, seed: str, *, integers: bool) -> Any:
    field = question.field
    if field.kind == "sparse":
        values = components(seed, field.name, question.number, len(question.indices))
        return {"indices": list(question.indices), "values": [abs(v) + 0.01 for v in values]}
    size = field.size or 0
    if field.kind == "multi":
        flat = components(seed, field.name, question.number, size * MULTI_ROWS, integers=integers)
        return [flat[i * size : (i + 1) * size] for i in range(MULTI_ROWS)]
    return components(seed, field.name, question.number, size, integers=integers)


def _search(rest: Rest, collection: str, using: str, queries: Sequence[Any], top: int) -> list[list[Hit]]:
    common = {"limit": top, "params": {"exact": True}, "with_payload": False}
    if rest.at_least(1, 10):
        searches = [{"query": q, **({"using": using} if using else {}), **common} for q in queries]
        answers = [a["points"] for a in rest.post(at(collection, "points", "query", "batch"), {"searches": searches}, timeout_s=300)]
    else:
        searches = [{"vector": {"name": using, "vector": q} if using else q, **common} for q in queries]
        answers = rest.post(at(collection, "points", "search", "batch"), {"searches": searches}, timeout_s=300)
    if len(answers) != len(queries):
        raise StoreError(f"{rest.where} answered {len(answers)} of {len(queries)} searches in {collection!r}", store="qdrant")
    return [[Hit(id=hit["id"], score=round(hit["score"], 6)) for hit in answer] for answer in answers]


def disagreement(expected: GoldenSearch, found: GoldenSearch) -> str:
    """In what two results of the same search differ, in words; empty when they agree (ties may come in any order)."""
    if len(expected.hits) != len(found.hits):
        return f"{len(found.hits)} results instead of {len(expected.hits)}"
    for rank, (left, right) in enumerate(zip(expected.hits, found.hits, strict=True), 1):
        if not _close(left.score, right.score):
            return f"rank {rank}: score {right.score} (point {right.id}) instead of {left.score} (point {left.id})"
    scores: Mapping[int | str, float] = {hit.id: hit.score for hit in found.hits}
    for hit in expected.hits:
        if hit.id in scores:
            if not _close(hit.score, scores[hit.id]):
                return f"point {hit.id}: score {scores[hit.id]} instead of {hit.score}"
        elif not _close(hit.score, expected.hits[-1].score):
            return f"point {hit.id} with score {hit.score} is not found"
    return ""


def _close(left: float, right: float) -> bool:
    return abs(left - right) <= TOLERANCE * max(1.0, abs(left))
