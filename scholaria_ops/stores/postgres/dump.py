"""Dump and measure side by side, inside one exported snapshot."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from scholaria_ops.cancel import CancelToken
from scholaria_ops.catalogue.artifacts import Artifact, ArtifactKind
from scholaria_ops.catalogue.evidence.postgres import ArchiveInventory, PostgresEvidence
from scholaria_ops.connections import PostgresConnection
from scholaria_ops.errors import StoreError, ToolFailed
from scholaria_ops.files import HashingWriter, Written
from scholaria_ops.stores.base import Context, Dump
from scholaria_ops.stores.postgres.agreement import archive_disagreements
from scholaria_ops.stores.postgres.archive import read_back
from scholaria_ops.stores.postgres.globals_file import created_roles, has_password_hashes
from scholaria_ops.stores.postgres.inspect import opened
from scholaria_ops.stores.postgres.measure import Cut, Scope, Watch, begin_snapshot, measure, take_snapshot
from scholaria_ops.stores.postgres.names import conninfo_dbname
from scholaria_ops.stores.postgres.preflight import blockers, can_read_password_hashes, check_program_version, usable_compression
from scholaria_ops.stores.postgres.programs import Programs
from scholaria_ops.stores.postgres.session import LockNotGranted, Session, open_session

DUMP_TASK = "postgres: dump"
#: A session that its server has ended notices it within a moment. Where it does not, pg_dump's own words must do.
_SESSION_LOSS_S = 10.0


@dataclass(frozen=True, slots=True)
class DumpOptions:
    """How to dump. ``compression`` as ``pg_dump --compress`` takes it; ``fingerprint_max_bytes`` limits fingerprints per table."""

    compression: str
    lock_timeout_s: float
    fingerprint_max_bytes: int | None


def dump(connection: PostgresConnection, options: DumpOptions, into: Path, set_id: str, ctx: Context) -> Dump[PostgresEvidence]:
    """Write the two artifacts below ``into``; see :meth:`scholaria_ops.stores.base.Store.dump`."""
    began = datetime.now(UTC)
    with _linked(ctx.cancel) as stop:
        programs = Programs(ctx.tools, stop)
        job = _Job(connection, options, into, set_id, ctx, programs, stop)
        with open_session(connection, cancel=stop, lock_timeout_s=options.lock_timeout_s) as session:
            check_program_version(programs, session)
            hashes = can_read_password_hashes(session)
            method, warnings = usable_compression(programs, options.compression)
            job.hold_tables(session)
            ctx.at_the_cut()
            cut = take_snapshot(session)
            archive, globals_, evidence = job.side_by_side(session, cut, method, hashes)
        artifacts = (
            _artifact(archive, "dump", evidence.database.name, method.partition(":")[0]),
            _artifact(globals_, "globals", "roles", "none"),
        )
        for artifact in artifacts:
            ctx.written(artifact)
        inventory = read_back(archive.path, programs, evidence.database.encoding, ctx.progress, sha256=archive.sha256)
    evidence = _agreed(evidence, inventory, globals_)
    notes = () if hashes else (_NO_HASHES,)
    measured = evidence.model_copy(update={"archive": inventory, "notes": (*evidence.notes, *notes)})
    return Dump(
        artifacts=artifacts,
        evidence=measured,
        started_at=began,
        finished_at=datetime.now(UTC),
        tool_versions={name: str(programs.version(name)) for name in ("pg_dump", "pg_dumpall", "pg_restore")},
        warnings=(*warnings, *notes, *evidence.notes),
        opened=tuple(opened(into, artifacts, measured)),
    )


_NO_HASHES = "roles were dumped without password hashes, because the role may not read them: passwords must be set again after a restore"


@dataclass(frozen=True)
class _Job:
    """One dump under way."""

    connection: PostgresConnection
    options: DumpOptions
    into: Path
    set_id: str
    ctx: Context
    programs: Programs
    stop: CancelToken

    def hold_tables(self, session: Session) -> None:
        """Open the transaction and lock every table against changes of its structure; name who stands in the way."""
        try:
            begin_snapshot(session, lock=True)
        except LockNotGranted as exc:
            raise LockNotGranted(f"{exc.message}: {self._holders()}", hint=exc.hint, store="postgres") from None

    def side_by_side(self, session: Session, cut: Cut, method: str, hashes: bool) -> tuple[Written, Written, PostgresEvidence]:
        """Dump in this thread while another one measures in the exporting session. Whoever fails first stops the other."""
        failures: list[BaseException] = []
        lock = threading.Lock()

        def failed(error: BaseException, who: str) -> None:
            with lock:
                failures.append(error)
            self.stop.cancel(f"{who} failed")

        def measured(future: Future[PostgresEvidence]) -> None:
            if error := future.exception():
                failed(error, "measuring")

        scope = Scope(max_bytes=self.options.fingerprint_max_bytes)
        try:
            with ThreadPoolExecutor(1, thread_name_prefix="postgres-evidence") as pool:
                future = pool.submit(measure, session, cut, scope, Watch(self.ctx.progress, self.stop), password_hashes=hashes)
                future.add_done_callback(measured)
                try:
                    archive = self._pg_dump(cut.snapshot, method)
                    globals_ = self._globals(hashes)
                except BaseException as error:
                    if isinstance(error, ToolFailed) and cut.snapshot in error.stderr_tail:
                        # The snapshot is gone, and with it the session that exported it: the other half knows why.
                        wait([future], timeout=_SESSION_LOSS_S)
                    failed(error, "pg_dump")
                    raise
            return archive, globals_, future.result()
        except BaseException:
            self.ctx.cancel.check()
            if failures:
                raise failures[0] from None  # the other one was only told to stop
            raise

    def _pg_dump(self, snapshot: str, method: str) -> Written:
        options = [
            "--format=custom",
            f"--compress={method}",
            f"--snapshot={snapshot}",
            f"--lock-wait-timeout={int(self.options.lock_timeout_s * 1000)}",
            "--no-password",
        ]
        self.ctx.progress.start(DUMP_TASK, unit="bytes")
        try:
            written = self._stream("pg_dump", options, self.into / f"postgres_{self.set_id}.sql.custom", DUMP_TASK)
        except ToolFailed as exc:
            raise self._explained(exc) from None
        self.ctx.progress.finish(DUMP_TASK, f"{written.size:,} bytes")
        return written

    def _globals(self, hashes: bool) -> Written:
        options = ["--globals-only", f"--database={conninfo_dbname(self.connection.dbname)}", "--no-password"]
        if not hashes:
            options.append("--no-role-passwords")
        return self._stream("pg_dumpall", options, self.into / f"postgres_globals_{self.set_id}.sql", "")

    def _stream(self, program: str, options: list[str], path: Path, task: str) -> Written:
        advance: Callable[[int], None] | None = (lambda n: self.ctx.progress.advance(task, n)) if task else None
        with HashingWriter(path, on_bytes=advance) as out, self.programs.with_server(program, options, self.connection) as running:
            for block in running.chunks():
                out.write(block)
            running.finish()
        return out.result

    def _explained(self, exc: ToolFailed) -> ToolFailed:
        """Add who holds the lock that ``pg_dump`` did not get; its message names a whole list of tables."""
        hint = "Nothing was sealed. Look at the server's log for the same moment, then run again."
        if "lock timeout" in exc.stderr_tail:
            hint = f"{self._holders()}. Let it finish, then run again."
        return ToolFailed(exc.message, returncode=exc.returncode, stderr_tail=exc.stderr_tail, hint=hint, store="postgres")

    def _holders(self) -> str:
        with open_session(self.connection, cancel=self.ctx.cancel) as session:
            return "; ".join(blockers(session)) or "whoever held a table has let it go meanwhile"


@contextlib.contextmanager
def _linked(outer: CancelToken) -> Iterator[CancelToken]:
    """A token of our own that follows ``outer``, so that one half of the work can stop the other half only."""
    inner = CancelToken()
    with outer.on_cancel(lambda: inner.cancel(outer.reason)):
        yield inner


def _artifact(written: Written, kind: ArtifactKind, subject: str, compression: str) -> Artifact:
    return Artifact(
        store="postgres",
        kind=kind,
        path=written.path.name,
        size_bytes=written.size,
        sha256=written.sha256,
        compression=compression,
        subject=subject,
    )


def _agreed(evidence: PostgresEvidence, inventory: ArchiveInventory, globals_: Written) -> PostgresEvidence:
    """The evidence with the sequences as the dump carries them; raises unless the files hold what was measured.

    Sequences do not obey snapshots: under load their value at the cut and in the dump are two different ones, and the
    one in the dump is what a restore brings back.
    """
    wrong = [f"sequence {name} is in one of the two only" for name in sorted(evidence.sequences.keys() ^ inventory.sequences.keys())]
    evidence = evidence.model_copy(update={"sequences": inventory.sequences})
    wrong += archive_disagreements(evidence, inventory)
    text = globals_.path.read_text("utf-8", "backslashreplace")
    if missing := sorted(set(evidence.roles) - created_roles(text)):
        wrong.append(f"the globals file lacks the roles {', '.join(missing)}")
    if has_password_hashes(text) and not evidence.password_hashes:
        wrong.append("the globals file holds password hashes that were not asked for")
    if wrong:
        raise StoreError(
            "PostgreSQL: the dump does not hold what was measured in its own snapshot: " + "; ".join(wrong[:8]),
            hint="Were tables truncated, dropped or created at that very moment? Run again.",
            store="postgres",
        )
    return evidence
