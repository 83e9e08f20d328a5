"""Every command as a process: what it prints, what it leaves, how it ends."""

from __future__ import annotations

import subprocess
from pathlib import Path

import dagster as dg
import pytest

from scholaria_ops.catalogue.lock import estate_lock
from scholaria_ops.pipeline.runner import open_instance
from scholaria_ops.sandbox.sample import SampleStack
from scholaria_ops_tests.cli.conftest import COMMAND, Command
from scholaria_ops_tests.operations.support import flip


def test_from_check_to_a_verified_set_and_into_dagster(ops: Command, home: Path, sample_stack: SampleStack) -> None:
    ready = ops("check", "--json")
    assert ready.code == 0, ready.err
    assert ready.json()["ready"] is True

    taken = ops("backup", "--tier", "daily", "--note", "from a test", "--json")
    assert taken.code == 0, taken.err
    made = taken.json()
    assert made["schema"] == "scholaria-ops/backup/1"
    assert made["set"]["tier"] == "daily"
    assert made["set"]["counts"]["rows"] == sum(sample_stack.rows.values())
    assert made["set"]["verified_level"] == "readable"
    set_id = made["set"]["id"]

    (listed,) = ops("list", "--json").json()["sets"]
    assert (listed["id"], listed["kind"]) == (set_id, "sealed")
    human = ops("list").out
    assert set_id in human
    assert "daily" in human
    shown = ops("show", "latest", "--json").json()["set"]
    assert shown["manifest"]["origin"]["note"] == "from a test"
    assert [r["event"] for r in shown["records"]] == ["reserved", "sealed", "verified"]
    assert str(sum(sample_stack.points.values())) in ops("show").out.replace(",", "")

    with open_instance(home) as instance:
        run = instance.get_run_by_id(made["run_id"])
        assert run
        assert (run.job_name, run.is_success, run.tags["dagster/partition"]) == ("backup", True, set_id)
        assert "command line" in run.tags["scholaria/started_by"]
        assert set_id in instance.get_materialized_partitions(dg.AssetKey(["backup", "verified"]))

    verified = ops("verify")
    assert verified.code == 0, verified.err
    assert "verified" in verified.out
    assert ops("sync").code == 0

    damaged = Path(made["set"]["path"])
    flip(next(damaged.glob("postgres_*.custom")))
    failed = ops("verify", set_id, "--level", "hash")
    assert failed.code == 3
    assert "is not what was sealed" in failed.err
    assert "FAILED" in ops("list").out
    assert ops("show", "latest").code == 2, "a set whose newest verification failed is not the latest verified one"


def test_a_set_elsewhere_is_verified_by_its_path(ops: Command, tmp_path: Path) -> None:
    import shutil

    made = ops("backup", "--json").json()["set"]
    elsewhere = tmp_path / "usb" / Path(made["path"]).name
    shutil.copytree(made["path"], elsewhere)
    answer = ops("verify", str(elsewhere), "--level", "hash", "--json")
    assert answer.code == 0, answer.err
    assert answer.json()["passed"] is True
    flip(elsewhere / "RESTORE.txt")
    answer = ops("verify", str(elsewhere), "--json")
    assert answer.code == 3
    assert "RESTORE.txt" in answer.out


def test_exit_codes_of_wrong_requests(ops: Command, env_file: Path, tmp_path: Path) -> None:
    assert ops("backup", "--tier", "hourly").code == 2
    assert ops("backup", "--tier", "pre_restore").code == 2
    assert ops("verify", "--level", "deep").code == 2
    assert ops("verify", "20200101_000000").code == 2
    assert ops("nonsense").code == 2
    assert ops("backup", "--nonsense").code == 2
    assert ops("show").code == 2, "there is nothing yet"
    assert ops("check", env={"BACKUP_TIMEZON": "UTC"}).code == 2
    unknown = ops("list", "--json", env={"DB_PORT": "x"})
    assert (unknown.code, unknown.json()["error"]["code"]) == (2, "config")
    with env_file.open("a") as out:
        out.write(f"BACKUP_DIR={tmp_path / 'ops.env'}/below-a-file\n")
    assert ops("backup").code == 4


def test_refused_failed_and_busy(ops: Command, tmp_path: Path) -> None:
    failed = ops("backup", env={"QDRANT_URL": "http://127.0.0.1:1"})
    assert failed.code == 1
    assert "qdrant could not be backed up" in failed.err
    assert "partial" in ops("list").out
    not_ready = ops("check", env={"QDRANT_URL": "http://127.0.0.1:1"})
    assert not_ready.code == 1
    assert "not ready" in not_ready.out
    assert "a set may need up to" not in not_ready.out, "a sum without Qdrant is no sum"
    with estate_lock(tmp_path / "backups" / ".state" / "estate.lock", "a long restore"):
        busy = ops("backup")
    assert busy.code == 5
    assert "a long restore" in busy.err


def test_config_shows_where_values_come_from_and_masks_secrets(ops: Command, env_file: Path, sample_stack: SampleStack) -> None:
    answer = ops("config", env={"BACKUP_TIMEZONE": "Asia/Seoul"})
    assert answer.code == 0
    lines = {line.split()[0]: line for line in answer.out.splitlines()[1:]}
    assert "environment (BACKUP_TIMEZONE)" in lines["BACKUP_TIMEZONE"]
    assert f"{env_file} (DB_HOST)" in lines["DB_HOST"]
    assert "default" in lines["BACKUP_PG_COMPRESSION"]
    assert "********" in lines["DB_PASSWORD"]
    assert sample_stack.postgres_admin.password.get_secret_value() not in answer.out + ops("config", "--json").out


@pytest.mark.parametrize("words", [("--help",), ("backup", "--help"), ("verify", "--help"), ("--version",)])
def test_help_needs_no_settings(ops: Command, words: tuple[str, ...]) -> None:
    answer = ops(*words, env={"DB_PORT": "x"})
    assert answer.code == 0
    assert "scholaria-ops" in answer.out


@pytest.mark.parametrize("words", [("list",), ("list", "--json"), ("config",)])
def test_a_full_disk_behind_the_output_is_said_without_a_traceback(home: Path, env_file: Path, words: tuple[str, ...]) -> None:
    with Path("/dev/full").open("wb") as full:
        finished = subprocess.run(
            [str(COMMAND), "--env-file", str(env_file), *words],
            env={"DAGSTER_HOME": str(home)},
            cwd=home,
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
        )
    told = finished.stderr.decode()
    assert finished.returncode == 1, told
    assert "the result cannot be written to standard output: No space left on device" in told
    assert "Traceback" not in told
    assert "Exception ignored" not in told


def test_a_name_with_brackets_is_printed_as_it_is(ops: Command) -> None:
    assert ops("backup", "--note", "[red]before[/] the move", "--json").code == 0
    assert "[red]before[/] the move" in ops("list").out
    assert "[red]before[/] the move" in ops("show").out
