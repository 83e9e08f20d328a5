"""What a restore has begun, below ``BACKUP_DIR/.state/restores/<id>/``.

``journal.json`` is the saga's, ``<store>.json`` each store's notebook, ``<store>/`` its files. Every file is replaced whole
by one rename that is durable before the call returns. A file that cannot be understood is an error: guessing here could
drop a database.
"""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import AwareDatetime, Field, ValidationError

from scholaria_ops.catalogue.evidence.base import Model, StoreName
from scholaria_ops.catalogue.layout import Layout, is_id, label, next_label
from scholaria_ops.errors import Refused
from scholaria_ops.files import make_private_dir, replace_durably
from scholaria_ops.stores.live import Fact

#: ``begun`` … ``switching``: a crash here is taken back. ``switched``: every store serves the set and the hooks have passed; a
#: crash from here on is carried to its end. ``undoing``: is carried on. ``discarding``: some of what was kept may be gone, so
#: that nothing can be undone; the next discard goes on. ``aside``: taken back, and what was written into the restored data
#: while they were served is set aside; once that is discarded it is ``rolled_back``. ``given_up``: somebody
#: has said that it can never be settled; what it has left is for people to clear away. The others are ends, too.
Phase = Literal[
    "begun",
    "staged",
    "switching",
    "switched",
    "done",
    "rolling_back",
    "rolled_back",
    "aside",
    "undoing",
    "undone",
    "discarding",
    "discarded",
    "given_up",
]
#: Phases in which something is left to do.
OPEN: frozenset[Phase] = frozenset({"begun", "staged", "switching", "switched", "rolling_back", "undoing"})
#: Phases in which something is kept that a discard removes; a restore that is ``done`` can be undone with it.
KEEPING: frozenset[Phase] = frozenset({"done", "undone", "discarding", "aside"})


class Journal(Model):
    """The saga's own page."""

    id: str
    set_id: str
    stores: tuple[StoreName, ...]
    plan_digest: str
    begun_at: AwareDatetime
    by: str
    run_id: str = ""
    phase: Phase = "begun"
    #: Set that was taken of the live stores before; empty if that was waived.
    safety_set: str = ""
    #: True from before the writers are stopped until they are started again.
    fenced: bool = False
    switched_at: AwareDatetime | None = None
    #: Stores that have gone back, while undoing.
    undone: tuple[StoreName, ...] = ()
    #: Sequence → the largest id that the database which an undo sets aside has given out.
    given_out: dict[str, int] = Field(default_factory=dict)
    #: What was kept, for people.
    kept: tuple[str, ...] = ()
    #: What was measured and found, once it is done: seconds by name, what wants attention, the backup that was asked for.
    seconds: dict[str, float] = Field(default_factory=dict)
    #: Store → phase of its staging → seconds.
    stage_s: dict[StoreName, dict[str, float]] = Field(default_factory=dict)
    lockout_s: dict[StoreName, float] = Field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    correspondence: str = ""
    fresh_backup: str = ""
    ended_at: AwareDatetime | None = None


class FileNotebook:
    """One store's notebook in a file. Thread-safe; each store has one of its own."""

    def __init__(self, directory: Path, store: StoreName) -> None:
        self._path = directory / f"{store}.json"
        self._files = directory / store
        self._id = directory.name
        self._lock = threading.Lock()

    @property
    def restore_id(self) -> str:
        return self._id

    @property
    def directory(self) -> Path:
        return make_private_dir(self._files, exist_ok=True)

    def read(self) -> Mapping[str, Fact]:
        with self._lock:
            return self._facts()

    def write(self, **facts: Fact) -> None:
        with self._lock:
            replace_durably(self._path, json.dumps({**self._facts(), **facts}, ensure_ascii=False, indent=1).encode())

    def _facts(self) -> dict[str, Any]:
        try:
            content = json.loads(self._path.read_bytes())
        except FileNotFoundError:
            return {}
        except ValueError as exc:
            raise _not_understood(self._path) from exc
        if not isinstance(content, dict):
            raise _not_understood(self._path)
        return content


class Journals:
    """All restores that are remembered. Changed under the estate lock only."""

    def __init__(self, layout: Layout) -> None:
        self.root = layout.state / "restores"

    def directory(self, restore_id: str) -> Path:
        return self.root / restore_id

    def notebook(self, restore_id: str, store: StoreName) -> FileNotebook:
        return FileNotebook(self.directory(restore_id), store)

    def fresh_id(self, now: Any, zone: Any) -> str:
        """An id that no restore had before, made of the time."""
        candidate = label(now, zone)
        while self.directory(candidate).exists():
            candidate = next_label(candidate)
        return candidate

    def write(self, journal: Journal) -> Journal:
        """Put down a journal's state durably; returns it."""
        make_private_dir(self.directory(journal.id), exist_ok=True)
        replace_durably(self.directory(journal.id) / "journal.json", journal.model_dump_json(indent=1).encode())
        return journal

    def all(self) -> list[Journal]:
        """Every restore that was begun, oldest first.

        Raises:
            Refused: a journal cannot be read or understood.
        """
        try:
            names = sorted(p.name for p in self.root.iterdir() if is_id(p.name)) if self.root.exists() else []
        except OSError as exc:
            raise Refused(f"cannot read {self.root}: {exc.strerror}", hint="Mend it; nothing is restored without it.") from exc
        return [journal for name in names if (journal := self._read(name)) is not None]

    def unfinished(self) -> list[Journal]:
        """Restores that were cut off, newest first: that is the order in which they are taken back."""
        return [j for j in reversed(self.all()) if j.phase in OPEN]

    def undoable(self) -> Journal | None:
        """The newest restore, if it can still be undone. One that was taken back has changed nothing; one that was
        given up may have changed anything.
        """
        ended = [j for j in self.all() if j.phase in {"done", "undone", "discarding", "discarded", "given_up"}]
        return ended[-1] if ended and ended[-1].phase == "done" else None

    def keeping(self) -> list[Journal]:
        """Restores for whose sake something is still kept."""
        return [j for j in self.all() if j.phase in KEEPING]

    def forget_files(self, restore_id: str) -> None:
        """Remove the files of a restore that will not be undone any more; the journal stays as history."""
        for path in self.directory(restore_id).iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)

    def _read(self, name: str) -> Journal | None:
        path = self.directory(name) / "journal.json"
        try:
            return Journal.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return None  # the directory was made and nothing begun
        except OSError as exc:
            raise Refused(f"cannot read {path}: {exc.strerror}", hint="Mend it; nothing is restored without it.") from exc
        except ValidationError:
            raise _not_understood(path) from None


def _not_understood(path: Path) -> Refused:
    return Refused(f"{path} cannot be understood", hint="It was edited or is of another version: nothing is restored before it is mended.")
