"""What the preflight refuses, and what it says so that the operator can go on."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from scholaria_ops.connections import PostgresConnection
from scholaria_ops.errors import AuthenticationFailed, Refused, StoreUnavailable, ToolMissing
from scholaria_ops.sandbox.postgres import PostgresServer
from scholaria_ops.sandbox.sandbox import Sandbox
from scholaria_ops.sandbox.tools import Tools
from scholaria_ops.stores.postgres.store import PostgresStore
from scholaria_ops_tests.conftest import ContextFactory
from scholaria_ops_tests.stores.postgres_support import ask, database, execute, fake_bin, make_set, wait_until


@pytest.fixture(scope="module")
def plain(pg_server: PostgresServer) -> Iterator[PostgresConnection]:
    with database(pg_server, "plain", "CREATE TABLE t AS SELECT 1 AS a", "CREATE SCHEMA inner_room", "CREATE TABLE inner_room.u ()") as to:
        yield to


@pytest.fixture
def reader(plain: PostgresConnection) -> Iterator[PostgresConnection]:
    """A role with pg_read_all_data and nothing else."""
    execute(plain, "CREATE ROLE reader LOGIN PASSWORD 'reader'", "GRANT pg_read_all_data TO reader")
    yield plain.model_copy(update={"user": "reader", "password": SecretStr("reader")})
    execute(plain, "DROP OWNED BY reader", "DROP ROLE reader")


def test_facts_of_a_healthy_server(plain: PostgresConnection, pg_server: PostgresServer, context_factory: ContextFactory) -> None:
    facts = PostgresStore(plain).preflight(context_factory())
    assert facts.server_version == pg_server.version
    assert facts.expected_bytes > 7_000_000
    assert facts.details["database"].endswith("2 tables")
    assert facts.warnings == ()


def test_f01_pg_dump_older_than_the_server_is_refused_with_both_versions(
    plain: PostgresConnection, pg_server: PostgresServer, tools: Tools, context_factory: ContextFactory, tmp_path: Path
) -> None:
    old = fake_bin(tools, tmp_path / "bin", "pg_dump", "echo 'pg_dump (PostgreSQL) 15.4 (Debian 15.4-1)'")
    ctx = context_factory(tools=old)
    with pytest.raises(ToolMissing, match=rf"pg_dump is 15\.4, older than the server.*{pg_server.version}") as caught:
        PostgresStore(plain).preflight(ctx)
    assert isinstance(caught.value, Refused)
    with pytest.raises(ToolMissing, match=r"15\.4"):
        PostgresStore(plain).dump(tmp_path, "20241001_020000", ctx)


def test_missing_programs_are_named(plain: PostgresConnection, context_factory: ContextFactory) -> None:
    with pytest.raises(ToolMissing, match="no PostgreSQL programs"):
        PostgresStore(plain).preflight(context_factory(tools=Tools()))


def test_f11_hidden_rows_are_refused_until_the_role_may_see_them(
    plain: PostgresConnection, reader: PostgresConnection, context_factory: ContextFactory, tmp_path: Path
) -> None:
    execute(plain, "ALTER TABLE t ENABLE ROW LEVEL SECURITY", "CREATE POLICY none ON t USING (false)")
    try:
        with pytest.raises(Refused, match=r"row-level security may hide rows of public\.t from role reader") as caught:
            PostgresStore(reader).preflight(context_factory())
        into = tmp_path / "set"
        into.mkdir()
        with pytest.raises(Exception, match="row-level security"):  # the server's own refusal, if nobody asked before
            PostgresStore(reader).dump(into, "20241001_020000", context_factory())
        execute(plain, caught.value.hint.removeprefix("As a superuser run: "))
        PostgresStore(reader).preflight(context_factory())
        made, _ = make_set(PostgresStore(reader), tmp_path / "whole", context_factory())
        assert made.evidence.tables["public.t"].rows == 1
    finally:
        execute(plain, "DROP POLICY none ON t", "ALTER TABLE t DISABLE ROW LEVEL SECURITY")


def test_unreadable_tables_are_named_with_the_grants_that_help(plain: PostgresConnection, context_factory: ContextFactory) -> None:
    execute(plain, "CREATE ROLE nobody_yet LOGIN PASSWORD 'n'")
    poor = plain.model_copy(update={"user": "nobody_yet", "password": SecretStr("n")})
    try:
        with pytest.raises(Refused, match=r"may not read inner_room\.u, public\.t") as caught:
            PostgresStore(poor).preflight(context_factory())
        execute(plain, caught.value.hint.removeprefix("As a superuser run: "))
        PostgresStore(poor).preflight(context_factory())
    finally:
        execute(plain, "DROP OWNED BY nobody_yet", "DROP ROLE nobody_yet")


def test_large_objects_of_others_are_named(plain: PostgresConnection, reader: PostgresConnection, context_factory: ContextFactory) -> None:
    ((oid,),) = ask(plain, "SELECT lo_create(0)")
    try:
        with pytest.raises(Refused, match=rf"may not read 1 large objects in .* \({oid}\)") as caught:
            PostgresStore(reader).preflight(context_factory())
        execute(plain, caught.value.hint.removeprefix("As a superuser run: ").partition(" (")[0])
        PostgresStore(reader).preflight(context_factory())
    finally:
        execute(plain, f"SELECT lo_unlink({oid})")


def test_a_wrong_password_is_permanent_and_an_absent_server_is_not(plain: PostgresConnection, context_factory: ContextFactory) -> None:
    for wrong in ({"password": SecretStr("no")}, {"password": SecretStr("")}, {"user": "nobody_here"}):
        with pytest.raises(AuthenticationFailed) as refused:
            PostgresStore(plain.model_copy(update=wrong)).preflight(context_factory())
        assert not refused.value.retryable
    with pytest.raises(Refused, match="has no database 'nowhere'"):
        PostgresStore(plain.with_db("nowhere")).preflight(context_factory())
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        absent = plain.model_copy(update={"port": unused.getsockname()[1]})
        with pytest.raises(StoreUnavailable, match="cannot be reached") as away:
            PostgresStore(absent).preflight(context_factory())
    assert away.value.retryable


def test_a_pg_dump_without_zstd_uses_gzip_and_says_so(
    plain: PostgresConnection, tools: Tools, context_factory: ContextFactory, tmp_path: Path
) -> None:
    script = (
        'case " $* " in *" --compress=zstd"*) echo "pg_dump: error: this build does not support compression with zstd" >&2; exit 1;; esac\n'
        'exec "$REAL" "$@"'
    )
    ctx = context_factory(tools=fake_bin(tools, tmp_path / "bin", "pg_dump", script))
    facts = PostgresStore(plain).preflight(ctx)
    assert "built without zstd" in facts.warnings[0]
    made, dumped = make_set(PostgresStore(plain), tmp_path / "set", ctx)
    assert made.artifacts[0].compression == "gzip"
    assert dumped.warnings == facts.warnings
    with pytest.raises(Refused, match="does not take the compression 'magic'"):
        PostgresStore(plain, pg_dump_compression="magic").preflight(context_factory())


def test_a_replica_is_a_source_only_while_it_is_close_to_its_primary(sandbox: Sandbox, context_factory: ContextFactory) -> None:
    server = sandbox.postgres(name="replica", settings={"wal_level": "replica", "synchronous_commit": "on"})
    execute(server.connection, "CREATE TABLE t AS SELECT 1 AS a", "CREATE UNLOGGED TABLE fast AS SELECT 1 AS a", "CHECKPOINT")
    execute(server.connection, "INSERT INTO t VALUES (2)")
    server.kill()
    (server.data / "standby.signal").touch()
    server.start()
    try:
        wait_until(lambda: ask(server.connection, "SELECT pg_last_xact_replay_timestamp() IS NOT NULL") == [(True,)])
        facts = PostgresStore(server.connection).preflight(context_factory())
        assert "in recovery" in facts.details["replica"]
        ctx = context_factory()
        made, _ = make_set(PostgresStore(server.connection), ctx.scratch / "set", ctx)
        assert made.evidence.in_recovery
        assert made.evidence.tables["public.t"].rows == 2
        assert made.evidence.tables["public.fast"].rows is None
        assert "empty on a replica" in made.evidence.notes[0]
        with pytest.raises(Refused, match=r"is a replica that is \d+ s behind its primary; 0 s are allowed"):
            PostgresStore(server.connection, replica_lag_limit_s=0.0).preflight(context_factory())
    finally:
        server.stop()


def test_things_that_will_not_come_back_are_said(pg_server: PostgresServer, context_factory: ContextFactory, tmp_path: Path) -> None:
    with database(pg_server, "slotted", "CREATE TABLE t (a int PRIMARY KEY)", "INSERT INTO t VALUES (1)") as connection:
        execute(connection, "SELECT pg_create_logical_replication_slot('follower', 'pgoutput')", "CREATE PUBLICATION pub FOR TABLE t")
        try:
            assert any("follower" in w for w in PostgresStore(connection).preflight(context_factory()).warnings)
            made, _ = make_set(PostgresStore(connection), tmp_path / "set", context_factory())
            assert made.evidence.replication.slots == ("follower",)
            assert made.evidence.replication.publications == ("pub",)
            assert any("follower" in note for note in made.evidence.notes)
        finally:
            execute(connection, "SELECT pg_drop_replication_slot('follower')")
