"""Dumping a live database: what is measured, and what happens when something breaks on the way."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from pydantic import SecretStr

from scholaria_ops.cancel import CancelToken
from scholaria_ops.catalogue.evidence.postgres import PostgresEvidence
from scholaria_ops.connections import PostgresConnection
from scholaria_ops.errors import Cancelled, OpsError, Refused, StoreError, StoreUnavailable, ToolFailed
from scholaria_ops.sandbox.postgres import PostgresServer
from scholaria_ops.sandbox.sandbox import Sandbox
from scholaria_ops.sandbox.tools import Tools
from scholaria_ops.stores.postgres import dump as dumping
from scholaria_ops.stores.postgres import measure as measuring
from scholaria_ops.stores.postgres.agreement import archive_disagreements
from scholaria_ops.stores.postgres.dump import DUMP_TASK
from scholaria_ops.stores.postgres.measure import TASK as EVIDENCE_TASK
from scholaria_ops.stores.postgres.programs import Programs
from scholaria_ops.stores.postgres.store import PostgresStore
from scholaria_ops_tests.conftest import ContextFactory
from scholaria_ops_tests.stores.postgres_support import (
    BACKENDS,
    SECRET,
    SET_ID,
    Listener,
    MadeSet,
    ask,
    database,
    emptied,
    execute,
    losses,
    make_set,
    our_children,
    pg_run,
    plain_context,
    rich_database,
    target_server,
    wait_until,
)

ROLES_SQL = Path(__file__).parents[2] / "scholaria_ops" / "stores" / "postgres" / "roles.sql"


@pytest.fixture(scope="module")
def rich(pg_server: PostgresServer) -> Iterator[PostgresConnection]:
    with rich_database(pg_server, "rich 'dump'=1") as connection:
        yield connection


@pytest.fixture(scope="module")
def made(rich: PostgresConnection, tools: Tools, tmp_path_factory: pytest.TempPathFactory) -> MadeSet:
    base = tmp_path_factory.mktemp("rich-dump")
    return make_set(PostgresStore(rich), base / "set", plain_context(base, tools))[0]


@pytest.fixture(scope="module")
def bulky(pg_server: PostgresServer) -> Iterator[PostgresConnection]:
    """24 MB that do not compress (pg_dump is still at work when its first block arrives), and rows that take a while to measure."""
    table = (
        "CREATE TABLE bulk AS SELECT g AS id, (SELECT string_agg(md5((g * 100 + n)::text), '') FROM generate_series(1, 60) n) AS noise"
        " FROM generate_series(1, 12000) g"
    )
    many = "CREATE TABLE many AS SELECT g AS id, g::text AS text, g % 7 AS remainder, now() AS at FROM generate_series(1, 500000) g"
    with database(pg_server, "bulky", table, many) as connection:
        yield connection


def assert_nothing_left(connection: PostgresConnection, into: Path) -> None:
    """No process of ours, no backend of ours, no half-written file."""
    assert our_children() == []
    wait_until(lambda: ask(connection.with_db("postgres"), BACKENDS) == [])
    assert list(into.iterdir()) == []
    assert [t.name for t in threading.enumerate() if t.name.startswith(("postgres-evidence", "stderr-"))] == []


def test_a_dump_has_two_private_files_and_evidence_of_everything(made: MadeSet) -> None:
    evidence = made.evidence
    assert [a.path for a in made.artifacts] == [f"postgres_{SET_ID}.sql.custom", f"postgres_globals_{SET_ID}.sql"]
    assert {p.name: oct(p.stat().st_mode & 0o777) for p in made.directory.iterdir()} == {a.path: "0o600" for a in made.artifacts}
    assert made.artifacts[0].subject == "rich 'dump'=1"
    assert made.artifacts[0].compression == "zstd"
    assert evidence.headline() == {"rows": 200 + 2 + 2 + 40 + 2 + 50 + 2 + 1 + 1, "tables": 12}
    assert evidence.tables['public."We""ird; Type: TABLE"'].rows == 2
    assert evidence.tables["public.no_columns"].rows == 2
    assert evidence.tables["public.by_name_rest"].root == "public.by_name"
    assert evidence.tables["public.topic_count"].kind == "materialized view"
    assert evidence.tables["public.not_filled"].rows is None
    assert evidence.tables["public.fast"].unlogged
    assert evidence.sequences['public."S\'q"'].last_value == 40
    assert evidence.large_objects.count == 2
    assert evidence.alembic_revision == "0042_topics"
    assert evidence.password_hashes
    assert evidence.extensions["pg_trgm"].schema_name == "public"
    assert evidence.roles["rich_reader"].member_of == ("rich_owner (admin)",)
    assert evidence.roles["rich_reader"].settings == {"work_mem": "7MB"}
    assert "VALID UNTIL" in evidence.roles["rich_reader"].attributes
    assert evidence.database.settings["rich_reader/statement_timeout"] == "5s"
    assert evidence.database.settings["app.secret"].startswith("sha256:")
    assert evidence.grants["table public.topic"] == "(owner)=all, rich_reader=SELECT"
    assert evidence.grants["table column public.secured.a"] == "rich_reader=SELECT*"
    assert evidence.objects["table public.topic"].owner == "rich_owner"
    for name in (
        "index public.topic_open_idx",
        "constraint public.child child_topic_id_fkey",
        "trigger public.topic touch_topic",
        "rule public.open_topics nothing",
        "policy public.secured only_own",
        "event trigger watch",
        "type public.mood",
        "domain public.positive",
        "aggregate public.total(integer)",
        "collation public.plain",
        'table "my schema".order',
    ):
        assert name in evidence.objects, name


def test_the_fingerprint_does_not_depend_on_the_session_or_the_order_of_rows(
    pg_server: PostgresServer, context_factory: ContextFactory, tmp_path: Path
) -> None:
    create = "CREATE TABLE t (id int, at timestamptz, took interval, raw bytea, f float8)"
    insert = "INSERT INTO t SELECT i, '2024-01-01'::timestamptz + i * interval '1 s', i * interval '1 day', '\\xff', i / 3.0"
    found = []
    for number, order in enumerate(("ASC", "DESC")):
        rows = f"{insert} FROM (SELECT i FROM generate_series(1, 100) i ORDER BY i {order}) x"
        with database(pg_server, f"order_{number}", "SET TimeZone = 'UTC'", create, rows) as connection:
            if number:
                name = f"ALTER DATABASE order_{number} SET"
                execute(connection, f"{name} TimeZone = 'Asia/Seoul'", f"{name} DateStyle = 'SQL, DMY'", f"{name} extra_float_digits = -10")
                execute(connection, f"{name} bytea_output = 'escape'", f"{name} IntervalStyle = 'iso_8601'")
            found.append(make_set(PostgresStore(connection), tmp_path / str(number), context_factory())[0].evidence.tables["public.t"])
    assert found[0].fingerprint == found[1].fingerprint
    assert found[0].rows == 100


def test_f27_rows_written_during_the_dump_are_in_neither_dump_nor_evidence(
    pg_server: PostgresServer, sandbox: Sandbox, context_factory: ContextFactory, tmp_path: Path
) -> None:
    table = "CREATE TABLE busy (id serial PRIMARY KEY, text text)"
    fill = "INSERT INTO busy (text) SELECT repeat(md5(i::text), 40) FROM generate_series(1, 4000) i"
    stop = threading.Event()
    rounds = []

    def write(connection: PostgresConnection) -> None:
        while not stop.is_set():
            execute(
                connection,
                "INSERT INTO busy (text) SELECT 'new' FROM generate_series(1, 50)",
                "DELETE FROM busy WHERE id IN (SELECT id FROM busy ORDER BY random() LIMIT 20)",
                "UPDATE busy SET text = text || '.' WHERE id % 100 = 7",
            )
            rounds.append(1)

    with database(pg_server, "busy", table, fill) as connection:
        store = PostgresStore(connection)
        writer = threading.Thread(target=write, args=(connection,))
        writer.start()
        # Hold the dump until the writer has changed something after the snapshot: otherwise the test would prove nothing.
        slow = Listener(DUMP_TASK, lambda: _two_more(rounds))
        try:
            made, _ = make_set(store, tmp_path / "set", context_factory(progress=slow))
        finally:
            stop.set()
            writer.join()
        archive = made.evidence.archive
        assert archive is not None
        assert archive_disagreements(made.evidence, archive) == []
        assert ask(connection, "SELECT count(*) FROM busy")[0][0] != made.evidence.tables["public.busy"].rows
        with emptied(target_server(sandbox)) as target:
            store.load(made.directory, made.artifacts, made.evidence, target, context_factory())
            assert losses(store, made.evidence, store.probe(target, made.evidence, context_factory())) == []


def _two_more(rounds: list[int]) -> None:
    before = len(rounds)
    wait_until(lambda: len(rounds) >= before + 2)


MEASURING = "FROM pg_stat_activity WHERE application_name = 'scholaria-ops' AND state = 'active' AND query LIKE '%record_out%'"


def when_measuring(connection: PostgresConnection, what: str, action: Callable[[], object] = bool) -> Listener:
    """Select ``what`` of the session that computes a fingerprint, as soon as there is one, and do ``action``.

    Who dumps with this listener does not come to the end of the dump before.
    """
    elsewhere = connection.with_db("postgres")

    def wait() -> None:
        wait_until(lambda: bool(ask(elsewhere, f"SELECT {what} {MEASURING}")))
        action()

    thread = threading.Thread(target=wait)
    thread.start()
    return Listener(DUMP_TASK, thread.join)


def test_a_migration_that_begins_during_the_dump_waits_and_does_not_spoil_it(
    bulky: PostgresConnection, context_factory: ContextFactory, tmp_path: Path
) -> None:
    """It queues behind pg_dump; were our own queries to queue behind it, they would find a rewritten table empty."""
    waiting = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE 'ALTER TABLE bulk%'"
    migration = threading.Thread(target=execute, args=(bulky, "ALTER TABLE bulk ALTER COLUMN id TYPE bigint"))

    def begin() -> None:
        migration.start()
        wait_until(lambda: bool(ask(bulky, waiting)))

    # The larger table, many, is measured first; bulk is still to come.
    made, _ = make_set(PostgresStore(bulky), tmp_path / "set", context_factory(progress=Listener(EVIDENCE_TASK, begin)))
    migration.join()
    assert made.evidence.tables["public.bulk"].rows == 12_000
    assert made.evidence.archive is not None
    assert made.evidence.archive.tables["public.bulk"].rows == 12_000


def test_f03_pg_dump_failing_midway_is_told_in_its_own_words(
    bulky: PostgresConnection, context_factory: ContextFactory, tmp_path: Path
) -> None:
    terminate = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'scholaria-ops' AND query LIKE 'COPY %'"
    listener = Listener(DUMP_TASK, lambda: execute(bulky.with_db("postgres"), terminate))
    into = tmp_path / "into"
    into.mkdir()
    with pytest.raises(ToolFailed, match='Dumping the contents of table "bulk" failed') as caught:
        PostgresStore(bulky).dump(into, SET_ID, context_factory(progress=listener))
    assert caught.value.store == "postgres"
    assert_nothing_left(bulky, into)


def _kill_children() -> None:
    for child in our_children():
        child.kill()


def test_f04_pg_dump_killed_leaves_nothing(bulky: PostgresConnection, context_factory: ContextFactory, tmp_path: Path) -> None:
    listener = Listener(DUMP_TASK, _kill_children)
    into = tmp_path / "into"
    into.mkdir()
    with pytest.raises(ToolFailed, match="pg_dump was ended by SIGKILL"):
        PostgresStore(bulky).dump(into, SET_ID, context_factory(progress=listener))
    assert_nothing_left(bulky, into)


def test_f03_losing_the_session_that_holds_the_snapshot_ends_the_dump(
    bulky: PostgresConnection, context_factory: ContextFactory, tmp_path: Path
) -> None:
    killer = when_measuring(bulky, "pg_terminate_backend(pid)")
    into = tmp_path / "into"
    into.mkdir()
    with pytest.raises(StoreUnavailable, match="broke off"):
        PostgresStore(bulky).dump(into, SET_ID, context_factory(progress=killer))
    assert_nothing_left(bulky, into)


def test_f03_a_snapshot_that_is_gone_before_the_dump_begins_is_told_by_its_cause(
    bulky: PostgresConnection, context_factory: ContextFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``pg_dump`` fails for want of the snapshot, and a moment later the session that had exported it."""
    begin, measured = Programs.with_server, measuring.measure
    dump_ended = threading.Event()
    sessions = "FROM pg_stat_activity WHERE application_name = 'scholaria-ops' AND query LIKE '%record_out%'"

    @contextlib.contextmanager
    def with_server(self: Programs, program: str, options: list[str], *rest: Any) -> Iterator[Any]:
        dumps = program == "pg_dump" and any(option.startswith("--snapshot=") for option in options)
        if dumps:
            elsewhere = bulky.with_db("postgres")
            wait_until(lambda: bool(ask(elsewhere, f"SELECT pg_terminate_backend(pid, 60000) {sessions}")))
        try:
            with begin(self, program, options, *rest) as running:
                yield running
        finally:
            if dumps:
                dump_ended.set()

    def measure(*args: Any, **options: Any) -> PostgresEvidence:
        try:
            return measured(*args, **options)
        except StoreUnavailable:
            assert dump_ended.wait(60)
            time.sleep(0.3)
            raise

    monkeypatch.setattr(Programs, "with_server", with_server)
    monkeypatch.setattr(dumping, "measure", measure)
    into = tmp_path / "into"
    into.mkdir()
    with pytest.raises(StoreUnavailable, match="broke off"):
        PostgresStore(bulky).dump(into, SET_ID, context_factory())
    assert_nothing_left(bulky, into)


@pytest.mark.parametrize("task", [DUMP_TASK, EVIDENCE_TASK, "postgres: read back"])
def test_f83_cancelling_leaves_no_backend_process_or_file(
    bulky: PostgresConnection, context_factory: ContextFactory, tmp_path: Path, task: str
) -> None:
    token = CancelToken()
    listener = Listener(task, lambda: token.cancel("told to stop"))
    into = tmp_path / "into"
    into.mkdir()
    with pytest.raises(Cancelled, match="told to stop"):
        PostgresStore(bulky).dump(into, SET_ID, context_factory(progress=listener, cancel=token))
    for path in into.iterdir():  # files that were finished before are the caller's to discard
        path.unlink()
    assert_nothing_left(bulky, into)


def test_f83_a_long_query_is_ended_on_the_server_too(bulky: PostgresConnection, context_factory: ContextFactory, tmp_path: Path) -> None:
    token = CancelToken()
    into = tmp_path / "into"
    into.mkdir()
    stopper = when_measuring(bulky, "1", lambda: token.cancel("told to stop"))
    with pytest.raises(Cancelled):
        PostgresStore(bulky).dump(into, SET_ID, context_factory(cancel=token, progress=stopper))
    for path in into.iterdir():
        path.unlink()
    assert_nothing_left(bulky, into)


def test_a_table_that_somebody_holds_is_named_with_its_holder(
    rich: PostgresConnection, pg_server: PostgresServer, context_factory: ContextFactory, tmp_path: Path
) -> None:
    with pg_server.connect(rich.dbname, autocommit=False) as migration:
        migration.execute("LOCK TABLE topic IN ACCESS EXCLUSIVE MODE")
        store = PostgresStore(rich, lock_timeout_s=0.3)
        assert any("public.topic is locked exclusively by process" in w for w in store.preflight(context_factory()).warnings)
        with pytest.raises(StoreError, match=r"public\.topic is locked exclusively by process \d+ \(postgres"):
            store.dump(tmp_path, SET_ID, context_factory())
        migration.rollback()


def test_f23_no_secret_in_arguments_evidence_or_errors(
    bulky: PostgresConnection, rich: PostgresConnection, made: MadeSet, context_factory: ContextFactory, tmp_path: Path
) -> None:
    password = bulky.password.get_secret_value()
    seen: list[str] = []

    def look() -> None:
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):  # it ended while we looked
                seen.append(" ".join(child.cmdline()))

    made_now, dumped = make_set(PostgresStore(bulky), tmp_path / "set", context_factory(progress=Listener(DUMP_TASK, look)))
    assert any("pg_dump" in line for line in seen)
    written = [dumped.evidence.model_dump_json(), made.evidence.model_dump_json(), *dumped.warnings, *seen]
    written.append(repr(PostgresStore(bulky).preflight(context_factory())))
    wrong = bulky.model_copy(update={"password": SecretStr("wr0ng-pass")})
    with pytest.raises(OpsError) as caught:
        PostgresStore(wrong).preflight(context_factory())
    written += [str(caught.value), made_now.store.manual_restore(made_now.artifacts)]
    for secret in (password, SECRET, "wr0ng-pass", "SCRAM-SHA-256"):
        assert not [text for text in written if secret in text], secret


def test_rows_that_no_dump_carries_are_said_and_configuration_of_extensions_is_counted(
    pg_server: PostgresServer, context_factory: ContextFactory, tmp_path: Path
) -> None:
    tables = ("CREATE TABLE configured AS SELECT generate_series(1, 9) AS a", "CREATE TABLE internal AS SELECT 1 AS a")
    foreign = (
        "CREATE FOREIGN DATA WRAPPER dummy",
        "CREATE SERVER far FOREIGN DATA WRAPPER dummy",
        "CREATE FOREIGN TABLE there (a int) SERVER far",
    )
    with database(pg_server, "extended", "CREATE EXTENSION pg_trgm", *tables, *foreign) as connection:
        execute(connection, *(f"ALTER EXTENSION pg_trgm ADD TABLE {name}" for name in ("configured", "internal")))
        # What pg_extension_config_dump() does inside an extension's script.
        execute(connection, "UPDATE pg_extension SET extconfig = ARRAY['configured'::regclass::oid], extcondition = ARRAY['WHERE a > 3']"
                " WHERE extname = 'pg_trgm'")  # fmt: skip
        made, dumped = make_set(PostgresStore(connection), tmp_path / "set", context_factory())
    assert {name: table.rows for name, table in made.evidence.tables.items()} == {"public.configured": 6}
    said = " ".join(dumped.warnings)
    assert "table public.internal belongs to the extension pg_trgm" in said
    assert "foreign table public.there" in said


def test_a_limit_on_fingerprints_is_told(bulky: PostgresConnection, context_factory: ContextFactory, tmp_path: Path) -> None:
    store = PostgresStore(bulky, fingerprint_max_bytes=1_000_000)
    made, dumped = make_set(store, tmp_path / "set", context_factory())
    assert made.evidence.tables["public.bulk"].fingerprint is None
    assert made.evidence.tables["public.bulk"].rows == 12000
    assert "exceed the limit of 1,000,000" in made.evidence.notes[0]
    assert dumped.warnings == made.evidence.notes
    assert made.evidence.archive is not None
    assert made.evidence.archive.tables["public.bulk"].rows == 12000


def test_the_least_privileged_role_makes_a_whole_backup(
    rich: PostgresConnection, made: MadeSet, tools: Tools, context_factory: ContextFactory, tmp_path: Path
) -> None:
    role = rich.model_copy(update={"user": "backup role", "password": SecretStr("p'w\\d")})
    try:
        _create_backup_role(tools, rich, role)
        _create_backup_role(tools, rich, role)
        assert ask(rich, "SELECT rolsuper, rolbypassrls, rolcreatedb, rolcreaterole FROM pg_roles WHERE rolname = 'backup role'") == [
            (False, True, False, False)
        ]
        with pytest.raises(Exception, match="read-only transaction"):
            execute(role, "CREATE TABLE x ()")
        facts = PostgresStore(role).preflight(context_factory())
        assert facts.warnings == ()
        less, _ = make_set(PostgresStore(role), tmp_path / "set", context_factory())
        assert less.evidence.tables == made.evidence.tables
        assert less.evidence.large_objects == made.evidence.large_objects
        assert less.evidence.password_hashes
    finally:
        execute(rich, 'DROP OWNED BY "backup role"', 'DROP ROLE "backup role"')


def _create_backup_role(tools: Tools, admin: PostgresConnection, role: PostgresConnection) -> None:
    password = {"SCHOLARIA_BACKUP_PASSWORD": role.password.get_secret_value()}
    pg_run(tools, admin, "psql", "-qX", "-v", f"role={role.user}", "-f", str(ROLES_SQL), env=password)


def test_without_access_to_password_hashes_the_backup_says_so(
    pg_server: PostgresServer, context_factory: ContextFactory, tmp_path: Path
) -> None:
    with database(pg_server, "few_rights", "CREATE TABLE t AS SELECT 1 AS a", "CREATE SEQUENCE s") as admin:
        few = admin.model_copy(update={"user": "few", "password": SecretStr("few")})
        execute(admin, "CREATE ROLE few LOGIN PASSWORD 'few'")
        try:
            with pytest.raises(Refused, match=r"may not read public\.s, public\.t") as caught:
                PostgresStore(few).preflight(context_factory())
            # The hint is what has to be run, word for word.
            execute(admin, caught.value.hint.removeprefix("As a superuser run: "))
            assert "may not read password hashes" in " ".join(PostgresStore(few).preflight(context_factory()).warnings)
            made, dumped = make_set(PostgresStore(few), tmp_path / "set", context_factory())
            assert not made.evidence.password_hashes
            assert "without password hashes" in " ".join(dumped.warnings)
            assert b"PASSWORD" not in (made.directory / made.artifacts[1].path).read_bytes()
            assert b"CREATE ROLE few" in (made.directory / made.artifacts[1].path).read_bytes()
        finally:
            execute(admin, "DROP OWNED BY few", "DROP ROLE few")
