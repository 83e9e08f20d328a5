"""What pruning remembers between runs, below ``BACKUP_DIR/.state``: what stood where, the plan shown last, and unfinished work.

Each file is replaced whole by one rename. A file that cannot be understood is an error: guessing here would delete sets.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeVar

from pydantic import AwareDatetime, Field, ValidationError

from scholaria_ops.catalogue.evidence.base import Model
from scholaria_ops.catalogue.layout import Layout
from scholaria_ops.catalogue.manifest import Tier
from scholaria_ops.catalogue.retention import Line, Place, Plan
from scholaria_ops.errors import Refused, UsageError
from scholaria_ops.files import fsync_dir, make_private_dir, rename_durably, write_private

M = TypeVar("M", bound=Model)


class RemoteFacts(Model):
    """What the manifest of an offsite set says; sets never change, so it is read once."""

    tier: Tier
    cut_at: AwareDatetime
    counts: dict[str, int]


class Seen(Model):
    """What stood in each place when a plan was last carried out."""

    here: tuple[str, ...] = ()
    #: Address of the offsite place → name of the set → what its manifest says.
    offsite: dict[str, dict[str, RemoteFacts]] = Field(default_factory=dict)


class Journal(Model):
    """Removals that were begun, written before the first of them; removed after the last."""

    plan: str
    begun_at: AwareDatetime
    by: str
    where: dict[Place, str]
    removals: tuple[Line, ...]


class PruneState:
    """The three files. Written under the estate lock, except for the plan shown last."""

    def __init__(self, layout: Layout) -> None:
        self._seen = layout.state / "retention-seen.json"
        self._plan = layout.state / "retention-plan.json"
        self._journal = layout.state / "retention-journal.json"

    def seen(self) -> Seen:
        data = _read(self._seen)
        return _parsed(Seen, data, self._seen) if data is not None else Seen()

    def remember(self, seen: Seen) -> None:
        _replace(self._seen, seen.model_dump_json().encode())

    def show(self, plan: Plan) -> None:
        """Keep the plan that was shown, so that its digest can be applied."""
        _replace(self._plan, plan.model_dump_json().encode())

    def shown(self, digest: str) -> Plan:
        """The plan of that digest (or of its first 12 or more characters).

        Raises:
            UsageError: it is not the plan that was shown last.
        """
        data = _read(self._plan)
        plan = _parsed(Plan, data, self._plan) if data is not None else None
        if plan is None or len(digest) < 12 or not plan.digest.startswith(digest):
            raise UsageError(
                f"{digest!r} is not the digest of the retention plan shown last", hint="Make a plan, read it, and apply that one."
            )
        return plan

    def journal(self) -> Journal | None:
        data = _read(self._journal)
        return _parsed(Journal, data, self._journal) if data is not None else None

    def begin(self, journal: Journal) -> None:
        _replace(self._journal, journal.model_dump_json().encode())

    def finish(self) -> None:
        if self._journal.exists():
            self._journal.unlink()
            fsync_dir(self._journal.parent)


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise Refused(f"cannot read {path}: {exc.strerror}", hint="Mend it; nothing is pruned without it.") from exc


def _parsed(kind: type[M], data: bytes, path: Path) -> M:
    try:
        return kind.model_validate_json(data)
    except ValidationError as exc:
        raise Refused(
            f"{path} cannot be understood: {exc.error_count()} error(s)", hint="It was edited or is of another version."
        ) from None


def _replace(path: Path, data: bytes) -> None:
    make_private_dir(path.parent, exist_ok=True)
    fresh = path.with_suffix(f".{os.getpid()}.new")
    fresh.unlink(missing_ok=True)
    write_private(fresh, data)
    rename_durably(fresh, path)
