"""Names that come from a Qdrant server are data: how they get into a path, an address, or out of a snapshot's name."""

from __future__ import annotations

import hashlib
import re
import urllib.parse
from datetime import UTC, datetime

_SAFE = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-.")
#: A file name may have 255 bytes; the suffixes ``.snapshot.gz`` and a temporary one must still fit.
_MAX_ENCODED = 180
#: Servers call a snapshot ``<collection>-<peer id>-<year>-<month>-<day>-<hour>-<minute>-<second>.snapshot``, in UTC.
_STAMP = re.compile(r"-(\d{4})-(\d\d)-(\d\d)-(\d\d)-(\d\d)-(\d\d)\.snapshot$")
_FULL_NAME = re.compile(r"(?P<collection>.+)-\d+" + _STAMP.pattern, re.DOTALL)
#: What people and scripts call a file, which is no collection's name.
_NO_NAME = re.compile(r"(?:qdrant|snapshots?|backup|full|storage|[-_.\d])*", re.IGNORECASE)


def file_name(collection: str) -> str:
    """A file name for a collection: injective, never hidden, never ``.`` or ``..``, without a separator.

    Bytes outside ``A-Z a-z 0-9 _ - .`` (and a leading dot) are percent-encoded, so ordinary names stay as they are. A
    name too long for a file system keeps its beginning and ends in ``~`` (which nothing else yields) and a digest.
    """
    raw = collection.encode()
    encoded = "".join(chr(b) if b in _SAFE and not (i == 0 and b == ord(".")) else f"%{b:02X}" for i, b in enumerate(raw))
    if len(encoded) > _MAX_ENCODED:
        encoded = encoded[: _MAX_ENCODED - 33].rstrip("%") + "~" + hashlib.sha256(raw).hexdigest()[:32]
    return encoded or "~"


def quoted(name: str) -> str:
    """A name as one segment of an address."""
    return urllib.parse.quote(name, safe="")


def stamp_of(snapshot: str) -> datetime | None:
    """When the server began to make a snapshot, from its name (server clock, one-second resolution); None if it tells nothing."""
    found = _STAMP.search(snapshot)
    if found is None:
        return None
    try:
        return datetime(*(int(part) for part in found.groups()), tzinfo=UTC)  # type: ignore[misc,arg-type]
    except ValueError:
        return None


def collection_of(snapshot: str) -> str:
    """The collection that a snapshot's file name tells, as the server or a person named it; empty if it tells none."""
    if found := _FULL_NAME.match(snapshot):
        return found["collection"]
    stem = snapshot.removesuffix(".gz").removesuffix(".snapshot") if ".snapshot" in snapshot else ""
    return "" if _NO_NAME.fullmatch(stem) else stem


def version_tuple(version: str) -> tuple[int, int, int]:
    """``1.16.3`` as numbers; parts that are missing or not numbers count as 0 (``1.17.0-dev``)."""
    numbers = [int(n) for n in re.findall(r"\d+", re.split("[-+]", version, maxsplit=1)[0])[:3]]
    first, second, third = (*numbers, 0, 0, 0)[:3]
    return first, second, third


def opens(source: str, reader: str) -> bool:
    """Whether a server of version ``reader`` opens snapshots of a server of version ``source``.

    Qdrant promises storage compatibility for the same and for the next minor version only; nothing is promised
    backwards, and a patch release older than the source's may lack a fix that the files need, but shares their format.
    """
    theirs, ours = version_tuple(source), version_tuple(reader)
    return theirs[0] == ours[0] and ours[1] - theirs[1] in {0, 1}
