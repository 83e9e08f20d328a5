"""What restores say at the terminal before anything happens; what they do is shown in the scenarios."""

from __future__ import annotations

import os
import pty
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from scholaria_ops.catalogue.evidence.base import StoreName
from scholaria_ops.catalogue.layout import Layout
from scholaria_ops.operations.restore.journal import Journal, Journals, Phase
from scholaria_ops.pipeline.runner import open_instance
from scholaria_ops.process import run
from scholaria_ops.profiles.scholaria import KEY_CLASSES
from scholaria_ops.sandbox.postgres import PostgresServer
from scholaria_ops_tests.cli.conftest import COMMAND, Command
from scholaria_ops_tests.stores.postgres_support import ask, database


def of_a_restore(store: StoreName, phase: Phase) -> Journal:
    """The journal of a restore of one store that stands at ``phase``."""
    return Journal(
        id="20261124_020000",
        set_id="20261123_020000",
        stores=(store,),
        plan_digest="0" * 64,
        begun_at=datetime(2026, 11, 24, 2, tzinfo=UTC),
        by="ops@host",
        phase=phase,
    )


def test_a_dry_run_shows_the_plan_and_touches_nothing(ops: Command, home: Path, env_file: Path) -> None:
    assert ops("backup").code == 0
    answer = ops("restore", "--dry-run")
    assert answer.code == 0, answer.err
    for words in (
        "[DRY RUN] Would restore PostgreSQL from: postgres_",
        "[DRY RUN] Would restore Redis from: redis_",
        "[DRY RUN] Would restore Qdrant from: qdrant_",
        "take a pre_restore set",
        "nobody is stopped (BACKUP_FENCE is none)",
        "without service; plan ",
    ):
        assert words in answer.out, words
    document = ops("restore", "--dry-run", "--json", "--component", "redis", "--keys", "sessions=drop").json()
    assert document["schema"] == "scholaria-ops/restore/1"
    assert document["executed"] is False
    assert list(document["plan"]["stores"]) == ["redis"]
    assert any(e["kind"] == "dropped" and "session" in e["what"] for e in document["plan"]["stores"]["redis"]["effects"])
    assert len(ops("list", "--json").json()["sets"]) == 1, "no safety set was taken"

    refused = ops("restore")
    assert refused.code == 4
    assert "nobody is here to confirm" in refused.err
    assert ops("restore", "--json").code == 4, "it asks no questions"
    master, slave = os.openpty()
    os.write(master, b"no\n")
    asked = run([str(COMMAND), "--env-file", str(env_file), "restore"], env={"DAGSTER_HOME": str(home)}, cwd=home, check=False, stdin=slave)
    assert asked.returncode == 4, asked.stderr_tail
    assert "Type yes to restore" in asked.stdout.decode() + asked.stderr_tail
    assert "not confirmed" in asked.stderr_tail
    os.write(master, b"\x04")  # Ctrl-D: the end of the input
    asked = run([str(COMMAND), "--env-file", str(env_file), "restore"], env={"DAGSTER_HOME": str(home)}, cwd=home, check=False, stdin=slave)
    assert asked.returncode == 4, asked.stderr_tail
    assert "not confirmed" in asked.stderr_tail
    assert "Traceback" not in asked.stderr_tail
    os.close(master)
    os.close(slave)
    with open_instance(home) as instance:
        assert not instance.get_runs(dg.RunsFilter(job_name="restore"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--component", "mysql"), "there is no component 'mysql'"),
        (("--keys", "sessions=burn"), "is not CLASS=ACTION"),
        (("--keys", "nonsense=drop"), "is not CLASS=ACTION"),
        (("--from", "mars"), "source 'mars' does not exist"),
        (("--undo",), "no restore that can be undone"),
        (("--undo", "--recover"), "exclude each other"),
        (("--give-up", "20200101_000000", "--undo"), "exclude each other"),
        (("--give-up", "20200101_000000"), "there is no restore '20200101_000000'"),
        (("--undo", "--dry-run", "--recover"), "exclude each other"),
        (("--undo", "--dry-run", "--discard-old"), "exclude each other"),
        (("20200101_000000",), "there is no set"),
        (("--component", "postgres", "redis"), "'redis' is a store, no set"),
        (("--undo", "--component", "redis"), "--component cannot be given with --undo"),
        (("20200101_000000", "--recover", "--no-safety"), "SET, --no-safety cannot be given with"),
        (("--discard-old", "--from", "offsite"), "--from cannot be given with"),
    ],
)
def test_what_makes_no_sense_is_said_with_exit_code_2(ops: Command, words: tuple[str, ...], said: str) -> None:
    answer = ops("restore", "--force", *words)
    assert answer.code == 2, answer.err
    assert said in answer.err
    assert "Traceback" not in answer.err


def test_nothing_to_recover_and_nothing_to_discard_is_no_error(ops: Command) -> None:
    assert "no restore was cut off" in ops("restore", "--recover").out
    assert ops("restore", "--discard-old", "--json").json()["discarded"] == []


def test_a_restore_that_can_never_be_settled_is_given_up_only_when_that_is_confirmed(ops: Command, tmp_path: Path) -> None:
    journals = Journals(Layout(tmp_path / "backups"))
    dead = of_a_restore("redis", "switching")
    journals.write(dead)
    journals.notebook(dead.id, "redis").write(crossing={"number": 0, "target": "it", "pairs": [[0, 15]], "ledger": 14, "policy": ""})
    shown = ops("restore", "--give-up", dead.id, "--dry-run")
    assert shown.code == 0, shown.err
    for words in (
        f"the restore {dead.id} of the set {dead.set_id}",
        "it stands at: switching",
        "redis serves: database 0: ",
        "redis.json, ",
    ):
        assert words in shown.out
    refused = ops("restore", "--give-up", dead.id)
    assert (refused.code, "nobody is here to confirm" in refused.err) == (4, True)
    assert [j.phase for j in journals.all()] == ["switching"]
    document = ops("restore", "--give-up", dead.id, "--force", "--json").json()
    assert (document["executed"], document["give_up"]["restore_id"]) == (True, dead.id)
    assert [j.phase for j in journals.all()] == ["given_up"]
    assert ops("restore", "--give-up", dead.id, "--force").code == 2


def test_the_next_restore_settles_one_that_was_cut_off_before_it_plans(ops: Command, tmp_path: Path) -> None:
    assert ops("backup").code == 0
    journals = Journals(Layout(tmp_path / "backups"))
    cut_off = of_a_restore("redis", "begun")
    journals.write(cut_off)
    for words in (("--dry-run",), ("--undo", "--dry-run")):
        refused = ops("restore", *words)
        assert refused.code == 4
        assert f"the restore {cut_off.id} of {cut_off.set_id} has not come to its end" in " ".join(refused.err.split())
    undone = ops("restore", "--undo", "--force")
    assert (undone.code, "no restore that can be undone" in undone.err) == (2, True)
    assert [j.phase for j in journals.all()] == ["rolled_back"]
    journals.write(cut_off)
    # The servers are everybody's: all keys come back as they are.
    as_they_are = [word for entry in KEY_CLASSES for word in ("--keys", f"{entry.name}=restore")]
    done = ops("restore", "--component", "redis", "--force", "--no-safety", *as_they_are)
    assert done.code == 0, done.err
    assert f"the restore {cut_off.id} of {cut_off.set_id} had been cut off; it is taken back" in " ".join(done.err.split())
    assert [j.phase for j in journals.all()] == ["rolled_back", "done"]
    assert ops("restore", "--discard-old", "--force").code == 0


def test_a_journal_that_cannot_be_understood_is_named_with_the_way_out(ops: Command, tmp_path: Path) -> None:
    journals = Journals(Layout(tmp_path / "backups"))
    path = journals.directory("20261124_020000") / "journal.json"
    path.parent.mkdir(parents=True)
    path.write_text('{"set_id": "20261123_020000", "phase": "swit')
    for words in (("--recover",), ("--undo",), ("--discard-old", "--force")):
        refused = ops("restore", *words)
        assert refused.code == 4
        said = " ".join(refused.err.split())
        assert "cannot be understood: it is cut short, or is no JSON" in said
        assert "restore --give-up 20261124_020000" in said
        assert "Traceback" not in refused.err
    shown = ops("restore", "--give-up", "20261124_020000", "--dry-run")
    assert shown.code == 0, shown.err
    assert "what can still be read there: set_id 20261123_020000" in shown.out
    assert "postgres: has: database scholaria, " in shown.out
    document = ops("restore", "--give-up", "20261124_020000", "--force", "--json").json()
    assert document["executed"] is True
    assert "cut short" in document["give_up"]["why"]
    assert path.with_name("journal.not-understood.json").read_text().endswith('"swit')
    assert "no restore was cut off" in ops("restore", "--recover").out


def test_a_kept_database_that_somebody_renamed_is_named_and_stays(ops: Command, tmp_path: Path, pg_server: PostgresServer) -> None:
    journals = Journals(Layout(tmp_path / "backups"))
    to, before = pg_server.connection, "kept_before_20261124_020000"
    env = {
        "DB_HOST": to.host,
        "DB_PORT": str(to.port),
        "DB_USER": to.user,
        "DB_PASSWORD": to.password.get_secret_value(),
        "DB_NAME": "kept",
    }
    with database(pg_server, "kept"), database(pg_server, "wanted") as wanted:
        oids = {str(name): int(str(oid)) for oid, name in ask(to, "SELECT oid, datname::text FROM pg_database")}
        journal = of_a_restore("postgres", "done")
        journals.write(journal)
        names = {"new_name": "kept_restore_20261124_020000", "before_name": before, "after_name": "kept_after_20261124_020000"}
        facts: dict[str, Any] = {"identity": str(pg_server.system_identifier), "dbname": "kept", **names}
        journals.notebook(journal.id, "postgres").write(**facts, old_oid=oids["wanted"], new_oid=oids["kept"])
        for _ in range(2):
            answer = ops("restore", "--discard-old", "--force", env=env)
            assert answer.code == 4, answer.err
            said = " ".join(answer.err.split())
            assert f"it had been called {before}, and somebody has renamed it" in said
            assert 'DROP DATABASE "wanted", or name it' in said
        answer = ops("restore", "--discard-old", "--force", "--json", env=env)
        assert (answer.code, "renamed" in answer.json()["discarded"][0]["left"][0]) == (4, True)
        assert ask(wanted, "SELECT 1") == [(1,)]
        assert ops("restore", "--give-up", journal.id, "--force", env=env).code == 0
        assert ops("restore", "--discard-old", "--force", "--json", env=env).json()["discarded"] == []


@pytest.mark.parametrize("terminal", [True, False], ids=["bars", "lines"])
def test_at_a_terminal_it_is_asked_once_more_where_nothing_can_be_saved(ops: Command, home: Path, env_file: Path, terminal: bool) -> None:
    assert ops("backup").code == 0
    settings = dict(line.split("=", 1) for line in env_file.read_text().splitlines())
    as_before = {"REDIS_RESTORE_USERNAME": "default", "REDIS_RESTORE_PASSWORD": settings.get("REDIS_PASSWORD", "")}
    with env_file.open("a") as out:
        out.writelines(f"{k}={v}\n" for k, v in {**as_before, "REDIS_USERNAME": "nobody", "REDIS_PASSWORD": "wrong"}.items())
    words = [str(COMMAND), "--env-file", str(env_file), "restore", "--component", "redis"]
    child, terminal_fd = pty.fork() if terminal else (0, 0)
    if terminal and child == 0:
        os.chdir(home)
        os.execve(words[0], words, {"DAGSTER_HOME": str(home), "PATH": os.environ["PATH"], "TERM": "xterm"})  # noqa: S606
    if terminal:
        said = _talk(terminal_fd, {b"Type yes to restore 2": b"yes\n", b"Type yes to restore all the same": b"no\n"})
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 4, said
    else:
        master, slave = os.openpty()
        os.write(master, b"yes\nno\n")
        asked = run(words, env={"DAGSTER_HOME": str(home)}, cwd=home, check=False, stdin=slave)
        os.close(master)
        os.close(slave)
        said = asked.stdout.decode() + asked.stderr_tail
        assert asked.returncode == 4, said
    said = " ".join(said.split())
    assert "Redis cannot be saved before it is replaced" in said
    assert "there is no safety set: nothing of what is replaced could be saved" in said
    assert "not confirmed: nothing of what would be replaced can be saved" in said


def _talk(terminal: int, answers: dict[bytes, bytes]) -> str:
    """Answer each question at a terminal when it comes; returns everything that was said."""
    said = b""
    waiting = dict(answers)
    while True:
        try:
            more = os.read(terminal, 65536)
        except OSError:  # the other side is closed
            break
        if not more:
            break
        said += more
        for question in [q for q in waiting if q in said]:
            os.write(terminal, waiting.pop(question))
    os.close(terminal)
    return said.decode(errors="replace")
