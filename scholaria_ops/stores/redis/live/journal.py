"""What is known of a restore across a crash: facts in the notebook, and one key on the server that cannot lie.

A *crossing* exchanges what is served with what was staged: the restore is crossing 0, its undo is crossing 1. Before
anything is staged, one key is put into a database of its own (the *ledger*); its value names the restore and the
crossing. The transaction that swaps the databases renames it. So after any crash the server itself says on which side
the staged data lie; once the crossing is over, the key is gone. (Renaming takes no memory: it works, and so does the
way back, on a server that refuses to store anything more.)
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Literal

from pydantic import Field

from scholaria_ops.catalogue.artifacts import Artifact
from scholaria_ops.catalogue.evidence.base import Model
from scholaria_ops.catalogue.evidence.redis import RedisEvidence
from scholaria_ops.errors import Refused, VerificationFailed
from scholaria_ops.files import rename_durably, write_private
from scholaria_ops.stores.live import Fact, Notebook
from scholaria_ops.stores.redis.info import ServerInfo
from scholaria_ops.stores.redis.wire import Wire

#: Names of the key that marks a restore under way: before the switch, and after it. In no served database, ever.
STAGED = "scholaria-ops:restore:staged"
SWITCHED = "scholaria-ops:restore:switched"

Side = Literal["before", "after"]


class Marker(Model):
    """The value of that key, and by its name on which side the staged data lie."""

    restore: str
    crossing: int
    switched: bool = False


class Kept(Model):
    """The way back: an RDB in the notebook's directory."""

    artifact: Artifact
    #: Database → number of keys.
    keys: dict[int, int] = Field(default_factory=dict)
    #: File with the evidence that was measured when the RDB was made; empty where none was.
    evidence: str = ""


class Crossing(Model):
    """One exchange, from the moment before the server is touched until it holds nothing of ours."""

    number: int
    target: str
    #: (served database, database where what replaces it is staged).
    pairs: tuple[tuple[int, int], ...]
    ledger: int
    #: Eviction policy to put back; empty where it is left alone.
    policy: str
    #: Files: code of the functions to come, and evidence of the staged data.
    functions: str = ""
    expected: str = ""
    #: Keys served when it began.
    served_keys: int = 0
    #: Everything is in the spare databases and was compared.
    staged: bool = False
    #: File with the code of the functions that the switch replaced; set before the switch.
    functions_before: str = ""
    #: Made by finishing; set before the databases that it was made of are emptied.
    keep: Kept | None = None

    @property
    def spares(self) -> dict[int, int]:
        """Served database → its spare."""
        return dict(self.pairs)

    @property
    def destination(self) -> Side:
        """What is served once it is over."""
        return "after" if self.number % 2 == 0 else "before"

    def marker(self, restore_id: str) -> str:
        return Marker(restore=restore_id, crossing=self.number).model_dump_json(exclude={"switched"})

    def with_(self, **changes: object) -> Crossing:
        return Crossing.model_validate({**self.model_dump(), **changes})


class Journal:
    """The notebook, typed.

    Facts: ``crossing`` (the one under way), ``completed`` (how many are over: 1 after the restore, 2 after its undo),
    ``kept`` (the way back), ``baseline`` (file with the evidence of what was served right after the last switch).
    """

    def __init__(self, notebook: Notebook) -> None:
        self._notebook = notebook

    @property
    def restore_id(self) -> str:
        return self._notebook.restore_id

    @property
    def crossing(self) -> Crossing | None:
        fact = self._fact("crossing")
        return Crossing.model_validate(fact) if fact else None

    @property
    def completed(self) -> int:
        fact = self._fact("completed")
        return fact if isinstance(fact, int) else 0

    @property
    def served(self) -> Side:
        """What the server serves when no crossing is open."""
        return "after" if self.completed % 2 else "before"

    @property
    def kept(self) -> Kept | None:
        fact = self._fact("kept")
        return Kept.model_validate(fact) if fact else None

    @property
    def baseline(self) -> str:
        """File with the evidence of what was served right after the last switch."""
        return str(self._fact("baseline") or "")

    def _fact(self, name: str) -> Fact:
        return self._notebook.read().get(name)

    def open(self, crossing: Crossing) -> Crossing:
        self._notebook.write(crossing=crossing.model_dump(mode="json"))
        return crossing

    def close(self, **facts: Fact) -> None:
        """The server holds nothing of this crossing any more."""
        self._notebook.write(crossing=None, **facts)

    def path(self, name: str) -> Path:
        return self._notebook.directory / name

    def put(self, name: str, data: bytes) -> str:
        """Write (or replace) a private file of the way back, durably; returns its name."""
        fresh = self.path(f".{name}.new")
        fresh.unlink(missing_ok=True)
        write_private(fresh, data)
        rename_durably(fresh, self.path(name))
        return name

    def tidy(self) -> list[str]:
        """Remove the files that nothing refers to any more; returns their names."""
        kept, crossing = self.kept, self.crossing
        needed = {self.baseline}
        for entry in (kept, crossing.keep if crossing else None):
            needed |= {entry.artifact.path, entry.evidence} if entry else set()
        if crossing:
            needed |= {crossing.functions, crossing.functions_before, crossing.expected}
        gone = []
        for path in sorted(self._notebook.directory.glob("*redis_*")):
            if path.name not in needed:
                path.unlink(missing_ok=True)
                gone.append(path.name)
        return gone

    def get(self, name: str) -> bytes:
        try:
            return self.path(name).read_bytes()
        except FileNotFoundError as exc:
            raise Refused(
                f"{self.path(name)} is gone: it is part of the way back of restore {self.restore_id}",
                store="redis",
                hint="Restore the safety set that was taken before the restore.",
            ) from exc

    def put_code(self, name: str, code: list[bytes]) -> str:
        return self.put(name, json.dumps([base64.b64encode(c).decode() for c in code]).encode())

    def get_code(self, name: str) -> list[bytes]:
        return [base64.b64decode(c) for c in json.loads(self.get(name))]

    def put_evidence(self, name: str, evidence: RedisEvidence) -> str:
        return self.put(name, evidence.model_dump_json().encode())

    def get_evidence(self, name: str) -> RedisEvidence:
        try:
            return RedisEvidence.model_validate_json(self.get(name))
        except ValueError as exc:
            raise VerificationFailed(f"{self.path(name)} cannot be read: {exc}", store="redis") from exc


def read_marker(wire: Wire, db: int) -> Marker | None:
    wire.call("SELECT", db)
    for name in (STAGED, SWITCHED):
        value = wire.call("GET", name)
        if value is not None:
            try:
                return Marker.model_validate_json(value).model_copy(update={"switched": name == SWITCHED})
            except ValueError as exc:
                raise Refused(
                    f"the key {name} in database {db} of Redis at {wire.where} was not written by a restore",
                    store="redis",
                    hint="Look at it.",
                ) from exc
    return None


def find_marker(wire: Wire, info: ServerInfo) -> tuple[int, Marker] | None:
    """The marker of whichever restore is under way on that server, and its database."""
    for db in sorted(info.keyspace, reverse=True):
        if marker := read_marker(wire, db):
            return db, marker
    return None
