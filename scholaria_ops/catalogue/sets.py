"""Backup sets on disk: the truth that Dagster's partitions only mirror.

A directory named ``scholaria_backup_<id>`` is a whole set that was sealed by the commit protocol, an old-style set, or
damaged; it is never "almost done". Listing reads names, manifests' heads and records, not artifacts.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Any

from scholaria_ops.catalogue.artifacts import check_relative
from scholaria_ops.catalogue.head import Head
from scholaria_ops.catalogue.index import Index
from scholaria_ops.catalogue.layout import (
    MANIFEST,
    PARTIAL_PREFIX,
    RESTORE_TEXT,
    SET_PREFIX,
    SUMS,
    Layout,
    check_id,
    id_from_name,
    is_id,
    label_instant,
)
from scholaria_ops.catalogue.legacy import LegacySet, read_legacy
from scholaria_ops.catalogue.manifest import Manifest
from scholaria_ops.catalogue.records import History, Record, Records
from scholaria_ops.errors import OpsError, Refused, UsageError, VerificationFailed


class Kind(StrEnum):
    """What a directory in ``BACKUP_DIR`` is."""

    SEALED = "sealed"
    PARTIAL = "partial"
    LEGACY = "old-style"
    DAMAGED = "damaged"
    STRAY = "stray"


@dataclass(frozen=True)
class BackupSet:
    """A sealed (whole or partial) set that can be read. ``head`` is at hand; the rest of the manifest is read when it is asked for."""

    directory: Path
    head: Head

    @property
    def id(self) -> str:
        return self.head.id

    @property
    def kind(self) -> Kind:
        return Kind.PARTIAL if self.head.partial else Kind.SEALED

    @cached_property
    def manifest(self) -> Manifest:
        """The whole manifest.

        Raises:
            VerificationFailed: it cannot be read any more, or is not the one that the head was taken from.
        """
        manifest = Manifest.read(self.directory / MANIFEST)
        if Head.of(manifest) != self.head:
            raise VerificationFailed(f"the manifest in {self.directory} is not the one that was listed", hint="Look again.")
        return manifest

    @cached_property
    def sums_sha256(self) -> str:
        """Digest of SHA256SUMS: it names every byte of the set."""
        return hashlib.sha256((self.directory / SUMS).read_bytes()).hexdigest()

    @classmethod
    def of(cls, directory: Path, manifest: Manifest) -> BackupSet:
        made = cls(directory, Head.of(manifest))
        made.__dict__["manifest"] = manifest  # what cached_property would do
        return made

    @classmethod
    def open(cls, directory: Path) -> BackupSet:
        """Read the manifest and look whether every file is there with its size; digests are the verification's work.

        Raises:
            VerificationFailed: naming the first thing that is missing or of a wrong size.
        """
        made = cls.of(directory, Manifest.read(directory / MANIFEST))
        if not (directory / SUMS).is_file():
            raise VerificationFailed(f"{SUMS} is missing in {directory}", hint="The set is damaged; fetch it again from the offsite copy.")
        if wrong := misfit(str(directory), made.head.files):
            raise VerificationFailed(f"{wrong[0]} in {directory}{wrong[1]}", hint="Fetch the set again from the offsite copy.")
        return made


def misfit(directory: str, files: Mapping[str, int]) -> tuple[str, str] | None:
    """The first file that is not there as a plain file of its size: ``X is missing``, or ``X`` and what it has instead."""
    for path, size in files.items():
        try:
            found = os.lstat(f"{directory}/{path}")
        except (FileNotFoundError, NotADirectoryError):
            return f"{path} is missing", ""
        if not stat.S_ISREG(found.st_mode):
            return f"{path} is missing", ""
        if found.st_size != size:
            return path, f" has {found.st_size:,} bytes instead of {size:,}"
    return None


def told(exc: OSError) -> str:
    """The system's words for what went wrong."""
    return exc.strerror or type(exc).__name__


def held_because(records: Sequence[Record]) -> str:
    """Why a set with these records is held; empty if it is not."""
    record = next((r for r in reversed(records) if r.event in {"held", "released"}), None)
    return (
        f"{record.detail.get('why') or 'no reason given'} ({record.by}, {record.at:%Y-%m-%d})" if record and record.event == "held" else ""
    )


def passed_at(records: Sequence[Record]) -> datetime | None:
    """When the newest verification passed; None if there is none or it failed."""
    record = next((r for r in reversed(records) if r.event == "verified"), None)
    return record.at if record and record.detail.get("passed") is True else None


def shipped_at(records: Sequence[Record]) -> datetime | None:
    """When the offsite copy was confirmed last; None if it was deleted since."""
    standing = [r for r in records if r.event == "shipped" or (r.event == "deleted" and r.detail.get("place") == "offsite")]
    return standing[-1].at if standing and standing[-1].event == "shipped" else None


def proven_at(records: Sequence[Record]) -> datetime | None:
    """When the newest rehearsal that could judge proved the set; None if it did not."""
    judged = [r for r in records if r.event == "rehearsed" and r.detail.get("verdict") in {"proven", "failed"}]
    return judged[-1].at if judged and judged[-1].detail["verdict"] == "proven" else None


@dataclass(frozen=True)
class Entry:
    """One line of the catalogue."""

    name: str
    kind: Kind
    directory: Path
    id: str | None = None
    set: BackupSet | None = None
    legacy: LegacySet | None = None
    #: Why it is damaged, unrestorable or stray.
    reason: str = ""
    #: Why it, or what is recorded of it, could not be read; empty if it was. What is unread may be sound: it is never absent.
    unread: str = ""
    #: Why its records cannot be relied upon; empty if they can.
    doubt: str = ""
    #: Of sets that were listed (not named), without the bulky parts of their details.
    records: Sequence[Record] = field(default=())

    def last(self, event: str) -> Record | None:
        return next((r for r in reversed(self.records) if r.event == event), None)

    @property
    def verified_at(self) -> datetime | None:
        """When the newest verification passed, provided that no later one failed."""
        return passed_at(self.records)

    @property
    def verified_level(self) -> str:
        record = self.last("verified")
        return str(record.detail.get("level", "")) if record and self.verified_at else ""

    @property
    def offsite_at(self) -> datetime | None:
        """When the offsite copy was confirmed last, unless it was deleted since."""
        return shipped_at(self.records)

    @property
    def held(self) -> str:
        """Why it is held; empty if it is not."""
        return held_because(self.records)

    @property
    def proven_at(self) -> datetime | None:
        """When the newest rehearsal proved it, provided that no later one failed."""
        return proven_at(self.records)

    @property
    def ordered_by(self) -> tuple[float, str]:
        """UTC instant of the cut; directories without one come first."""
        if self.set:
            return (self.set.head.cut_at.timestamp(), self.name)
        if self.legacy and self.legacy.instant:
            return (self.legacy.instant.timestamp(), self.name)
        # Damaged: nothing but the name tells when it was taken.
        return (label_instant(self.id, UTC).timestamp() if self.id else 0.0, self.name)


@dataclass(frozen=True, slots=True)
class Survey:
    """One look at the catalogue: what stands, oldest cut first, and what is only on record."""

    entries: list[Entry]
    #: Id → records, of every id of which no directory stands here.
    histories: Mapping[str, Sequence[Record]]
    #: Id → why its records could not be read, of the same ids.
    unread: Mapping[str, str]


class Catalogue:
    """All sets below one ``BACKUP_DIR``."""

    def __init__(self, root: Path) -> None:
        self.layout = Layout(root)
        self.records = Records(self.layout)
        self._records_directory = str(self.layout.records)

    def entries(self, *, afresh: bool = False) -> list[Entry]:
        """Every directory that is or claims to be a set, and every stray thing, oldest cut first; as :meth:`survey` says."""
        return self.survey(afresh=afresh).entries

    def survey(self, *, afresh: bool = False) -> Survey:
        """Everything that stands here, and the records of what does not any more.

        Args:
            afresh: read every file itself, whatever an earlier look remembered: for decisions that remove something.

        Raises:
            Refused: the directory, or that of the records, cannot be read (a failed read is never an empty catalogue).
        """
        root = self.layout.root
        try:
            names = sorted(os.listdir(root)) if root.exists() else []  # noqa: PTH208 - names are all that is wanted
        except OSError as exc:
            raise Refused(f"cannot read {root}: {exc.strerror}", hint="Check BACKUP_DIR and its permissions.") from exc
        index = None if afresh else Index.load(self.layout.index)
        entries = [e for n in names if not n.startswith(".") and (e := self._still_there(n, index))]
        histories: dict[str, Sequence[Record]] = {}
        unread: dict[str, str] = {}
        for set_id in sorted(self.records.ids() - {e.id for e in entries if e.id}):
            history, why = self._history(set_id, index)
            if why:
                unread[set_id] = why
            else:
                histories[set_id] = history.records
        if index:
            index.keep()
        return Survey(sorted(entries, key=lambda e: e.ordered_by), histories, unread)

    def _still_there(self, name: str, index: Index | None) -> Entry | None:
        """The entry, unless it was removed while we looked: half of a set that is being pruned is not a damaged one."""
        try:
            entry = self._entry(name, index)
        except FileNotFoundError:
            return None
        if entry.kind is Kind.DAMAGED and not os.path.lexists(entry.directory):
            return None
        if entry.set:
            # Of thousands of sets only the heads are kept in memory; a whole manifest is read again for whoever asks.
            entry.set.__dict__.pop("manifest", None)
        return entry

    def _entry(self, name: str, index: Index | None = None) -> Entry:
        directory = self.layout.root / name
        set_id = id_from_name(name)
        if set_id is None or not stat.S_ISDIR(os.lstat(directory).st_mode):
            looks_like = name.startswith((SET_PREFIX, PARTIAL_PREFIX))
            return Entry(name, Kind.STRAY, directory, reason="its name holds no valid id" if looks_like else "not made by this product")
        history, unread = self._history(set_id, index)

        def entry(kind: Kind, reason: str = "", **more: Any) -> Entry:
            given = {"unread": unread, **more}
            return Entry(name, kind, directory, set_id, reason=reason, doubt=history.doubt, records=history.records, **given)

        try:
            found = self._listed(directory, index) or self._opened(name, set_id, index)
        except OpsError as exc:
            return entry(Kind.DAMAGED, str(exc))
        except OSError as exc:
            return entry(Kind.DAMAGED, str(exc), unread=told(exc))
        if isinstance(found, LegacySet):
            return entry(Kind.LEGACY, found.unrestorable, legacy=found)
        return entry(found.kind, set=found)

    def _listed(self, directory: Path, index: Index | None) -> BackupSet | None:
        """The set as an earlier look found it, if its manifest is unchanged and its files are still there with their sizes."""
        head = index.head(str(directory), directory.name) if index else None
        return BackupSet(directory, head) if head and not misfit(str(directory), head.files) else None

    def _opened(self, name: str, set_id: str, index: Index | None) -> BackupSet | LegacySet:
        directory = self.layout.root / name
        if legacy := read_legacy(directory):
            return legacy
        backup_set = BackupSet.open(directory)
        if backup_set.id != set_id or (backup_set.kind is Kind.PARTIAL) != name.startswith(PARTIAL_PREFIX):
            raise VerificationFailed(f"the manifest in {name} is of set {backup_set.id}", hint="Somebody renamed or copied it.")
        if index:
            index.remember_head(str(directory), name, backup_set.head)
        return backup_set

    def _history(self, set_id: str, index: Index | None) -> tuple[History, str]:
        """The records of an id, or why they could not be read."""
        path = f"{self._records_directory}/{set_id}.jsonl"
        if index and (known := index.history(set_id, path)):
            return known, ""
        try:
            history = self.records.history(set_id)
        except OSError as exc:
            return History([]), f"its records: {told(exc)}"
        if index:
            index.remember_history(set_id, path, history)
        return history, ""

    def sealed(self) -> list[Entry]:
        """Whole sets of ours, oldest first."""
        return [e for e in self.entries() if e.kind is Kind.SEALED]

    def find(self, reference: str) -> Entry:
        """The entry that ``latest`` (newest verified whole set), an id, or a path names.

        Raises:
            UsageError: there is none; the message names what there is instead.
        """
        if reference == "latest":
            return self._latest()
        if is_id(reference):
            for directory in (self.layout.sealed(reference), self.layout.partial(reference)):
                if directory.is_dir():
                    return self._entry(directory.name)
            raise self._no_such(reference)
        return self._at_path(Path(reference))

    def _latest(self) -> Entry:
        entries = self.entries()
        sealed = [e for e in entries if e.kind is Kind.SEALED]
        verified = [e for e in sealed if e.verified_at]
        self._nothing_unread_after(verified[-1] if verified else None, entries)
        if not verified:
            raise UsageError(
                f"no verified set in {self.layout.root}" + (f" ({len(sealed)} unverified)" if sealed else ""),
                hint="Make one with `scholaria-ops backup`, verify one by its id, or bring one from the bucket: `scholaria-ops fetch`.",
            )
        # Read once more by its name: what was listed may be known from an earlier look.
        return self._entry(verified[-1].name)

    @staticmethod
    def _nothing_unread_after(newest: Entry | None, entries: Sequence[Entry]) -> None:
        """Refuse to call a set the newest while a later one could not be read."""
        later = [e for e in entries if e.unread and (newest is None or e.ordered_by > newest.ordered_by)]
        if later:
            raise Refused(
                f"{later[-1].name} could not be read ({later[-1].unread}), so which set is the newest is not known",
                hint="Mend its permissions or the disk, or name a set by its id; `scholaria-ops list` shows all.",
            )

    def _at_path(self, path: Path) -> Entry:
        if not path.is_dir():
            if path.is_absolute() or len(path.parts) > 1:
                raise UsageError(f"{path} is no directory", hint="A set is named by `latest`, its id, or the path of its directory.")
            raise self._no_such(str(path))
        path = path.resolve()
        if path.parent == self.layout.root.resolve():
            return self._entry(path.name)
        return Catalogue(path.parent)._entry(path.name)

    def _no_such(self, reference: str) -> UsageError:
        known = [e.id for e in self.entries() if e.id]
        have = f"the newest here is {known[-1]}" if known else f"{self.layout.root} holds none"
        return UsageError(f"there is no set {reference!r}; {have}", hint="`scholaria-ops list` shows all sets.")

    def used_ids(self) -> set[str]:
        """Ids that may not be given out again: of sets, partial sets, staging leftovers, and everything ever recorded."""
        used = self.records.ids()
        for parent in (self.layout.root, self.layout.staging):
            if parent.exists():
                for path in parent.iterdir():
                    found = id_from_name(path.name) or (path.name if is_id(path.name) else None)
                    if found:
                        used.add(found)
        return used


def parse_sums(data: bytes, *, source: str) -> dict[str, str]:
    """Content of a SHA256SUMS file as path → digest.

    Raises:
        VerificationFailed: a line is malformed, a path leaves the set or occurs twice.
    """
    found: dict[str, str] = {}
    for number, line in enumerate(data.decode("utf-8", "replace").splitlines(), 1):
        digest, separator, path = line.partition("  ")
        if not separator or len(digest) != 64 or set(digest) - set("0123456789abcdef"):
            raise VerificationFailed(f"line {number} of {source} is malformed", hint="The set is damaged; do not rely on it.")
        check_relative(path)
        if path in found:
            raise VerificationFailed(f"{source} names {path} twice", hint="The set is damaged; do not rely on it.")
        found[path] = digest
    return found


def expected_files(manifest: Manifest) -> set[str]:
    """Every file that SHA256SUMS of this manifest's set must name."""
    return {a.path for a in manifest.artifacts} | {MANIFEST, RESTORE_TEXT}


__all__ = [
    "BackupSet",
    "Catalogue",
    "Entry",
    "Kind",
    "check_id",
    "expected_files",
    "held_because",
    "parse_sums",
    "passed_at",
    "proven_at",
    "shipped_at",
]
