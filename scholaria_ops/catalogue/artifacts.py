"""A file that one store's dump produced."""

from __future__ import annotations

from typing import Literal

from pydantic import field_validator

from scholaria_ops.catalogue.evidence.base import Model, StoreName
from scholaria_ops.errors import VerificationFailed

ArtifactKind = Literal["dump", "globals", "rdb", "snapshot", "aliases"]


class Artifact(Model):
    """Path (relative to the set's directory, ``/`` as separator), size and digest of one file of a set."""

    store: StoreName
    kind: ArtifactKind
    path: str
    size_bytes: int
    sha256: str
    #: ``none``, ``gzip`` or the archive's inner method (``zstd`` for PostgreSQL custom format).
    compression: str = "none"
    #: Size and digest of the content before an outer compression (gzip); equal to the above where there is none.
    raw_size_bytes: int | None = None
    raw_sha256: str | None = None
    #: What it is the dump of: database, collection. Data from a server, never used as a path.
    subject: str = ""

    @field_validator("path")
    @classmethod
    def _stays_inside(cls, value: str) -> str:
        check_relative(value)
        return value


def check_relative(path: str) -> None:
    """Raise :class:`VerificationFailed` unless ``path`` is a plain relative path that stays inside its set."""
    parts = path.split("/")
    if path.startswith("/") or "\\" in path or "\x00" in path or "\n" in path or any(p in {"", ".", ".."} for p in parts):
        raise VerificationFailed(
            f"the path {path!r} in a manifest leaves its set", hint="The manifest is damaged or forged; do not use this set."
        )
