"""Sets that the old shell scripts wrote: same directory name, a static manifest, artifacts at the top level.

They are recognised, never changed. Their Qdrant file is often a saved error message of the server instead of a
snapshot; such a set cannot bring the vectors back, and the catalogue says so.
"""

from __future__ import annotations

import gzip
import json
import zlib
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from scholaria_ops.catalogue.evidence.base import STORE_NAMES, StoreName
from scholaria_ops.catalogue.layout import MANIFEST, id_from_name

_HEAD = 4096
#: As every manifest of ours begins; parsing the rest would tell nothing more here.
_OURS = b'{\n "format_version": '
_POSTGRES = ("postgres*.sql.custom", "postgres*.custom", "postgres*.dump", "postgres*.sql.gz", "postgres*.sql")
_REDIS = ("redis*.rdb.gz", "redis*.rdb", "dump.rdb*")
_TITLES = {"postgres": "PostgreSQL", "redis": "Redis", "qdrant": "Qdrant"}
_QDRANT = ("qdrant*.tar.gz", "qdrant*.snapshot*", "qdrant*.tar")


@dataclass(frozen=True, slots=True)
class LegacySet:
    """An old-style set: its files by store (None: there is none) and why it cannot be restored, if so."""

    directory: Path
    postgres: Path | None
    redis: Path | None
    qdrant: Path | None
    instant: datetime | None
    unrestorable: str = ""
    #: Further Qdrant files of the same kind: some versions of the scripts wrote one snapshot per collection.
    more_qdrant: tuple[Path, ...] = ()

    @property
    def files(self) -> tuple[Path, ...]:
        return tuple(f for f in (self.postgres, self.redis, self.qdrant, *self.more_qdrant) if f)

    def files_of(self, store: StoreName) -> tuple[Path, ...]:
        """The files of one store; empty if the set has none."""
        first = {"postgres": self.postgres, "redis": self.redis, "qdrant": self.qdrant}[store]
        return () if first is None else (first, *(self.more_qdrant if store == "qdrant" else ()))

    def trouble_of(self, store: StoreName) -> str:
        """Why the data of one store cannot be restored; empty if nothing speaks against it at first sight."""
        files = self.files_of(store)
        if not files:
            return f"no {_TITLES[store]} file"
        look = {"postgres": _postgres_trouble, "redis": _redis_trouble, "qdrant": _qdrant_trouble}[store]
        return "; ".join(told for f in files if (told := look(f)))

    @property
    def size_bytes(self) -> int:
        return sum(f.stat().st_size for f in self.files)


def read_legacy(directory: Path) -> LegacySet | None:
    """The old-style set in ``directory``, or None if it was not written by the old scripts."""
    if not _is_legacy(directory):
        return None
    postgres, redis, qdrant = (_first(directory, patterns) for patterns in (_POSTGRES, _REDIS, _QDRANT))
    found = LegacySet(directory, postgres, redis, qdrant, _instant(directory), more_qdrant=_more_qdrant(directory, qdrant))
    # What is missing first, as that is the worst.
    reasons = sorted((r for name in STORE_NAMES if (r := found.trouble_of(name))), key=lambda r: not r.startswith("no "))
    return replace(found, unrestorable="; ".join(reasons))


def _is_legacy(directory: Path) -> bool:
    manifest = directory / MANIFEST
    if manifest.is_file():
        try:
            with manifest.open("rb") as source:
                data = source.read(16 << 20)
            if data.startswith(_OURS):
                return False
            content = json.loads(data)
        except ValueError:
            return False
        return isinstance(content, dict) and "format_version" not in content
    return any(_first(directory, (p,)) for p in ("qdrant_snapshot.tar.gz",)) and not (directory / "SHA256SUMS").exists()


def _first(directory: Path, patterns: tuple[str, ...]) -> Path | None:
    for pattern in patterns:
        found = sorted(p for p in directory.glob(pattern) if p.is_file() and not p.is_symlink() and "globals" not in p.name)
        if found:
            return found[0]
    return None


def _more_qdrant(directory: Path, first: Path | None) -> tuple[Path, ...]:
    """The other snapshots, if the first one is a plain snapshot file; an archive of them stands alone."""
    if first is None or ".snapshot" not in first.name:
        return ()
    return tuple(p for p in sorted(directory.glob(_QDRANT[1])) if p.is_file() and not p.is_symlink() and p != first)


def _instant(directory: Path) -> datetime | None:
    """The scripts ran in the server's zone, which nothing records: the name is read as UTC, for ordering only."""
    found = id_from_name(directory.name)
    return datetime.strptime(found, "%Y%m%d_%H%M%S").replace(tzinfo=UTC) if found else None


def head_of(path: Path) -> bytes:
    """The first bytes of a file, decompressed if it is gzip; raw ones if it only pretends to be."""
    with path.open("rb") as source:
        raw = source.read(_HEAD)
    if raw[:2] != b"\x1f\x8b":
        return raw
    try:
        with gzip.open(path, "rb") as unpacked:
            return unpacked.read(_HEAD)
    except (OSError, EOFError, zlib.error):
        return raw


def _postgres_trouble(path: Path) -> str:
    head = head_of(path)
    if not head:
        return f"{path.name} is empty"
    if path.name.endswith((".custom", ".dump")) and not head.startswith(b"PGDMP"):
        return f"{path.name} is no PostgreSQL archive"
    return ""


def _redis_trouble(path: Path) -> str:
    if head_of(path).startswith(b"REDIS"):
        return ""
    return f"{path.name} is no Redis RDB file"


def _qdrant_trouble(path: Path) -> str:
    head = head_of(path)
    if not head:
        return f"{path.name} is empty"
    message = saved_error_message(head)
    if message:
        return f"{path.name} is a saved error message of the server, not a snapshot: {message}"
    if head[257:262] != b"ustar":
        return f"{path.name} is no Qdrant snapshot (not a tar archive)"
    return ""


def saved_error_message(head: bytes) -> str:
    """The text if ``head`` begins a JSON, HTML or plain error reply instead of an archive; else an empty string."""
    text = head.lstrip()[:300]
    if text[:1] in {b"{", b"<"} or text[:5].lower() in {b"not f", b"error", b"curl:"}:
        return " ".join(text.decode("utf-8", "replace").split())[:160]
    return ""
