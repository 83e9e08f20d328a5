"""The retention job, who may apply what, and the sensor that asks for it: on a real Dagster instance."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from scholaria_ops.catalogue.records import Record
from scholaria_ops.catalogue.sets import BackupSet, Catalogue
from scholaria_ops.definitions import defs
from scholaria_ops.errors import OpsError, Refused, UsageError
from scholaria_ops.pipeline.origin import from_command_line
from scholaria_ops.pipeline.partitions import add_partition, known_partitions
from scholaria_ops.pipeline.resources import Estate
from scholaria_ops.pipeline.retention import newly_verified, retention_after_backup, runs_in_flight
from scholaria_ops.pipeline.runner import run_job
from scholaria_ops.progress import Silent
from scholaria_ops_tests.catalogue.factory import make_set

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture
def sets(settings_file: Path, tmp_path: Path, instance: dg.DagsterInstance) -> list[BackupSet]:
    """Ten daily sets, the newest of now; two are past seven days."""
    catalogue = Catalogue(tmp_path / "backups")
    now = datetime.now(UTC)
    made = [make_set(catalogue, now - timedelta(days=0.99 * n), tier="daily", verified=True) for n in reversed(range(10))][::-1]
    for one in made:
        add_partition(instance, one.id)
    return made


def retain(instance: dg.DagsterInstance, **config: str) -> dict[str, Any]:
    """Run the job; returns the metadata of its step."""
    run_id = run_job(defs.resolve_job_def("retention"), instance, progress=Silent(), config={"retain": {"config": config}})
    for record in instance.get_records_for_run(run_id).records:
        event = record.event_log_entry.dagster_event
        if event and event.event_type_value == "STEP_OUTPUT":
            return {k: v.value for k, v in event.step_output_data.metadata.items()}
    raise AssertionError("the step gave nothing")


def standing(sets: list[BackupSet]) -> list[str]:
    return [s.id for s in sets if s.directory.exists()]


def tick(instance: dg.DagsterInstance, cursor: str | None = None) -> Any:
    return retention_after_backup(dg.build_sensor_context(instance=instance, resources={"estate": Estate()}, cursor=cursor))


def test_without_config_the_job_shows_the_plan_and_removes_nothing(instance: dg.DagsterInstance, sets: list[BackupSet]) -> None:
    shown = retain(instance)
    assert len(standing(sets)) == 10
    assert (shown["to_remove"], shown["kept"]) == (2, 8)
    assert len(shown["digest"]) == 64
    assert [r.data["verdict"] for r in shown["plan"].records] == ["remove"] * 2 + ["keep"] * 8


def test_from_the_ui_a_plan_is_applied_only_by_digest_and_only_if_a_setting_allows_it(
    instance: dg.DagsterInstance, sets: list[BackupSet], settings_file: Path
) -> None:
    digest = retain(instance)["digest"]
    with pytest.raises(Refused, match="not applied from the UI"):
        retain(instance, digest=digest)
    with pytest.raises(Refused, match="nobody asked"):
        retain(instance, after=sets[0].id)
    with pytest.raises(UsageError):
        retain(instance, after="../../etc")
    with settings_file.open("a") as out:
        out.write("BACKUP_RETENTION_APPLY_FROM_UI=true\n")
    with pytest.raises(UsageError, match="not the digest"):
        retain(instance, digest="0" * 64)
    assert len(standing(sets)) == 10
    done = retain(instance, digest=digest)
    assert done["removed"] == 2
    assert standing(sets) == [s.id for s in sets[:8]]
    assert known_partitions(instance) == {s.id for s in sets[:8]}, "the grid shows what stands"


def test_the_command_line_applies_without_that_setting(instance: dg.DagsterInstance, sets: list[BackupSet]) -> None:
    digest = retain(instance)["digest"]
    with from_command_line():
        assert retain(instance, digest=digest)["removed"] == 2
    assert len(standing(sets)) == 8


def test_a_set_with_an_unfinished_run_is_kept(instance: dg.DagsterInstance, sets: list[BackupSet]) -> None:
    job = defs.resolve_job_def("sync")
    run = instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED, tags={"dagster/partition": sets[9].id})
    assert runs_in_flight(instance).keys() == {sets[9].id}
    digest = retain(instance)["digest"]
    with from_command_line():
        assert retain(instance, digest=digest)["removed"] == 1
    assert sets[9].directory.exists()
    instance.report_run_failed(run)
    assert not runs_in_flight(instance)


def test_the_sensor_asks_once_after_a_verified_backup_and_what_it_asks_for_is_applied(
    instance: dg.DagsterInstance, sets: list[BackupSet]
) -> None:
    asked = tick(instance)
    (request,) = asked.run_requests
    assert request.run_key == f"after-{sets[0].id}"
    assert asked.cursor == sets[0].id
    assert isinstance(tick(instance, cursor=asked.cursor), dg.SkipReason)
    config = request.run_config["ops"]["retain"]["config"]
    assert retain(instance, **config)["removed"] == 2
    assert len(standing(sets)) == 8
    with pytest.raises(Refused, match="done already"):
        retain(instance, **config)


def test_what_the_sensor_asks_for_fails_loudly_when_the_plan_refuses(
    instance: dg.DagsterInstance, sets: list[BackupSet], tmp_path: Path
) -> None:
    small = make_set(Catalogue(tmp_path / "backups"), datetime.now(UTC) + timedelta(seconds=2), tier="daily", verified=True, size=10)
    (request,) = tick(instance).run_requests
    assert request.run_key == f"after-{small.id}"
    with pytest.raises(OpsError, match="far smaller"):
        retain(instance, **request.run_config["ops"]["retain"]["config"])
    assert len(standing(sets)) == 10
    assert instance.get_runs()[0].status is dg.DagsterRunStatus.FAILURE


def _history(*events: tuple[str, float, dict[str, Any]]) -> list[Record]:
    return [Record.model_validate({"at": NOW - timedelta(hours=h), "event": e, "by": "x", "detail": d}) for e, h, d in events]


def test_which_set_brings_about_a_prune() -> None:
    good = _history(("sealed", 2, {}), ("verified", 1, {"passed": True}))
    assert newly_verified({"a": good}, {}, "", NOW) == "a"
    assert newly_verified({"a": good}, {}, "a", NOW) is None, "asked for already"
    assert newly_verified({"a": good}, {"a": "run"}, "", NOW) is None, "its run still ships it"
    assert newly_verified({}, {}, "", NOW) is None
    bad = {
        "failed": _history(("sealed", 2, {}), ("verified", 1, {"passed": False})),
        "failed later": _history(("sealed", 3, {}), ("verified", 2, {"passed": True}), ("verified", 1, {"passed": False})),
        "partial": _history(("sealed", 2, {"partial": True}), ("verified", 1, {"passed": True})),
        "unverified": _history(("sealed", 2, {})),
        "old, verified again": _history(("sealed", 99, {}), ("verified", 98, {"passed": True}), ("verified", 1, {"passed": True})),
    }
    assert newly_verified(bad, {}, "", NOW) is None
    assert newly_verified({**bad, "a": good}, {}, "", NOW) == "a"
