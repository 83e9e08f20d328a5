"""Sequences are raised above ids that are known elsewhere, so that none is given out again for another text."""

from __future__ import annotations

from scholaria_ops.sandbox.postgres import PostgresServer
from scholaria_ops.stores.postgres.sequences import given_out, raise_all, raise_sequence


def test_a_sequence_is_raised_above_ids_known_elsewhere_and_never_lowered(pg_server: PostgresServer) -> None:
    with pg_server.connect() as session:
        session.execute("CREATE DATABASE raising")
    own = pg_server.connection.with_db("raising")
    try:
        with pg_server.connect("raising") as session:
            session.execute("CREATE TABLE public.item (id bigserial PRIMARY KEY, other integer)")
            assert raise_sequence(own, "public.item", "id", 0) == ""
            assert "raised from 0 to 1" in raise_sequence(own, "public.item", "id", 1)
            assert session.execute("INSERT INTO public.item DEFAULT VALUES RETURNING id").fetchone() == (2,)
            assert "raised from 2 to 1,000" in raise_sequence(own, "public.item", "id", 1000)
            assert raise_sequence(own, "public.item", "id", 999) == ""
            assert session.execute("INSERT INTO public.item DEFAULT VALUES RETURNING id").fetchone() == (1001,)
            assert raise_sequence(own, "public.item", "other", 5) == ""
            assert raise_sequence(own, "public.nothing", "id", 5) == ""
            session.execute('CREATE SEQUENCE public."Odd.name"')
            session.execute("CREATE SEQUENCE public.down INCREMENT -1")
            session.execute("SELECT nextval('public.down')")
            assert given_out(own) == {"public.item_id_seq": 1001}
            known = {"public.item_id_seq": 2000, 'public."Odd.name"': 7, "public.gone": 9}
            assert raise_all(own, known) == 2
            assert raise_all(own, known) == 0
            assert session.execute("""SELECT nextval('public."Odd.name"'), nextval('public.item_id_seq')""").fetchone() == (8, 2001)
    finally:
        with pg_server.connect() as session:
            session.execute("DROP DATABASE raising WITH (FORCE)")
