"""Ids that are known elsewhere are never given out for something else."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from scholaria_ops.connections import PostgresConnection
from scholaria_ops.errors import StoreError
from scholaria_ops.sandbox.postgres import PostgresServer
from scholaria_ops.stores.postgres.sequences import given_out, largest_possible, raise_all, raise_sequence
from scholaria_ops_tests.stores.postgres_support import ask, database, execute


@pytest.fixture
def live(pg_server: PostgresServer) -> Iterator[PostgresConnection]:
    statements = (
        "CREATE TABLE a (id serial PRIMARY KEY, x int)",
        'CREATE TABLE "b c" (id smallint GENERATED ALWAYS AS IDENTITY, x int)',
        "CREATE TABLE plain (id int)",
    )
    with database(pg_server, "raised", *statements) as connection:
        yield connection


@pytest.mark.parametrize("table", ["public.a", 'public."b c"'])
def test_it_is_raised_and_never_lowered(live: PostgresConnection, table: str) -> None:
    def next_id() -> object:
        return ask(live, f"INSERT INTO {table} (x) VALUES (1) RETURNING id")[0][0]

    assert raise_sequence(live, table, "id", 0) == ""
    assert raise_sequence(live, table, "id", 1) != "", "1 was not given out yet, and must not be"
    assert next_id() == 2
    assert "from 2 to 40" in raise_sequence(live, table, "id", 40)
    assert raise_sequence(live, table, "id", 40) == ""
    assert raise_sequence(live, table, "id", 7) == ""
    assert next_id() == 41


def test_what_has_no_sequence_is_left_alone_and_a_maximum_is_an_error(live: PostgresConnection) -> None:
    assert raise_sequence(live, "public.plain", "id", 5) == ""
    assert raise_sequence(live, "public.absent", "id", 5) == ""
    with pytest.raises(StoreError, match="out of bounds"):
        raise_sequence(live, 'public."b c"', "id", 100_000)
    assert ask(live, 'INSERT INTO "b c" (x) VALUES (1) RETURNING id') == [(1,)]


def test_no_id_comes_twice_while_others_take_them(live: PostgresConnection) -> None:
    """Without a primary key in the way: ids taken while the sequence is raised again and again, always just ahead of them."""
    execute(live, "ALTER TABLE a DROP CONSTRAINT a_pkey")
    stop = threading.Event()

    def take() -> None:
        while not stop.is_set():
            execute(live, "INSERT INTO a (x) SELECT 1 FROM generate_series(1, 50)")

    takers = [threading.Thread(target=take) for _ in range(3)]
    for taker in takers:
        taker.start()
    for _ in range(60):
        ((last,),) = ask(live, "SELECT last_value FROM a_id_seq")
        raise_sequence(live, "public.a", "id", int(str(last)) + 20)
    stop.set()
    for taker in takers:
        taker.join()
    assert ask(live, "SELECT id FROM a GROUP BY id HAVING count(*) > 1") == []


def test_all_that_one_database_gave_out_is_jumped_over_in_another(live: PostgresConnection) -> None:
    execute(live, 'CREATE SEQUENCE "Odd.name"')
    execute(live, "CREATE SEQUENCE down INCREMENT -1")
    ask(live, "SELECT nextval('down')")
    raise_sequence(live, "public.a", "id", 1001)
    assert given_out(live) == ({"public.a_id_seq": 1001}, [])
    known = {"public.a_id_seq": 2000, 'public."Odd.name"': 7, "public.gone": 9}
    assert raise_all(live, known) == 2
    assert raise_all(live, known) == 0
    assert ask(live, """SELECT nextval('public."Odd.name"'), nextval('public.a_id_seq')""") == [(8, 2001)]


def test_ids_that_rows_bear_count_as_well_except_for_the_last_one_there_is(live: PostgresConnection, pg_server: PostgresServer) -> None:
    execute(live, 'ALTER TABLE "b c" ADD PRIMARY KEY (id)', "INSERT INTO a (id) VALUES (50), (2147483647)", "INSERT INTO plain VALUES (9)")
    assert given_out(live) == ({"public.a_id_seq": 50}, [])
    execute(live, 'INSERT INTO "b c" OVERRIDING SYSTEM VALUE VALUES (-4, 1), (-3, 1)')
    assert given_out(live) == ({"public.a_id_seq": 50}, [])
    ((path,),) = ask(live, "SELECT pg_relation_filepath('\"b c\"')")
    execute(pg_server.connection, "CHECKPOINT")
    (pg_server.data / str(path)).unlink()
    found, (untold,) = given_out(live)
    assert found == {"public.a_id_seq": 50}
    assert untold.startswith('the largest public."b c".id could not be read, only what its sequence has given out: ')


def test_a_database_that_is_read_only_by_default_or_forbids_changes_of_definitions_is_no_obstacle(live: PostgresConnection) -> None:
    execute(
        live,
        "CREATE FUNCTION refuse() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no %', tg_tag; END $$",
        "CREATE EVENT TRIGGER no_ddl ON ddl_command_start EXECUTE FUNCTION refuse()",
        "ALTER DATABASE raised SET default_transaction_read_only = on",
    )
    assert raise_all(live, {"public.a_id_seq": 2000}) == 1
    assert given_out(live) == ({"public.a_id_seq": 2000}, [])


def test_it_is_known_which_ids_there_can_be(live: PostgresConnection) -> None:
    found = [largest_possible(live, table, "id") for table in ("public.a", 'public."b c"', "public.plain", "public.absent")]
    assert found == [2**31 - 1, 2**15 - 1, 0, 0]


def test_a_row_at_the_end_of_its_column_is_no_id_to_go_on_above(live: PostgresConnection) -> None:
    """Also where the sequence behind the column is wider than the column, as those of before PostgreSQL 10 are."""
    execute(live, "CREATE SEQUENCE wide AS bigint", "CREATE TABLE old (id int PRIMARY KEY DEFAULT nextval('wide'))")
    execute(live, "ALTER SEQUENCE wide OWNED BY old.id", f"INSERT INTO old VALUES (7), ({2**31 - 1})")
    assert given_out(live)[0]["public.wide"] == 7
    assert largest_possible(live, "public.old", "id") == 2**31 - 1
