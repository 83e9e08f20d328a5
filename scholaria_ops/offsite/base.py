"""The offsite seam: a page of promises about where copies of sets are kept outside the house.

A target keeps *sets as plain files*: a name and relative paths, nothing else is known of their content except which file
commits a set. One conformance suite (``scholaria_ops_tests/offsite/test_conformance.py``) holds every implementation to this page.

The order is the safety: payload files first, each confirmed; then the files named in ``last``, in their order; the very last
one is :data:`MARKER`. A set without its marker does not exist for anybody. Deleting removes the marker first. A set that has
its marker is never overwritten.

Every method may be called again after it failed or was killed. Every method honours ``cancel`` and then raises ``Cancelled``;
no thread, connection or half-written object of ours outlives a call, except where the process itself is killed: :meth:`OffsiteTarget.reap`
is for that. Memory stays flat whatever the size. No method prompts or maps errors to exit codes.

Errors, everywhere:

* ``OffsiteUnavailable``: unreachable, overloaded, cut off or out of time, after a bounded number of attempts. Trying later may help.
* ``AuthenticationFailed``: credentials or a permission were refused. Never retried (expired ones are read afresh once).
* ``OffsiteError``: any other refusal of the target. Permanent.
* ``VerificationFailed``: bytes differ from what was expected; the file is named.
* ``Refused``: going on would be unsafe or could not be proven.
* ``UsageError``: there is no such set or file.

Names and paths that come back from a target are data: an implementation checks them before it returns them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Literal, Protocol

from scholaria_ops.cancel import CancelToken
from scholaria_ops.catalogue.layout import MANIFEST
from scholaria_ops.errors import UsageError
from scholaria_ops.progress import Progress

#: The file whose presence makes a set complete.
MARKER = MANIFEST
#: Largest file that :meth:`OffsiteTarget.read_small` and the records accept, in bytes.
SMALL_LIMIT = 32 << 20

#: ``readback``: every byte was read from the target again and hashed. ``checksum``: the target verified a SHA-256 that we sent,
#: and was seen to reject a wrong one.
Confirmation = Literal["readback", "checksum"]
#: What to do with a complete, identical set: believe the run that committed it, or read all of it again and replace what differs.
Existing = Literal["trust", "reread"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")


@dataclass(frozen=True, slots=True)
class FileToShip:
    """One file of a sealed set: path relative to the set (``/`` as separator), size in bytes, hexadecimal SHA-256."""

    path: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class ShippedFile:
    """One file as it now stands offsite.

    ``skipped``: nothing was sent, the same content was there. ``confirmed_by`` says how that is known; ``earlier`` means by
    the run that committed the set. ``upload_s`` and ``confirm_s`` are seconds of that file alone; files overlap.
    """

    path: str
    where: str
    size_bytes: int
    sha256: str
    skipped: bool
    confirmed_by: Literal["readback", "checksum", "earlier"]
    upload_s: float
    confirm_s: float


@dataclass(frozen=True, slots=True)
class ShipReport:
    """The outcome of :meth:`OffsiteTarget.upload_set`: the set is complete and confirmed.

    ``size_bytes`` is the whole set, ``sent_bytes`` what went over the wire this time, ``seconds`` the wall clock of
    everything including the confirmation, ``sending_s`` until the last byte of the payload was accepted (files that
    were sent earlier are read back meanwhile).
    """

    name: str
    where: str
    files: tuple[ShippedFile, ...]
    size_bytes: int
    sent_bytes: int
    seconds: float
    already_there: bool
    warnings: tuple[str, ...] = ()
    sending_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Digest:
    """Size in bytes and hexadecimal SHA-256 of a file as read from the target."""

    path: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class FetchReport:
    """The outcome of :meth:`OffsiteTarget.download_set`: files on disk, hashed while they were written."""

    name: str
    files: tuple[Digest, ...]
    size_bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file of a set, as listed."""

    path: str
    size_bytes: int
    modified: datetime


@dataclass(frozen=True, slots=True)
class RemoteSet:
    """One set, as listed. ``complete``: its marker is there, so every file was confirmed before."""

    name: str
    complete: bool
    files: int
    size_bytes: int
    newest: datetime


@dataclass(frozen=True, slots=True)
class TargetFacts:
    """What the preflight found out: label → value for people, and things worth telling that do not stop a shipment."""

    details: Mapping[str, str]
    warnings: tuple[str, ...] = field(default=())


class OffsiteTarget(Protocol):
    """A place outside the house that keeps copies of sets. Safe to use from several threads."""

    @property
    def where(self) -> str:
        """The target's address, safe to print."""

    def preflight(self, *, cancel: CancelToken) -> TargetFacts:
        """See whether sets could be shipped: reach it, write, read back and remove a tiny probe.

        Raises:
            Refused: the place does not exist, or cannot be written, read and listed; the message says which and what to do.
        """

    def upload_set(
        self,
        directory: Path,
        name: str,
        files: Sequence[FileToShip],
        last: Sequence[str],
        *,
        confirm: Confirmation,
        cancel: CancelToken,
        progress: Progress,
        existing: Existing = "trust",
        concurrency: int | None = None,
    ) -> ShipReport:
        """Bring the set ``name`` to the target and prove that it is there; the commit is atomic (the marker appears or does not).

        ``last`` names the files of ``files`` that follow all others, in order; it must end with :data:`MARKER`. What an earlier,
        unfinished run left is read again and kept where it is right, replaced where it is not.

        Raises:
            Refused: a complete set of that name with other content is there, or foreign files stand below its name; or
                ``confirm="checksum"`` and this target was not seen to reject a wrong checksum.
            VerificationFailed: a local file is not what ``files`` says, or came back from the target with other bytes. The set
                then has no marker.
        """

    def download_set(
        self,
        name: str,
        into: Path,
        *,
        cancel: CancelToken,
        progress: Progress,
        only: Collection[str] | None = None,
        expected: Mapping[str, str] | None = None,
        deadline_s: float | None = None,
        concurrency: int | None = None,
    ) -> FetchReport:
        """Fetch a complete set (or the files ``only``) into ``into``, an existing private directory without those files.

        Files are 0600, hashed while they are written, durable on return. ``expected`` maps paths to SHA-256; then every fetched
        file must be in it and match. After a failure the files that were already whole may remain in ``into``; the caller
        discards the directory.

        Raises:
            UsageError: no complete set of that name, or no such file in it.
            VerificationFailed: a file does not match ``expected``.
            OffsiteUnavailable: also when ``deadline_s`` seconds have passed, however little keeps trickling in.
        """

    def list_sets(self, *, cancel: CancelToken) -> list[RemoteSet]:
        """Every set below this target by name, complete or not. The whole listing or an error, never a part of it."""

    def list_files(self, name: str, *, cancel: CancelToken) -> list[RemoteFile]:
        """The files of one set, sorted by path; empty if there is nothing of that name. Whole or an error."""

    def read_small(self, name: str, path: str, *, cancel: CancelToken) -> bytes:
        """The content of a small file (a manifest). Refuses anything over :data:`SMALL_LIMIT`."""

    def read_back(self, name: str, path: str, *, cancel: CancelToken, progress: Progress) -> Digest:
        """Read one file in full and hash it: the proof against rot. Comparing is up to the caller."""

    def put_records(self, set_id: str, content: bytes, *, cancel: CancelToken) -> None:
        """Store what has been learnt about a set since. Replaces the earlier version at once: the only thing that is ever replaced."""

    def get_records(self, *, cancel: CancelToken) -> dict[str, bytes]:
        """All records by set id. All of them or an error."""

    def delete_set(self, name: str, *, cancel: CancelToken) -> int:
        """Remove a set, its marker first; returns the number of files removed (0: nothing was there).

        Repeating it finishes what was begun. Any file that cannot be removed is an error that names it.
        """

    def reap(self, *, cancel: CancelToken) -> list[str]:
        """Remove what killed runs of ours left half-sent; a line per removed thing. Never touches the work of a run that is alive."""

    def close(self) -> None:
        """Give back connections. The target may be used again afterwards."""


def check_name(name: str) -> str:
    """Return ``name`` if it can be the name of a set: one plain path segment that does not begin with a dot."""
    if not _NAME.fullmatch(name):
        raise UsageError(f"{name!r} cannot be the name of a set", hint="Letters, digits, '.', '_' and '-' only.")
    return name
