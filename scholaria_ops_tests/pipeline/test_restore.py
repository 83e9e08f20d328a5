"""The job `restore`: the plan is its first step, and the UI may execute nothing unless a setting says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from scholaria_ops.catalogue.sets import BackupSet
from scholaria_ops.operations.restore.plan import Plans
from scholaria_ops.operations.services import make_services
from scholaria_ops.pipeline.restore import restore_job
from scholaria_ops.settings import load_settings
from scholaria_ops_tests.operations.support import copied


@pytest.fixture
def the_set(env_file: Path, pristine: BackupSet) -> BackupSet:
    services = make_services(load_settings(env_file=env_file))
    services.check_directory()
    copied(pristine, services.catalogue.layout.root)
    return pristine


def launch(instance: dg.DagsterInstance, **config: Any) -> dg.ExecuteInProcessResult:
    return restore_job.execute_in_process(
        instance=instance, run_config={"ops": {"plan_of_restore": {"config": config}}}, raise_on_error=False
    )


def failure(result: dg.ExecuteInProcessResult) -> str:
    (event,) = [e for e in result.all_events if e.event_type_value == "STEP_FAILURE"]
    return str(event.event_specific_data)


def test_a_run_without_more_shows_the_plan_and_executes_nothing(instance: dg.DagsterInstance, env_file: Path, the_set: BackupSet) -> None:
    result = launch(instance, set_id=the_set.id)
    assert result.success
    (output,) = [e for e in result.all_events if e.event_type_value == "STEP_OUTPUT"]
    metadata = output.step_output_data.metadata
    assert {"digest", "steps", "consequences", "expected_s"} <= metadata.keys()
    assert any(e.event_type_value == "STEP_SKIPPED" for e in result.all_events)

    plan = Plans(make_services(load_settings(env_file=env_file)).catalogue).shown(
        str(metadata["digest"].value), the_set.manifest.started_at
    )
    refused = launch(instance, dry_run=False, digest=plan.digest)
    assert not refused.success
    assert "restores are not executed from the UI here" in failure(refused)


def test_run_config_names_sets_by_id_and_executes_plans_by_digest_only(
    instance: dg.DagsterInstance, env_file: Path, the_set: BackupSet
) -> None:
    assert "is not a backup id" in failure(launch(instance, set_id="/etc"))
    assert "by the digest of a plan that was shown" in failure(launch(instance, set_id=the_set.id, dry_run=False))
    assert "is not the digest of the restore plan shown last" in failure(launch(instance, dry_run=False, digest="0" * 64))
    assert "are not among" in failure(launch(instance, set_id=the_set.id, components=["mysql"]))
