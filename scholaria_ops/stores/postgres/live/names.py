"""Names of the databases that a restore makes beside the live one."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Container, Iterable
from typing import Any, Literal

from scholaria_ops.stores.postgres.live.records import Record

#: NAMEDATALEN - 1: the server cuts longer names silently, and two could become one.
_MAX_BYTES = 63
_RESTORE_ID = re.compile(r"_(?P<id>\d{8}_\d{6})(?:_\d+)?\Z")

#: ``restore``: what is loaded, until it is served. ``before``: what was served before. ``after``: what was served until an undo.
Word = Literal["restore", "before", "after"]
WORDS: tuple[Word, ...] = ("restore", "before", "after")


def beside(dbname: str, word: Word, restore_id: str) -> str:
    """``<name>_<word>_<id>``. A name that would be too long keeps its beginning and gets a digest of the rest."""
    suffix = f"_{word}_{restore_id}"
    raw, room = dbname.encode(), _MAX_BYTES - len(suffix.encode())
    if len(raw) <= room:
        return dbname + suffix
    digest = hashlib.sha256(raw).hexdigest()[:6]
    return f"{raw[: room - len(digest) - 1].decode('utf-8', 'ignore')}~{digest}{suffix}"


def free_beside(dbname: str, word: Word, restore_id: str, taken: Container[str]) -> str:
    """The same, or with a number behind it if somebody has a database of that name already."""
    candidate, number = beside(dbname, word, restore_id), 2
    while candidate in taken:
        candidate = beside(dbname, word, f"{restore_id}_{number}")
        number += 1
    return candidate


def free_name(record: Record, taken: Container[str], which: Literal["before_name", "after_name"]) -> str:
    """The recorded name, or another one if somebody has taken it meanwhile."""
    name: str = getattr(record, which)
    if name not in taken:
        return name
    word: Any = which.removesuffix("_name")
    return free_beside(record.dbname, word, name.rpartition(f"_{word}_")[2], taken)


def word_of(name: str, restore_id: str) -> Word | None:
    """Which of the names of this restore it is, by its look; None if it is none."""
    match = _RESTORE_ID.search(name)
    if match and match["id"] == restore_id:
        return next((word for word in WORDS if name[: match.start()].endswith(f"_{word}")), None)
    return None


def being_restored(dbname: str, existing: Iterable[str]) -> list[str]:
    """Databases that a restore of ``dbname`` has loaded and not put into its place."""
    found = []
    for name in existing:
        match = _RESTORE_ID.search(name)
        if match and name == beside(dbname, "restore", match[0].removeprefix("_")):
            found.append(name)
    return sorted(found)
