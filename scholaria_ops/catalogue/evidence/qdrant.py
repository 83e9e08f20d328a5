"""What is measured of a Qdrant server: exact counts, configuration, aliases, fingerprints, samples, golden searches.

How each part is computed (so that somebody else can compute it again):

* **Fingerprints** do not depend on the order of points. A point's share is SHA-256 over its id and its payload (or its
  vectors) in the canonical form of ``scholaria_ops.stores.qdrant.canon``; the fingerprint is the sum of the shares
  modulo 2**256, written as 64 hexadecimal digits.
* **Samples** are the points whose id digest lies nearest to the seed (by XOR), so the same seed finds the same points
  on any server. A vector is kept as the digest of its float32 bytes plus its first eight components: 32 sampled points
  of 1,536 dimensions would otherwise weigh 400 KB of manifest.
* **Golden searches** use vectors that are not stored points, made from the seed (``scholaria_ops.stores.qdrant.golden``),
  with ``exact`` search; only their results are kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import AwareDatetime

from scholaria_ops.catalogue.evidence.base import Model, StoreEvidence

VectorKind = Literal["dense", "sparse", "multi"]


class VectorField(Model):
    """One vector of a collection's points; the unnamed one has the name ``""``. ``size`` is None for a sparse one."""

    name: str
    kind: VectorKind
    size: int | None = None
    distance: str | None = None


class SampledVector(Model):
    """A stored vector: length (components, or non-zero entries of a sparse one), digest of its canonical bytes, first components."""

    kind: VectorKind
    length: int
    sha256: str
    head: tuple[float, ...]


class SampledPoint(Model):
    """A stored point. ``excerpt`` is the beginning of its payload as JSON, for people; the digest is what is compared."""

    id: int | str
    payload_sha256: str
    excerpt: str
    vectors: Mapping[str, SampledVector]


class Hit(Model):
    """A point that a search found, with its score as the server gave it."""

    id: int | str
    score: float


class GoldenSearch(Model):
    """An exact search with a made-up vector: the ``number``-th of its vector field, made from the evidence's seed.

    A sparse query needs dimensions that occur in the data: they are kept in ``indices``; its values come from the seed.
    """

    using: str
    number: int
    indices: tuple[int, ...] = ()
    hits: tuple[Hit, ...]


class Fingerprint(Model):
    """Digests over the points: ``ids`` always over all of them, the others over all or None (``note`` says why)."""

    ids: str
    payloads: str | None = None
    vectors: str | None = None
    note: str = ""


class SnapshotFacts(Model):
    """The snapshot that the server made of a collection, by the server's own account."""

    name: str
    size_bytes: int
    #: SHA-256 by the server; None from servers older than 1.8, which tell none.
    server_sha256: str | None
    requested_at: AwareDatetime
    finished_at: AwareDatetime
    #: Exact counts on the live server right before and right after. Equal ones mean that nothing came or went.
    live_points_before: int
    live_points_after: int


class CollectionEvidence(Model):
    """One collection. ``config`` and ``indexes`` are the server's own words."""

    name: str
    points: int
    vectors: tuple[VectorField, ...]
    config: Mapping[str, Any]
    #: Payload field → its index's schema (type and parameters, without counts).
    indexes: Mapping[str, Any]
    fingerprint: Fingerprint
    sample: tuple[SampledPoint, ...]
    golden: tuple[GoldenSearch, ...]
    #: Why a vector field has no golden search (for example: the collection's strict mode forbids exact search).
    golden_skipped: Mapping[str, str] = {}
    #: Passing state at the time of measuring; never compared.
    status: str
    optimizer_status: str
    segments: int
    indexed_vectors: int | None = None
    snapshot: SnapshotFacts | None = None


class QdrantEvidence(StoreEvidence):
    """Everything measured of one Qdrant server."""

    collections: Mapping[str, CollectionEvidence]
    #: Alias → the collection that it stands for.
    aliases: Mapping[str, str]
    #: ``snapshot``: the snapshot files themselves, opened in a scratch server: exact whatever was written meanwhile.
    #: ``live``: the serving server, right around its snapshot; exact only if nobody wrote (``exact``).
    measured_on: Literal["snapshot", "live"]
    #: Version of the server that was asked (the scratch server's, or the live server's).
    measured_by: str
    #: False when the live server was measured and its points changed around the snapshot.
    exact: bool = True
    seed: str
    #: Collections that stood on the server for undoing a restore only, and are not in the set.
    left_out: tuple[str, ...] = ()
    #: ``disabled``, or the number of peers in cluster mode.
    cluster: str = "disabled"

    def headline(self) -> Mapping[str, int]:
        return {"points": sum(c.points for c in self.collections.values()), "collections": len(self.collections)}
