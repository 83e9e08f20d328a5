"""Verifying the artifacts without any server: every check is shown to fail, with the digests as sealed and recomputed."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from scholaria_ops.connections import PostgresConnection
from scholaria_ops.errors import VerificationFailed
from scholaria_ops.sandbox.postgres import PostgresServer
from scholaria_ops.sandbox.sandbox import Sandbox
from scholaria_ops.sandbox.tools import Tools
from scholaria_ops.stores.base import Context
from scholaria_ops.stores.postgres.programs import Programs
from scholaria_ops.stores.postgres.store import PostgresStore
from scholaria_ops_tests.conftest import ContextFactory
from scholaria_ops_tests.stores.postgres_support import (
    MadeSet,
    execute,
    failed,
    fake_bin,
    make_set,
    pg_run,
    plain_context,
    rich_database,
    target_server,
)


@pytest.fixture(scope="module")
def rich(pg_server: PostgresServer) -> Iterator[PostgresConnection]:
    with rich_database(pg_server, "rich inspect") as connection:
        yield connection


@pytest.fixture(scope="module")
def sealed(rich: PostgresConnection, tools: Tools, tmp_path_factory: pytest.TempPathFactory) -> MadeSet:
    base = tmp_path_factory.mktemp("rich-inspect")
    return make_set(PostgresStore(rich), base / "set", plain_context(base, tools))[0]


@pytest.fixture
def copy(sealed: MadeSet, tmp_path: Path) -> MadeSet:
    return sealed.copied(tmp_path / "copy")


def test_a_sound_set_passes_every_check_without_its_server(sealed: MadeSet, context_factory: ContextFactory) -> None:
    nowhere = PostgresConnection(host="/nonexistent", dbname="x", user="x")
    checks = PostgresStore(nowhere).inspect(sealed.directory, sealed.artifacts, sealed.evidence, context_factory())
    assert {check.name: check.passed for check in checks} == dict.fromkeys(
        ("archive", "rows", "sequences", "objects", "content", "schema", "roles"), True
    )
    assert next(c for c in checks if c.name == "rows").numbers == {"rows": 300, "tables": 11}  # by_mood is loaded through its root


@pytest.mark.parametrize("percent", [0, 10, 50, 95])
def test_f18_a_cut_dump_fails(copy: MadeSet, context_factory: ContextFactory, percent: int) -> None:
    data = copy.dump_path.read_bytes()
    cut = data[: len(data) * percent // 100]
    assert "archive" in failed(copy.edited(cut, recompute=False).inspect(context_factory()))
    details = failed(copy.edited(cut).inspect(context_factory()))
    assert "pg_restore failed" in details["archive"]


def test_f19_one_flipped_bit_anywhere_fails(copy: MadeSet, context_factory: ContextFactory) -> None:
    """With the digests as sealed, whatever the place; no program of PostgreSQL sees the file."""
    data = copy.dump_path.read_bytes()
    chance = random.Random(19)
    ctx = context_factory(tools=Tools())  # any use of a program would be an unjudged check instead of a failed one
    for offset in (0, len(data) - 1, *(chance.randrange(len(data)) for _ in range(30))):
        assert "is not the file that was sealed" in failed(copy.edited(flipped(data, offset), recompute=False).inspect(ctx))["archive"]
    text = copy.directory / copy.artifacts[1].path
    copy.edited(data, recompute=False)
    copy.edited(flipped(text.read_bytes(), 300), index=1, recompute=False)
    assert "is not the file that was sealed" in failed(copy.inspect(ctx))["roles"]


def test_f19_a_flipped_bit_fails_even_if_every_digest_was_recomputed(copy: MadeSet, tools: Tools, context_factory: ContextFactory) -> None:
    """Unless the archive still says the very same SQL (object ids and DROP statements that no restore runs)."""
    data = copy.dump_path.read_bytes()
    first_row = data.index(b"\x28\xb5\x2f\xfd")  # the first zstd frame: rows from here on, definitions before
    chance = random.Random(1919)
    places = [chance.randrange(first_row, len(data)) for _ in range(30)] + [chance.randrange(first_row) for _ in range(30)]
    ctx = context_factory()
    original = as_sql(copy, ctx)
    caught = 0
    for offset in places:
        forged = copy.edited(flipped(data, offset))
        if failed(forged.inspect(ctx)):
            caught += 1
        else:
            assert as_sql(forged, ctx) == original, f"the flip at {offset} changed what is restored, and passed"
    assert caught > 40


def flipped(data: bytes, offset: int) -> bytes:
    changed = bytearray(data)
    changed[offset] ^= 1 << (offset % 8)
    return bytes(changed)


def as_sql(made: MadeSet, ctx: Context) -> list[bytes]:
    lines = Programs(ctx.tools).lines_of_archive(["--create", "--file=-"], made.dump_path)
    return [line for line in lines if not line.startswith((b"\\restrict", b"\\unrestrict"))]


@pytest.mark.parametrize(
    ("change", "undo", "check", "said"),
    [
        ("UPDATE topic SET name = 'forged' WHERE id = 7", "UPDATE topic SET name = '주제 7' WHERE id = 7", "content", "table public.topic"),
        ("DELETE FROM by_name WHERE id = 2", "INSERT INTO by_name VALUES (2, 'z')", "rows", "0 rows in the archive, 1 expected"),
        ("CREATE TABLE extra ()", "DROP TABLE extra", "rows", "table public.extra: 0 rows in the archive, but it was not there"),
        ("ALTER TABLE fast RENAME TO slow", "ALTER TABLE slow RENAME TO fast", "rows", "table public.fast: no data in the archive"),
        ("SELECT setval('child_id_seq', 3)", "SELECT setval('child_id_seq', 50)", "sequences", "sequence public.child_id_seq"),
        (
            "DROP INDEX topic_open_idx",
            "CREATE INDEX topic_open_idx ON topic (lower(name)) WHERE state IN ('open', 'late')",
            "objects",
            "index public.topic_open_idx is not in the archive",
        ),
        (
            "ALTER TABLE child DROP CONSTRAINT child_topic_id_fkey",
            "ALTER TABLE child ADD CONSTRAINT child_topic_id_fkey FOREIGN KEY (topic_id) REFERENCES topic",
            "objects",
            "FK CONSTRAINT public child child_topic_id_fkey",
        ),
        ("ALTER TRIGGER touch_topic ON topic RENAME TO t2", "ALTER TRIGGER t2 ON topic RENAME TO touch_topic", "objects", "touch_topic"),
        ("ALTER TABLE topic ALTER name DROP NOT NULL", "ALTER TABLE topic ALTER name SET NOT NULL", "schema", "are not those"),
        ("GRANT DELETE ON topic TO rich_reader", "REVOKE DELETE ON topic FROM rich_reader", "schema", "grants are not those"),
        ('ALTER DATABASE "rich inspect" SET work_mem = 777', 'ALTER DATABASE "rich inspect" RESET work_mem', "schema", "are not those"),
        ("SELECT lo_put(min(oid), 5, 'x') FROM pg_largeobject_metadata", None, "content", "large objects: 2 of other content"),
    ],
)
def test_a_valid_archive_of_other_content_fails_by_name(
    rich: PostgresConnection,
    tools: Tools,
    copy: MadeSet,
    context_factory: ContextFactory,
    change: str,
    undo: str | None,
    check: str,
    said: str,
) -> None:
    """Made by pg_dump itself, all digests recomputed: only the content gives it away."""
    execute(rich, change)
    try:
        forged = copy.edited(pg_run(tools, rich, "pg_dump", "--format=custom", "--compress=zstd:1"))
    finally:
        execute(rich, undo or "SELECT lo_put(min(oid), 5, '\\xff') FROM pg_largeobject_metadata")
    assert said in failed(forged.inspect(context_factory()))[check]


def test_f20_another_sets_sound_dump_fails(
    rich: PostgresConnection, copy: MadeSet, context_factory: ContextFactory, tmp_path: Path
) -> None:
    execute(rich, "UPDATE topic SET price = 1 WHERE id = 3")
    other, _ = make_set(PostgresStore(rich), tmp_path / "other", context_factory())
    execute(rich, "UPDATE topic SET price = 3 WHERE id = 3")
    assert failed(other.inspect(context_factory())) == {}
    swapped = copy.edited(other.dump_path.read_bytes(), recompute=False)
    assert "archive" in failed(swapped.inspect(context_factory()))
    # The manifest's list of files adjusted, the evidence not:
    listed = MadeSet(copy.store, copy.directory, (other.artifacts[0], copy.artifacts[1]), copy.evidence)
    assert "is not the archive that the evidence was checked against" in failed(listed.inspect(context_factory()))["archive"]
    assert "table public.topic" in failed(swapped.recomputed().inspect(context_factory()))["content"]


def test_f21_no_program_is_started_on_an_archive_that_is_not_ours(
    copy: MadeSet, tools: Tools, sandbox: Sandbox, context_factory: ContextFactory, tmp_path: Path
) -> None:
    trace = tmp_path / "started"
    ctx = context_factory(tools=fake_bin(tools, tmp_path / "bin", "pg_restore", f'echo "$@" >> \'{trace}\'\nexec "$REAL" "$@"'))
    hostile = copy.edited(b"PGDMP" + b"\xff" * 5000, recompute=False)
    assert "is not the file that was sealed" in failed(hostile.inspect(ctx))["archive"]
    with pytest.raises(VerificationFailed, match="is not the file that was sealed"):
        hostile.store.load(hostile.directory, hostile.artifacts, hostile.evidence, target_server(sandbox), ctx)
    assert not trace.exists()
    # The trap works: it is sprung once every digest says that the file is ours.
    assert "archive" in failed(hostile.recomputed().inspect(ctx))
    assert "--list" in trace.read_text()


def test_a_missing_artifact_fails(copy: MadeSet, context_factory: ContextFactory) -> None:
    copy.dump_path.unlink()
    assert "cannot be read" in failed(copy.inspect(context_factory()))["archive"]
    only_roles = MadeSet(copy.store, copy.directory, copy.artifacts[1:], copy.evidence)
    assert "no PostgreSQL artifact of kind 'dump'" in failed(only_roles.inspect(context_factory()))["archive"]
    only_dump = MadeSet(copy.store, copy.directory, copy.artifacts[:1], copy.evidence)
    assert "no PostgreSQL artifact of kind 'globals'" in failed(only_dump.inspect(context_factory()))["roles"]


def test_f12_a_role_missing_from_the_globals_fails(copy: MadeSet, context_factory: ContextFactory) -> None:
    path = copy.directory / copy.artifacts[1].path
    text = path.read_bytes()
    without = text.replace(b"CREATE ROLE rich_owner;\n", b"")
    assert without != text
    assert "role rich_owner is not created there" in failed(copy.edited(without, index=1).inspect(context_factory()))["roles"]
    assert "ends in the middle" in failed(copy.edited(text[:400], index=1).inspect(context_factory()))["roles"]


def test_what_nobody_here_can_judge_is_neither_good_nor_bad(
    copy: MadeSet, tools: Tools, context_factory: ContextFactory, tmp_path: Path
) -> None:
    (archive,) = [c for c in copy.inspect(context_factory(tools=Tools())) if c.name == "archive"]
    assert archive.passed is None
    assert "needs pg_restore 16" in archive.detail
    old = "echo 'pg_restore (PostgreSQL) 15.1'"
    says = 'echo "pg_restore: error: unsupported version (1.15) in file header" >&2; exit 1'
    older = context_factory(tools=fake_bin(tools, tmp_path / "bin", "pg_restore", f'case "$*" in --version) {old};; *) {says};; esac'))
    (archive,) = [c for c in copy.inspect(older) if c.name == "archive"]
    assert archive.passed is None
    assert "needs another pg_restore" in archive.detail


def test_another_major_version_of_pg_restore_cannot_judge_the_schema(copy: MadeSet, context_factory: ContextFactory) -> None:
    archive = copy.evidence.archive
    assert archive is not None
    other = archive.model_copy(update={"read_with": "18.1", "schema_sha256": "0" * 64})
    checks = copy.store.inspect(copy.directory, copy.artifacts, copy.evidence.model_copy(update={"archive": other}), context_factory())
    assert {c.name: c.passed for c in checks}["schema"] is None
