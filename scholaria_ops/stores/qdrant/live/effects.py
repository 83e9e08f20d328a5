"""Which points a restore would lose and bring back, as exactly as can be told without changing anything."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from scholaria_ops.catalogue.evidence.qdrant import CollectionEvidence, QdrantEvidence
from scholaria_ops.stores.live import Effect, Source
from scholaria_ops.stores.qdrant import canon
from scholaria_ops.stores.qdrant.live.layout import Item
from scholaria_ops.stores.qdrant.live.marks import Noted, note
from scholaria_ops.stores.qdrant.rest import Rest

#: Up to so many points, payloads are read too (a second for 20,000 of 2 KB): then changed texts are seen.
PAYLOADS_UP_TO = 100_000


@dataclass(frozen=True, slots=True)
class Crossing:
    """Points of the live collection that are not in the set, and the other way round. If not ``exact``: at most, and at least."""

    lost: int
    back: int
    exact: bool


def points_effects(rest: Rest, item: Item, source: Source[QdrantEvidence]) -> Iterator[Effect]:
    """The effects on points of one collection of the set, one pair per live collection that it takes the place of."""
    known = source.evidence.collections[item.collection]
    if not item.replaces:
        yield Effect(kind="back", what=f"collection {item.collection}", count=known.points, detail="the live server has no such collection")
    for old in item.replaces:
        live = note(rest, old, payloads=known.points <= PAYLOADS_UP_TO, vectors=False)
        found = crossing(live, known)
        what = f"collection {old}: points"
        if found.lost:
            yield Effect(kind="lost", what=what, count=found.lost, detail=_said(found, live, known, "lost"))
        if found.back:
            yield Effect(kind="back", what=what, count=found.back, detail=_said(found, live, known, "back"))
        if found.lost == found.back == 0:
            same = live.payloads and known.fingerprint.payloads is not None
            if same and live.payload_sum == known.fingerprint.payloads:
                continue
            said = "the same ids with other payloads" if same else "the same ids; payloads were not compared"
            yield Effect(kind="changed", what=f"collection {old}: contents", detail=f"{said}: what was written since is replaced")


def _said(found: Crossing, live: Noted, known: CollectionEvidence, kind: str) -> str:
    if found.exact:
        return ""
    difference = len(live.points) - known.points if kind == "lost" else known.points - len(live.points)
    return f"{'at most' if kind == 'lost' else 'at least'}; live {len(live.points):,}, set {known.points:,}" + (
        f", so at least {difference:,}" if kind == "lost" and difference > 0 else ""
    )


def crossing(live: Noted, known: CollectionEvidence) -> Crossing:
    """What the ids alone tell: a set's evidence has their number and their fingerprint, not the ids themselves.

    Equal fingerprints: the same ids. If the fingerprint of the lowest ids, as many as the set has, is the set's, then
    points were only added since, and which ones is known exactly (a sum of SHA-256 does not agree by chance). Otherwise
    every live point may be one that the set has not.
    """
    if live.ids == known.fingerprint.ids:
        return Crossing(0, 0, exact=True)
    more = len(live.points) - known.points
    if more > 0:
        lowest = sorted(live.points)[: known.points]
        if canon.hexed(canon.total(map(canon.share, lowest))) == known.fingerprint.ids:
            return Crossing(more, 0, exact=True)
    if not live.points or not known.points:
        return Crossing(len(live.points), known.points, exact=True)
    return Crossing(len(live.points), max(0, -more), exact=False)
