"""Qdrant behind the store seam."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from scholaria_ops.catalogue.artifacts import Artifact
from scholaria_ops.catalogue.evidence.base import Difference, StoreName
from scholaria_ops.catalogue.evidence.qdrant import QdrantEvidence
from scholaria_ops.connections import QdrantConnection
from scholaria_ops.errors import Refused, VerificationFailed
from scholaria_ops.sandbox.qdrant import QdrantServer
from scholaria_ops.stores.base import Check, Context, Dump, Facts, Loaded
from scholaria_ops.stores.qdrant import inspect, leftovers, manual
from scholaria_ops.stores.qdrant.compare import compare
from scholaria_ops.stores.qdrant.dump import Options, dump
from scholaria_ops.stores.qdrant.load import make_aliases, recover_as, require_fitting_version
from scholaria_ops.stores.qdrant.measure import Limits, Look, aliases_of, collections_of, measure_collection
from scholaria_ops.stores.qdrant.points import GrpcSource, RestSource
from scholaria_ops.stores.qdrant.preflight import preflight
from scholaria_ops.stores.qdrant.rest import Rest

#: How long :meth:`QdrantStore.reap` waits for a snapshot that a killed run asked for and that may still be in the making.
_REAP_PATIENCE_S = 30.0
_RECOVER_S = 3600.0


class QdrantStore:
    """A Qdrant server of version 1.7 or newer.

    Args:
        gzip: compress snapshots (they are sparse archives of floating-point numbers: little is gained).
        sample_points: points per collection whose payload and vectors are recorded one by one.
        golden_searches: exact searches per vector field, with vectors that are not stored points.
        fingerprint_max_points: collections with more points have payloads and vectors sampled only, which the evidence says.
        timeout_s: seconds for the server to make one snapshot, and for one silence during a download.
        kept: asked at every preflight and dump: collections that stand there for undoing a restore only. They are left
            out, and named in the evidence; one that an alias leads to is served and is never left out.
    """

    name: StoreName = "qdrant"

    def __init__(
        self,
        connection: QdrantConnection,
        *,
        gzip: bool = False,
        sample_points: int = 32,
        golden_searches: int = 5,
        fingerprint_max_points: int | None = None,
        timeout_s: float = 1800.0,
        kept: Callable[[], Collection[str]] = frozenset,
    ) -> None:
        limits = Limits(sample_points=sample_points, golden_searches=golden_searches)
        if fingerprint_max_points is not None:
            limits = replace(limits, fingerprint_max_points=fingerprint_max_points)
        self.connection = connection
        self._limits = limits
        self._options = Options(gzip=gzip, limits=limits, timeout_s=timeout_s, kept=kept)

    @property
    def where(self) -> str:
        return self.connection.where

    def preflight(self, ctx: Context) -> Facts:
        return preflight(self.connection, ctx, self._options.kept())

    def dump(self, into: Path, set_id: str, ctx: Context) -> Dump[QdrantEvidence]:
        return dump(self.connection, into, set_id, ctx, self._options)

    def inspect(self, directory: Path, artifacts: Sequence[Artifact], evidence: QdrantEvidence, ctx: Context) -> list[Check]:
        return inspect.inspect(directory, artifacts, evidence, ctx, self._limits)

    def load(self, directory: Path, artifacts: Sequence[Artifact], evidence: QdrantEvidence, target: QdrantServer, ctx: Context) -> Loaded:
        seconds: dict[str, float] = {}
        notes: list[str] = []
        with Rest(target.connection, cancel=ctx.cancel) as rest:
            require_fitting_version(evidence.server_version, rest.version, rest.where)
            present = sorted({*collections_of(rest), *aliases_of(rest)} & {*evidence.collections, *evidence.aliases})
            if present:
                raise Refused(f"{rest.where} is not empty: {', '.join(present)}", hint="Restore into an empty server.", store="qdrant")
            for artifact in _snapshots(artifacts, evidence):
                known = evidence.collections[artifact.subject]
                done = recover_as(
                    rest,
                    directory / artifact.path,
                    artifact,
                    artifact.subject,
                    expected_points=known.points if evidence.exact else None,
                    ctx=ctx,
                    timeout_s=_RECOVER_S,
                )
                seconds[f"recover {artifact.subject}"] = done.seconds
                notes.extend(done.notes)
            began = time.monotonic()
            listing = next((a for a in artifacts if a.kind == "aliases"), None)
            if listing is None:
                raise VerificationFailed("the set has no aliases.json", hint="Its Qdrant part is not whole.", store="qdrant")
            make_aliases(rest, inspect.read_aliases(directory / listing.path))
            seconds["aliases"] = time.monotonic() - began
        return Loaded(seconds, tuple(notes))

    def probe(self, target: QdrantServer, evidence: QdrantEvidence, ctx: Context) -> QdrantEvidence:
        with Rest(target.connection, cancel=ctx.cancel) as rest:
            address = target.grpc_address
            key = target.connection.api_key.get_secret_value()
            source = GrpcSource(address, key, ctx.cancel) if address else RestSource(rest)
            collections = {
                name: measure_collection(rest, source, name, Look.again(evidence, name), self._limits) for name in collections_of(rest)
            }
            return QdrantEvidence(
                server_version=evidence.server_version,
                cut_at=datetime.now(UTC),
                collections=collections,
                aliases=aliases_of(rest),
                measured_on="live",
                measured_by=rest.version,
                seed=evidence.seed,
            )

    def compare(self, expected: QdrantEvidence, found: QdrantEvidence) -> list[Difference]:
        return compare(expected, found)

    def reap(self, ctx: Context) -> list[str]:
        return leftovers.reap(self.connection, ctx, patience_s=_REAP_PATIENCE_S)

    def manual_restore(self, artifacts: Sequence[Artifact]) -> str:
        return manual.manual_restore(artifacts)


def _snapshots(artifacts: Sequence[Artifact], evidence: QdrantEvidence) -> list[Artifact]:
    """The snapshots, one for each collection of the evidence. Raises VerificationFailed if that is not what there is."""
    found = [a for a in artifacts if a.kind == "snapshot"]
    names = sorted(a.subject for a in found)
    if names != sorted(evidence.collections):
        raise VerificationFailed(
            f"the set holds snapshots of {names} instead of {sorted(evidence.collections)}",
            hint="Its Qdrant part is not whole.",
            store="qdrant",
        )
    return found
