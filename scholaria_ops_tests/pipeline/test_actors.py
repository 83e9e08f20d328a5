"""Who the audit log says asked for a run."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import pytest

from scholaria_ops.catalogue.audit import AuditLog
from scholaria_ops.catalogue.records import whoami
from scholaria_ops.catalogue.sets import Catalogue
from scholaria_ops.definitions import defs
from scholaria_ops.pipeline.resources import actor_of
from scholaria_ops.pipeline.runner import run_job
from scholaria_ops.progress import Silent
from scholaria_ops.settings import ENV_FILE_VARIABLE
from scholaria_ops_tests.catalogue.factory import make_set


@pytest.mark.parametrize(
    ("tags", "how"),
    [
        ({"dagster/schedule_name": "daily_backup"}, "schedule daily_backup"),
        ({"dagster/sensor_name": "retention_after_backup"}, "sensor retention_after_backup"),
        ({"dagster/backfill": "abc"}, "backfill abc"),
        ({}, "Dagster UI (nobody could be named)"),
        ({"scholaria/started_by": "somebody"}, "Dagster UI (nobody could be named)"),
        # Executed anew: Dagster copies the tags of the run before.
        ({"scholaria/started_by": "command line, kim@desk", "dagster/parent_run_id": "r0"}, "Dagster UI (nobody could be named)"),
        ({"dagster/schedule_name": "daily_backup", "dagster/parent_run_id": "r0"}, "Dagster UI (nobody could be named)"),
    ],
)
def test_how_a_run_was_asked_for_comes_from_its_tags(tags: dict[str, str], how: str) -> None:
    actor = actor_of(tags, "r1")
    assert (actor.how, actor.by, actor.run_id) == (how, whoami(), "r1")


def test_a_user_of_the_command_line_is_named() -> None:
    actor = actor_of({"scholaria/started_by": "command line, kim@desk"}, "r1")
    assert (actor.how, actor.by) == ("command line", "kim@desk")


def test_runs_started_at_a_shell_and_in_the_ui_are_told_apart(
    instance: dg.DagsterInstance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both verify the same set; the run in the UI bears no tag of ours."""
    (tmp_path / "site.env").write_text(f"BACKUP_DIR={tmp_path / 'backups'}\n")
    monkeypatch.setenv(ENV_FILE_VARIABLE, str(tmp_path / "site.env"))
    catalogue = Catalogue(tmp_path / "backups")
    one = make_set(catalogue, datetime.now(UTC), tier="daily", verified=True)
    job, config = defs.resolve_job_def("verify"), {"backup__verified": {"config": {"level": "hash"}}}
    at_a_shell = run_job(job, instance, progress=Silent(), partition=one.id, config=config)
    in_the_ui = job.execute_in_process(instance=instance, partition_key=one.id, run_config={"ops": config}).run_id
    entries = AuditLog(catalogue.layout.audit).entries()
    assert [(e.run_id, e.how) for e in entries] == [
        *[(at_a_shell, "command line")] * 2,
        *[(in_the_ui, "Dagster UI (nobody could be named)")] * 2,
    ]
    assert {e.by for e in entries} == {whoami()}
