"""The store seam: a page of promises that PostgreSQL, Redis and Qdrant all keep.

One conformance suite (``scholaria_ops_tests/stores/test_conformance.py``) holds all three to it. No method prompts,
reads the environment or maps errors to exit codes. Every method may be called again after it failed. Every method
honours ``ctx.cancel``: it ends its children, closes its sockets and raises ``Cancelled``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from scholaria_ops.cancel import CancelToken
from scholaria_ops.catalogue.artifacts import Artifact
from scholaria_ops.catalogue.evidence.base import Difference, StoreEvidence, StoreName
from scholaria_ops.catalogue.ledger import Ledger
from scholaria_ops.progress import Progress, Silent
from scholaria_ops.sandbox.tools import Tools

E = TypeVar("E", bound=StoreEvidence)
T_contra = TypeVar("T_contra", contravariant=True)


@dataclass(frozen=True)
class Context:
    """What every operation on a store is given.

    ``scratch`` is a private directory on this host, made and later removed by the caller, for scratch servers and
    temporary files (never for artifacts). ``ledger`` remembers across a crash what we left on foreign servers.
    ``at_the_cut`` is called by :meth:`Store.dump` once everything is prepared, right before the instant that the dump
    will show; it waits until the other stores are there too, so that the cuts lie close together. ``written`` is told of
    an artifact that is whole on the disk, while the dump goes on: nobody writes to that file any more.
    """

    scratch: Path
    ledger: Ledger
    tools: Tools
    cancel: CancelToken = field(default_factory=CancelToken)
    progress: Progress = field(default_factory=Silent)
    log: logging.Logger = field(default_factory=lambda: logging.getLogger("scholaria_ops"))
    at_the_cut: Callable[[], None] = lambda: None
    written: Callable[[Artifact], None] = lambda _: None


@dataclass(frozen=True, slots=True)
class Facts:
    """What the preflight found out, ready to be shown to the operator."""

    store: StoreName
    server_version: str
    #: Expected size of the artifacts in bytes: an upper estimate, used for the free-space check here.
    expected_bytes: int
    #: Label → value for people, in order (``database size`` → ``412 MB``).
    details: Mapping[str, str]
    #: Things worth telling that do not stop a backup.
    warnings: tuple[str, ...] = ()
    #: How far the server's clock is ahead of ours (seconds; negative: behind), as far as its answer tells; None if it does not.
    clock_ahead_s: float | None = None


@dataclass(frozen=True, slots=True)
class Dump(Generic[E]):
    """One store's part of a set: files (relative to the set's directory) and the evidence of the same cut.

    ``opened`` is what :meth:`Store.inspect` would find, where making the dump took just that: these very artifacts, with
    the digests that stand in ``artifacts``, were read in full and opened by the store's own software here. It is empty
    where they were not.
    """

    artifacts: tuple[Artifact, ...]
    evidence: E
    started_at: datetime
    finished_at: datetime
    tool_versions: Mapping[str, str]
    warnings: tuple[str, ...] = ()
    opened: tuple[Check, ...] = ()


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at in an artifact.

    ``passed`` is None when nothing here could judge it (no server of a matching version): ``detail`` then says what is
    needed. That is neither good nor bad news, and must never be shown as either.
    """

    name: str
    passed: bool | None
    detail: str
    numbers: Mapping[str, int | float] = field(default_factory=dict)
    differences: tuple[Difference, ...] = ()


@dataclass(frozen=True, slots=True)
class Loaded:
    """A finished load into a target: phase → seconds."""

    seconds: Mapping[str, float]
    warnings: tuple[str, ...] = ()


class Store(Protocol[E, T_contra]):
    """A live data system that we can dump and bring back. ``T_contra`` is the type of target that :meth:`load` writes to."""

    name: StoreName

    @property
    def where(self) -> str:
        """The live store's address, safe to print."""

    def preflight(self, ctx: Context) -> Facts:
        """Look at the live store without changing it.

        Raises:
            Refused: a backup would not be whole or could not be proven (the message names why and what to do).
            ToolMissing: a program that we need here is absent or too old; both versions are named.
            AuthenticationFailed, StoreUnavailable: as they say.
        """

    def dump(self, into: Path, set_id: str, ctx: Context) -> Dump[E]:
        """Write this store's artifacts below ``into`` (an existing private directory) and measure the same cut.

        Streams: memory stays flat whatever the size. On any failure the files of this store below ``into`` may remain
        (the caller discards the directory), but nothing remains on the server, no process and no thread.
        """

    def inspect(self, directory: Path, artifacts: Sequence[Artifact], evidence: E, ctx: Context) -> list[Check]:
        """Read the artifacts in full, open them with the store's own software, compare with ``evidence``.

        Never touches the live store. The caller has already compared every file's digest; hostile input is
        nevertheless expected. Bad content is a failed check, not an exception; a missing tool is an unjudged one.
        """

    def load(self, directory: Path, artifacts: Sequence[Artifact], evidence: E, target: T_contra, ctx: Context) -> Loaded:
        """Load the artifacts into an empty target and wait until it serves. Raises on the first error.

        Raises:
            Refused: the target is not empty, or its version cannot take these artifacts (both are named).
        """

    def probe(self, target: T_contra, evidence: E, ctx: Context) -> E:
        """Measure a target in the way the evidence was measured.

        ``evidence`` tells what to look at (sampled ids, search vectors), never what to find.
        """

    def compare(self, expected: E, found: E) -> list[Difference]:
        """What differs; empty means the same content. Times, sizes on disk and addresses are not content."""

    def reap(self, ctx: Context) -> list[str]:
        """Remove from the live server what a killed run left there (by the ledger); returns a line per removed thing."""

    def manual_restore(self, artifacts: Sequence[Artifact]) -> str:
        """The section of RESTORE.txt: how to restore these very files by hand with standard tools only."""
