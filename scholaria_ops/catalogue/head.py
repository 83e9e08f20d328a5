"""The head of a manifest: what listing, planning and standing need of it, a hundredth of its size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any

from scholaria_ops.catalogue.evidence.base import StoreName
from scholaria_ops.catalogue.manifest import Manifest, Tier


@dataclass(frozen=True, slots=True)
class Head:
    """Facts of one set, as its manifest states them. The names are those of :class:`Manifest`."""

    id: str
    tier: Tier
    started_at: datetime
    finished_at: datetime
    cut_at: datetime
    skew_s: float
    size_bytes: int
    counts: Mapping[str, int]
    missing: Mapping[StoreName, str]
    note: str
    #: Path → size of every artifact.
    files: Mapping[str, int] = field(default_factory=dict)
    #: Kind → ids of PostgreSQL and Qdrant that did not belong together; None if that was not measured.
    drift: Mapping[str, int] | None = None

    @property
    def partial(self) -> bool:
        return bool(self.missing)

    @property
    def duration_s(self) -> float:
        return (self.finished_at - self.started_at).total_seconds()

    @classmethod
    def of(cls, manifest: Manifest) -> Head:
        return cls(
            id=manifest.id,
            tier=manifest.tier,
            started_at=manifest.started_at,
            finished_at=manifest.finished_at,
            cut_at=manifest.cut_at,
            skew_s=manifest.skew_s,
            size_bytes=manifest.size_bytes,
            counts=manifest.counts(),
            missing=manifest.missing,
            note=manifest.origin.note,
            files={a.path: a.size_bytes for a in manifest.artifacts},
            drift={str(k): n for k, n in manifest.correspondence.counts.items()} if manifest.correspondence else None,
        )

    def to_json(self) -> dict[str, Any]:
        values = {name: getattr(self, name) for name in FIELDS}
        return {name: value.isoformat() if isinstance(value, datetime) else value for name, value in values.items()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Head:
        """Raises KeyError, TypeError or ValueError if it is not what :meth:`to_json` gave."""
        times = {name: datetime.fromisoformat(values[name]) for name in ("started_at", "finished_at", "cut_at")}
        return cls(**{name: values[name] for name in FIELDS} | times)


FIELDS = tuple(f.name for f in fields(Head))
