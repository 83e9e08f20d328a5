"""Bring the data into a database beside the live one and prove them there."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from scholaria_ops.catalogue.evidence.base import Difference
from scholaria_ops.catalogue.evidence.postgres import PostgresEvidence
from scholaria_ops.connections import PostgresConnection
from scholaria_ops.errors import DiskFull, OpsError, Refused, ToolFailed, VerificationFailed
from scholaria_ops.stores.base import Context
from scholaria_ops.stores.live import Notebook, Source, Staged
from scholaria_ops.stores.postgres.compare import compare
from scholaria_ops.stores.postgres.inspect import authenticate, require
from scholaria_ops.stores.postgres.live import records
from scholaria_ops.stores.postgres.live.names import being_restored, free_beside
from scholaria_ops.stores.postgres.live.plan import PostgresPlan
from scholaria_ops.stores.postgres.live.records import Record, StagedFacts
from scholaria_ops.stores.postgres.live.server import databases, guarded, maintenance, named, require_identity, set_open
from scholaria_ops.stores.postgres.live.take_back import take_back
from scholaria_ops.stores.postgres.load import Load, analyze, check_target, load_archive, load_roles
from scholaria_ops.stores.postgres.programs import Programs
from scholaria_ops.stores.postgres.session import Session
from scholaria_ops.stores.postgres.store import measure_database

_SHOWN = 5
#: First server version that lets us choose the object id of a new database.
_CHOOSES_OID = 15
#: Far above what a server gives out by itself, and below the sign bit, over which some clients stumble.
_LOWEST_OID, _HIGHEST_OID = 1 << 30, (1 << 31) - 1
_NO_SPACE = ("No space left on device", "Disk quota exceeded", "File too large", "disk full")


@dataclass(frozen=True, slots=True)
class Stage:
    """One staging under way."""

    connection: PostgresConnection
    plan: PostgresPlan
    source: Source[PostgresEvidence]
    notebook: Notebook
    ctx: Context
    jobs: int

    def run(self) -> Staged:
        """See :meth:`scholaria_ops.stores.live.LiveStore.stage`."""
        begun = False
        try:
            with guarded(self.connection, self.ctx.cancel) as session:
                require_identity(session, self.plan.identity)
                if self.plan.dbname != self.connection.dbname:
                    raise Refused(
                        f"the plan is for the database {self.plan.dbname}, not for {self.connection.dbname}",
                        hint="Plan again.",
                        store="postgres",
                    )
                if done := self._done_already(session):
                    return done
                begun = True
                return self._stage(session)
        except BaseException:
            if begun:
                self._clean_up()
            raise

    def _done_already(self, session: Session) -> Staged | None:
        """What a run found that was killed after it had staged everything, if it still stands as it was left."""
        record = records.read(self.notebook)
        new = databases(session).get(record.new_oid or 0) if record else None
        if record is None or record.staged is None or new is None or new.name != record.new_name or new.open:
            return None
        return _staged(record.staged)

    def _stage(self, session: Session) -> Staged:
        # What a run has left that was killed.
        if (before := records.read(self.notebook)) and (back := take_back(session, self.connection, before, self.notebook)).kept:
            raise Refused(f"this restore was taken back, and has left {back.kept[0]}", hint="Begin another restore.", store="postgres")
        _require_plan_holds(session, self.plan)
        evidence = self.source.evidence
        check_target(session, evidence, Programs(self.ctx.tools, self.ctx.cancel))
        archive, globals_ = (require(self.source.artifacts, kind) for kind in ("dump", "globals"))
        for artifact in (archive, globals_):
            authenticate(self.source.directory / artifact.path, artifact, just_hashed=True)
        there = frozenset(name for (name,) in session.rows("SELECT rolname::text FROM pg_roles"))
        load = self._begin(session)
        with _told_of_full_disk(load):
            load_roles(self.source.directory / globals_.path, load, session=session, made=self._write_roles)
            load_archive(self.source.directory / archive.path, load, session=session, statistics=False)
            self._write_oid(session, load.dbname)
            return self._prove(session, load, there)

    def _begin(self, session: Session) -> Load:
        """Write down what is about to be made."""
        existing = databases(session)
        live = named(existing, self.plan.dbname)
        taken = {d.name for d in existing.values()}
        words = {w: free_beside(self.plan.dbname, w, self.notebook.restore_id, taken) for w in ("restore", "before", "after")}
        oid = _free_oid(existing) if session.major >= _CHOOSES_OID else None
        record = Record(
            identity=self.plan.identity,
            dbname=self.plan.dbname,
            old_oid=live.oid if live else None,
            old_open=live.open if live else True,
            new_oid=oid,
            new_name=words["restore"],
            before_name=words["before"],
            after_name=words["after"],
        )
        self.notebook.write(**record.model_dump(mode="json"))
        subscriptions = self.plan.accept_replication
        return Load(
            maintenance(self.connection),
            record.new_name,
            self.source.evidence,
            self.ctx,
            jobs=self.jobs,
            subscriptions=subscriptions,
            oid=oid,
        )

    def _write_roles(self, made: Mapping[str, int]) -> None:
        self.notebook.write(roles=dict(made))

    def _write_oid(self, session: Session, name: str) -> None:
        if session.major < _CHOOSES_OID:
            made = named(databases(session), name)
            self.notebook.write(new_oid=made.oid if made else None)

    def _prove(self, session: Session, load: Load, there: frozenset[str]) -> Staged:
        evidence = self.source.evidence
        with load.phase("compare"):
            # Reading every row takes one core for most of its time; statistics, which no comparison looks at, take the other.
            with ThreadPoolExecutor(1, "analyze") as pool:
                statistics = pool.submit(analyze, load)
                found = measure_database(self.connection.with_db(load.dbname), evidence, self.ctx)
            statistics.result()
            differences = [_weighed(d, there) for d in compare(evidence, found)]
        if losses := [d for d in differences if d.severity == "loss"]:
            raise _not_proven(losses)
        set_open(session, load.dbname, to=False)  # nobody may write to it between the comparison and the switch
        staged = StagedFacts(
            seconds=load.seconds,
            differences=tuple(differences),
            counts=found.headline(),
            warnings=tuple(load.warnings),
            rows={name: table.rows for name, table in found.tables.items() if table.rows is not None and table.kind != "materialized view"},
        )
        self.notebook.write(staged=staged.model_dump(mode="json"))
        return _staged(staged)

    def _clean_up(self) -> None:
        """Remove what this run made. Its own failure is told and left to ``roll_back``: the first error is the one to see."""
        try:
            record = records.read(self.notebook)
            if record is None:
                return
            with guarded(self.connection) as session:
                require_identity(session, record.identity)
                take_back(session, self.connection, record, self.notebook)
        except OpsError as exc:
            self.ctx.log.warning("what was staged for %s could not be removed yet: %s", self.plan.dbname, exc.message)


def _require_plan_holds(session: Session, plan: PostgresPlan) -> None:
    existing = databases(session)
    live = named(existing, plan.dbname)
    if (live.oid if live else None) != plan.live_oid:
        was = "was not there" if plan.live_oid is None else "was another one"
        raise Refused(
            f"the database {plan.dbname} at {session.where} is not what it was when this was planned: it {was if live else 'is gone'}",
            hint="Plan again, look at the consequences, and confirm the new plan. Nothing was touched.",
            store="postgres",
        )
    if others := being_restored(plan.dbname, (d.name for d in existing.values())):
        raise Refused(
            f"another restore of {plan.dbname} at {session.where} has not ended: it holds {', '.join(others)}",
            hint="Let it end or take it back; if it was given up, or made elsewhere and is forgotten, drop that database by hand.",
            store="postgres",
        )


def _free_oid(existing: Mapping[int, object]) -> int:
    while True:
        candidate = _LOWEST_OID + secrets.randbelow(_HIGHEST_OID - _LOWEST_OID)
        if candidate not in existing:
            return candidate


def _weighed(difference: Difference, there: frozenset[str]) -> Difference:
    """Roles that were on the server before keep what they have: that is not a loss of this restore, but worth telling."""
    words = difference.what.rpartition(": ")
    about_role = difference.what.startswith("role ") and words[0].removeprefix("role ") in there
    return difference.model_copy(update={"severity": "note"}) if about_role else difference


def _not_proven(losses: Sequence[Difference]) -> VerificationFailed:
    shown = "; ".join(f"{d.what}: expected {d.expected}, found {d.found}" for d in losses[:_SHOWN])
    more = f"; and {len(losses) - _SHOWN:,} more" if len(losses) > _SHOWN else ""
    return VerificationFailed(
        f"what was loaded is not what the set's evidence says: {shown}{more}",
        hint="The live database was not touched and what was loaded is removed again. Verify the set, or restore an older one.",
        store="postgres",
    )


def _staged(facts: StagedFacts) -> Staged:
    return Staged(seconds=facts.seconds, differences=facts.differences, counts=facts.counts, warnings=facts.warnings)


@contextlib.contextmanager
def _told_of_full_disk(load: Load) -> Iterator[None]:
    began = time.monotonic()
    try:
        yield
    except OpsError as exc:
        text = f"{exc.message} {exc.stderr_tail if isinstance(exc, ToolFailed) else ''}"
        if not any(words in text for words in _NO_SPACE):
            raise
        needed = load.evidence.database.size_bytes
        raise DiskFull(
            f"the disk of PostgreSQL at {load.connection.where} is full: {load.dbname} needs about {needed:,} bytes"
            f" and the server's log beside it (after {time.monotonic() - began:.0f} s)",
            hint="Free space on that server, then run again. The live database was not touched and what was loaded is removed.",
            store="postgres",
        ) from exc
