"""Bringing a set back on another real server, finding it equal by content, and seeing whatever is missing."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from scholaria_ops.cancel import CancelToken
from scholaria_ops.catalogue.evidence.postgres import ExtensionEvidence
from scholaria_ops.connections import PostgresConnection
from scholaria_ops.errors import Cancelled, Refused, ToolFailed
from scholaria_ops.process import run
from scholaria_ops.sandbox.postgres import PostgresServer
from scholaria_ops.sandbox.sandbox import Sandbox
from scholaria_ops.sandbox.tools import Tools
from scholaria_ops.stores.postgres.load import Load, load_archive, load_roles
from scholaria_ops.stores.postgres.store import PostgresStore, measure_database
from scholaria_ops_tests.conftest import ContextFactory
from scholaria_ops_tests.stores.postgres_support import (
    MadeSet,
    ask,
    database,
    emptied,
    execute,
    losses,
    make_set,
    our_children,
    plain_context,
    rich_database,
    target_server,
    wait_until,
)

NAME = "rich load"


@pytest.fixture(scope="module")
def rich(pg_server: PostgresServer) -> Iterator[PostgresConnection]:
    with rich_database(pg_server, NAME) as connection:
        yield connection


@pytest.fixture(scope="module")
def sealed(rich: PostgresConnection, tools: Tools, tmp_path_factory: pytest.TempPathFactory) -> MadeSet:
    base = tmp_path_factory.mktemp("rich-load")
    return make_set(PostgresStore(rich), base / "set", plain_context(base, tools))[0]


@pytest.fixture
def target(sandbox: Sandbox) -> Iterator[PostgresServer]:
    with emptied(target_server(sandbox)) as server:
        yield server


@pytest.fixture(scope="module")
def restored(sealed: MadeSet, sandbox: Sandbox, tools: Tools, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    """A server of its own with the rich set on it, for tests that break one thing and put it back."""
    server = sandbox.postgres(name="restored")
    ctx = plain_context(tmp_path_factory.mktemp("restored"), tools)
    sealed.store.load(sealed.directory, sealed.artifacts, sealed.evidence, server, ctx)
    yield server
    server.stop()


def databases(server: PostgresServer) -> set[str]:
    return {str(name) for (name,) in ask(server.connection, "SELECT datname FROM pg_database")}


def roles(server: PostgresServer) -> set[str]:
    return {str(name) for (name,) in ask(server.connection, "SELECT rolname FROM pg_roles WHERE rolname !~ '^pg_'")}


def test_f12_a_loaded_set_equals_its_evidence_roles_settings_and_grants_included(
    sealed: MadeSet, target: PostgresServer, context_factory: ContextFactory
) -> None:
    assert roles(target) == {"postgres"}
    loaded = sealed.store.load(sealed.directory, sealed.artifacts, sealed.evidence, target, context_factory())
    assert set(loaded.seconds) == {"authenticate", "roles", "create", "data", "properties", "analyze"}
    assert loaded.warnings == ()
    found = sealed.store.probe(target, sealed.evidence, context_factory())
    differences = sealed.store.compare(sealed.evidence, found)
    assert [str(d) for d in differences if d.severity == "loss"] == []
    # Rows of a table hashed by an enum may lie in other partitions, because enum values have other ids: told, not a loss.
    assert {d.what.partition(":")[0] for d in differences} <= {
        "table public.by_mood_0",
        "table public.by_mood_1",
        "table public.not_filled",
    }
    to = target.connection.with_db(NAME)
    assert ask(to, "SELECT setdatabase <> 0, setconfig FROM pg_db_role_setting WHERE 'app.secret=hunter2-in-a-setting' = ANY (setconfig)")
    assert ask(to, "SELECT reltuples FROM pg_class WHERE relname = 'topic'") == [(200.0,)]
    reader = to.model_copy(update={"user": "rich_reader"})
    with pytest.raises(Exception, match="password authentication failed"):
        ask(reader, "SELECT 1")
    assert ask(reader.model_copy(update={"password": type(reader.password)("reader's")}), "SELECT count(*) FROM topic") == [(200,)]


@pytest.mark.parametrize(
    ("damage", "repair", "what"),
    [
        ("ALTER TABLE child DROP CONSTRAINT child_topic_id_fkey",
         "ALTER TABLE child ADD CONSTRAINT child_topic_id_fkey FOREIGN KEY (topic_id) REFERENCES topic",
         "constraint public.child child_topic_id_fkey: expected present, found absent"),
        ("DROP INDEX topic_name_idx", "CREATE INDEX topic_name_idx ON topic USING gin (name gin_trgm_ops)",
         "index public.topic_name_idx: expected present, found absent"),
        ("ALTER TABLE topic DISABLE TRIGGER touch_topic", "ALTER TABLE topic ENABLE TRIGGER touch_topic",
         "trigger public.topic touch_topic: definition"),
        ("DROP TRIGGER touch_topic ON topic", "CREATE TRIGGER touch_topic BEFORE UPDATE ON topic FOR EACH ROW EXECUTE FUNCTION touch()",
         "trigger public.topic touch_topic: expected present, found absent"),
        ("ALTER SEQUENCE \"S'q\" RENAME TO other", "ALTER SEQUENCE other RENAME TO \"S'q\"", "sequence public.\"S'q\": expected present"),
        ("SELECT setval('child_id_seq', 9)", "SELECT setval('child_id_seq', 50)", "sequence public.child_id_seq: expected"),
        ("ALTER TABLE topic OWNER TO postgres", "ALTER TABLE topic OWNER TO rich_owner", "table public.topic: owner: expected rich_owner"),
        ("REVOKE SELECT ON topic FROM rich_reader", "GRANT SELECT ON topic TO rich_reader", "grants on table public.topic"),
        ("ALTER DEFAULT PRIVILEGES FOR ROLE rich_owner IN SCHEMA public REVOKE SELECT ON TABLES FROM rich_reader",
         "ALTER DEFAULT PRIVILEGES FOR ROLE rich_owner IN SCHEMA public GRANT SELECT ON TABLES TO rich_reader",
         "grants on default privileges of rich_owner in public"),
        (f'ALTER DATABASE "{NAME}" RESET search_path', f'ALTER DATABASE "{NAME}" SET search_path TO public, "my schema"',
         "database setting search_path"),
        (f'GRANT CONNECT ON DATABASE "{NAME}" TO PUBLIC', f'REVOKE CONNECT ON DATABASE "{NAME}" FROM PUBLIC', "grants on database"),
        ("ALTER ROLE rich_reader RESET work_mem", "ALTER ROLE rich_reader SET work_mem TO '7MB'", "role rich_reader: settings"),
        ("REVOKE rich_owner FROM rich_reader", "GRANT rich_owner TO rich_reader WITH ADMIN OPTION", "role rich_reader: member of"),
        ("ALTER ROLE rich_reader SUPERUSER", "ALTER ROLE rich_reader NOSUPERUSER", "role rich_reader: attributes"),
        ("UPDATE topic SET price = 0.5 WHERE id = 9", "UPDATE topic SET price = 9 WHERE id = 9", "table public.topic: content"),
        ("DELETE FROM child WHERE id = 9", "INSERT INTO child OVERRIDING SYSTEM VALUE VALUES (9, '2024-01-10', 9)",
         "table public.child: rows: expected 50, found 49"),
        ("ALTER TYPE mood RENAME VALUE 'sad' TO 'blue'", "ALTER TYPE mood RENAME VALUE 'blue' TO 'sad'", "type public.mood: definition"),
        ("ALTER TABLE topic ALTER state SET DEFAULT 'x'", "ALTER TABLE topic ALTER state SET DEFAULT 'open'",
         "table public.topic: definition"),
        ("ALTER POLICY only_own ON secured USING (a > 2)", "ALTER POLICY only_own ON secured USING (a > 1)",
         "policy public.secured only_own"),
        ("ALTER EVENT TRIGGER watch DISABLE", "ALTER EVENT TRIGGER watch ENABLE", "event trigger watch: definition"),
        ("DROP STATISTICS topic_stats", "CREATE STATISTICS topic_stats ON name, state FROM topic", "statistics public.topic_stats"),
        ("COMMENT ON TABLE topic IS NULL", "COMMENT ON TABLE topic IS 'it''s a topic'", "comments all"),
        ("SELECT lo_unlink(min(oid)) FROM pg_largeobject_metadata", None, "large objects: expected 2, found 1"),
    ],
)  # fmt: skip
def test_f25_whatever_is_missing_after_a_restore_is_reported(
    sealed: MadeSet, restored: PostgresServer, context_factory: ContextFactory, damage: str, repair: str | None, what: str
) -> None:
    to = restored.connection.with_db(NAME)
    execute(to, damage)
    try:
        found = losses(sealed.store, sealed.evidence, sealed.store.probe(restored, sealed.evidence, context_factory()))
        assert [line for line in found if what in line], found
    finally:
        if repair:
            execute(to, repair)


def test_f78_an_emptied_or_missing_table_is_a_loss(sealed: MadeSet, target: PostgresServer, context_factory: ContextFactory) -> None:
    sealed.store.load(sealed.directory, sealed.artifacts, sealed.evidence, target, context_factory())
    execute(target.connection.with_db(NAME), "TRUNCATE topic CASCADE", "DROP TABLE fast")
    found = losses(sealed.store, sealed.evidence, sealed.store.probe(target, sealed.evidence, context_factory()))
    assert "postgres: table public.topic: rows: expected 200, found 0" in found
    assert "postgres: table public.fast: expected present, found absent" in found


def test_f14_a_missing_extension_is_refused_before_anything_is_touched(
    sealed: MadeSet, target: PostgresServer, context_factory: ContextFactory
) -> None:
    before = (databases(target), roles(target))
    wanted = {**sealed.evidence.extensions, "vector_of_tomorrow": ExtensionEvidence(version="1", schema_name="public")}
    needing = sealed.evidence.model_copy(update={"extensions": wanted})
    with pytest.raises(Refused, match="does not offer the extensions vector_of_tomorrow"):
        sealed.store.load(sealed.directory, sealed.artifacts, needing, target, context_factory())
    assert (databases(target), roles(target)) == before


def test_a_target_older_than_the_source_is_refused_with_both_versions(
    sealed: MadeSet, target: PostgresServer, context_factory: ContextFactory
) -> None:
    newer = sealed.evidence.model_copy(update={"server_version": "99.1", "server_version_num": 990001})
    with pytest.raises(Refused, match=rf"99\.1.*is {target.version}"):
        sealed.store.load(sealed.directory, sealed.artifacts, newer, target, context_factory())


def test_f16_a_target_that_is_not_empty_is_refused_and_left_alone(
    sealed: MadeSet, target: PostgresServer, context_factory: ContextFactory
) -> None:
    with database(target, NAME, "CREATE TABLE precious AS SELECT 42 AS a") as there:
        with pytest.raises(Refused, match=r"is not empty: it holds public\.precious"):
            sealed.store.load(sealed.directory, sealed.artifacts, sealed.evidence, target, context_factory())
        assert ask(there, "SELECT a FROM precious") == [(42,)]
        with pytest.raises(Refused, match=f"has a database {NAME} already"):
            load_archive(sealed.dump_path, Load(target.connection, NAME, sealed.evidence, context_factory()))
        assert ask(there, "SELECT a FROM precious") == [(42,)]
    with database(target, NAME):  # an empty one is no obstacle
        sealed.store.load(sealed.directory, sealed.artifacts, sealed.evidence, target, context_factory())


def test_f15_a_load_that_fails_midway_leaves_no_database_behind(
    sealed: MadeSet, target: PostgresServer, context_factory: ContextFactory, tmp_path: Path
) -> None:
    copy = sealed.copied(tmp_path / "copy")
    data = copy.dump_path.read_bytes()
    cut = copy.edited(data[: len(data) * 9 // 10])
    with pytest.raises(ToolFailed, match="pg_restore failed with status 1") as caught:
        cut.store.load(cut.directory, cut.artifacts, cut.evidence, target, context_factory())
    assert "removed again" in caught.value.hint
    assert NAME not in databases(target)


def test_f83_a_cancelled_load_leaves_no_database_and_no_process(
    sealed: MadeSet, target: PostgresServer, context_factory: ContextFactory
) -> None:
    token = CancelToken()
    ctx = context_factory(cancel=token)
    load = Load(target.connection, "beside", sealed.evidence, replace(ctx, progress=_CancelWhenStarted(token)))
    with pytest.raises(Cancelled):
        load_archive(sealed.dump_path, load)
    assert "beside" not in databases(target)
    assert our_children() == []
    active = "SELECT 1 FROM pg_stat_activity WHERE application_name = 'scholaria-ops'"
    wait_until(lambda: ask(target.connection, active) == [])


class _CancelWhenStarted:
    def __init__(self, token: CancelToken) -> None:
        self._token = token

    def start(self, task: str, *, total: int | None = None, unit: str = "bytes") -> None:
        self._token.cancel("told to stop")

    def advance(self, task: str, amount: int) -> None:
        return

    def finish(self, task: str, note: str = "") -> None:
        return

    def say(self, text: str) -> None:
        return


def test_an_archive_loads_beside_under_another_name_with_settings_and_grants(
    sealed: MadeSet, target: PostgresServer, context_factory: ContextFactory
) -> None:
    ctx = context_factory()
    load = Load(target.connection, 'odd "side"=; name', sealed.evidence, ctx)
    load_roles(sealed.directory / sealed.artifacts[1].path, load)
    load_archive(sealed.dump_path, load)
    beside = measure_database(target.connection.with_db(load.dbname), sealed.evidence, ctx)
    assert beside.database.name == load.dbname
    assert losses(sealed.store, sealed.evidence, beside) == []


def test_roles_that_exist_keep_their_attributes(sealed: MadeSet, target: PostgresServer, context_factory: ContextFactory) -> None:
    execute(target.connection, "CREATE ROLE rich_owner SUPERUSER")
    loaded = sealed.store.load(sealed.directory, sealed.artifacts, sealed.evidence, target, context_factory())
    assert "were there already and kept their passwords and attributes: rich_owner" in " ".join(loaded.warnings)
    found = losses(sealed.store, sealed.evidence, sealed.store.probe(target, sealed.evidence, context_factory()))
    assert found == ["postgres: role rich_owner: attributes: expected NOLOGIN, found SUPERUSER NOLOGIN"]


def test_a_locale_that_the_target_lacks_is_replaced_and_said(
    sealed: MadeSet, target: PostgresServer, context_factory: ContextFactory
) -> None:
    elsewhere = sealed.evidence.database.model_copy(update={"collate": "en_US.utf8", "ctype": "en_US.utf8"})
    evidence = sealed.evidence.model_copy(update={"database": elsewhere})
    locales = run(["locale", "-a"], check=False).stdout.split()
    loaded = sealed.store.load(sealed.directory, sealed.artifacts, evidence, target, context_factory())
    differences = sealed.store.compare(evidence, sealed.store.probe(target, evidence, context_factory()))
    assert [d for d in differences if d.severity == "loss"] == []
    if b"en_US.utf8" not in locales:
        assert "does not offer the locale en_US.utf8" in loaded.warnings[0]
        assert "database: locale" in {d.what for d in differences}


def test_a_source_whose_first_role_has_another_name(
    sandbox: Sandbox, target: PostgresServer, context_factory: ContextFactory, tmp_path: Path
) -> None:
    """As in the official images: POSTGRES_USER=scholaria makes that the first superuser; its grants must be taken over."""
    source = sandbox.postgres(name="renamed")
    try:
        execute(source.connection, "CREATE ROLE helper SUPERUSER LOGIN PASSWORD 'h'")
        helper = source.connection.model_copy(update={"user": "helper", "password": type(source.connection.password)("h")})
        execute(helper, "ALTER ROLE postgres RENAME TO scholaria", "ALTER ROLE scholaria PASSWORD 'pw'", "DROP ROLE IF EXISTS nobody_here")
        first = source.connection.model_copy(update={"user": "scholaria", "password": type(source.connection.password)("pw")})
        execute(first, "CREATE ROLE app LOGIN", "CREATE ROLE team", "GRANT team TO app", "CREATE DATABASE scholaria OWNER app")
        app = first.with_db("scholaria")
        execute(app, "CREATE TABLE t AS SELECT 1 AS a", "ALTER TABLE t OWNER TO app", "GRANT EXECUTE ON FUNCTION pg_read_file(text) TO app")
        made, _ = make_set(PostgresStore(app), tmp_path / "set", context_factory())
        assert made.evidence.bootstrap_role == "scholaria"
        made.store.load(made.directory, made.artifacts, made.evidence, target, context_factory())
        assert losses(made.store, made.evidence, made.store.probe(target, made.evidence, context_factory())) == []
        assert made.evidence.grants["function pg_catalog.pg_read_file(pg_catalog.text)"] == "(owner)=all, app=EXECUTE"
    finally:
        source.stop()


def test_the_database_may_be_called_postgres(
    sandbox: Sandbox, target: PostgresServer, context_factory: ContextFactory, tmp_path: Path
) -> None:
    execute(target.connection, "CREATE TABLE only_here AS SELECT 1 AS a")
    store = PostgresStore(target.connection)
    made, _ = make_set(store, tmp_path / "set", context_factory())
    execute(target.connection, "DROP TABLE only_here")
    store.load(made.directory, made.artifacts, made.evidence, target, context_factory())
    assert losses(store, made.evidence, store.probe(target, made.evidence, context_factory())) == []
    execute(target.connection, "DROP TABLE only_here")


def test_the_commands_of_the_text_for_hand_restores_work(
    sealed: MadeSet, target: PostgresServer, tools: Tools, context_factory: ContextFactory, tmp_path: Path
) -> None:
    """Taken from the text and run by a shell, in both of its ways; only the connection line is filled in."""
    lines = [line[4:] for line in sealed.store.manual_restore(sealed.artifacts).splitlines() if line.startswith("    ")]
    assert lines[0].startswith("export PGHOST=localhost")
    to = target.connection
    lines[0] = f"export PGHOST={to.host} PGPORT={to.port} PGUSER={to.user} PGPASSWORD={shlex.quote(to.password.get_secret_value())}"
    path = _wrappers(tools, tmp_path / "bin")
    script = "\n".join(["set -eu -o pipefail", f"PATH={path}:$PATH", f"cd {shlex.quote(str(sealed.directory))}", *lines])
    run(["bash", "-c", script])
    assert losses(sealed.store, sealed.evidence, sealed.store.probe(target, sealed.evidence, context_factory())) == []
    beside = measure_database(to.with_db(f"{NAME}_restored"), sealed.evidence, context_factory())
    assert [line for line in losses(sealed.store, sealed.evidence, beside) if "table" in line.split(":")[1]] == []


def _wrappers(tools: Tools, directory: Path) -> Path:
    """The programs on PATH as an operator has them; a private library directory must not reach the shell itself."""
    directory.mkdir()
    for name in ("psql", "pg_restore", "createdb"):
        env = " ".join(f"{key}={shlex.quote(value)}" for key, value in tools.pg_env.items())
        (directory / name).write_text(f'#!/bin/sh\nexec env {env} {tools.require_pg(name)} "$@"\n')
        (directory / name).chmod(0o755)
    return directory


@pytest.mark.parametrize(
    ("of_the_set", "of_the_role", "expected"), [({}, "", "lz4"), ({"default_toast_compression": "pglz"}, "", "pglz"), ({}, "pglz", "pglz")]
)
def test_long_values_are_loaded_with_lz4_unless_somebody_chose_a_method(
    target: PostgresServer, context_factory: ContextFactory, tmp_path: Path, of_the_set: dict[str, str], of_the_role: str, expected: str
) -> None:
    source = target.connection.with_db("long values")
    execute(target.connection, 'CREATE DATABASE "long values"')
    execute(source, "CREATE TABLE t AS SELECT repeat('text ', 2000) AS words")
    if of_the_role:
        execute(source, f"ALTER ROLE {source.user} SET default_toast_compression = {of_the_role}")
    ctx = context_factory()
    made, _ = make_set(PostgresStore(source), tmp_path / "set", ctx)
    database = made.evidence.database.model_copy(update={"settings": of_the_set})
    load = Load(target.connection, "beside", made.evidence.model_copy(update={"database": database}), ctx)
    try:
        load_archive(made.dump_path, load)
        assert ask(target.connection.with_db("beside"), "SELECT pg_column_compression(words) FROM t") == [(expected,)]
        assert losses(made.store, made.evidence, measure_database(target.connection.with_db("beside"), made.evidence, ctx)) == []
    finally:
        execute(target.connection, f"ALTER ROLE {source.user} RESET default_toast_compression")
