"""The second page of promises: bringing data back into a store that people use.

The order is always the same, and every word of it is a safety rule:

* ``plan`` looks and changes nothing. What it returns is shown, digested, confirmed, and is all that is carried out later.
* ``stage`` brings the data *beside* what is served, proves them against their evidence, and leaves the served data alone.
* ``ready`` does what a switch has no time for, or could still be refused: for every store before the first one is switched.
* ``switch`` puts them in their place: the only moment at which the application is locked out. What was served is kept.
* ``roll_back`` takes back whatever was begun, from any moment on, also after a SIGKILL: it looks at the server and at the
  notebook, never at the notebook alone. It may be repeated. Afterwards the store serves what it served before. What was
  written into the restored data while they were served is set aside where it can be, and else said to be lost.
* ``finish`` clears away what only the switch needed; what ``undo`` needs stays.
* ``undo`` goes back to what was served before, and keeps what was served until then. Called again it changes nothing.
  ``discard`` removes what was kept.

Whatever is about to be made, renamed or changed on a server is written into the notebook *first*.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, NamedTuple, Protocol, TypeVar

from scholaria_ops.catalogue.artifacts import Artifact
from scholaria_ops.catalogue.evidence.base import Difference, Model, StoreEvidence, StoreName
from scholaria_ops.errors import Refused
from scholaria_ops.stores.base import Context

E = TypeVar("E", bound=StoreEvidence)
P = TypeVar("P", bound="StorePlan")

#: What may be said in a notebook: what JSON can say.
Fact = str | int | float | bool | None | list[Any] | dict[str, Any]

EffectKind = Literal["lost", "back", "reused", "dropped", "parked", "revived", "changed", "note"]


class Effect(Model):
    """One consequence of a restore, for the operator to weigh before it happens.

    ``lost``: is in the live store, not in the set. ``back``: in the set, not in the live store. ``reused``: ids that the
    live store has given out and that the set by itself would give out again (sequences are raised above them).
    ``dropped``, ``parked``: in the set and left out, or put under another name. ``revived``: sessions that would be valid
    again. ``changed``: a name, a setting, a definition. ``count`` is in rows, keys or points (None where it is no matter of
    counting); it is never below the truth for ``lost``.
    """

    kind: EffectKind
    what: str
    count: int | None = None
    detail: str = ""


class Need(Model):
    """Room that is needed. ``free_bytes`` None: could not be learnt from here (which is said, not passed over)."""

    what: str
    needed_bytes: int
    free_bytes: int | None = None

    @property
    def met(self) -> bool:
        return self.free_bytes is None or self.free_bytes >= self.needed_bytes


class Objection(Model):
    """Why this plan must not be carried out, and what to do. ``option``: the command-line option that overrules it, if any may."""

    message: str
    hint: str
    option: str = ""


class StorePlan(Model):
    """What would be done to one store. Stores add fields of their own; all of them are part of the plan's digest."""

    store: StoreName
    #: Files of the set, as the operator knows them.
    artifacts: tuple[str, ...]
    #: The live store's address, safe to print.
    target: str
    #: Who the target is (system identifier, run id); empty where the server has no identity. Checked again before each change.
    identity: str
    #: What will happen, in order, a sentence each.
    steps: tuple[str, ...]
    effects: tuple[Effect, ...] = ()
    needs: tuple[Need, ...] = ()
    objections: tuple[Objection, ...] = ()
    warnings: tuple[str, ...] = ()
    #: Seconds until staged and proven, and seconds without service; estimates from sizes, measured speed where there is one.
    expected_s: float
    expected_lockout_s: float


@dataclass(frozen=True)
class Source(Generic[E]):
    """One store's part of a set on this disk. Every file's digest has been compared already."""

    set_id: str
    directory: Path
    artifacts: Sequence[Artifact]
    evidence: E


class Notebook(Protocol):
    """What is known of one store's restore across a crash. Every write is on disk before it returns."""

    @property
    def restore_id(self) -> str:
        """Id of the restore (as a set's id): part of every name that is made on a server."""

    @property
    def directory(self) -> Path:
        """A private directory that lives as long as the restore can be undone: for files that are the way back."""

    def read(self) -> Mapping[str, Fact]:
        """All facts written so far."""

    def write(self, **facts: Fact) -> None:
        """Add facts, or replace those of the same name."""


@dataclass(frozen=True, slots=True)
class Staged:
    """The data are beside what is served, and were compared with their evidence."""

    seconds: Mapping[str, float]
    #: Of severity ``note`` only: a loss makes :meth:`LiveStore.stage` fail.
    differences: tuple[Difference, ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Switched:
    """What was staged is served. ``lockout_s``: how long the store refused or failed the application, as measured."""

    lockout_s: float
    seconds: Mapping[str, float]
    #: What ``discard`` would remove, for people (``database scholaria_before_20241001_020000, 412 MB``).
    kept: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RolledBack:
    """The store serves what it served before. ``lines``: what was done just now, a line per thing."""

    lines: list[str] = field(default_factory=list)
    #: What was written to while the restored data were served, and is therefore set aside until ``discard``; as in :class:`Switched`.
    kept: tuple[str, ...] = ()
    #: PostgreSQL only, and only where there is a database to go on: sequence → the largest id that the restored database knew once
    #: it had been served. None: it never was.
    given_out: Mapping[str, int] | None = None
    warnings: tuple[str, ...] = ()


class Standing(Model):
    """How a store stands in the middle of a restore, for people: lines, nothing that a machine decides by."""

    #: What is served now.
    served: tuple[str, ...] = ()
    #: What stands there for the restore's sake only, or is missing.
    left: tuple[str, ...] = ()
    #: What would have to be done by hand if nobody settled the restore any more.
    by_hand: tuple[str, ...] = ()


class StillKept(Refused):
    """Something of what was to be discarded is left standing, because somebody seems to want it; all else is removed.

    ``removed``: a line per removed thing; ``kept``: what is left, for people.
    """

    def __init__(self, message: str, *, hint: str, store: StoreName, removed: Sequence[str], kept: Sequence[str]) -> None:
        super().__init__(message, hint=hint, store=store)
        self.removed = tuple(removed)
        self.kept = tuple(kept)


class Trace(NamedTuple):
    """Something on a live server that looks like a restore's, or is what is served: its kind and name, and what is known of it."""

    what: str
    detail: str


class LiveStore(Protocol[E, P]):
    """A live store that can be restored without losing what it serves. Methods honour ``ctx.cancel`` and may be repeated."""

    name: StoreName

    def plan(self, source: Source[E], ctx: Context) -> P:
        """Look at the live store and say what a restore would do. Changes nothing; reasons against it are objections.

        Raises:
            StoreUnavailable, AuthenticationFailed: the live store cannot be asked, so nothing can be planned.
        """

    def stage(self, plan: P, source: Source[E], notebook: Notebook, ctx: Context) -> Staged:
        """Bring the data beside and compare them. On any failure what was made is removed; the served data are as before.

        Raises:
            Refused: the target is not the one that was planned, or has changed so that the plan no longer holds.
            VerificationFailed: what came is not what the evidence says.
            DiskFull, StoreError: as they say.
        """

    def ready(self, plan: P, notebook: Notebook, ctx: Context) -> None:
        """Do what must come after :meth:`stage` and takes longer than a switch may, or may be refused. What is served stays as it is.

        Called before the first store is switched; again once the writers are stopped, when little is left to do.

        Raises:
            Refused, VerificationFailed, StoreError: this store could not be switched, so none must be.
        """

    def switch(self, plan: P, notebook: Notebook, ctx: Context) -> Switched:
        """Serve what was staged; keep what was served. On failure the caller calls :meth:`roll_back`."""

    def roll_back(self, notebook: Notebook, ctx: Context) -> RolledBack:
        """Make it as it was before :meth:`stage`. Repeatable: ``kept`` is the same each time."""

    def finish(self, notebook: Notebook, ctx: Context) -> list[str]:
        """After all stores have switched: clear away what is not needed to undo; returns lines for people. Repeatable."""

    def later_writes(self, notebook: Notebook, ctx: Context) -> tuple[Effect, ...]:
        """What was written since the switch and would be lost by :meth:`undo`. Changes nothing.

        Raises:
            Refused: what was kept is gone, so that :meth:`undo` would refuse.
        """

    def check_undo(self, notebook: Notebook, ctx: Context) -> None:
        """Whether :meth:`undo` can be carried out, as far as that can be told beforehand: what was kept, and room for it. Changes nothing.

        Raises:
            Refused: it cannot. The other stores must not go back then either.
        """

    def undo(self, notebook: Notebook, ctx: Context) -> Switched:
        """Serve again what was served before the switch; keep what is served now aside. Resumable after a kill.

        Where that has happened already nothing changes, and ``lockout_s`` is 0.

        Raises:
            Refused: what was kept is gone or is not what the notebook says; nothing was touched.
        """

    def discard(self, notebook: Notebook, ctx: Context) -> list[str]:
        """Remove what was kept for :meth:`undo`, or by :meth:`roll_back`; returns a line per removed thing. Repeatable.

        What is served stays, whichever it is.

        Raises:
            StillKept: so does what somebody has renamed or uses; all else is removed.
        """

    def standing(self, notebook: Notebook, ctx: Context) -> Standing:
        """How the store stands now, in whatever state the restore is. Changes nothing, and judges as little as it can.

        Raises:
            OpsError: it cannot be asked.
        """
