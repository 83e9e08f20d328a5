"""Take a database from a dump of an old-style set: load it into a throw-away server, and dump it from there with its evidence.

An old dump comes without the roles that it names. They are found by trying its schema alone: each attempt ends at the first
role that is missing, which is then made, without a password and without the right to log in.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from scholaria_ops.catalogue.artifacts import Artifact
from scholaria_ops.catalogue.evidence.postgres import DatabaseEvidence, LargeObjects, PostgresEvidence
from scholaria_ops.connections import PostgresConnection
from scholaria_ops.errors import OpsError, Refused, ToolFailed
from scholaria_ops.files import BLOCK, write_private
from scholaria_ops.sandbox.postgres import PostgresServer
from scholaria_ops.stores.base import Context, Dump
from scholaria_ops.stores.postgres.dump import DumpOptions, dump
from scholaria_ops.stores.postgres.globals_file import statements, unquoted
from scholaria_ops.stores.postgres.inspect import require
from scholaria_ops.stores.postgres.load import Load, database_statements, load_archive
from scholaria_ops.stores.postgres.names import conninfo_dbname
from scholaria_ops.stores.postgres.programs import Programs
from scholaria_ops.stores.postgres.session import Session, open_session

#: No dump of an application names more roles than this.
_MAX_ROLES = 500
_NO_ROLE = re.compile(r'role "(.*)" does not exist')
_CREATE_DATABASE = b"CREATE DATABASE "
_OPTION = re.compile(r"(\w+) = (?:'((?:[^']|'')*)'|(\w+))")
_ABOUT_ROLE = re.compile(r'(?:CREATE|ALTER) ROLE ("(?:[^"]|"")*"|[^\s;,"]+)')
_TRIAL = "scholaria_adopt_trial"
_ARCHIVE = b"PGDMP"
_GZIP_MAGIC = b"\x1f\x8b"
_OWNERS = (
    "SELECT pg_get_userbyid(c.relowner)::text, count(*) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
    " WHERE c.relkind IN ('r', 'p') AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' GROUP BY 1 ORDER BY 2 DESC, 1"
)


@dataclass(frozen=True, slots=True)
class Old:
    """A dump of an old-style set: an archive, or plain SQL, compressed by gzip or not."""

    path: Path
    #: Name of the database that it becomes: the live one's.
    dbname: str
    cut_at: datetime


def adopt(old: Old, target: PostgresServer, options: DumpOptions, into: Path, set_id: str, ctx: Context) -> Dump[PostgresEvidence]:
    """Load an old dump into ``target``, a fresh server of the sandbox, and dump it from there below ``into``.

    Raises:
        ToolFailed: it cannot be loaded, in its program's own words: damaged, of a newer version, of an extension that is not here.
        Refused: it holds no table.
    """
    job = _Job(old, target.connection, ctx)
    database = job.load()
    made = dump(target.connection.with_db(old.dbname), options, into, set_id, ctx)
    artifacts, evidence = _without_bootstrap(made, into)
    return replace(
        made,
        artifacts=artifacts,
        evidence=evidence.model_copy(
            update={
                "cut_at": old.cut_at,
                "database": _as_it_was(evidence.database, database),
                # A throw-away server's: they tell nothing of the database that was dumped once.
                "system_identifier": None,
                "oldest_transaction": None,
                "timeline": None,
            }
        ),
        warnings=(*made.warnings, *_warnings(old, job.roles, database)),
        opened=(),
    )


@dataclass
class _Job:
    """One load under way. ``roles``: what had to be made for it."""

    old: Old
    server: PostgresConnection
    ctx: Context
    roles: tuple[str, ...] = ()

    @property
    def maintenance(self) -> PostgresConnection:
        """A database other than the one that is made."""
        return self.server.with_db("template1")

    @property
    def programs(self) -> Programs:
        return Programs(self.ctx.tools, self.ctx.cancel)

    def load(self) -> DatabaseEvidence | None:
        """Fill the database; returns what the dump says of it, None where it says nothing."""
        self._drop(self.old.dbname)
        if _begins_with(self.old.path, _ARCHIVE):
            said = _said_of_database(self.old, self.programs)
            load = Load(self.maintenance, self.old.dbname, _stand_in(said), self.ctx)
            self._making_roles(lambda: self._try_schema(load))
            load_archive(self.old.path, load)
        else:
            said = None
            self._making_roles(self._run_sql)
        self._settle_owner(told=said is not None)
        return said

    def _making_roles(self, attempt: Callable[[], None]) -> None:
        """Repeat an attempt until no role is missing."""
        while True:
            self.ctx.cancel.check()
            try:
                attempt()
            except OpsError as exc:
                text = exc.stderr_tail if isinstance(exc, ToolFailed) else exc.message
                found = _NO_ROLE.search(text)
                if found is None or found[1] in self.roles or len(self.roles) >= _MAX_ROLES:
                    raise
                self._make_role(found[1])
            else:
                return

    def _make_role(self, name: str) -> None:
        from psycopg.sql import SQL, Identifier

        with open_session(self.maintenance, cancel=self.ctx.cancel) as session:
            session.execute(SQL("CREATE ROLE {} NOLOGIN").format(Identifier(name)))
        self.roles = (*self.roles, name)

    def _try_schema(self, load: Load) -> None:
        """Everything but the data, into a database that is dropped again."""
        trial = replace(load, dbname=_TRIAL)
        self._create(_TRIAL)
        try:
            options = ["--format=custom", "--exit-on-error", "--schema-only", "--no-password", f"--dbname={conninfo_dbname(_TRIAL)}"]
            self._program("pg_restore", [*options, str(self.old.path.resolve())])
            with open_session(self.maintenance, cancel=self.ctx.cancel) as session:
                for statement in database_statements(self.old.path, trial):
                    _run(session, statement)
        finally:
            self._drop(_TRIAL)

    def _run_sql(self) -> None:
        """Plain SQL can only be run as a whole."""
        self._drop(self.old.dbname)
        self._create(self.old.dbname)
        with _unpacked(self.old.path, self.ctx) as path:
            options = ["--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", "--no-password"]
            self._program("psql", [*options, f"--dbname={conninfo_dbname(self.old.dbname)}", f"--file={path.resolve()}"])

    def _program(self, name: str, options: list[str]) -> None:
        with self.programs.with_server(name, options, self.server) as running:
            for _ in running.chunks(BLOCK):
                pass  # nobody reads it; this waits for its end and honours cancellation
            try:
                running.finish()
            except ToolFailed as exc:
                exc.message = f"{self.old.path.name} cannot be loaded: {exc.message}"
                exc.hint = "Nothing of it was taken over. Use another old set, or install what the message asks for on this host."
                raise

    def _settle_owner(self, *, told: bool) -> None:
        """Refuse a database without tables; give one whose dump does not tell its owner to who owns most of them."""
        from psycopg.sql import SQL, Identifier

        with open_session(self.server.with_db(self.old.dbname), cancel=self.ctx.cancel) as session:
            owners = session.rows(_OWNERS)
            if not owners:
                raise Refused(
                    f"{self.old.path.name} holds no table",
                    hint="Was it made with pg_dumpall, or with --create? Only dumps of one database are taken over.",
                    store="postgres",
                )
            if not told:
                session.execute(SQL("ALTER DATABASE {} OWNER TO {}").format(Identifier(self.old.dbname), Identifier(owners[0][0])))

    def _create(self, name: str) -> None:
        from psycopg.sql import SQL, Identifier

        with open_session(self.maintenance, cancel=self.ctx.cancel) as session:
            session.execute(SQL("CREATE DATABASE {} TEMPLATE template0 ENCODING 'UTF8'").format(Identifier(name)))

    def _drop(self, name: str) -> None:
        """The server is ours alone, and thrown away soon."""
        from psycopg.sql import SQL, Identifier

        with open_session(self.maintenance, cancel=self.ctx.cancel) as session:
            session.execute(SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(Identifier(name)))


def _begins_with(path: Path, magic: bytes) -> bool:
    with path.open("rb") as source:
        return source.read(len(magic)) == magic


@contextlib.contextmanager
def _unpacked(path: Path, ctx: Context) -> Iterator[Path]:
    """The SQL as a file: itself, or unpacked into the scratch directory."""
    if not _begins_with(path, _GZIP_MAGIC):
        yield path
        return
    from isal import igzip

    from scholaria_ops.files import HashingWriter

    plain = ctx.scratch / "old-dump.sql"
    with igzip.open(path, "rb") as source, HashingWriter(plain) as out:  # type: ignore[no-untyped-call]
        while block := source.read(BLOCK):
            ctx.cancel.check()
            out.write(block)
    try:
        yield plain
    finally:
        plain.unlink()


def _run(session: Session, statement: str) -> None:
    with session.told():
        execute: Any = session.connection.execute
        execute(statement)


def _said_of_database(old: Old, programs: Programs) -> DatabaseEvidence:
    """Encoding and locale of the database that was dumped, from the statement that would create it."""
    said: dict[str, str] = {}
    for line in programs.lines_of_archive(["--create", "--schema-only", "--file=-"], old.path):
        if not said and line.startswith(_CREATE_DATABASE):
            said = {m[1]: (m[2] or m[3] or "").replace("''", "'") for m in _OPTION.finditer(line.decode("utf-8", "replace"))}
    locale = said.get("LOCALE", "C.UTF-8")
    return DatabaseEvidence(
        name=old.dbname,
        owner="",
        encoding=said.get("ENCODING", "UTF8"),
        provider=said.get("LOCALE_PROVIDER", "libc"),
        collate=said.get("LC_COLLATE", locale),
        ctype=said.get("LC_CTYPE", locale),
        locale=said.get("ICU_LOCALE") or said.get("BUILTIN_LOCALE"),
        size_bytes=0,
    )


def _stand_in(database: DatabaseEvidence) -> PostgresEvidence:
    """What loading needs to know of a dump that has no evidence: the properties of its database."""
    return PostgresEvidence(
        server_version="",
        server_version_num=0,
        cut_at=datetime.fromtimestamp(0).astimezone(),
        lsn="",
        database=database,
        tables={},
        sequences={},
        objects={},
        grants={},
        extensions={},
        roles={},
        bootstrap_role="",
        large_objects=LargeObjects(count=0, fingerprint=None),
    )


def _as_it_was(measured: DatabaseEvidence, said: DatabaseEvidence | None) -> DatabaseEvidence:
    """The database with the locale that it had: this host may not have offered it to the throw-away server."""
    if said is None:
        return measured
    return measured.model_copy(update={name: getattr(said, name) for name in ("provider", "collate", "ctype", "locale")})


def _without_bootstrap(made: Dump[PostgresEvidence], into: Path) -> tuple[tuple[Artifact, ...], PostgresEvidence]:
    """Leave the throw-away server's first role out: a restore must not make it, a superuser, where there is none of that name.

    Where something in the dump belongs to a role of that name it is made, if it is missing, with no right at all.
    """
    evidence = made.evidence
    bootstrap = evidence.bootstrap_role
    old = require(made.artifacts, "globals")
    path = into / old.path
    kept = [s for s in statements(path.read_text("utf-8")) if not ((m := _ABOUT_ROLE.match(s)) and unquoted(m[1]) == bootstrap)]
    owners = {evidence.database.owner, *(o.owner for o in evidence.objects.values())}
    if bootstrap in owners or any(bootstrap in text for grant in evidence.grants.items() for text in grant):
        kept.append(f"CREATE ROLE {bootstrap}")
        kept.append(f"ALTER ROLE {bootstrap} WITH NOSUPERUSER NOCREATEROLE NOCREATEDB NOLOGIN NOREPLICATION NOBYPASSRLS")
    path.unlink()
    written = write_private(path, "".join(f"{s};\n" for s in kept).encode())
    artifact = old.model_copy(update={"size_bytes": written.size, "sha256": written.sha256})
    roles = {name: role for name, role in evidence.roles.items() if name != bootstrap}
    return (
        tuple(artifact if a.kind == "globals" else a for a in made.artifacts),
        evidence.model_copy(update={"roles": roles, "password_hashes": False}),
    )


def _warnings(old: Old, roles: tuple[str, ...], said: DatabaseEvidence | None) -> Iterator[str]:
    if roles:
        yield (
            f"{old.path.name} names the roles {', '.join(sorted(roles))}, but an old set holds no roles: where one is missing it is made "
            "without a password and without the right to log in"
        )
    if said is None:
        yield (
            f"{old.path.name} is plain SQL, which does not tell the locale, owner, settings and grants of the database itself: the locale "
            "C.UTF-8 is recorded, and the owner of most tables"
        )
    yield f"{old.path.name} does not tell the zone of its time: the set's name is read in BACKUP_TIMEZONE"
