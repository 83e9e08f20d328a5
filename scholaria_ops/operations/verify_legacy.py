"""Verify a set that the old shell scripts wrote. There is no evidence to compare with: what can be read, is read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from scholaria_ops.catalogue.evidence.base import StoreName
from scholaria_ops.catalogue.legacy import LegacySet
from scholaria_ops.stores.base import Check, Context, Store


def verify_legacy(
    legacy: LegacySet, level: str, stores: Mapping[StoreName, Store[Any, Any]], ctx: Context
) -> Iterator[tuple[StoreName | Literal["set"], Check]]:
    """Checks of an old-style set. Its own checksums, where the scripts wrote any, are honoured."""
    yield "set", _own_checksums(legacy)
    files: Mapping[StoreName, Path | None] = {"postgres": legacy.postgres, "redis": legacy.redis, "qdrant": legacy.qdrant}
    for name, path in files.items():
        ctx.cancel.check()
        if path is None:
            yield name, Check("present", False, "the set has no file of this store: it cannot be restored")
        else:
            yield name, _readable(path)


def _own_checksums(legacy: LegacySet) -> Check:
    """SHA256SUMS or ``*.sha256`` files beside the artifacts, if there are any."""
    lines: dict[str, str] = {}
    for path in (*legacy.directory.glob("*.sha256"), *legacy.directory.glob("SHA256SUMS"), *legacy.directory.glob("checksums*")):
        for line in path.read_text(errors="replace").splitlines():
            digest, _, name = line.partition(" ")
            if len(digest) == 64 and name.strip():
                lines[Path(name.strip().lstrip("*")).name] = digest
    wrong = [n for n, digest in lines.items() if not (legacy.directory / n).is_file() or _sha256(legacy.directory / n) != digest]
    if wrong:
        return Check("checksums", False, f"not what was written: {', '.join(sorted(wrong))}")
    if not lines:
        return Check("checksums", None, "the old scripts wrote no checksums with this set: silent damage cannot be ruled out")
    return Check("checksums", True, f"{len(lines)} files as they were written")


def _sha256(path: Path) -> str:
    with path.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()
