"""Measuring one collection: counts, configuration, fingerprints over all points, sampled points, golden searches."""

from __future__ import annotations

import hashlib
import heapq
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from scholaria_ops.catalogue.evidence.qdrant import (
    CollectionEvidence,
    Fingerprint,
    GoldenSearch,
    QdrantEvidence,
    SampledPoint,
    SampledVector,
    VectorField,
    VectorKind,
)
from scholaria_ops.errors import StoreError
from scholaria_ops.stores.qdrant import canon, golden
from scholaria_ops.stores.qdrant.canon import PointId
from scholaria_ops.stores.qdrant.points import RestSource, Source, Wanted
from scholaria_ops.stores.qdrant.rest import BadRequest, Rest, at

_EXCERPT_CHARS = 240
_KINDS: Mapping[bytes, VectorKind] = {b"D": "dense", b"S": "sparse", b"M": "multi"}


@dataclass(frozen=True, slots=True)
class Limits:
    """How much is measured. What a limit left out is said in the evidence (``Fingerprint.note``)."""

    sample_points: int = 32
    golden_searches: int = 5
    #: Above this number of points only ids are fingerprinted over all points.
    fingerprint_max_points: int = 2_000_000
    #: Above this number of vector components, vectors are not fingerprinted over REST (0.12 s per million, most of it ours).
    rest_max_floats: int = 100_000_000


@dataclass(frozen=True, slots=True)
class Look:
    """What to look at: a seed, and what earlier evidence looked at (so that both can be compared). Never what to find."""

    seed: str
    sample: tuple[PointId, ...] | None = None
    golden: tuple[GoldenSearch, ...] | None = None

    @classmethod
    def again(cls, evidence: QdrantEvidence, collection: str) -> Look:
        """Look at what ``evidence`` looked at."""
        known = evidence.collections.get(collection)
        if known is None:
            return cls(evidence.seed)
        return cls(evidence.seed, tuple(point.id for point in known.sample), known.golden)


@dataclass(slots=True)
class _Pass:
    """What one pass over all points adds up."""

    seed: int
    size: int
    count: int = 0
    ids: int = 0
    payloads: int = 0
    vectors: int = 0
    #: The nearest points to the seed: (negated distance, id), the farthest of them first.
    near: list[tuple[int, PointId]] = field(default_factory=list)

    def add(self, found: PointId) -> bytes:
        raw = canon.point_id(found)
        own = canon.share(raw)
        self.count += 1
        self.ids += own
        entry = (-(own ^ self.seed), found)
        if len(self.near) < self.size:
            heapq.heappush(self.near, entry)
        elif self.near and entry[0] > self.near[0][0]:
            heapq.heapreplace(self.near, entry)
        return raw

    def sampled(self) -> tuple[PointId, ...]:
        return tuple(sorted((found for _, found in self.near), key=canon.point_id))


def collections_of(rest: Rest) -> list[str]:
    """The names of all collections, sorted."""
    return sorted(str(found["name"]) for found in rest.get("/collections")["collections"])


def aliases_of(rest: Rest) -> dict[str, str]:
    """Every alias and the collection it stands for."""
    found = {str(a["alias_name"]): str(a["collection_name"]) for a in rest.get("/aliases")["aliases"]}
    return dict(sorted(found.items()))


def exact_count(rest: Rest, collection: str) -> int:
    """Points of a collection, counted one by one (``points_count`` of its description is an estimate)."""
    try:
        return int(rest.post(at(collection, "points", "count"), {"exact": True}, timeout_s=300)["count"])
    except BadRequest:
        # A collection in strict mode may forbid exact requests, but it can always be read.
        wanted = Wanted(collection, payloads=False, vectors=False, max_page=largest_page(rest.get(at(collection))["config"]))
        return sum(len(page) for page in RestSource(rest).pages(wanted))


def vector_fields(config: Mapping[str, Any]) -> tuple[VectorField, ...]:
    """The vectors of a collection's points, from its configuration, sorted by name."""
    params = config.get("params", {})
    dense = params.get("vectors") or {}
    found: list[VectorField] = []
    for name, one in ({"": dense} if "size" in dense else dense).items():
        kind: VectorKind = "multi" if one.get("multivector_config") else "dense"
        found.append(VectorField(name=name, kind=kind, size=int(one["size"]), distance=str(one["distance"])))
    found.extend(VectorField(name=name, kind="sparse") for name in params.get("sparse_vectors") or {})
    return tuple(sorted(found, key=lambda v: v.name))


def measure_collection(
    rest: Rest, source: Source, collection: str, look: Look, limits: Limits, *, moving: bool = False
) -> CollectionEvidence:
    """Measure one collection of the server behind ``rest``; ``source`` reads the same server's points.

    Raises StoreError when the points read are not as many as the server counts. If the collection may be written to
    meanwhile (``moving``), the points that were read are what counts.
    """
    info = rest.get(at(collection))
    config = info["config"]
    fields = vector_fields(config)
    points = exact_count(rest, collection)
    summed, note = _read_all(source, collection, config, fields, points, look, limits)
    if moving:
        points = summed.count
    if summed.count != points:
        raise StoreError(
            f"collection {collection!r} on {rest.where}: {points:,} points counted, {summed.count:,} read",
            hint="It is being written to, or its storage is damaged.",
            store="qdrant",
        )
    wanted = look.sample if look.sample is not None else summed.sampled()
    sample, vocabulary = _sample(rest, collection, wanted)
    searches, skipped = golden.ask(
        rest,
        collection,
        _questions(fields, look, limits, vocabulary, points),
        seed=look.seed,
        integers=_integer_fields(config),
        top=min(golden.TOP, largest_page(config) or golden.TOP),
    )
    return CollectionEvidence(
        name=collection,
        points=points,
        vectors=fields,
        config=config,
        indexes={name: _schema(found) for name, found in sorted((info.get("payload_schema") or {}).items())},
        fingerprint=Fingerprint(
            ids=canon.hexed(canon.total([summed.ids])),
            payloads=None if "payloads" in note else canon.hexed(canon.total([summed.payloads])),
            vectors=None if "vectors" in note else canon.hexed(canon.total([summed.vectors])),
            note=note,
        ),
        sample=tuple(sample),
        golden=tuple(searches),
        golden_skipped=skipped,
        status=str(info["status"]),
        optimizer_status=_optimizer_status(info.get("optimizer_status")),
        segments=int(info.get("segments_count") or 0),
        indexed_vectors=info.get("indexed_vectors_count"),
    )


def _read_all(
    source: Source,
    collection: str,
    config: Mapping[str, Any],
    fields: Sequence[VectorField],
    points: int,
    look: Look,
    limits: Limits,
) -> tuple[_Pass, str]:
    floats = sum(f.size or 64 for f in fields)
    payloads = points <= limits.fingerprint_max_points
    vectors = payloads and (source.fast_vectors or points * floats <= limits.rest_max_floats)
    summed = _Pass(
        int.from_bytes(hashlib.sha256(look.seed.encode()).digest(), "big"), 0 if look.sample is not None else limits.sample_points
    )
    for page in source.pages(Wanted(collection, payloads, vectors, floats, largest_page(config))):
        for point in page:
            raw = summed.add(point.id)
            if payloads:
                summed.payloads += canon.share(raw, point.payload)
            if vectors:
                summed.vectors += canon.share(raw, *canon.named(point.vectors))
    if not payloads:
        return summed, f"payloads and vectors: sampled only, {points:,} points are more than {limits.fingerprint_max_points:,}"
    if not vectors:
        return summed, f"vectors: sampled and searched only, {points * floats:,} components are too many to read over REST"
    return summed, ""


def _sample(rest: Rest, collection: str, ids: Sequence[PointId]) -> tuple[list[SampledPoint], dict[str, list[int]]]:
    """The wanted points as they are stored, and the dimensions that occur in their sparse vectors, by field."""
    found: list[SampledPoint] = []
    vocabulary: dict[str, list[int]] = {}
    for batch in _batches(ids, 16):
        body = {"ids": list(batch), "with_payload": True, "with_vector": True}
        for record in rest.post(at(collection, "points"), body, timeout_s=300):
            vectors = canon.vectors_by_name(record.get("vector"))
            for name, one in vectors.items():
                if isinstance(one, Mapping):
                    vocabulary.setdefault(name, []).extend(one["indices"])
            found.append(_sampled_point(record, vectors))
    return sorted(found, key=lambda p: canon.point_id(p.id)), vocabulary


def _sampled_point(record: Mapping[str, Any], vectors: Mapping[str, Any]) -> SampledPoint:
    text = json.dumps(record.get("payload") or {}, ensure_ascii=False, sort_keys=True)
    return SampledPoint(
        id=record["id"],
        payload_sha256=hashlib.sha256(canon.payload(record.get("payload"))).hexdigest(),
        excerpt=text if len(text) <= _EXCERPT_CHARS else text[: _EXCERPT_CHARS - 1] + "…",
        vectors={name: _sampled_vector(canon.vector(one)) for name, one in sorted(vectors.items())},
    )


def _sampled_vector(canonical: bytes) -> SampledVector:
    return SampledVector(
        kind=_KINDS[canonical[:1]],
        length=canon.length(canonical),
        sha256=hashlib.sha256(canonical).hexdigest(),
        head=canon.head(canonical),
    )


def _questions(
    fields: Sequence[VectorField], look: Look, limits: Limits, vocabulary: Mapping[str, Sequence[int]], points: int
) -> Iterator[golden.Question]:
    if points == 0 and look.golden is None:
        return
    for one in fields:
        if look.golden is not None:
            yield from (golden.Question(one, g.number, g.indices) for g in look.golden if g.using == one.name)
            continue
        for number in range(limits.golden_searches):
            indices = golden.choose_indices(look.seed, one.name, number, vocabulary.get(one.name, ())) if one.kind == "sparse" else ()
            if one.kind != "sparse" or indices:
                yield golden.Question(one, number, indices)


def largest_page(config: Mapping[str, Any]) -> int | None:
    """What a collection in strict mode allows in one request."""
    strict = config.get("strict_mode_config") or {}
    return strict.get("max_query_limit") if strict.get("enabled") else None


def _integer_fields(config: Mapping[str, Any]) -> frozenset[str]:
    dense = config.get("params", {}).get("vectors") or {}
    named = {"": dense} if "size" in dense else dense
    return frozenset(name for name, one in named.items() if one.get("datatype") == "uint8")


def _schema(found: Mapping[str, Any]) -> Any:
    """A payload index's schema without the number of points in it, which is an estimate."""
    return {key: value for key, value in found.items() if key != "points" and value is not None}


def _optimizer_status(found: Any) -> str:
    return found if isinstance(found, str) else f"error: {found.get('error')}" if isinstance(found, Mapping) else "unknown"


def _batches(items: Sequence[PointId], size: int) -> Iterator[Sequence[PointId]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
