"""Telling two pieces of Qdrant evidence apart: by content, with every difference named."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

from scholaria_ops.catalogue.evidence.base import Difference, compare_mappings
from scholaria_ops.catalogue.evidence.qdrant import CollectionEvidence, QdrantEvidence, SampledPoint
from scholaria_ops.stores.qdrant import golden

Part = Literal["points", "payloads", "vectors", "configuration", "payload_indexes", "sampled_points", "golden_searches", "aliases"]
#: Parts of a comparison, in the order in which an operator wants to read them.
PARTS: tuple[Part, ...] = (
    "points",
    "payloads",
    "vectors",
    "configuration",
    "payload_indexes",
    "sampled_points",
    "golden_searches",
    "aliases",
)

_HEAD_TOLERANCE = 1e-6


def compare(expected: QdrantEvidence, found: QdrantEvidence) -> list[Difference]:
    """All differences; notes last. Status, segments, optimizer state and times are not content."""
    differences = [d for _, d in compare_by_part(expected, found)]
    return sorted(differences, key=lambda d: d.severity == "note")


def compare_by_part(expected: QdrantEvidence, found: QdrantEvidence) -> Iterator[tuple[Part, Difference]]:
    """Every difference with the part of the evidence that it concerns."""
    moving = not expected.exact
    for name in sorted(expected.collections.keys() | found.collections.keys()):
        left, right = expected.collections.get(name), found.collections.get(name)
        if left is None or right is None:
            yield (
                "points",
                _difference(
                    name, "collection", f"{left.points:,} points" if left else "absent", f"{right.points:,} points" if right else "absent"
                ),
            )
            continue
        for part, difference in compare_collections(left, right):
            # The live server was measured while it was being written to: contents may honestly be a moment apart.
            softened = moving and part not in {"configuration", "payload_indexes"} and _within_the_writes(left, right)
            yield part, difference.model_copy(update={"severity": "note"}) if softened else difference
    for difference in compare_mappings("qdrant", "alias", expected.aliases, found.aliases):
        yield "aliases", difference
    if expected.server_version != found.measured_by:
        yield (
            "configuration",
            Difference(store="qdrant", what="server version", expected=expected.server_version, found=found.measured_by, severity="note"),
        )


def compare_collections(left: CollectionEvidence, right: CollectionEvidence) -> Iterator[tuple[Part, Difference]]:
    """Differences of two measurements of one collection."""
    name = left.name
    if left.points != right.points:
        yield "points", _difference(name, "points", f"{left.points:,}", f"{right.points:,}")
    elif left.fingerprint.ids != right.fingerprint.ids:
        yield "points", _difference(name, "point ids", _short(left.fingerprint.ids), _short(right.fingerprint.ids))
    yield from _fingerprints(left, right)
    for path, one, other in config_differences(left.config, right.config):
        yield "configuration", _difference(name, f"configuration {path}", one, other)
    for difference in compare_mappings("qdrant", f"collection {name}: payload index", left.indexes, right.indexes):
        yield "payload_indexes", difference
    yield from _samples(left, right)
    yield from _searches(left, right)


def _fingerprints(left: CollectionEvidence, right: CollectionEvidence) -> Iterator[tuple[Part, Difference]]:
    pairs: tuple[tuple[Part, str | None, str | None], ...] = (
        ("payloads", left.fingerprint.payloads, right.fingerprint.payloads),
        ("vectors", left.fingerprint.vectors, right.fingerprint.vectors),
    )
    for part, one, other in pairs:
        if one is not None and other is not None:
            if one != other:
                yield part, _difference(left.name, f"{part} of all points", _short(one), _short(other))
        elif one != other:
            why = left.fingerprint.note or right.fingerprint.note
            yield part, _difference(left.name, f"{part} of all points", "compared", f"not compared ({why})", severity="note")


def _samples(left: CollectionEvidence, right: CollectionEvidence) -> Iterator[tuple[Part, Difference]]:
    found = {point.id: point for point in right.sample}
    for point in left.sample:
        other = found.get(point.id)
        if other is None:
            yield "sampled_points", _difference(left.name, f"point {point.id}", "present", "absent")
            continue
        if point.payload_sha256 != other.payload_sha256:
            yield "sampled_points", _difference(left.name, f"point {point.id}: payload", point.excerpt, other.excerpt)
        yield from (("sampled_points", d) for d in _vectors(left.name, point, other))


def _vectors(collection: str, left: SampledPoint, right: SampledPoint) -> Iterator[Difference]:
    for name in sorted(left.vectors.keys() | right.vectors.keys()):
        one, other = left.vectors.get(name), right.vectors.get(name)
        what = f"point {left.id}: vector" + (f" {name}" if name else "")
        if one is None or other is None:
            yield _difference(collection, what, "present" if one else "absent", "present" if other else "absent")
        elif one.sha256 != other.sha256:
            alike = one.length == other.length and all(abs(a - b) <= _HEAD_TOLERANCE for a, b in zip(one.head, other.head, strict=True))
            said = (f"{one.head}", f"{other.head}") if not alike else (f"digest {_short(one.sha256)}", f"digest {_short(other.sha256)}")
            yield _difference(collection, what, *said)


def _searches(left: CollectionEvidence, right: CollectionEvidence) -> Iterator[tuple[Part, Difference]]:
    found = {(search.using, search.number): search for search in right.golden}
    for search in left.golden:
        what = f"golden search {search.number}" + (f" in {search.using}" if search.using else "")
        other = found.get((search.using, search.number))
        said = right.golden_skipped.get(search.using, "no answer") if other is None else golden.disagreement(search, other)
        if said:
            yield "golden_searches", _difference(left.name, what, f"{len(search.hits)} results as recorded", said)


def config_differences(left: Any, right: Any, path: str = "") -> Iterator[tuple[str, str, str]]:
    """Leaves that differ. A setting that one server does not know and the other has not set (null) is the same."""
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        for key in sorted(left.keys() | right.keys()):
            yield from config_differences(left.get(key), right.get(key), f"{path}.{key}" if path else str(key))
    elif left != right:
        yield path, str(left), str(right)


def _within_the_writes(left: CollectionEvidence, right: CollectionEvidence) -> bool:
    made = left.snapshot
    if made is None:
        return True
    low, high = sorted((made.live_points_before, made.live_points_after))
    return low <= right.points <= high


def _difference(collection: str, what: str, expected: str, found: str, *, severity: Literal["loss", "note"] = "loss") -> Difference:
    return Difference(store="qdrant", what=f"collection {collection}: {what}", expected=expected, found=found, severity=severity)


def _short(digest: str) -> str:
    return digest[:16]


def losses(differences: Iterable[Difference]) -> tuple[Difference, ...]:
    return tuple(d for d in differences if d.severity == "loss")
