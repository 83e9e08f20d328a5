"""Names of everything below ``BACKUP_DIR``; the one place that spells them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path

from scholaria_ops.errors import UsageError

SET_PREFIX = "scholaria_backup_"
PARTIAL_PREFIX = "scholaria_partial_"
MANIFEST = "backup_manifest.json"
SUMS = "SHA256SUMS"
RESTORE_TEXT = "RESTORE.txt"

_ID = re.compile(r"^\d{8}_\d{6}\Z", re.ASCII)
_PARTS = ((0, 4), (4, 6), (6, 8), (9, 11), (11, 13), (13, 15))


def is_id(text: str) -> bool:
    """Whether ``text`` has the form ``YYYYMMDD_HHMMSS`` of a real instant."""
    if not _ID.match(text):
        return False
    try:
        # Not strptime(): a listing asks this of every name, several times over.
        datetime(*(int(text[a:b]) for a, b in _PARTS), tzinfo=UTC)  # type: ignore[misc, arg-type]
    except ValueError:
        return False
    return True


def check_id(text: str) -> str:
    """Return ``text`` if it is a set id; ids reach paths, so nothing else may pass."""
    if not is_id(text):
        raise UsageError(f"{text!r} is not a backup id", hint="An id looks like 20241001_020000; `scholaria-ops list` shows them.")
    return text


def id_from_name(name: str) -> str | None:
    """The id in a directory name, sealed or partial; None if it is neither."""
    for prefix in (SET_PREFIX, PARTIAL_PREFIX):
        if name.startswith(prefix) and is_id(name.removeprefix(prefix)):
            return name.removeprefix(prefix)
    return None


def label(instant: datetime, zone: tzinfo) -> str:
    """The id that ``instant`` has in ``zone``, to the second."""
    return instant.astimezone(zone).strftime("%Y%m%d_%H%M%S")


def label_instant(set_id: str, zone: tzinfo) -> datetime:
    """The instant that a label names, in UTC. In the hour that a clock change repeats it is the earlier one."""
    return datetime.strptime(check_id(set_id), "%Y%m%d_%H%M%S").replace(tzinfo=zone).astimezone(UTC)


def next_label(set_id: str) -> str:
    """The label one second later."""
    return (datetime.strptime(set_id, "%Y%m%d_%H%M%S") + timedelta(seconds=1)).strftime("%Y%m%d_%H%M%S")  # noqa: DTZ007


@dataclass(frozen=True, slots=True)
class Layout:
    """Paths below one ``BACKUP_DIR``."""

    root: Path

    @property
    def staging(self) -> Path:
        return self.root / ".staging"

    @property
    def trash(self) -> Path:
        return self.root / ".trash"

    @property
    def records(self) -> Path:
        return self.root / ".records"

    @property
    def state(self) -> Path:
        return self.root / ".state"

    @property
    def lock(self) -> Path:
        return self.state / "estate.lock"

    @property
    def ledger(self) -> Path:
        return self.state / "ledger.jsonl"

    @property
    def audit(self) -> Path:
        return self.records / "audit.jsonl"

    @property
    def index(self) -> Path:
        return self.state / "catalogue-index.json"

    def sealed(self, set_id: str) -> Path:
        return self.root / f"{SET_PREFIX}{check_id(set_id)}"

    def partial(self, set_id: str) -> Path:
        return self.root / f"{PARTIAL_PREFIX}{check_id(set_id)}"

    def record(self, set_id: str) -> Path:
        return self.records / f"{check_id(set_id)}.jsonl"
