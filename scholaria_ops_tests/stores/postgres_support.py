"""What the tests of the PostgreSQL store share: a database with a bit of everything, sets made of it, edited sets."""

from __future__ import annotations

import contextlib
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import psycopg
from psycopg.sql import SQL

from scholaria_ops.catalogue.artifacts import Artifact
from scholaria_ops.catalogue.evidence.postgres import PostgresEvidence
from scholaria_ops.catalogue.ledger import Ledger
from scholaria_ops.connections import PostgresConnection
from scholaria_ops.files import hash_file
from scholaria_ops.process import run
from scholaria_ops.sandbox.postgres import PostgresServer
from scholaria_ops.sandbox.sandbox import Sandbox
from scholaria_ops.sandbox.tools import Tools
from scholaria_ops.stores.base import Check, Context, Dump
from scholaria_ops.stores.postgres.names import quoted
from scholaria_ops.stores.postgres.store import PostgresStore

SET_ID = "20241001_020000"
#: Stands in a custom setting of the rich database, where it must never be found in anything that we write about it.
SECRET = "hunter2-in-a-setting"

#: Every kind of thing that a restore can lose, with names and values that are awkward on purpose.
RICH = r"""
CREATE EXTENSION pg_trgm;
CREATE TYPE mood AS ENUM ('glad', 'sad');
CREATE TYPE pair AS (x int, y text);
CREATE TYPE span AS RANGE (subtype = float8);
CREATE DOMAIN positive AS int CHECK (VALUE > 0);
CREATE TABLE topic (id serial PRIMARY KEY, name text NOT NULL, state varchar(10) DEFAULT 'open' CHECK (state IN ('open', 'done')),
    price numeric(10, 2), ratio float8, took interval, raw bytea, doc jsonb, cash money, bits bit(3), ids int[], at timestamptz,
    p pair, m mood, n positive, s span, twice numeric GENERATED ALWAYS AS (price * 2) STORED);
INSERT INTO topic (name, price, ratio, took, raw, doc, cash, bits, ids, at, p, m, n, s)
    SELECT '주제 ' || i, i / 3.0, i / 7.0, i * interval '1 month 2 days', decode(md5(i::text), 'hex'), jsonb_build_object('a', i), i::money,
           B'101', ARRAY[i, NULL], '2024-01-01 00:00+09'::timestamptz + i * interval '1 hour', ROW(i, 'y' || i)::pair, 'sad', i,
           span(i, i + 1) FROM generate_series(1, 200) i;
CREATE TABLE "We""ird; Type: TABLE" ("a b" int PRIMARY KEY, "q""c" text, "new
line" text, "row" text);
INSERT INTO "We""ird; Type: TABLE" VALUES (1, 'COPY x FROM stdin;', E'\\.', NULL), (2, E'\\.\n\\.\n', E'x\n--\n-- Data for Name', 'r');
CREATE TABLE no_columns ();
INSERT INTO no_columns DEFAULT VALUES;
INSERT INTO no_columns DEFAULT VALUES;
CREATE TABLE by_mood (m mood, x int) PARTITION BY HASH (m);
CREATE TABLE by_mood_0 PARTITION OF by_mood FOR VALUES WITH (MODULUS 2, REMAINDER 0);
CREATE TABLE by_mood_1 PARTITION OF by_mood FOR VALUES WITH (MODULUS 2, REMAINDER 1);
INSERT INTO by_mood SELECT (ARRAY['glad', 'sad'])[1 + i % 2]::mood, i FROM generate_series(1, 40) i;
CREATE TABLE by_name (id int, name text, PRIMARY KEY (id, name)) PARTITION BY LIST (name);
CREATE TABLE by_name_a PARTITION OF by_name FOR VALUES IN ('a');
CREATE TABLE by_name_rest PARTITION OF by_name DEFAULT;
INSERT INTO by_name VALUES (1, 'a'), (2, 'z');
CREATE TABLE child (topic_id int REFERENCES topic, at date, id int GENERATED ALWAYS AS IDENTITY) WITH (fillfactor = 70);
INSERT INTO child SELECT i, '2024-01-01'::date + i FROM generate_series(1, 50) i;
CREATE INDEX topic_name_idx ON topic USING gin (name gin_trgm_ops);
CREATE INDEX topic_open_idx ON topic (lower(name)) WHERE state IN ('open', 'late');
CREATE VIEW open_topics AS SELECT id, name FROM topic WHERE state = 'open';
CREATE MATERIALIZED VIEW topic_count AS SELECT count(*) AS n FROM topic;
CREATE MATERIALIZED VIEW not_filled AS SELECT 1 AS one WITH NO DATA;
CREATE RULE nothing AS ON DELETE TO open_topics DO INSTEAD NOTHING;
CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS $f$ BEGIN
--
-- Data for Name: x; Type: TABLE DATA; Schema: public; Owner: p
--

/*
COPY public.foo (a) FROM stdin;
\.
*/
RETURN new; END $f$;
CREATE TRIGGER touch_topic BEFORE UPDATE ON topic FOR EACH ROW EXECUTE FUNCTION touch();
CREATE PROCEDURE proc(INOUT a int) LANGUAGE sql AS 'SELECT a';
CREATE AGGREGATE total(int) (SFUNC = int4pl, STYPE = int, INITCOND = '0');
CREATE FUNCTION on_drop() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END';
CREATE EVENT TRIGGER watch ON ddl_command_start WHEN TAG IN ('DROP TABLE') EXECUTE FUNCTION on_drop();
CREATE STATISTICS topic_stats ON name, state FROM topic;
CREATE COLLATION plain (LOCALE = 'C');
CREATE TEXT SEARCH CONFIGURATION words (COPY = english);
CREATE SEQUENCE "S'q" INCREMENT -2 START 40 MAXVALUE 100 MINVALUE -100;
SELECT nextval('"S''q"');
CREATE TABLE secured (a int);
ALTER TABLE secured ENABLE ROW LEVEL SECURITY;
CREATE POLICY only_own ON secured FOR SELECT TO rich_reader USING (a > 1);
INSERT INTO secured VALUES (1), (2);
CREATE UNLOGGED TABLE fast AS SELECT 7 AS a;
CREATE TABLE alembic_version (version_num varchar(32) PRIMARY KEY);
INSERT INTO alembic_version VALUES ('0042_topics');
CREATE SCHEMA "my schema" AUTHORIZATION rich_owner;
CREATE TABLE "my schema"."order" ("user" int);
ALTER TABLE topic OWNER TO rich_owner;
GRANT SELECT ON topic TO rich_reader;
GRANT SELECT (a) ON secured TO rich_reader WITH GRANT OPTION;
GRANT USAGE ON SCHEMA "my schema" TO rich_reader;
REVOKE EXECUTE ON FUNCTION touch() FROM PUBLIC;
ALTER DEFAULT PRIVILEGES FOR ROLE rich_owner IN SCHEMA public GRANT SELECT ON TABLES TO rich_reader;
SELECT lo_from_bytea(0, decode(repeat('00ff5c27', 3000), 'hex')), lo_create(0);
COMMENT ON TABLE topic IS 'it''s a topic';
"""

#: ``{db}`` is the database's quoted name.
RICH_DATABASE = (
    'ALTER DATABASE {db} SET search_path TO public, "my schema"',
    f"ALTER DATABASE {{db}} SET app.secret TO '{SECRET}'",
    "ALTER ROLE rich_reader IN DATABASE {db} SET statement_timeout TO '5s'",
    "ALTER DATABASE {db} CONNECTION LIMIT 50",
    "COMMENT ON DATABASE {db} IS 'rich; ''very'' rich'",
    "REVOKE CONNECT, TEMPORARY ON DATABASE {db} FROM PUBLIC",
    "GRANT CONNECT ON DATABASE {db} TO rich_reader",
)
RICH_ROLES = (
    "CREATE ROLE rich_owner NOLOGIN",
    "CREATE ROLE rich_reader LOGIN PASSWORD 'reader''s' CONNECTION LIMIT 7 VALID UNTIL '2090-01-01'",
    'CREATE ROLE "rich ""; odd" LOGIN IN ROLE rich_reader',
    "ALTER ROLE rich_reader SET work_mem TO '7MB'",
    "COMMENT ON ROLE rich_reader IS E'reads;\\nno more'",
    "GRANT rich_owner TO rich_reader WITH ADMIN OPTION",
    "ALTER DATABASE {db} OWNER TO rich_owner",
)
_ROLE_NAMES = ("rich_owner", "rich_reader", 'rich "; odd')


def execute(connection: PostgresConnection, *statements: str) -> None:
    """Run statements as text, each in a transaction of its own."""
    with _connect(connection) as live:
        for statement in statements:
            live.execute(SQL(statement))


def ask(connection: PostgresConnection, query: str) -> list[tuple[object, ...]]:
    """All rows of a query."""
    with _connect(connection) as live:
        return live.execute(SQL(query)).fetchall()


def _connect(to: PostgresConnection) -> psycopg.Connection[tuple[object, ...]]:
    return psycopg.connect(
        host=to.host, port=to.port, dbname=to.dbname, user=to.user, password=to.password.get_secret_value(), autocommit=True
    )


@contextlib.contextmanager
def database(server: PostgresServer, name: str, *statements: str) -> Iterator[PostgresConnection]:
    """A new database, gone in the end; the connection is the superuser's."""
    execute(server.connection, f"CREATE DATABASE {quoted(name)} TEMPLATE template0")
    try:
        connection = server.connection.with_db(name)
        execute(connection, *statements)
        yield connection
    finally:
        execute(server.connection, f"DROP DATABASE IF EXISTS {quoted(name)} WITH (FORCE)")


@contextlib.contextmanager
def rich_database(server: PostgresServer, name: str) -> Iterator[PostgresConnection]:
    """The rich database with its roles."""
    drop_rich_roles(server)
    with database(server, name) as connection:
        try:
            execute(connection, *(s.format(db=quoted(name)) for s in RICH_ROLES), RICH)
            execute(connection, *(s.format(db=quoted(name)) for s in RICH_DATABASE))
            yield connection
        finally:
            execute(server.connection, f"DROP DATABASE IF EXISTS {quoted(name)} WITH (FORCE)")
            drop_rich_roles(server)


def drop_rich_roles(server: PostgresServer) -> None:
    execute(server.connection, *(f"DROP ROLE IF EXISTS {quoted(role)}" for role in _ROLE_NAMES))


def target_server(sandbox: Sandbox) -> PostgresServer:
    """A second server to restore into, shared by the modules of this store."""
    found = sandbox.servers.get("postgres-target")
    return found if isinstance(found, PostgresServer) else sandbox.postgres(name="postgres-target")


@contextlib.contextmanager
def emptied(target: PostgresServer) -> Iterator[PostgresServer]:
    """Take away what a test loads into the target: databases and roles."""
    try:
        yield target
    finally:
        for (name,) in ask(target.connection, "SELECT datname FROM pg_database WHERE datname !~ '^(postgres|template.)$'"):
            execute(target.connection, f"DROP DATABASE {quoted(str(name))} WITH (FORCE)")
        for (name,) in ask(target.connection, "SELECT rolname FROM pg_roles WHERE rolname !~ '^pg_' AND oid <> 10"):
            execute(target.connection, f"DROP ROLE {quoted(str(name))}")


@dataclass(frozen=True)
class MadeSet:
    """A directory with the artifacts of one dump."""

    store: PostgresStore
    directory: Path
    artifacts: tuple[Artifact, ...]
    evidence: PostgresEvidence

    def inspect(self, ctx: Context) -> list[Check]:
        return self.store.inspect(self.directory, self.artifacts, self.evidence, ctx)

    @property
    def dump_path(self) -> Path:
        return self.directory / self.artifacts[0].path

    def copied(self, to: Path) -> MadeSet:
        shutil.copytree(self.directory, to)
        return replace(self, directory=to)

    def edited(self, data: bytes, *, index: int = 0, recompute: bool = True) -> MadeSet:
        """One file replaced (0: dump, 1: globals); with ``recompute`` every digest of it follows, that in the evidence too."""
        path = self.directory / self.artifacts[index].path
        path.write_bytes(data)
        return self.recomputed(index) if recompute else self

    def recomputed(self, index: int = 0) -> MadeSet:
        """The digests of a file as a forger would write them."""
        written = hash_file(self.directory / self.artifacts[index].path)
        forged = self.artifacts[index].model_copy(update={"sha256": written.sha256, "size_bytes": written.size})
        artifacts = tuple(forged if i == index else a for i, a in enumerate(self.artifacts))
        archive = self.evidence.archive
        assert archive is not None
        if index == 0:
            archive = archive.model_copy(update={"sha256": written.sha256})
        return replace(self, artifacts=artifacts, evidence=self.evidence.model_copy(update={"archive": archive}))


def make_set(store: PostgresStore, directory: Path, ctx: Context, set_id: str = SET_ID) -> tuple[MadeSet, Dump[PostgresEvidence]]:
    """Dump into a new private directory. The evidence has been through JSON, as it would in a manifest."""
    directory.mkdir(mode=0o700)
    made = store.dump(directory, set_id, ctx)
    evidence = PostgresEvidence.model_validate_json(made.evidence.model_dump_json())
    assert evidence == made.evidence
    return MadeSet(store, directory, made.artifacts, evidence), made


def plain_context(base: Path, tools: Tools) -> Context:
    """For fixtures that live longer than one test."""
    scratch = base / "scratch"
    scratch.mkdir(mode=0o700, exist_ok=True)
    return Context(scratch=scratch, ledger=Ledger(base / "ledger.jsonl"), tools=tools)


def failed(checks: Sequence[Check]) -> dict[str, str]:
    """Name → detail of the checks that did not pass for sure."""
    return {check.name: check.detail for check in checks if check.passed is False}


def losses(store: PostgresStore, expected: PostgresEvidence, found: PostgresEvidence) -> list[str]:
    return [str(d) for d in store.compare(expected, found) if d.severity == "loss"]


def fake_bin(tools: Tools, directory: Path, name: str, script: str) -> Tools:
    """Tools where one program is a shell script of ours; ``$REAL`` in it is the real one."""
    assert tools.pg_bin_dir is not None
    directory.mkdir()
    for program in tools.pg_bin_dir.iterdir():
        (directory / program.name).symlink_to(program)
    fake = directory / name
    fake.unlink()
    fake.write_text(f"#!/bin/sh\nREAL='{tools.pg_bin_dir / name}'\n{script}\n")
    fake.chmod(0o755)
    directory.chmod(stat.S_IMODE(0o755))
    return replace(tools, pg_bin_dir=directory)


def pg_run(tools: Tools, connection: PostgresConnection, name: str, *options: str, env: Mapping[str, str] | None = None) -> bytes:
    """Run one of PostgreSQL's programs by hand."""
    return run([str(tools.require_pg(name)), *options], env={**connection.libpq_env(), **tools.pg_env, **(env or {})}).stdout


class Listener:
    """Progress that calls ``hook`` once, when ``task`` advances for the first time."""

    def __init__(self, task: str, hook: Callable[[], None]) -> None:
        self._task = task
        self._hook: Callable[[], None] | None = hook

    def start(self, task: str, *, total: int | None = None, unit: str = "bytes") -> None:
        return

    def advance(self, task: str, amount: int) -> None:
        if task == self._task and self._hook:
            hook, self._hook = self._hook, None
            hook()

    def finish(self, task: str, note: str = "") -> None:
        return

    def say(self, text: str) -> None:
        return


def our_children() -> list[psutil.Process]:
    """Programs of PostgreSQL that we started and that still run (servers excepted)."""
    found = []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it ended while we looked
            if child.name() in {"pg_dump", "pg_dumpall", "pg_restore"}:
                found.append(child)
    return found


def wait_until(condition: Callable[[], bool], patience_s: float = 60.0) -> None:
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


BACKENDS = "SELECT pid, query FROM pg_stat_activity WHERE application_name = 'scholaria-ops'"
