"""The ledger: what we left on foreign servers, written down *before* we leave it, crossed out once it is gone.

A run that is killed between making a thing and removing it leaves an open entry; the next run reaps it by its
recorded name. Append-only JSON lines in ``BACKUP_DIR/.state/ledger.jsonl``; one entry per thing.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from scholaria_ops.files import append_durably, make_private_dir


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing that may still stand on a server. ``facts`` is whatever its store needs to find and remove it."""

    key: str
    kind: str
    at: datetime
    facts: Mapping[str, Any]


class Ledger:
    """Open entries survive a crash. Safe for several threads and processes (single appends)."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def open(self, kind: str, **facts: Any) -> str:
        """Write down that a ``kind`` thing is about to exist; returns the key to :meth:`update` or :meth:`close` it with."""
        key = uuid.uuid4().hex
        self._append({"op": "open", "key": key, "kind": kind, "facts": facts})
        return key

    def update(self, key: str, **facts: Any) -> None:
        """Add facts learnt later (the name a server chose)."""
        self._append({"op": "update", "key": key, "facts": facts})

    def close(self, key: str) -> None:
        """The thing is gone."""
        self._append({"op": "close", "key": key})

    def entries(self, kind: str) -> list[Entry]:
        """Everything of that kind still open, oldest first. A torn line (killed while writing) is passed over."""
        found: dict[str, Entry] = {}
        for record in self._read():
            key = record["key"]
            if record["op"] == "open" and record["kind"] == kind:
                found[key] = Entry(key, kind, datetime.fromisoformat(record["at"]), record["facts"])
            elif record["op"] == "update" and key in found:
                old = found[key]
                found[key] = Entry(key, old.kind, old.at, {**old.facts, **record["facts"]})
            elif record["op"] == "close":
                found.pop(key, None)
        return list(found.values())

    def _append(self, record: dict[str, Any]) -> None:
        make_private_dir(self._path.parent, exist_ok=True)
        record["at"] = datetime.now(UTC).isoformat()
        append_durably(self._path, json.dumps(record, ensure_ascii=False).encode())

    def _read(self) -> list[dict[str, Any]]:
        if not self._path.exists():
            return []
        records = []
        for line in self._path.read_bytes().splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                continue  # a line torn by a crash: its thing was never made, because the line comes first
            if isinstance(record, dict) and {"op", "key"} <= record.keys():
                records.append(record)
        return records
