"""The parts that read text: an archive's data stream, the globals file, definitions, names, and the comparison."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scholaria_ops.catalogue.evidence.postgres import (
    ArchiveInventory,
    DatabaseEvidence,
    LargeObjects,
    ObjectEvidence,
    PostgresEvidence,
    RoleEvidence,
    SequenceValue,
    TableData,
    TableEvidence,
)
from scholaria_ops.errors import VerificationFailed
from scholaria_ops.stores.postgres.agreement import archive_disagreements, entry_disagreements
from scholaria_ops.stores.postgres.archive import DataReader, hash_schema
from scholaria_ops.stores.postgres.compare import compare
from scholaria_ops.stores.postgres.globals_file import created_roles, plan, statements
from scholaria_ops.stores.postgres.inventory import definition_digest
from scholaria_ops.stores.postgres.manual import manual_restore
from scholaria_ops.stores.postgres.names import conninfo_dbname, decode, qualified, quoted, raw_parts

STREAM = rb"""--
-- PostgreSQL database dump
--

SET client_encoding = 'UTF8';
SELECT pg_catalog.set_config('search_path', '', false);

--
-- Data for Name: t; Type: TABLE DATA; Schema: public; Owner: o
--

COPY public.t (a, b) FROM stdin;
1	COPY public.u (x) FROM stdin;
2	\\.
3	\\.\n\\.

\.


COPY public."empty ""one""; FROM stdin;" ("new
line", "a.b") FROM stdin;
\.


COPY "s.1".no_columns  FROM stdin;


\.


-- load via partition root public.t

COPY public.t (a, b) FROM stdin;
5	last
\.


SELECT pg_catalog.setval('public."S''q"', -7, true);
SELECT pg_catalog.setval(E'public."back\\slash"', 1, false);

BEGIN;

SELECT pg_catalog.lo_open('16676', 131072);
SELECT pg_catalog.lowrite(0, '\x00ff5c27');
SELECT pg_catalog.lo_close(0);

COMMIT;
"""


def read(*blocks: bytes) -> tuple[dict[str, TableData], DataReader]:
    reader = DataReader("UTF8")
    for block in blocks:
        reader.feed(block)
    return reader.finish(), reader


def test_a_data_stream_is_understood() -> None:
    tables, reader = read(STREAM)
    assert {name: table.rows for name, table in tables.items()} == {
        "public.t": 5,
        'public."empty ""one""; FROM stdin;"': 0,
        '"s.1".no_columns': 2,
    }
    header = b"COPY public.t (a, b) FROM stdin;"
    rows = b"1\tCOPY public.u (x) FROM stdin;\n2\t\\\\.\n3\t\\\\.\\n\\\\.\n\n"
    assert tables["public.t"].sha256 == hashlib.sha256(header + rows + header + b"5\tlast\n").hexdigest()
    assert tables["public.t"].bytes == len(rows) + len(b"5\tlast\n")
    assert reader.sequences == {
        'public."S\'q"': SequenceValue(last_value=-7, is_called=True),
        'public."back\\slash"': SequenceValue(last_value=1, is_called=False),
    }
    assert reader.large_objects == 1
    assert reader.bytes == len(STREAM)


def test_blocks_may_end_anywhere() -> None:
    whole, reader = read(STREAM)
    for cut in range(1, len(STREAM)):
        tables, parts = read(STREAM[:cut], STREAM[cut:])
        assert tables == whole, cut
        assert parts.sequences == reader.sequences
        assert parts.large_objects_hash.digest() == reader.large_objects_hash.digest()
    assert read(*(STREAM[i : i + 1] for i in range(len(STREAM))))[0] == whole


@given(st.lists(st.text(alphabet="\\.\nab\t", max_size=8), max_size=12), st.integers(1, 9))
@settings(max_examples=150)
def test_whatever_the_rows_hold_they_are_counted(values: list[str], size: int) -> None:
    """COPY writes a backslash of the data twice and a newline as two characters, so no row can be the end mark."""
    rows = [v.replace("\\", "\\\\").replace("\n", "\\n").replace("\t", "\\t") + "\n" for v in values]
    stream = ("COPY public.t (v) FROM stdin;\n" + "".join(rows) + "\\.\n\n").encode()
    tables, _ = read(*(stream[i : i + size] for i in range(0, len(stream), size)))
    assert tables["public.t"].rows == len(values)
    assert tables["public.t"].bytes == len("".join(rows).encode())


@pytest.mark.parametrize("end", [STREAM.index(b"3\t"), STREAM.index(b'line"'), STREAM.index(b"', -7")])
def test_a_stream_that_breaks_off_is_not_whole(end: int) -> None:
    with pytest.raises(VerificationFailed, match="middle of a statement"):
        read(STREAM[:end])


def test_a_statement_that_is_not_understood_is_not_passed_over() -> None:
    with pytest.raises(VerificationFailed, match="not understood"):
        read(b"COPY public.t (a) FROM PROGRAM 'id';\n")
    with pytest.raises(VerificationFailed, match="64 MB"):
        read(b"x" * (64 << 20), b"x")


def test_the_schema_digest_leaves_out_the_random_word() -> None:
    text = [b"-- Dumped by 16.15", b"\\restrict abc", b"-- Name: t; Type: TABLE", b"CREATE TABLE t ();", b"\\unrestrict abc"]
    other = [b"-- Dumped by 16.16", b"\\restrict xyz", *text[2:4], b"\\unrestrict xyz"]
    assert hash_schema(text) == hash_schema(other)
    assert hash_schema(text)[0] != hash_schema([*text[:3], b"CREATE TABLE u ();"])[0]


GLOBALS = """--
-- Roles
--
\\restrict abc
SET standard_conforming_strings = on;
CREATE ROLE "a ""; b'";
ALTER ROLE "a ""; b'" WITH LOGIN PASSWORD 'SCRAM;''x';
CREATE ROLE first;
ALTER ROLE first WITH SUPERUSER;
CREATE ROLE there;
ALTER ROLE there WITH NOLOGIN;
COMMENT ON ROLE there IS E'it\\'s;\\nCREATE ROLE trap;';
ALTER ROLE "a ""; b'" SET search_path TO 'x;y', "z";
GRANT there TO "a ""; b'" WITH ADMIN OPTION, INHERIT TRUE GRANTED BY first;
GRANT pg_monitor TO there WITH INHERIT TRUE GRANTED BY first;
GRANT "a ""; b'" TO there WITH INHERIT TRUE GRANTED BY there;
GRANT SET ON PARAMETER work_mem TO "a ""; b'";
CREATE TABLESPACE fast OWNER first LOCATION '/ssd';
\\unrestrict abc
"""


def test_globals_are_taken_apart_whatever_the_names_hold() -> None:
    assert created_roles(GLOBALS) == {"a \"; b'", "first", "there"}
    todo = plan(GLOBALS, frozenset({"postgres", "there"}), "first")
    assert todo.created == ("a \"; b'", "first")
    assert todo.kept == ("there",)
    assert todo.skipped == ("CREATE TABLESPACE fast",)
    assert 'GRANT there TO "a ""; b\'" WITH ADMIN OPTION, INHERIT TRUE' in todo.run
    assert 'GRANT "a ""; b\'" TO there WITH INHERIT TRUE GRANTED BY there' in todo.run
    assert not [s for s in todo.run if s.startswith(("ALTER ROLE there", "COMMENT ON ROLE there", "GRANT pg_monitor"))]
    assert "ALTER ROLE \"a \"\"; b'\" WITH LOGIN PASSWORD 'SCRAM;''x'" in todo.run


def test_a_globals_file_that_is_cut_or_strange_is_refused() -> None:
    with pytest.raises(VerificationFailed, match="middle of a statement"):
        list(statements(GLOBALS[: GLOBALS.index("LOGIN")]))
    with pytest.raises(VerificationFailed, match="not understood"):
        plan("DROP DATABASE scholaria;", frozenset(), "first")


def test_two_ways_of_printing_one_expression_have_one_digest() -> None:
    first = "CHECK (((status)::text = ANY ((ARRAY['a'::character varying, 'b'::character varying])::text[])))"
    again = "CHECK (((status)::text = ANY (ARRAY[('a'::character varying)::text, ('b'::character varying)::text])))"
    assert definition_digest("constraint", first) == definition_digest("constraint", again)
    assert definition_digest("constraint", first) != definition_digest("constraint", first.replace("'b'", "'c'"))
    assert definition_digest("function", "a (b)") != definition_digest("function", "a b")
    assert definition_digest("schema", "") == ""


@given(st.text(min_size=1), st.text(min_size=1))
def test_names_survive_their_quoting(schema: str, name: str) -> None:
    assert raw_parts(qualified(schema, name)) == [schema, name]


def test_names_for_sql_conninfo_and_other_encodings() -> None:
    assert quoted('a"b') == '"a""b"'
    assert conninfo_dbname("a'b\\c d=e") == "dbname='a\\'b\\\\c d=e'"
    assert decode("주제".encode("euc_kr"), "EUC_KR") == "주제"
    assert decode(b"\xff", "UTF8") == "\\xff"
    assert decode("é".encode("cp1252"), "WIN1252") == "é"


def evidence(**changes: object) -> PostgresEvidence:
    """The smallest evidence, with changes."""
    base = PostgresEvidence(
        server_version="16.4",
        server_version_num=160004,
        cut_at=datetime(2024, 10, 1, tzinfo=UTC),
        lsn="0/1",
        database=DatabaseEvidence(
            name="x", owner="o", encoding="UTF8", provider="libc", collate="en_US.utf8", ctype="en_US.utf8", size_bytes=1
        ),
        tables={},
        sequences={},
        objects={},
        grants={},
        extensions={},
        roles={},
        bootstrap_role="postgres",
        large_objects=LargeObjects(count=0, fingerprint="0"),
    )
    return base.model_copy(update=changes)


def table(rows: int | None, fingerprint: str | None = "5", root: str | None = None) -> TableEvidence:
    return TableEvidence(kind="partition" if root else "table", rows=rows, fingerprint=fingerprint, size_bytes=1, root=root)


def test_time_place_and_minor_version_are_no_differences() -> None:
    found = evidence(
        server_version="16.9",
        server_version_num=160009,
        lsn="5/5",
        cut_at=datetime(2025, 1, 1, tzinfo=UTC),
        system_identifier="7",
        database=evidence().database.model_copy(update={"name": "y", "size_bytes": 99, "collation_version": "2.36"}),
    )
    assert compare(evidence(), found) == []


def test_rows_in_other_partitions_are_a_note_while_the_whole_is_equal() -> None:
    before = {"p.a": table(3, "30", "p.r"), "p.b": table(1, "-4", "p.r")}
    moved = {"p.a": table(4, "20", "p.r"), "p.b": table(0, "6", "p.r")}
    lost = {"p.a": table(4, "20", "p.r"), "p.b": table(0, "5", "p.r")}
    assert {d.severity for d in compare(evidence(tables=before), evidence(tables=moved))} == {"note"}
    assert {d.severity for d in compare(evidence(tables=before), evidence(tables=lost))} == {"loss"}


def test_a_table_that_was_counted_only_is_compared_by_its_count() -> None:
    counted = evidence(tables={"a": table(3, None)})
    assert compare(counted, evidence(tables={"a": table(3, "77")})) == []
    assert [d.severity for d in compare(counted, evidence(tables={"a": table(2, "77")}))] == ["loss"]
    assert [d.severity for d in compare(evidence(tables={"a": table(3)}), evidence(tables={"a": table(3, None)}))] == ["loss"]
    assert [d.found for d in compare(evidence(tables={"a": table(3)}), evidence(tables={"a": table(None, None)}))] == ["not counted"]


def test_what_is_only_worth_telling_is_a_note() -> None:
    view = {"view public.v": ObjectEvidence(owner="o", definition="1" * 32)}
    rewritten = {"view public.v": ObjectEvidence(owner="o", definition="2" * 32)}
    assert [d.severity for d in compare(evidence(objects=view), evidence(objects=rewritten))] == ["note"]
    assert [d.severity for d in compare(evidence(objects=view), evidence())] == ["loss"]
    assert [d.severity for d in compare(evidence(), evidence(objects={"schema public": view["view public.v"]}))] == ["note"]
    role = {"stranger": RoleEvidence(attributes="LOGIN")}
    assert [d.severity for d in compare(evidence(), evidence(roles=role))] == ["note"]
    assert [d.severity for d in compare(evidence(roles=role), evidence())] == ["loss"]
    assert [d.severity for d in compare(evidence(), evidence(alembic_revision="7"))] == ["loss"]


def inventory(**changes: object) -> ArchiveInventory:
    base = ArchiveInventory(
        sha256="0" * 64,
        read_with="16.4",
        tables={},
        sequences={},
        large_objects=0,
        large_objects_sha256="",
        entries=(),
        schema_sha256="",
        sql_bytes=0,
    )
    return base.model_copy(update=changes)


def data(rows: int) -> TableData:
    return TableData(rows=rows, bytes=0, sha256="")


def test_partitions_loaded_through_their_root_add_up() -> None:
    expected = evidence(tables={"p.a": table(3, root="p.r"), "p.b": table(1, root="p.r"), "p.c": table(7)})
    assert archive_disagreements(expected, inventory(tables={"p.r": data(4), "p.c": data(7)})) == []
    assert archive_disagreements(expected, inventory(tables={"p.a": data(3), "p.b": data(1), "p.c": data(7)})) == []
    assert archive_disagreements(expected, inventory(tables={"p.r": data(3), "p.c": data(7)})) == [
        "table p.r: 3 rows in the archive, 4 expected"
    ]


def test_objects_are_looked_for_in_the_table_of_contents() -> None:
    nothing = ObjectEvidence(owner="", definition="")
    names = ("index public.i", "index public.t_pkey", "trigger public.t g", 'table "a b".c', "foreign table public.f")
    expected = evidence(objects=dict.fromkeys(names, nothing))
    entries = (
        "INDEX public i some owner",
        "CONSTRAINT public t t_pkey o",
        "TRIGGER public t g o",
        "TABLE a b c o",
        "FOREIGN TABLE public f o",
    )
    assert list(entry_disagreements(expected, inventory(entries=entries))) == []
    for index, name in enumerate(names):
        rest = entries[:index] + entries[index + 1 :]
        assert list(entry_disagreements(expected, inventory(entries=rest))) == [f"{name} is not in the archive"]


def test_a_set_without_its_files_has_no_text_for_hand_restores() -> None:
    with pytest.raises(VerificationFailed, match="no PostgreSQL artifact"):
        manual_restore(())
