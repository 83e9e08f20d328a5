"""A derived index of the catalogue, so that ten thousand sets are listed without reading ten thousand manifests.

It only ever saves reading what stands unchanged: an entry counts while the files that it was made from have the same inode, size and
times. It is no truth: a file that cannot be used is as good as none, and nothing that checks bytes or removes sets looks at it. Sets are
found by listing the directory, never here, so it can hide none.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from scholaria_ops.catalogue.head import FIELDS, Head
from scholaria_ops.catalogue.layout import MANIFEST, SUMS
from scholaria_ops.catalogue.records import History, Record
from scholaria_ops.errors import DiskFull
from scholaria_ops.files import replace_durably

FORMAT = 1
#: It is written anew once so many entries had to be read: a small catalogue needs none, a large one is not rewritten for each set.
WORTHWHILE = 32
#: A file changed this short ago may change again within the same tick of the file system's clock: it is read anew next time.
_SETTLED_NS = 2_000_000_000
#: Of long lists and nested tables of a record, what is kept besides its plain values.
_KEPT = ("counts", "failed", "stores")
_OF_A_STORE = ("verdict", "detail", "rto_s")

Key = list[int]
_log = logging.getLogger(__name__)


@dataclass
class Index:
    """What is known from earlier looks (``old``) and what this look found (``new``), by name and by id."""

    path: Path
    old_heads: Mapping[str, Any] = field(default_factory=dict)
    old_histories: Mapping[str, Any] = field(default_factory=dict)
    heads: dict[str, Any] = field(default_factory=dict)
    histories: dict[str, Any] = field(default_factory=dict)
    #: Entries that had to be read from their own files.
    read: int = 0

    @classmethod
    def load(cls, path: Path) -> Index:
        """The index as it is on the disk, or an empty one if it is absent, damaged or of another version."""
        try:
            header, _, body = path.read_bytes().partition(b"\n")
            if header != _header(body):
                return cls(path)
            content = json.loads(body)
        except (OSError, ValueError):
            return cls(path)
        return cls(path, content["heads"], content["histories"])

    def head(self, directory: str, name: str) -> Head | None:
        """The head of the set in ``directory``, called ``name``, if its manifest and sums are those that were read before."""
        known = self.old_heads.get(name)
        if known is None or known["key"] != _key(f"{directory}/{MANIFEST}", f"{directory}/{SUMS}"):
            return None
        try:
            head = Head.from_json(known["head"])
        except (KeyError, TypeError, ValueError):
            return None
        self.heads[name] = known
        return head

    def remember_head(self, directory: str, name: str, head: Head) -> None:
        self.read += 1
        if key := _settled(f"{directory}/{MANIFEST}", f"{directory}/{SUMS}"):
            self.heads[name] = {"key": key, "head": head.to_json()}

    def history(self, set_id: str, path: str) -> History | None:
        """The records of an id without their bulky parts, if their file is the one that was read before."""
        known = self.old_histories.get(set_id)
        if known is None or known["key"] != _key(path):
            return None
        try:
            records = [_record(r) for r in known["records"]]
        except (KeyError, TypeError, ValueError):
            return None
        self.histories[set_id] = known
        return History(records, known["doubt"])

    def remember_history(self, set_id: str, path: str, history: History) -> None:
        self.read += 1
        if key := _settled(path):
            self.histories[set_id] = {"key": key, "records": [_slim(r) for r in history.records], "doubt": history.doubt}

    def keep(self) -> None:
        """Write it down if that is worth it and can be done: whoever may only read gets along without."""
        if self.read < WORTHWHILE or not os.access(self.path.parent, os.W_OK):
            return
        body = json.dumps({"heads": self.heads, "histories": self.histories}, ensure_ascii=False, separators=(",", ":")).encode()
        try:
            replace_durably(self.path, _header(body) + b"\n" + body)
        except (OSError, DiskFull) as exc:
            _log.debug("the index was not kept, the next look is as slow as this one: %s", exc)


def _header(body: bytes) -> bytes:
    """Names format, shape and content: another version's index and a damaged one are both no index."""
    return f"scholaria-ops catalogue index {FORMAT} {','.join(FIELDS)} {hashlib.sha256(body).hexdigest()}".encode()


def _key(*paths: str) -> Key | None:
    """Inode, size, times of content and of inode of every file; None if one cannot be looked at."""
    key: Key = []
    for path in paths:
        try:
            found = os.lstat(path)
        except OSError:
            return None
        key += [found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]
    return key


def _settled(*paths: str) -> Key | None:
    key = _key(*paths)
    return key if key and max(*key[2::4], *key[3::4]) < time.time_ns() - _SETTLED_NS else None


def _slim(record: Record) -> Sequence[Any]:
    detail = {k: v for k, v in record.detail.items() if k in _KEPT or not isinstance(v, (list, dict))}
    if isinstance(stores := detail.get("stores"), dict):
        detail["stores"] = {k: {f: v[f] for f in _OF_A_STORE if f in v} for k, v in stores.items() if isinstance(v, dict)}
    return [record.at.isoformat(), record.event, record.by, record.run_id, detail]


def _record(values: Sequence[Any]) -> Record:
    at, event, by, run_id, detail = values
    # It was checked when it was read from its own file.
    return Record.model_construct(at=datetime.fromisoformat(at), event=event, by=by, run_id=run_id, detail=detail)
