"""The manifest of a backup set: what is in it, what was measured, and how it came about.

``docs/manifest.schema.json`` is generated from :class:`Manifest`; ``docs/format.md`` states the invariants.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from pydantic import AwareDatetime, Field, ValidationError, field_validator, model_validator

from scholaria_ops.catalogue.artifacts import Artifact
from scholaria_ops.catalogue.evidence.base import STORE_NAMES, Model, StoreEvidence, StoreName
from scholaria_ops.catalogue.evidence.correspondence import Correspondence
from scholaria_ops.catalogue.evidence.postgres import PostgresEvidence
from scholaria_ops.catalogue.evidence.qdrant import QdrantEvidence
from scholaria_ops.catalogue.evidence.redis import RedisEvidence
from scholaria_ops.catalogue.layout import check_id
from scholaria_ops.errors import VerificationFailed

FORMAT_VERSION: Literal[1] = 1
Tier = Literal["daily", "weekly", "monthly", "manual", "pre_restore"]
TIERS: tuple[Tier, ...] = ("daily", "weekly", "monthly", "manual", "pre_restore")
#: A manifest beyond this many bytes is not one of ours (real ones are well below 5 MB).
MAX_MANIFEST_BYTES = 64 << 20

E = TypeVar("E", bound=StoreEvidence)


class StorePart(Model, Generic[E]):
    """One store's part: where it came from, with what it was made, what was measured."""

    source: str
    tool_versions: dict[str, str]
    started_at: AwareDatetime
    finished_at: AwareDatetime
    evidence: E
    warnings: tuple[str, ...] = ()


class AdoptedFile(Model):
    """A file of an old-style set, as it lay there when it was taken over."""

    store: StoreName
    name: str
    size_bytes: int
    sha256: str


class Adopted(Model):
    """The old-style set that this one was made from: its evidence was measured when it was adopted, not when it was taken."""

    name: str
    files: tuple[AdoptedFile, ...]

    def names_of(self, store: StoreName) -> tuple[str, ...]:
        """Names of the old files of one store."""
        return tuple(f.name for f in self.files if f.store == store)


class Origin(Model):
    """Who or what asked for the set, and which program made it where."""

    product: str
    host: str
    requested_by: str
    run_id: str = ""
    note: str = ""
    #: Set only where the data came from an old-style set.
    adopted: Adopted | None = None


class Manifest(Model):
    """Everything that is known of a set at the moment it is sealed. Later knowledge goes into its records."""

    format_version: Literal[1] = FORMAT_VERSION
    id: str
    tier: Tier
    timezone: str
    started_at: AwareDatetime
    #: When the last store had been dumped and measured.
    finished_at: AwareDatetime
    #: Seconds between the earliest and the latest cut of the stores.
    skew_s: float
    origin: Origin
    #: Stores that are absent, with the reason. Empty in a whole set.
    missing: dict[StoreName, str] = Field(default_factory=dict)
    postgres: StorePart[PostgresEvidence] | None = None
    redis: StorePart[RedisEvidence] | None = None
    qdrant: StorePart[QdrantEvidence] | None = None
    #: How the rows of PostgreSQL and the points of Qdrant corresponded; None for another application, or if it could not be read.
    correspondence: Correspondence | None = None
    artifacts: tuple[Artifact, ...]

    @field_validator("id")
    @classmethod
    def _id_form(cls, value: str) -> str:
        return check_id(value)

    @model_validator(mode="after")
    def _whole(self) -> Manifest:
        for name in STORE_NAMES:
            if (self.part(name) is None) != (name in self.missing):
                raise ValueError(f"store {name} must either be present or be named as missing")
        paths = [a.path for a in self.artifacts]
        if len(paths) != len(set(paths)):
            raise ValueError("two artifacts have the same path")
        strangers = {a.store for a in self.artifacts} - {name for name, _ in self.parts()}
        if strangers:
            raise ValueError(f"artifacts of absent stores: {sorted(strangers)}")
        return self

    def part(self, store: StoreName) -> StorePart[Any] | None:
        """The part of one store, or None if the set lacks it."""
        parts: Mapping[StoreName, StorePart[Any] | None] = {"postgres": self.postgres, "redis": self.redis, "qdrant": self.qdrant}
        return parts[store]

    def parts(self) -> Iterator[tuple[StoreName, StorePart[Any]]]:
        """Name and part of every store that is present."""
        for name in STORE_NAMES:
            part = self.part(name)
            if part is not None:
                yield name, part

    def artifacts_of(self, store: StoreName) -> tuple[Artifact, ...]:
        return tuple(a for a in self.artifacts if a.store == store)

    @property
    def partial(self) -> bool:
        return bool(self.missing)

    @property
    def size_bytes(self) -> int:
        """Size of all artifacts together."""
        return sum(a.size_bytes for a in self.artifacts)

    @property
    def cut_at(self) -> AwareDatetime:
        """The earliest cut: nothing older than this is missing from the set. Sets are ordered by it."""
        cuts: list[AwareDatetime] = [part.evidence.cut_at for _, part in self.parts()]
        return min(cuts)

    @property
    def duration_s(self) -> float:
        return (self.finished_at - self.started_at).total_seconds()

    def counts(self) -> dict[str, int]:
        """Headline counts of all stores (``rows``, ``keys``, ``points`` and more)."""
        merged: dict[str, int] = {}
        for _, part in self.parts():
            merged.update(part.evidence.headline())
        return merged

    def to_bytes(self) -> bytes:
        return (json.dumps(self.model_dump(mode="json"), ensure_ascii=False, indent=1) + "\n").encode()

    @classmethod
    def from_bytes(cls, data: bytes, *, source: str) -> Manifest:
        """Parse and check; raises :class:`VerificationFailed` naming ``source`` and the first wrong field."""
        try:
            return cls.model_validate_json(data)
        except ValidationError as exc:
            first = exc.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(p) for p in first["loc"]) or "the whole"
            raise VerificationFailed(
                f"{source} is no manifest of this product: {where}: {first['msg']}",
                hint="It is damaged, edited or of a newer version; do not rely on this set.",
            ) from None

    @classmethod
    def read(cls, path: Path) -> Manifest:
        try:
            if path.stat().st_size > MAX_MANIFEST_BYTES:
                raise VerificationFailed(f"{path} is larger than any manifest", hint="It is not one of ours; do not rely on this set.")
            return cls.from_bytes(path.read_bytes(), source=str(path))
        except FileNotFoundError:
            raise VerificationFailed(f"{path} is missing", hint="The set is damaged; fetch it again from the offsite copy.") from None


def json_schema() -> dict[str, Any]:
    """JSON Schema of the manifest as it is written."""
    return Manifest.model_json_schema(mode="serialization")
