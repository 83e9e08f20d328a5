"""Sets with made-up evidence, sealed by the real commit protocol: for tests of the catalogue, which looks at no artifact's inside."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from scholaria_ops.catalogue.artifacts import Artifact
from scholaria_ops.catalogue.commit import Staging, staging
from scholaria_ops.catalogue.evidence.base import StoreName
from scholaria_ops.catalogue.evidence.correspondence import Correspondence
from scholaria_ops.catalogue.evidence.postgres import DatabaseEvidence, LargeObjects, PostgresEvidence
from scholaria_ops.catalogue.evidence.qdrant import QdrantEvidence
from scholaria_ops.catalogue.evidence.redis import RedisEvidence
from scholaria_ops.catalogue.layout import label
from scholaria_ops.catalogue.manifest import Manifest, Origin, StorePart, Tier
from scholaria_ops.catalogue.sets import BackupSet, Catalogue
from scholaria_ops.files import make_private_dir, write_private

NOW = datetime(2026, 3, 1, 2, 0, 0, tzinfo=UTC)
FILES: dict[StoreName, tuple[str, str]] = {
    "postgres": ("dump", "postgres_{id}.sql.custom"),
    "redis": ("rdb", "redis_{id}.rdb.gz"),
    "qdrant": ("snapshot", "qdrant_{id}/documents.snapshot"),
}


def postgres_evidence(at: datetime) -> PostgresEvidence:
    database = DatabaseEvidence(
        name="scholaria", owner="scholaria", encoding="UTF8", provider="libc", collate="C", ctype="C", size_bytes=8_000_000
    )
    return PostgresEvidence(
        server_version="16.15",
        server_version_num=160015,
        cut_at=at,
        lsn="0/1",
        database=database,
        tables={},
        sequences={},
        objects={},
        grants={},
        extensions={},
        roles={},
        bootstrap_role="postgres",
        large_objects=LargeObjects(count=0, fingerprint="0"),
    )


def redis_evidence(at: datetime) -> RedisEvidence:
    return RedisEvidence(
        server_version="7.4.1",
        cut_at=at,
        run_id="r",
        role="master",
        cut_uncertainty_s=0.1,
        form="disk",
        rdb_version=12,
        rdb_checksum=True,
        rdb_aux={},
        method="m",
        measured_with="7.4.1",
        window_origin=0,
        keys=(),
        expired_at_cut=0,
        functions=(),
        databases=16,
        used_memory_bytes=1,
        maxmemory_bytes=0,
        maxmemory_policy="noeviction",
        aof_enabled=True,
        save_points="",
    )


def qdrant_evidence(at: datetime) -> QdrantEvidence:
    return QdrantEvidence(
        server_version="1.16.3", cut_at=at, collections={}, aliases={}, measured_on="snapshot", measured_by="1.16.3", seed="0"
    )


def fill(
    stage: Staging, at: datetime, *, missing: tuple[StoreName, ...] = (), tier: Tier = "manual", size: int = 1000, drift: int | None = None
) -> Manifest:
    """Write artifacts of made-up bytes into a staging directory and return the manifest that names them."""
    artifacts = []
    for store, (kind, pattern) in FILES.items():
        if store in missing:
            continue
        path = stage.path / pattern.format(id=stage.id)
        make_private_dir(path.parent, exist_ok=True)
        written = write_private(path, (store.encode() * size)[:size])
        artifacts.append(
            Artifact.model_validate(
                {
                    "store": store,
                    "kind": kind,
                    "path": path.relative_to(stage.path).as_posix(),
                    "size_bytes": written.size,
                    "sha256": written.sha256,
                }
            )
        )
    common = {"source": "nowhere", "tool_versions": {}, "started_at": at, "finished_at": at + timedelta(seconds=3)}
    return Manifest(
        id=stage.id,
        tier=tier,
        timezone="UTC",
        started_at=at,
        finished_at=at + timedelta(seconds=4),
        skew_s=0.0,
        origin=Origin(product="scholaria-ops test", host="here", requested_by="a test"),
        missing=dict.fromkeys(missing, "made so"),
        postgres=None if "postgres" in missing else StorePart[PostgresEvidence](evidence=postgres_evidence(at), **common),
        redis=None if "redis" in missing else StorePart[RedisEvidence](evidence=redis_evidence(at), **common),
        qdrant=None if "qdrant" in missing else StorePart[QdrantEvidence](evidence=qdrant_evidence(at), **common),
        artifacts=tuple(artifacts),
        correspondence=None if drift is None else _correspondence(at, drift),
    )


def _correspondence(at: datetime, drift: int) -> Correspondence:
    """``drift`` rows that have no point."""
    return Correspondence(
        at=at,
        table="rag_contextitem",
        collection="documents",
        rows=100 + drift,
        points=100,
        counts={"row without point": drift, "point without row": 0, "other context": 0, "other text": 0},
        examples={},
        texts_compared=10,
        largest_point=100,
    )


def make_set(
    catalogue: Catalogue,
    at: datetime = NOW,
    *,
    set_id: str | None = None,
    missing: tuple[StoreName, ...] = (),
    tier: Tier = "manual",
    verified: bool = False,
    size: int = 1000,
    drift: int | None = None,
) -> BackupSet:
    """A sealed (or partial) set taken ``at``; with its record of sealing, and of a passed verification if asked for."""
    set_id = set_id or label(at, UTC)
    with staging(catalogue.layout, set_id) as stage:
        sealed = stage.seal(fill(stage, at, missing=missing, tier=tier, size=size, drift=drift), "how to restore")
    catalogue.records.append(set_id, "sealed", sums_sha256=sealed.sums_sha256, cut_at=at.isoformat())
    if verified:
        catalogue.records.append(set_id, "verified", level="hash", passed=True)
    return sealed


def records_as_taken(set_id: str, at: datetime, *, shipped: bool = False, rehearsed: bool = False) -> list[dict[str, Any]]:
    """Records of a set taken ``at`` and verified, in the form and of the weight that a real one has."""

    def line(minutes: float, event: str, **detail: Any) -> dict[str, Any]:
        return {"at": (at + timedelta(minutes=minutes)).isoformat(), "event": event, "by": "ops@host", "run_id": "0" * 36, "detail": detail}

    checks = [
        {"subject": "set", "name": f"check {n}", "passed": True, "detail": "as it was written", "numbers": {"files": 8}} for n in range(16)
    ]
    stores = {
        s: {
            "verdict": "proven",
            "detail": "all there",
            "rto_s": 9.5,
            "seconds": {"start": 1.0, "load": 8.5},
            "counts": {},
            "differences": [],
        }
        for s in FILES
    }
    lines = [
        line(0, "reserved", tier="daily", note="", requested_by="schedule daily_backup"),
        line(1, "sealed", sums_sha256="0" * 64, partial=False, size_bytes=3000, tier="daily", cut_at=at.isoformat()),
        line(2, "verified", level="readable", passed=True, seconds=1.5, bytes=3000, checks=checks, failed=[], unjudged=[]),
    ]
    if shipped:
        lines.append(
            line(
                3, "shipped", where=f"s3://bucket/scholaria_backup_{set_id}", bytes=3000, sent_bytes=3000, seconds=2.5, confirmed_by="read"
            )
        )
    if rehearsed:
        lines.append(
            line(
                60,
                "rehearsed",
                verdict="proven",
                source="local",
                rto_s=20.5,
                rpo_s=3600.0,
                fetch_s=0.0,
                kept_until=None,
                kept_file=None,
                stores=stores,
            )
        )
    return lines
