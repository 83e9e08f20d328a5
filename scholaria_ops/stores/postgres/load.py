"""Load an archive into a database that does not exist yet: the primitive under rehearsals and restores.

The order is chosen so that a refusal comes before anything is touched and a failure leaves nothing behind: look at the
target, create missing roles, create the database, load it, give it its settings and grants, collect statistics.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scholaria_ops.catalogue.artifacts import Artifact
from scholaria_ops.catalogue.evidence.postgres import DatabaseEvidence, PostgresEvidence
from scholaria_ops.connections import PostgresConnection
from scholaria_ops.errors import OpsError, Refused, ToolFailed, ToolMissing, VerificationFailed
from scholaria_ops.files import BLOCK
from scholaria_ops.process import redact
from scholaria_ops.stores.base import Context, Loaded
from scholaria_ops.stores.postgres.bulk import session_settings
from scholaria_ops.stores.postgres.globals_file import plan, statements
from scholaria_ops.stores.postgres.inspect import authenticate, require
from scholaria_ops.stores.postgres.names import conninfo_dbname, quoted
from scholaria_ops.stores.postgres.programs import Programs, lines
from scholaria_ops.stores.postgres.session import Session, open_session

TASK = "postgres: load"
_NAME = r'(?:"(?:[^"]|"")*"|[^\s;,"]+)'
#: Statements about the database itself, with the place where its name stands.
_ABOUT_DATABASE = re.compile(
    rf"((?:ALTER|COMMENT ON|SECURITY LABEL .*? ON|(?:GRANT|REVOKE) .*? ON) DATABASE |ALTER ROLE {_NAME} IN DATABASE )({_NAME})(.*)\Z",
    re.DOTALL,
)
_DATABASE_ENTRY = re.compile(rb"\d+; \d+ \d+ (?:DATABASE(?: PROPERTIES)? - |(?:ACL|COMMENT|SECURITY LABEL) - DATABASE )")
#: What a server without the source's locale is given instead, best first.
_LOCALES_INSTEAD = ("C.UTF-8", "C.utf8", "C")
_NO_SUCH_LOCALE = {"22023", "42809", "0A000", "42704", "22P02"}


@dataclass
class Load:
    """One load under way: where to, how, and how long each phase took (seconds)."""

    #: The target's superuser on a database other than the one that is made.
    connection: PostgresConnection
    dbname: str
    evidence: PostgresEvidence
    ctx: Context
    jobs: int = 2
    #: Subscriptions would pull data from the live publisher: only a restore of the live system wants them.
    subscriptions: bool = False
    #: Object id of the database that is made (servers from 15 on); by default the server chooses one.
    oid: int | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self.ctx.cancel.check()
        began = time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - began

    @property
    def programs(self) -> Programs:
        return Programs(self.ctx.tools, self.ctx.cancel)

    def done(self) -> Loaded:
        return Loaded(seconds=dict(self.seconds), warnings=tuple(self.warnings))


def check_target(session: Session, evidence: PostgresEvidence, programs: Programs) -> None:
    """Refuse a target that cannot take this dump; nothing has been touched yet.

    Raises:
        Refused: the server is older than the source, or lacks an extension (both are named).
        ToolMissing: ``pg_restore`` is older than the source.
    """
    source = evidence.server_version_num // 10000
    if session.major < source:
        raise Refused(
            f"the dump comes from PostgreSQL {evidence.server_version}, the target at {session.where} is {session.version}",
            hint=f"Restore into PostgreSQL {source} or newer.",
            store="postgres",
        )
    program = programs.version("pg_restore")
    if program.major < source:
        raise ToolMissing(
            f"pg_restore is {program}; the dump comes from PostgreSQL {evidence.server_version}",
            hint=f"Install postgresql-client-{source} and point PG_BIN_DIR at its programs.",
            store="postgres",
        )
    available = {name for (name,) in session.rows("SELECT name::text FROM pg_available_extensions")}
    missing = sorted(set(evidence.extensions) - available)
    if missing:
        raise Refused(
            f"the target at {session.where} does not offer the extensions {', '.join(missing)}, which the dump needs",
            hint="Install their packages on that server first.",
            store="postgres",
        )


def load_set(directory: Path, artifacts: Sequence[Artifact], load: Load, *, replace_empty: bool = False) -> Loaded:
    """Roles and database of a set; see :func:`load_archive`.

    The database must not exist, or, with ``replace_empty`` (throw-away targets), hold nothing at all.
    """
    archive, globals_ = require(artifacts, "dump"), require(artifacts, "globals")
    with load.phase("authenticate"):
        for artifact in (archive, globals_):
            authenticate(directory / artifact.path, artifact)
    with open_session(load.connection, cancel=load.ctx.cancel) as session:
        check_target(session, load.evidence, load.programs)
        if replace_empty:
            _drop_if_empty(session, load)
        _require_absent(session, load.dbname)
    load_roles(directory / globals_.path, load)
    load_archive(directory / archive.path, load)
    return load.done()


def load_roles(path: Path, load: Load, *, session: Session | None = None, made: Callable[[Mapping[str, int]], None] | None = None) -> None:
    """Create the roles that the target lacks, with their memberships, all or none. A role that exists keeps what it has.

    ``made`` is told the created roles and their object ids before anybody else can see them. ``session`` is used instead
    of a new one, if given.
    """
    with load.phase("roles"), _session(load, session) as using:
        existing = frozenset(name for (name,) in using.rows("SELECT rolname::text FROM pg_roles"))
        todo = plan(path.read_text("utf-8"), existing, load.evidence.bootstrap_role)
        using.execute("BEGIN")
        try:
            for statement in todo.run:
                _run(using, statement)
            if made and todo.created:
                made(dict(using.rows("SELECT rolname::text, oid FROM pg_roles WHERE rolname = ANY (%s)", (list(todo.created),))))
        except BaseException:
            with contextlib.suppress(OpsError):  # a broken connection has rolled back already
                using.execute("ROLLBACK")
            raise
        using.execute("COMMIT")
    kept = sorted(set(todo.kept) - {load.connection.user})
    if kept:
        load.warnings.append(f"roles that were there already and kept their passwords and attributes: {', '.join(kept)}")
    if todo.skipped:
        load.warnings.append(f"left out of the globals: {', '.join(sorted(set(todo.skipped)))}")
    if todo.created and not load.evidence.password_hashes:
        load.warnings.append("the set has no password hashes: give the created roles passwords")


def load_archive(archive: Path, load: Load, *, session: Session | None = None, statistics: bool = True) -> None:
    """Create ``load.dbname`` and fill it from ``archive``, whose digest the caller has checked.

    The database is dropped again if anything fails. Raises :class:`Refused` if it exists already. ``session`` is used
    instead of a new one, if given. Without ``statistics`` the caller has to :func:`analyze`.
    """
    with _session(load, session) as using:
        _require_absent(using, load.dbname)
        try:
            with load.phase("create"):
                _create(using, load)
            load.ctx.progress.start(TASK, unit="bytes")
            with load.phase("data"):
                _pg_restore(archive, load)
            with load.phase("properties"):
                for statement in database_statements(archive, load):
                    _run(using, statement)
            if statistics:
                analyze(load)
        except BaseException:
            _drop(load)
            raise
    load.ctx.progress.finish(TASK, f"{load.evidence.rows:,} rows in {sum(load.seconds.values()):.1f} s")


def analyze(load: Load) -> None:
    """Collect the statistics of what was loaded: without them the first queries may take plans that never end."""
    with load.phase("analyze"), open_session(load.connection.with_db(load.dbname), cancel=load.ctx.cancel) as inside:
        inside.execute("ANALYZE")


def _session(load: Load, given: Session | None) -> contextlib.AbstractContextManager[Session]:
    return contextlib.nullcontext(given) if given else open_session(load.connection, cancel=load.ctx.cancel)


def _drop_if_empty(session: Session, load: Load) -> None:
    """Drop a database that holds nothing; raise :class:`Refused` if it holds anything."""
    if not _exists(session, load.dbname):
        return
    with open_session(load.connection.with_db(load.dbname), cancel=load.ctx.cancel) as inside:
        found = inside.rows(
            "SELECT n.nspname || '.' || c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
            " WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' ORDER BY 1 LIMIT 3"
        )
    if found:
        raise Refused(
            f"the target database {load.dbname} at {load.connection.where} is not empty: it holds {', '.join(n for (n,) in found)} …",
            hint="Choose a target without that database.",
            store="postgres",
        )
    _run(session, f"DROP DATABASE {quoted(load.dbname)}")


def _exists(session: Session, dbname: str) -> bool:
    return bool(session.rows("SELECT 1 FROM pg_database WHERE datname = %s", (dbname,)))


def _require_absent(session: Session, dbname: str) -> None:
    if _exists(session, dbname):
        raise Refused(
            f"the target at {session.where} has a database {dbname} already",
            hint="Nothing is ever restored over an existing database: choose another name.",
            store="postgres",
        )


def _create(session: Session, load: Load) -> None:
    database = load.evidence.database
    try:
        _run(session, _create_statement(load.dbname, database, load.oid))
    except _ServerSaid as exc:
        if exc.sqlstate not in _NO_SUCH_LOCALE:
            raise
        instead = _create_with_another_locale(session, load, database.encoding)
        load.warnings.append(
            f"the target does not offer the locale {database.locale or database.collate} ({database.provider}); {instead} is used,"
            " so text may sort differently"
        )


def _create_statement(dbname: str, database: DatabaseEvidence, oid: int | None) -> str:
    options = [
        *_with_oid(oid),
        f"ENCODING = {_literal(database.encoding)}",
        f"LC_COLLATE = {_literal(database.collate)}",
        f"LC_CTYPE = {_literal(database.ctype)}",
    ]
    if database.provider != "libc" and database.locale:
        word = "ICU_LOCALE" if database.provider == "icu" else "BUILTIN_LOCALE"
        options += [f"LOCALE_PROVIDER = {database.provider}", f"{word} = {_literal(database.locale)}"]
    return f"CREATE DATABASE {quoted(dbname)} TEMPLATE = template0 {' '.join(options)}"


def _with_oid(oid: int | None) -> list[str]:
    return [] if oid is None else [f"OID = {oid:d}"]


def _create_with_another_locale(session: Session, load: Load, encoding: str) -> str:
    provider = " LOCALE_PROVIDER = libc" if session.major >= 15 else ""
    for locale in _LOCALES_INSTEAD:
        name = _literal(locale)
        statement = f"CREATE DATABASE {quoted(load.dbname)} TEMPLATE = template0 ENCODING = {_literal(encoding)}"
        try:
            _run(session, " ".join([f"{statement}{provider} LC_COLLATE = {name} LC_CTYPE = {name}", *_with_oid(load.oid)]))
        except _ServerSaid as exc:
            if exc.sqlstate not in _NO_SUCH_LOCALE or locale == _LOCALES_INSTEAD[-1]:
                raise
        else:
            return locale
    raise AssertionError("the last locale either worked or raised")  # pragma: no cover


def _pg_restore(archive: Path, load: Load) -> None:
    options = ["--format=custom", "--exit-on-error", f"--jobs={load.jobs}", "--no-password", f"--dbname={conninfo_dbname(load.dbname)}"]
    with open_session(load.connection, cancel=load.ctx.cancel) as session:
        have = {name for (name,) in session.rows("SELECT spcname::text FROM pg_tablespace")}
        settings = session_settings(session, load.evidence)
    if absent := sorted(set(load.evidence.database.tablespaces) - have):
        options.append("--no-tablespaces")
        load.warnings.append(f"the target lacks the tablespaces {', '.join(absent)}: everything is in the default one")
    if load.evidence.replication.subscriptions and not load.subscriptions:
        options.append("--no-subscriptions")
        load.warnings.append(f"subscriptions were not made: {', '.join(load.evidence.replication.subscriptions)}")
    with load.programs.with_server("pg_restore", [*options, str(archive.resolve())], load.connection, settings=settings) as running:
        for _ in running.chunks(BLOCK):
            pass  # it writes nothing; this waits for its end and honours cancellation
        try:
            running.finish()
        except ToolFailed as exc:
            exc.hint = "The half-loaded database was removed again; the source and the set are untouched."
            raise


def database_statements(archive: Path, load: Load) -> list[str]:
    """Owner, settings, grants and comment of the database itself, said of ``load.dbname``.

    They are in the archive, but ``pg_restore`` runs them only when it creates the database itself, under its old name.
    Only the entries about the database are asked for, so nothing that a user wrote can pose as one of them.
    """
    programs = load.programs
    with programs.on_archive(["--create", "--list"], archive, unprivileged=False) as running:
        wanted = [line for line in lines(running.chunks(BLOCK)) if _DATABASE_ENTRY.match(line)]
        running.finish()
    listing = load.ctx.scratch / "database-entries.list"
    listing.write_bytes(b"\n".join(wanted) + b"\n")
    try:
        with programs.on_archive(["--create", f"--use-list={listing}", "--file=-"], archive, unprivileged=False) as running:
            text = b"".join(running.chunks(BLOCK)).decode()
            running.finish()
    finally:
        listing.unlink()
    return list(_retargeted(text, load.dbname))


def _retargeted(text: str, dbname: str) -> Iterator[str]:
    for statement in statements(text):
        if match := _ABOUT_DATABASE.match(statement):
            yield f"{match[1]}{quoted(dbname)}{match[3]}"
        elif not statement.startswith(("SET ", "SELECT pg_catalog.set_config(", "CREATE DATABASE ")):
            raise VerificationFailed(f"a statement about the database is not understood: {statement[:60]!r}", store="postgres")


def _drop(load: Load) -> None:
    """Remove what this load made; its own failure must not hide the first one, so it is only told."""
    try:
        with open_session(load.connection) as session:
            mine = session.rows("SELECT 1 FROM pg_database WHERE datname = %s AND oid = coalesce(%s::oid, oid)", (load.dbname, load.oid))
            if mine:
                _run(session, f"DROP DATABASE {quoted(load.dbname)} WITH (FORCE)")
    except OpsError as exc:
        load.ctx.log.warning("could not remove the half-loaded database %s at %s: %s", load.dbname, load.connection.where, exc.message)


class _ServerSaid(OpsError):
    """A statement failed; carries the server's five-character code."""

    code = "store"

    def __init__(self, message: str, sqlstate: str | None) -> None:
        super().__init__(message, store="postgres")
        self.sqlstate = sqlstate


def _run(session: Session, statement: str) -> None:
    """Run one statement as text. Passwords may stand in it, so it is not repeated in errors."""
    import psycopg

    try:
        execute: Any = session.connection.execute
        execute(statement)
    except psycopg.Error as exc:
        session.check_cancelled()
        words = redact(" ".join((exc.diag.message_primary or str(exc)).split()), re.findall(r"PASSWORD '([^']*)'", statement))
        begin = " ".join(statement.split()[:4])
        raise _ServerSaid(f"PostgreSQL at {session.where}: {begin} …: {words}", exc.sqlstate) from None


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
