"""Records: what is learnt about a set after it was sealed. Append-only, one JSON line each, shipped along offsite.

The first record of an id reserves it, so that an id is never used twice, not even after its set was deleted.
"""

from __future__ import annotations

import getpass
import json
import os
import socket
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import AwareDatetime, Field, ValidationError

from scholaria_ops.catalogue.evidence.base import Model
from scholaria_ops.catalogue.layout import Layout, is_id
from scholaria_ops.errors import Refused
from scholaria_ops.files import append_durably, fsync_dir, make_private_dir

Event = Literal["reserved", "failed", "sealed", "verified", "shipped", "reread", "fetched", "rehearsed", "held", "released", "deleted"]


def whoami() -> str:
    """``user@host`` of this process, for records and locks."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


class Record(Model):
    """One thing learnt about a set."""

    at: AwareDatetime
    event: Event
    by: str
    run_id: str = ""
    detail: dict[str, Any] = Field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class History:
    """The records of one id, and why they cannot be relied upon; empty if they can."""

    records: list[Record]
    doubt: str = ""


class Records:
    """The records of every id below one ``BACKUP_DIR``."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    def append(self, set_id: str, event: Event, *, run_id: str = "", at: datetime | None = None, **detail: Any) -> Record:
        """Write one record durably and return it."""
        record = Record(at=at or datetime.now(UTC), event=event, by=whoami(), run_id=run_id, detail=detail)
        make_private_dir(self._layout.records, exist_ok=True)
        append_durably(self._layout.record(set_id), json.dumps(record.model_dump(mode="json"), ensure_ascii=False).encode())
        return record

    def reserve(self, set_id: str, *, run_id: str = "", **detail: Any) -> bool:
        """Take an id by creating its file; False if somebody was faster. Atomic between threads, processes and schedulers."""
        make_private_dir(self._layout.records, exist_ok=True)
        try:
            os.close(os.open(self._layout.record(set_id), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        except FileExistsError:
            return False
        fsync_dir(self._layout.records)
        self.append(set_id, "reserved", run_id=run_id, **detail)
        return True

    def of(self, set_id: str) -> list[Record]:
        """All records of an id, oldest first; a line torn by a crash is passed over."""
        return self.history(set_id).records

    def history(self, set_id: str) -> History:
        """All records of an id, oldest first, and what in their file nobody understands.

        A line torn by a crash is a prefix and lacks its closing brace; whatever it was going to say was never confirmed to anybody.
        A whole line that is not understood may be a hold.
        """
        path = self._layout.record(set_id)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return History([])
        records = parse(data)
        strange = sum(line.rstrip().endswith(b"}") for line in data.splitlines()) - len(records)
        return History(records, f"{path.name} has {strange} line(s) that cannot be understood" if strange > 0 else "")

    def last(self, set_id: str, event: Event) -> Record | None:
        """The newest record of one kind."""
        return next((r for r in reversed(self.of(set_id)) if r.event == event), None)

    def ids(self) -> set[str]:
        """Every id that was ever reserved here.

        Raises:
            Refused: the directory cannot be read.
        """
        directory = self._layout.records
        try:
            # Not glob(): it takes a directory that it may not read for an empty one.
            names = os.listdir(directory)  # noqa: PTH208
        except FileNotFoundError:
            return set()
        except OSError as exc:
            raise Refused(f"cannot read {directory}: {exc.strerror}", hint="Check BACKUP_DIR and its permissions.") from exc
        stems = (name.removesuffix(".jsonl") for name in names if name.endswith(".jsonl"))
        return {stem for stem in stems if is_id(stem)}

    def merge(self, set_id: str, data: bytes) -> int:
        """Take over records that came with an offsite copy; returns how many were new here."""
        known = {_key(r) for r in self.of(set_id)}
        fresh = [r for r in parse(data) if _key(r) not in known]
        make_private_dir(self._layout.records, exist_ok=True)
        for record in fresh:
            append_durably(self._layout.record(set_id), json.dumps(record.model_dump(mode="json"), ensure_ascii=False).encode())
        return len(fresh)


def parse(data: bytes) -> list[Record]:
    """Records in the order of their time."""
    found = []
    for line in data.splitlines():
        try:
            found.append(Record.model_validate_json(line))
        except ValidationError:
            continue  # torn by a crash while it was written, or of a newer version: not for us
    return sorted(found, key=lambda r: r.at)


def _key(record: Record) -> tuple[str, str, str, str]:
    return (record.at.isoformat(), record.event, record.by, json.dumps(record.detail, sort_keys=True))
