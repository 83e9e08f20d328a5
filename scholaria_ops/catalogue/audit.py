"""The audit log: who did what to which set, in ``BACKUP_DIR/.records/audit.jsonl``. Append-only; every entry holds the digest of
the line before it, so that a line which is changed, removed or put in between later breaks the chain there.

Promises: an entry is one line, flushed to the device before :meth:`AuditLog.append` returns; appends of threads and processes are put
in order by a kernel lock on the file itself; nothing that stands is ever rewritten. A line that a crash tore stays as it is: the next
append counts it in (an entry ``audit``/``torn`` names its length and digest) and goes on after it.

The chain alone does not stop somebody who can rewrite the whole file. Its newest digest is therefore left elsewhere
(:class:`Head`): in every ``shipped`` and ``rehearsed`` record, which lie offsite too. :meth:`AuditLog.verify` compares them.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from scholaria_ops.errors import DiskFull, Refused, VerificationFailed
from scholaria_ops.files import append_durably, make_private_dir

#: ``begun`` is written before the work, one of the others after it. A ``begun`` that nothing follows is a run that was killed.
#: ``torn`` accounts for a line that was cut off while it was written.
Outcome = Literal["begun", "done", "failed", "refused", "cancelled", "torn"]
#: What the first entry holds as the digest of the line before it.
GENESIS = "0" * 64
_BLOCK = 1 << 16
#: So many unreadable lines at the end are no crash any more.
_LOOK_BACK = 8


class AuditBroken(VerificationFailed):
    """The audit log is not what was written: the message names the first line that does not fit."""

    code = "audit_broken"


class Entry(BaseModel):
    """One line of the log. Fields that a newer version added are kept out of the way, not refused."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    seq: int
    at: AwareDatetime
    #: ``backup``, ``verify``, ``ship``, ``reread``, ``fetch``, ``rehearse``, ``restore``, ``prune``, ``hold``, ``release``, ``audit``.
    verb: str
    #: Id of the set concerned; empty if it is none, or several (they stand in ``detail`` then).
    set: str = ""
    outcome: Outcome
    #: The account and host of the process, or of whoever typed the command.
    by: str
    #: How it was asked for: ``command line``, ``schedule daily_backup``, ``sensor …``, ``Dagster UI (nobody could be named)``.
    how: str
    run_id: str = ""
    detail: dict[str, Any] = Field(default_factory=dict)
    #: SHA-256 of the line before, without its line break; :data:`GENESIS` in the first.
    prev: str

    def __str__(self) -> str:
        return f"entry {self.seq} ({self.verb}{' ' if self.set else ''}{self.set} {self.outcome}, {self.at:%Y-%m-%d %H:%M:%S} UTC)"


@dataclass(frozen=True, slots=True)
class Head:
    """The newest entry at some moment: its number and the SHA-256 of its line.

    ``chain`` is the digest of the log's first line, which tells one machine's log from another's. ``set`` and ``seen_in`` say
    where the head was written down.
    """

    seq: int
    sha256: str
    chain: str
    set: str = ""
    seen_in: str = ""

    @classmethod
    def of(cls, detail: Mapping[str, Any], *, set_id: str, seen_in: str) -> Head | None:
        """The head in a record's detail, if there is one."""
        found = detail.get("audit")
        if not isinstance(found, Mapping):
            return None
        seq, sha256, chain = found.get("seq"), found.get("sha256"), found.get("chain")
        if isinstance(seq, int) and isinstance(sha256, str) and isinstance(chain, str):
            return cls(seq, sha256, chain, set_id, seen_in)
        return None

    def as_detail(self) -> dict[str, Any]:
        return {"seq": self.seq, "sha256": self.sha256, "chain": self.chain}


@dataclass(frozen=True, slots=True)
class AuditReport:
    """A chain that held: how long it is, where it ends, and which lines were torn by crashes and are accounted for."""

    entries: int
    head: Head
    torn: tuple[str, ...]
    #: How many heads written down elsewhere agreed with it.
    witnesses: int
    #: How many were heads of another log: another machine's, or an earlier one of this machine.
    foreign: int


@dataclass
class _Walk:
    """State of a walk over the lines."""

    digest: str = GENESIS
    seq: int = 0
    line: int = 0
    before: str = "the beginning"
    #: Lines that could not be read, with their digests, until an entry accounts for them.
    unread: list[tuple[str, str]] = field(default_factory=list)
    torn: list[str] = field(default_factory=list)
    digests: dict[int, str] = field(default_factory=dict)
    #: Sets whose backup the log tells of.
    taken: set[str] = field(default_factory=set)

    @property
    def chain(self) -> str:
        return self.digests.get(1, GENESIS)


@dataclass(frozen=True, slots=True)
class _End:
    head: Head
    #: What the next entry holds as the digest of the line before it.
    digest: str
    torn: tuple[bytes, ...]


class AuditLog:
    """The log below one ``BACKUP_DIR``."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(
        self,
        verb: str,
        set_id: str,
        outcome: Outcome,
        *,
        by: str,
        how: str,
        run_id: str = "",
        detail: Mapping[str, Any] | None = None,
    ) -> Entry:
        """Write one entry durably and return it. Safe between threads and processes.

        Raises:
            DiskFull: there is no room for it.
            Refused: the file cannot be written, or its last whole line cannot be read.
        """
        with self._locked() as fd:
            end = self._end(fd)
            digest, seq = end.digest, end.head.seq
            if end.torn:
                # An entry that accounts for the torn bytes, so that the chain goes over them too.
                told = {"lines": [{"bytes": len(t), "sha256": hashlib.sha256(t).hexdigest()} for t in end.torn]}
                cut = Entry(seq=seq + 1, at=datetime.now(UTC), verb="audit", outcome="torn", by=by, how=how, detail=told, prev=digest)
                digest, seq = self._write(cut), cut.seq
            entry = Entry(
                seq=seq + 1,
                at=datetime.now(UTC),
                verb=verb,
                set=set_id,
                outcome=outcome,
                by=by,
                how=how,
                run_id=run_id,
                detail=dict(detail or {}),
                prev=digest,
            )
            self._write(entry)
        return entry

    def head(self) -> Head:
        """The newest whole entry. Number 0 and :data:`GENESIS` while there is none."""
        if not self.path.exists():
            return Head(0, GENESIS, GENESIS)
        with self._locked(shared=True) as fd:
            return self._end(fd).head

    def entries(self) -> list[Entry]:
        """Every entry that can be read, oldest first."""
        return [entry for _, _, entry in self._lines() if entry]

    def verify(self, witnesses: Iterable[Head] = ()) -> AuditReport:
        """Walk the chain from its beginning and compare it with heads that were written down elsewhere.

        Raises:
            AuditBroken: naming the first line that does not fit what stands around it, or the witness that disagrees.
            Refused: the file cannot be read.
        """
        walk = _Walk()
        for raw, whole, entry in self._lines():
            walk.line += 1
            if entry is None:
                walk.digest = hashlib.sha256(raw).hexdigest()
                cut = "bytes that cannot be read" if whole else "bytes, cut off while they were written"
                walk.unread.append((f"line {walk.line}: {len(raw)} {cut}", walk.digest))
            else:
                _link(walk, raw, entry)
        walk.torn += [f"{line}; the next entry will account for it" for line, _ in walk.unread]
        verdicts = [_agrees(walk, witness) for witness in witnesses if witness.seq]
        head = Head(walk.seq, walk.digests.get(walk.seq, GENESIS), walk.chain)
        return AuditReport(len(walk.digests), head, tuple(walk.torn), verdicts.count(True), verdicts.count(False))

    def _lines(self) -> Iterator[tuple[bytes, bool, Entry | None]]:
        """Each line without its break, whether it had one, and what it says."""
        if not self.path.exists():
            return
        try:
            with self.path.open("rb") as source:
                for line in source:
                    raw = line.removesuffix(b"\n")
                    yield raw, raw != line, _parse(raw)
        except OSError as exc:
            raise Refused(f"the audit log {self.path} cannot be read: {exc.strerror}", hint="Make it readable for this user.") from exc

    def _digest_of(self, seq: int) -> str:
        return next((hashlib.sha256(raw).hexdigest() for raw, _, entry in self._lines() if entry and entry.seq == seq), GENESIS)

    @contextlib.contextmanager
    def _locked(self, *, shared: bool = False) -> Iterator[int]:
        try:
            make_private_dir(self.path.parent, exist_ok=True)
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | (0 if shared else os.O_CREAT), 0o600)
        except OSError as exc:
            raise _unwritable(self.path, exc) from exc
        try:
            fcntl.flock(fd, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
            yield fd
        finally:
            os.close(fd)

    def _write(self, entry: Entry) -> str:
        line = json.dumps(entry.model_dump(mode="json"), ensure_ascii=False).encode()
        try:
            append_durably(self.path, line)
        except DiskFull:
            raise
        except OSError as exc:
            raise _unwritable(self.path, exc) from exc
        return hashlib.sha256(line).hexdigest()

    def _end(self, fd: int) -> _End:
        """What the file ends with: the last entry, and lines after it that a crash tore."""
        lines = _last_lines(fd, _LOOK_BACK)
        torn: list[bytes] = []
        while lines and _parse(lines[-1]) is None:
            torn.insert(0, lines.pop())
        if torn and not lines and len(torn) >= _LOOK_BACK:
            raise Refused(
                f"the last lines of the audit log {self.path} cannot be read, so nothing can be written after them",
                hint="See what happened to the file (`scholaria-ops audit --verify`); to go on, move it away and keep it.",
            )
        entry = _parse(lines[-1]) if lines else None
        digest = hashlib.sha256(torn[-1] if torn else lines[-1]).hexdigest() if torn or lines else GENESIS
        if entry is None:
            return _End(Head(0, GENESIS, GENESIS), digest, tuple(torn))
        return _End(Head(entry.seq, hashlib.sha256(lines[-1]).hexdigest(), self._chain()), digest, tuple(torn))

    def _chain(self) -> str:
        return next((hashlib.sha256(raw).hexdigest() for raw, _, entry in self._lines() if entry), GENESIS)


def _link(walk: _Walk, raw: bytes, entry: Entry) -> None:
    """Check one entry against what stands before it."""
    if entry.prev != walk.digest:
        raise _broken(walk, f"{entry} does not follow from {walk.before}: a line was changed, removed or put in between there")
    if walk.unread:
        told = entry.detail.get("lines") if (entry.verb, entry.outcome) == ("audit", "torn") else None
        named = [line.get("sha256") for line in told if isinstance(line, dict)] if isinstance(told, list) else []
        if named != [digest for _, digest in walk.unread]:
            raise _broken(walk, f"{walk.unread[0][0]}, and {entry} does not account for it")
        walk.torn += [f"{line}; {entry} accounts for it" for line, _ in walk.unread]
        walk.unread = []
    if entry.seq != walk.seq + 1:
        raise _broken(walk, f"{entry} follows entry {walk.seq}: a number is missing or there twice")
    walk.seq, walk.digest, walk.before = entry.seq, hashlib.sha256(raw).hexdigest(), f"line {walk.line}, {entry}"
    walk.digests[entry.seq] = walk.digest
    if entry.verb == "backup":
        walk.taken.add(entry.set)


def _agrees(walk: _Walk, witness: Head) -> bool:
    """Whether a witness is one of this chain and not of another machine's; raises AuditBroken if it should be and is not."""
    if witness.chain != walk.chain and witness.set not in walk.taken:
        return False
    found = walk.digests.get(witness.seq)
    if found == witness.sha256:
        return True
    is_now = f"has the digest {found[:12]}… here" if found else f"is not here: the log ends at entry {walk.seq}"
    raise AuditBroken(
        f"the audit log was rewritten or cut: entry {witness.seq} had the digest {witness.sha256[:12]}… when {witness.seen_in} "
        f"wrote it down, and {is_now}",
        hint="Compare with the runs in Dagster and with the records offsite; what stands before the oldest witness that agrees is sound.",
    )


def _broken(walk: _Walk, what: str) -> AuditBroken:
    return AuditBroken(
        f"the chain of the audit log breaks at line {walk.line}: {what}",
        hint="Everything before that line is as it was written. Compare what follows with the runs in Dagster, and see who could write it.",
    )


def _unwritable(path: Path, exc: OSError) -> Refused:
    return Refused(
        f"the audit log {path} cannot be used: {exc.strerror}", hint="Nothing is done that could not be written down; make it writable."
    )


def _parse(raw: bytes) -> Entry | None:
    try:
        return Entry.model_validate_json(raw)
    except ValidationError:
        return None


def _last_lines(fd: int, count: int) -> list[bytes]:
    """The last ``count`` lines without their breaks."""
    position, data = os.fstat(fd).st_size, b""
    while position > 0 and data.count(b"\n") <= count:
        step = min(_BLOCK, position)
        position -= step
        data = os.pread(fd, step, position) + data
    return [line for line in data.split(b"\n") if line][-count:]
