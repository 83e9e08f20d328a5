"""`prune`, `hold` and `release` as processes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest

from scholaria_ops.catalogue.sets import BackupSet, Catalogue
from scholaria_ops.pipeline.runner import open_instance
from scholaria_ops_tests.catalogue.factory import make_set
from scholaria_ops_tests.cli.conftest import Command


@pytest.fixture
def env_file(tmp_path: Path) -> Path:
    """Settings of a site whose stores are never asked."""
    path = tmp_path / "ops.env"
    path.write_text(f"BACKUP_DIR={tmp_path / 'backups'}\nDAILY_RETENTION=7\n")
    return path


@pytest.fixture
def sets(tmp_path: Path) -> list[BackupSet]:
    """Ten daily sets, newest first; two are past seven days."""
    catalogue, now = Catalogue(tmp_path / "backups"), datetime.now(UTC)
    return [make_set(catalogue, now - timedelta(days=0.99 * n), tier="daily", verified=True) for n in range(10)]


def test_prune_shows_first_and_applies_when_told_to(ops: Command, sets: list[BackupSet], home: Path) -> None:
    shown = ops("prune")
    assert shown.code == 0, shown.err
    assert "2 to remove" in shown.out
    assert "newest verified of its tier" in shown.out
    assert "DAILY_RETENTION is an old name" in shown.err
    assert all(s.directory.is_dir() for s in sets)

    held = ops("hold", sets[9].id, "--why", "audit [2026]", "--json")
    assert held.code == 0, held.err
    assert held.json()["record"]["detail"]["why"] == "audit [2026]"
    document = ops("prune", "--apply", "--json").json()
    assert document["schema"] == "scholaria-ops/prune/1"
    assert (document["applied"], document["to_remove"]) == (True, 1)
    assert [line["rule"] for line in document["lines"] if line["id"] == sets[9].id] == ["held"]
    assert not sets[8].directory.exists()
    assert sets[9].directory.is_dir()
    with open_instance(home) as instance:
        run = instance.get_run_by_id(document["run_id"])
        assert run
        assert (run.job_name, run.status) == ("retention", dg.DagsterRunStatus.SUCCESS)

    released = ops("release", sets[9].id, "--why", "over")
    assert released.code == 0
    assert "released: over" in released.out


def test_prune_refuses_with_its_own_exit_code_and_goes_on_once_that_is_accepted(
    ops: Command, sets: list[BackupSet], tmp_path: Path
) -> None:
    assert ops("prune", "--apply").code == 0
    sets[3].directory.rename(tmp_path / "moved")
    refused = ops("prune", "--apply")
    assert refused.code == 4
    assert "are gone, and not by us" in refused.err
    assert "--accept-missing" in refused.err
    assert ops("prune", "--accept-missing").code == 2, "it wants a reason"
    accepted = ops("prune", "--accept-missing", "--why", "moved to tape")
    assert accepted.code == 0
    assert sets[3].directory.name in accepted.err


def test_a_hold_wants_a_reason_and_a_set(ops: Command, sets: list[BackupSet]) -> None:
    assert ops("hold", sets[0].id).code == 2
    assert ops("hold", "20200101_000000", "--why", "x").code == 2
