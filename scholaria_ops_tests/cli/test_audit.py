"""`scholaria-ops audit` as a process."""

from __future__ import annotations

import getpass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from scholaria_ops.catalogue.sets import BackupSet, Catalogue
from scholaria_ops_tests.catalogue.factory import make_set
from scholaria_ops_tests.cli.conftest import Command


@pytest.fixture
def env_file(tmp_path: Path) -> Path:
    """Settings of a site whose stores are never asked."""
    path = tmp_path / "ops.env"
    path.write_text(f"BACKUP_DIR={tmp_path / 'backups'}\n")
    return path


@pytest.fixture
def one(tmp_path: Path) -> BackupSet:
    return make_set(Catalogue(tmp_path / "backups"), datetime.now(UTC), tier="daily", verified=True)


def test_the_log_is_shown_filtered_and_verified_and_a_broken_one_has_exit_code_3(ops: Command, one: BackupSet, tmp_path: Path) -> None:
    assert "holds nothing yet" in ops("audit").out
    assert ops("hold", one.id, "--why", "kept [for] the audit").code == 0
    assert ops("verify", one.id, "--level", "hash").code == 0
    shown = ops("audit")
    assert shown.code == 0, shown.err
    assert "kept [for] the audit" in shown.out
    document = ops("audit", "--json", "--set", one.id, "--last", "2").json()
    assert document["schema"] == "scholaria-ops/audit/1"
    assert [(e["verb"], e["outcome"], e["how"]) for e in document["entries"]] == [
        ("verify", "begun", "command line"),
        ("verify", "done", "command line"),
    ]
    assert all(e["by"].startswith(f"{getpass.getuser()}@") for e in document["entries"])
    assert all(e["run_id"] for e in document["entries"]), "what ran in Dagster names its run"
    assert ops("audit", "--json", "--set", "20200101_000000").json()["entries"] == []

    intact = ops("audit", "--verify")
    assert intact.code == 0
    assert "intact 3 entries" in intact.out
    assert "no record holds a head of it yet" in intact.out
    assert ops("audit", "--verify", "--json").json()["head"]["seq"] == 3

    path = tmp_path / "backups" / ".records" / "audit.jsonl"
    path.write_text(path.read_text().replace("kept [for] the audit", "never mind"))
    broken = ops("audit", "--verify")
    assert broken.code == 3
    assert "breaks at line 2" in broken.err
    assert ops("audit", "--verify", "--json").json()["error"]["code"] == "audit_broken"


def test_words_that_make_no_sense_are_refused(ops: Command) -> None:
    assert ops("audit", "--offsite").code == 2
    assert ops("audit", "--verify", "--offsite").code == 2, "no bucket is set"
    assert ops("audit", "--set", "../x").code == 2
