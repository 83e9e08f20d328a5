"""A restore's file that cannot be understood: what is said of it, and the way out."""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from scholaria_ops.catalogue.layout import Layout
from scholaria_ops.errors import Refused, UsageError
from scholaria_ops.operations.restore.give_up import give_up, plan_give_up
from scholaria_ops.operations.restore.journal import FORMAT, Journals, NotUnderstood
from scholaria_ops.operations.restore.kept import kept_on_qdrant
from scholaria_ops.operations.restore.live import live_stores
from scholaria_ops.operations.restore.options import RestoreOptions
from scholaria_ops.operations.restore.recover import recover_now
from scholaria_ops.operations.restore.undo import discard, plan_undo
from scholaria_ops.operations.services import Services
from scholaria_ops.sandbox.postgres import PostgresServer
from scholaria_ops.sandbox.qdrant import QdrantServer
from scholaria_ops.sandbox.redis import RedisServer
from scholaria_ops.stores.qdrant.rest import Rest, at
from scholaria_ops_tests.operations.conftest import ServicesFactory
from scholaria_ops_tests.operations.restore.bench import BenchFactory, killed
from scholaria_ops_tests.operations.support import take
from scholaria_ops_tests.stores.postgres_support import database, execute
from scholaria_ops_tests.stores.qdrant_support import plain_config

ID = "20261124_020000"
UNTOUCHED = 65534


def edited(**fields: Any) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))

    return damage


def cut(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


DAMAGES: dict[str, tuple[Callable[[Path], Any], str, str]] = {
    "cut short": (cut, "cannot be understood: it is cut short, or is no JSON (", "--give-up"),
    "zeros": (lambda p: p.write_bytes(bytes(700)), "it is empty", "--give-up"),
    "no object": (lambda p: p.write_text("[]"), "it is JSON, but no object", "--give-up"),
    "not JSON": (lambda p: p.write_bytes(b"\xff\xfe"), "is no JSON", "--give-up"),
    "wrong": (edited(begun_at="yesterday", stores=7), "missing or wrong are begun_at, stores", "--give-up"),
    "of another restore": (edited(id=ID), f"it is the journal of {ID}", "--give-up"),
    "gone": (Path.unlink, "is not there, though postgres.json, qdrant.json, redis.json is", "--give-up"),
    "newer": (edited(format_version=FORMAT + 1), f"newer version of scholaria-ops: format {FORMAT + 1}; this one", "Use that version"),
    "newer by its words": (edited(phase="pondering", mood="new"), "a newer version of scholaria-ops may have", "Use that version"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_it_is_said_what_is_wrong_and_the_restore_can_be_closed(bench: BenchFactory, damage: str) -> None:
    here = bench()
    here.execute()
    done = here.execute().journal
    path = here.journals.directory(done.id) / "journal.json"
    hurt, said, advice = DAMAGES[damage]
    hurt(path)
    content = path.read_bytes() if path.exists() else None
    commands: tuple[Callable[[], object], ...] = (
        lambda: recover_now(here.services, here.live),
        lambda: plan_undo(here.services, here.live),
        lambda: discard(here.services, here.live),
    )
    for command in commands:
        with pytest.raises(NotUnderstood) as caught:
            command()
        assert str(path) in caught.value.message
        assert said in caught.value.message
        assert advice in caught.value.hint
    files, states, steps = here.journals.files(done.id), here.states(), here.steps
    plan = plan_give_up(here.services, here.live, done.id)
    text = "\n".join(plan.lines)
    for words in (said, f"postgres: serves: {here.set_id} of postgres", f"redis: holds: {here.set_id}, kept", "writers: whether"):
        assert words in text
    if damage not in {"zeros", "no object", "not JSON", "gone"}:
        assert f"what can still be read there: set_id {here.set_id}" in text
    lines = give_up(here.services, plan)
    assert (here.states(), here.steps) == (states, steps), "no store is touched"
    assert "given up" in lines[-1]
    if content is not None:
        aside = path.with_name("journal.not-understood.json")
        assert aside.read_bytes() == content
        assert lines[0] == f"{path} is kept as {aside.name}"
        assert set(here.journals.files(done.id)) == {*files, aside}
    begun, ended = [e for e in here.services.audit_log.entries() if e.verb == "give_up"]
    assert (begun.outcome, begun.detail["restore"], ended.outcome) == ("begun", done.id, "done")
    assert said in begun.detail["found"]
    closed = here.journals.all()[-1]
    assert (closed.id, closed.phase) == (done.id, "given_up")
    assert recover_now(here.services, here.live) == []
    with pytest.raises(UsageError, match="no restore that can be undone"):
        plan_undo(here.services, here.live)  # the older one: over what is not known nothing is undone
    with pytest.raises(UsageError, match="nothing of the restore"):
        plan_give_up(here.services, here.live, done.id)
    here.execute()
    assert here.served == [here.set_id] * 3


def test_another_restore_can_be_given_up_beside_it_and_a_mended_one_is_not_closed(bench: BenchFactory) -> None:
    here = bench()
    other, done = here.execute().journal, here.execute().journal
    path = here.journals.directory(done.id) / "journal.json"
    whole = path.read_bytes()
    cut(path)
    with pytest.raises(UsageError) as caught:
        plan_give_up(here.services, here.live, ID)
    assert f"{other.id}, {done.id}" in caught.value.hint
    assert "given up" in give_up(here.services, plan_give_up(here.services, here.live, other.id))[-1]
    plan = plan_give_up(here.services, here.live, done.id)
    path.write_bytes(whole)
    with pytest.raises(Refused, match="can be understood by now"):
        give_up(here.services, plan)
    assert path.read_bytes() == whole
    assert plan_undo(here.services, here.live).restore_id == done.id


def test_killed_while_it_is_closed_it_is_not_forgotten(bench: BenchFactory) -> None:
    here = bench()
    here.execute()
    done = here.execute().journal
    path = here.journals.directory(done.id) / "journal.json"
    cut(path)
    content = path.read_bytes()
    plan = plan_give_up(here.services, here.live, done.id)
    assert killed(here, 1, lambda: give_up(here.services, plan)) == -signal.SIGKILL
    with pytest.raises(NotUnderstood, match=r"is not there, though journal.not-understood.json, "):
        plan_undo(here.services, here.live)
    give_up(here.services, plan_give_up(here.services, here.live, done.id))
    assert here.journals.all()[-1].phase == "given_up"
    assert path.with_name("journal.not-understood.json").read_bytes() == content


def test_backups_go_on_and_leave_out_what_the_notebook_says(bench: BenchFactory, caplog: pytest.LogCaptureFixture) -> None:
    here = bench()
    done = here.execute().journal
    cut(here.journals.directory(done.id) / "journal.json")
    layout = here.services.catalogue.layout
    manifest = take(here.services).manifest
    assert manifest.postgres
    assert manifest.redis
    assert manifest.qdrant
    assert "could not be settled" in caplog.text
    assert f"--give-up {done.id}" in caplog.text
    here.journals.notebook(done.id, "qdrant").write(state="rolled_back", meanwhile=["documents__meanwhile_1"])
    assert "documents__meanwhile_1" in kept_on_qdrant(layout)
    give_up(here.services, plan_give_up(here.services, here.live, done.id))
    assert "documents__meanwhile_1" in kept_on_qdrant(layout)
    for content in ("{", '{"state": 7}'):  # given up: a backup then holds more, never less
        (here.journals.directory(done.id) / "qdrant.json").write_text(content)
        assert kept_on_qdrant(layout) == frozenset()
    other = here.execute().journal
    (here.journals.directory(other.id) / "qdrant.json").write_text('{"state": 7}')
    with pytest.raises(Refused, match="cannot be understood"):
        kept_on_qdrant(layout)


@pytest.fixture
def for_everybody() -> Iterator[Path]:
    """A directory that another user can reach, which those of the tests are not."""
    directory = Path(tempfile.mkdtemp())
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


def test_a_file_of_another_user_is_said_to_be_one(bench: BenchFactory, for_everybody: Path) -> None:
    here = bench()
    done = here.execute().journal
    journals = Journals(Layout(for_everybody))
    shutil.copytree(here.journals.root, journals.root)
    for path in (for_everybody, *for_everybody.rglob("*")):
        path.chmod(0o755)
    for name, read in (
        ("journal.json", journals.all),
        ("redis.json", lambda: journals.notebook(done.id, "redis").read()),
        ("", lambda: journals.write(done)),
    ):
        path = journals.directory(done.id) / name
        mode = path.stat().st_mode
        path.chmod(0o000 if name else 0o555)
        root = os.geteuid() == 0
        if root:
            os.seteuid(UNTOUCHED)
        try:
            with pytest.raises(Refused) as caught:
                read()
        finally:
            if root:
                os.seteuid(0)
            path.chmod(mode)
        assert str(path).rstrip("/") in caught.value.message
        assert "Permission denied" in caught.value.message
        assert "this user's (uid " in caught.value.hint
        if name:
            assert "(it belongs to uid " in caught.value.message


@pytest.fixture
def site(
    services_factory: ServicesFactory, pg_server: PostgresServer, redis_server: RedisServer, qdrant_server: QdrantServer
) -> Iterator[Services]:
    """Real servers that are not shared as they are: with what a restore leaves on them."""
    to, name = pg_server.connection, "ends"
    beside = (f"{name}_before_{ID}", f"{name}_restore_{ID}_2", f"{name}_before_20200101_000000")
    collections = (f"docs__{ID}", f"docs__before_{ID}_2", "docs__20200101_000000")
    with database(pg_server, name, "CREATE TABLE a (id serial)"), Rest(qdrant_server.connection) as rest:
        execute(to, *(f"CREATE DATABASE {other} ALLOW_CONNECTIONS false" for other in beside))
        for collection in collections:
            rest.put(at(collection), plain_config(4))
        first = {"create_alias": {"collection_name": collections[0], "alias_name": "docs"}}
        rest.post("/collections/aliases", {"actions": [first]})
        try:
            yield services_factory(
                DB_HOST=to.host,
                DB_PORT=str(to.port),
                DB_NAME=name,
                DB_USER=to.user,
                DB_PASSWORD=to.password.get_secret_value(),
                REDIS_HOST=redis_server.connection.host,
                REDIS_PORT=str(redis_server.connection.port),
                REDIS_PASSWORD=redis_server.connection.password.get_secret_value(),
                QDRANT_URL=qdrant_server.connection.url,
            )
        finally:
            execute(to, *(f"DROP DATABASE {other}" for other in beside))
            for collection in collections:
                rest.delete(at(collection))


def test_what_bears_the_restores_id_on_real_servers_is_shown_where_nothing_else_tells(site: Services) -> None:
    site.check_directory()
    journals = Journals(site.catalogue.layout)
    journals.directory(ID).mkdir(parents=True)
    (journals.directory(ID) / "journal.json").write_text("{")
    live = live_stores(site, RestoreOptions())
    text = "\n".join(plan_give_up(site, live, ID).lines)
    for words in (
        "postgres: has: database ends, ",
        f"postgres: has: database ends_before_{ID}, ",
        "by its name what was served before the restore; takes no connections",
        f"postgres: has: database ends_restore_{ID}_2, ",
        f"qdrant: has: collection docs__{ID}, 0 points: by its name what the restore loaded",
        f"qdrant: has: collection docs__before_{ID}_2, 0 points: by its name a copy of what was served before",
        f"qdrant: has: alias docs, leads to docs__{ID}",
        "redis: has: ",
    ):
        assert words in text
    assert "20200101" not in text
    facts = {"identity": "1", "dbname": "ends", "old_oid": None, "new_name": "a", "before_name": "b", "after_name": "c"}
    journals.notebook(ID, "postgres").write(**facts)
    (journals.directory(ID) / "qdrant.json").write_text('{"state": 7}')
    text = "\n".join(plan_give_up(site, live, ID).lines)
    assert "postgres: serves: PostgreSQL at " in text
    assert f"postgres: has: database ends_before_{ID}, " in text
    assert "qdrant: what a restore wrote down about Qdrant cannot be understood (state)" in text
    assert f"qdrant: has: collection docs__{ID}, " in text
