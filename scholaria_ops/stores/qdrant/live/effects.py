"""Which points a restore would lose and bring back, as exactly as can be told without changing anything.

A set's evidence has the number of points and the fingerprint of their ids, not the ids. Equal fingerprints: the same ids.
If the lowest of the live ids, as many as the set has, give the set's fingerprint, then points were only added since (a sum
of SHA-256 does not agree by chance). Otherwise the snapshot is opened in a scratch server here and read; where no
program here opens it, bounds are told: what is lost is never told below the truth.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from scholaria_ops.catalogue.evidence.qdrant import CollectionEvidence, QdrantEvidence
from scholaria_ops.errors import Cancelled, OpsError, StoreError, StoreUnavailable
from scholaria_ops.stores.base import Context
from scholaria_ops.stores.live import Effect, Source
from scholaria_ops.stores.qdrant import canon
from scholaria_ops.stores.qdrant.live.damage import why_silent
from scholaria_ops.stores.qdrant.live.layout import Item
from scholaria_ops.stores.qdrant.live.marks import Noted, Noting, note
from scholaria_ops.stores.qdrant.points import Wanted
from scholaria_ops.stores.qdrant.rest import Rest
from scholaria_ops.stores.qdrant.scratch import Scratch, unfit

#: Up to so many points, payloads are read too (a second for 20,000 of 2 KB): then changed texts are counted.
PAYLOADS_UP_TO = 100_000


@dataclass(frozen=True, slots=True)
class Crossing:
    """Points of the live collection that are not in the set (``lost``), the other way round (``back``), with other payloads.

    If not ``exact``: at most as many are lost, and at least as many come back. ``changed`` None: not known.
    """

    lost: int
    back: int
    changed: int | None
    exact: bool = True


class SetPoints:
    """The points of a set, read from its snapshots in a scratch server, which starts when the first is asked for."""

    def __init__(self, source: Source[QdrantEvidence], ctx: Context) -> None:
        self._source = source
        self._ctx = ctx
        self._exit = contextlib.ExitStack()
        self._scratch: Scratch | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._exit.close()

    def of(self, collection: str, *, payloads: bool) -> Noted | None:
        """A collection's points; None when no program here can open its snapshot."""
        artifact = next((a for a in self._source.artifacts if a.kind == "snapshot" and a.subject == collection), None)
        if artifact is None or unfit(self._ctx.tools, self._source.evidence.server_version):
            return None
        size = artifact.raw_size_bytes or artifact.size_bytes
        try:
            if self._scratch is None:
                self._scratch = self._exit.enter_context(Scratch(self._ctx, largest=size))
            scratch = self._scratch
            scratch.recover(self._source.directory / artifact.path, collection, size=size, compressed=artifact.compression == "gzip")
            reading = Noting(scratch.source)
            for _ in reading.pages(Wanted(collection, payloads, vectors=False)):
                self._ctx.cancel.check()
            scratch.forget(collection)
        except Cancelled:
            raise
        except OpsError as exc:
            self._ctx.log.warning("cannot read the set's points of collection %r here, so bounds are told: %s", collection, exc)
            return None
        return reading.noted


def points_effects(
    rest: Rest, item: Item, evidence: QdrantEvidence, in_set: SetPoints, damaged: MutableMapping[str, str]
) -> Iterator[Effect]:
    """The effects on points of one collection of the set, for each live collection that it takes the place of.

    What cannot be read to its end is put into ``damaged``.
    """
    known = evidence.collections[item.collection]
    if not item.replaces:
        yield Effect(
            kind="back", what=f"collection {item.collection}: points", count=known.points, detail="the live server has no such collection"
        )
    for old in item.replaces:
        live = None
        if old not in damaged:
            try:
                live = note(rest, old, payloads=known.points <= PAYLOADS_UP_TO, vectors=False)
            except StoreError as exc:
                if isinstance(exc, StoreUnavailable) and rest.connection.grpc_address:
                    raise  # over REST it has just answered: it is the other port where nobody is
                damaged[old] = why_silent(rest, exc)
        if live is None:
            yield Effect(
                kind="lost",
                what=f"collection {old}: points",
                detail=f"how many is unknown, the live collection does not answer: {damaged[old]}; the set has {known.points:,}",
            )
            continue
        found = crossing(live, known, in_set)
        what = f"collection {old}: points"
        if found.lost:
            yield Effect(kind="lost", what=what, count=found.lost, detail=_bounds(found, live, known))
        if found.back:
            yield Effect(kind="back", what=what, count=found.back, detail="" if found.exact else "at least")
        if found.changed:
            yield Effect(
                kind="changed", what=f"{what} with another payload", count=found.changed, detail="the set's payload replaces the live one"
            )
        elif found.changed is None:
            yield Effect(
                kind="changed",
                what=f"{what} with the same id",
                detail="their contents were not compared: what was written since is replaced",
            )


def _bounds(found: Crossing, live: Noted, known: CollectionEvidence) -> str:
    if found.exact:
        return ""
    fewest = len(live.points) - known.points
    return f"at most; the live collection has {len(live.points):,}, the set {known.points:,}" + (
        f", so at least {fewest:,}" if fewest > 0 else ""
    )


def crossing(live: Noted, known: CollectionEvidence, in_set: SetPoints) -> Crossing:
    """How a live collection and one of a set differ."""
    same_payloads = live.payloads and known.fingerprint.payloads is not None and live.payload_sum == known.fingerprint.payloads
    if live.ids == known.fingerprint.ids and same_payloads:
        return Crossing(0, 0, 0)
    opened = in_set.of(known.name, payloads=live.payloads)
    if opened is not None:
        found = live.points.change_since(opened.points)
        return Crossing(found.new, found.gone, found.changed if live.payloads else None)
    if live.ids == known.fingerprint.ids:
        return Crossing(0, 0, None)
    more = len(live.points) - known.points
    if more > 0 and canon.hexed(canon.total(map(canon.share, live.points.lowest(known.points)))) == known.fingerprint.ids:
        return Crossing(more, 0, None)
    exact = not live.points or not known.points
    return Crossing(len(live.points), known.points if exact else max(0, -more), None, exact)
