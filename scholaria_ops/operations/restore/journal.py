"""What a restore has begun, below ``BACKUP_DIR/.state/restores/<id>/``.

``journal.json`` is the saga's, ``<store>.json`` each store's notebook, ``<store>/`` its files. Every file is replaced whole
by one rename that is durable before the call returns. A file that cannot be understood is an error: guessing here could
drop a database. :mod:`.not_understood` is the way out.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import AwareDatetime, Field, ValidationError

from scholaria_ops.catalogue.evidence.base import Model, StoreName
from scholaria_ops.catalogue.layout import Layout, is_id, label, next_label
from scholaria_ops.errors import Refused
from scholaria_ops.files import make_private_dir, rename_durably, replace_durably
from scholaria_ops.humane import human_bytes
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
#: Raised with every field or phase that is added: an older version must not carry on what it does not understand.
FORMAT = 1
_JOURNAL = "journal.json"


class Journal(Model):
    """The saga's own page."""

    format_version: int = FORMAT
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


def require_settled(journals: Journals) -> None:
    """Raise Refused if a restore is under way or was cut off: what is planned meanwhile would not hold."""
    if unfinished := journals.unfinished():
        journal = unfinished[0]
        raise Refused(
            f"the restore {journal.id} of {journal.set_id} has not come to its end (phase {journal.phase}): a plan made now would not hold",
            hint="Wait for it if it is under way; if it was cut off, `scholaria-ops restore --recover` takes it back or finishes it.",
        )


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
            return _object(self._path)
        except FileNotFoundError:
            return {}


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
        """Put down a journal's state durably; returns it.

        Raises:
            Refused, DiskFull: it cannot be written.
        """
        directory = self.directory(journal.id)
        try:
            make_private_dir(directory, exist_ok=True)
            replace_durably(directory / _JOURNAL, journal.model_dump_json(indent=1).encode())
        except OSError as exc:
            raise Refused(f"cannot write in {directory}: {exc.strerror}", hint=_yours(directory)) from exc
        return journal

    def ids(self) -> list[str]:
        """Every restore that has a directory, oldest first.

        Raises:
            Refused: that cannot be told.
        """
        try:
            return sorted(p.name for p in self.root.iterdir() if is_id(p.name)) if self.root.exists() else []
        except OSError as exc:
            raise Refused(f"cannot read {self.root}: {exc.strerror}", hint=_yours(self.root)) from exc

    def all(self) -> list[Journal]:
        """Every restore that was begun, oldest first.

        Raises:
            NotUnderstood: a journal cannot be read or understood.
            Refused: nor can it be told which there are.
        """
        return [journal for name in self.ids() if (journal := self.read(name)) is not None]

    def read(self, restore_id: str) -> Journal | None:
        """One restore's journal; None if there is no such restore, or nothing of it was begun.

        Raises:
            NotUnderstood: it cannot be read or understood.
        """
        path = self.directory(restore_id) / _JOURNAL
        try:
            content = _object(path)
        except FileNotFoundError:
            if others := self.files(restore_id):  # it is written before any other
                raise NotUnderstood(path, f"is not there, though {', '.join(p.name for p in others)} is") from None
            return None  # the directory was made and nothing begun
        version = content.get("format_version", FORMAT)
        if isinstance(version, int) and version > FORMAT:
            raise NotUnderstood(path, f"is of a newer version of scholaria-ops: format {version}; this one knows {FORMAT}", hint=_NEWER)
        try:
            journal = Journal.model_validate(content)
        except ValidationError as exc:
            errors = exc.errors(include_input=False)
            wrong = ", ".join(sorted({str(error["loc"][0]) for error in errors if error["loc"]}))
            if all(error["type"] in {"extra_forbidden", "literal_error"} for error in errors):
                why = f"cannot be understood: a newer version of scholaria-ops may have written it, or somebody edited it ({wrong})"
                raise NotUnderstood(path, why, hint=f"{_NEWER} Else: {_way_out(restore_id)}") from None
            raise NotUnderstood(path, f"cannot be understood: missing or wrong are {wrong}") from None
        if journal.id != restore_id:
            raise NotUnderstood(path, f"cannot be understood: it is the journal of {journal.id}")
        return journal

    def files(self, restore_id: str) -> list[Path]:
        """Every file of a restore, those that a kill left half-written aside.

        Raises:
            Refused: its directory cannot be read.
        """
        directory = self.directory(restore_id)
        try:
            return sorted(p for p in directory.rglob("*") if p.is_file() and not p.name.startswith("."))
        except OSError as exc:
            raise Refused(f"cannot read {directory}: {exc.strerror}", hint=_yours(directory)) from exc

    def files_for_people(self, restore_id: str) -> tuple[str, ...]:
        return tuple(f"{path}, {human_bytes(path.stat().st_size)}" for path in self.files(restore_id))

    def replace(self, journal: Journal) -> Path | None:
        """Put a journal in the place of one that cannot be understood, which is kept under another name; returns that name.

        Cut off in between, it is still one that cannot be understood: its file is not there, and others are.

        Raises:
            Refused: the directory cannot be written.
        """
        directory = self.directory(journal.id)
        aside, number = directory / "journal.not-understood.json", 2
        while os.path.lexists(aside):
            aside, number = directory / f"journal.not-understood-{number}.json", number + 1
        try:
            rename_durably(directory / _JOURNAL, aside)
        except FileNotFoundError:
            aside = None  # type: ignore[assignment]
        except OSError as exc:
            raise Refused(f"cannot rename {directory / _JOURNAL}: {exc.strerror}", hint=_yours(directory)) from exc
        self.write(journal)
        return aside

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


class NotUnderstood(Refused):
    """A file of a restore that cannot be read or understood; ``path`` says which, and ``why`` goes on from there."""

    def __init__(self, path: Path, why: str, *, hint: str = "") -> None:
        mend = (
            f"Nothing is restored before that is settled. If you have the file as it was, put it back. Else: {_way_out(path.parent.name)}"
        )
        super().__init__(f"{path} {why}", hint=hint or mend)
        self.path = path
        self.why = why


_NEWER = "Use that version to settle the restore; this one must not guess."


def _way_out(restore_id: str) -> str:
    return f"`scholaria-ops restore --give-up {restore_id}` shows what stands on the servers, closes the restore and keeps the file aside."


def _yours(path: Path) -> str:
    return f"Make {path} and what is in it this user's (uid {os.geteuid()}), as its owner or root; nothing is restored without it."


def _object(path: Path) -> dict[str, Any]:
    """What a file of JSON holds.

    Raises:
        FileNotFoundError: there is no such file.
        NotUnderstood: it cannot be read, or holds something else.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as exc:
        raise NotUnderstood(path, f"cannot be read: {exc.strerror}{_owner(path)}", hint=_yours(path.parent)) from exc
    if not data.strip(b"\0 \r\n\t"):  # a power cut may leave zeros
        raise NotUnderstood(path, "cannot be understood: it is empty")
    try:
        content = json.loads(data)
    except ValueError as exc:
        raise NotUnderstood(path, f"cannot be understood: it is cut short, or is no JSON ({exc})") from exc
    if not isinstance(content, dict):
        raise NotUnderstood(path, "cannot be understood: it is JSON, but no object")
    return content


def _owner(path: Path) -> str:
    try:
        found = path.stat()
    except OSError:
        return ""
    return f" (it belongs to uid {found.st_uid}, mode {found.st_mode & 0o7777:04o}; this is uid {os.geteuid()})"
