"""The estate lock held by a command elsewhere: what nobody sits in front of waits for it, and a person is told at once."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._daemon.monitoring.run_monitoring import check_run_timeout

from scholaria_ops.catalogue.sets import BackupSet, Catalogue
from scholaria_ops.definitions import defs
from scholaria_ops.errors import Busy
from scholaria_ops.operations.notify.runs import events_of
from scholaria_ops.pipeline.notifications import facts_of
from scholaria_ops.pipeline.resources import STARTED_BY, Estate
from scholaria_ops.pipeline.retention import retention_after_backup
from scholaria_ops.pipeline.runner import run_job
from scholaria_ops.pipeline.waits import WAITED
from scholaria_ops.process import Daemon
from scholaria_ops.progress import Silent
from scholaria_ops_tests.catalogue.factory import make_set
from scholaria_ops_tests.catalogue.holder import WHAT, holder_process

SIX_HOURS = 6 * 3600


@pytest.fixture
def sets(settings_file: Path, tmp_path: Path) -> list[BackupSet]:
    """Ten daily sets, the newest of now; two are past seven days."""
    catalogue, now = Catalogue(tmp_path / "backups"), datetime.now(UTC)
    return [make_set(catalogue, now - timedelta(days=0.99 * n), tier="daily", verified=True) for n in reversed(range(10))][::-1]


@pytest.fixture
def holder(sets: list[BackupSet], tmp_path: Path) -> Iterator[Daemon]:
    """Another process at work in BACKUP_DIR."""
    daemon = holder_process(tmp_path / "backups" / ".state" / "estate.lock")
    yield daemon
    daemon.stop(grace_s=0)


def asked_for(instance: dg.DagsterInstance) -> dict[str, Any]:
    """Run config of the retention that the sensor asks for."""
    asked: Any = retention_after_backup(dg.build_sensor_context(instance=instance, resources={"estate": Estate()}))
    return dict(asked.run_requests[0].run_config)


def unattended(instance: dg.DagsterInstance, config: Mapping[str, Any], **tags: str) -> str:
    """A run of the job as the daemon starts it; returns its id however it ended."""
    tags = {"dagster/sensor_name": "retention_after_backup", **tags}
    job = defs.resolve_job_def("retention")
    return job.execute_in_process(instance=instance, run_config=dict(config), tags=tags, raise_on_error=False).run_id


def said(instance: dg.DagsterInstance, run_id: str) -> list[str]:
    return [r.event_log_entry.user_message for r in instance.get_records_for_run(run_id).records]


def until_it_waits(instance: dg.DagsterInstance) -> dg.DagsterRun:
    """The run that has said that it waits."""
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline:
        for run in instance.get_runs(limit=1):
            if any("waiting for the lock" in line for line in said(instance, run.run_id)):
                return run
        time.sleep(0.1)
    raise AssertionError("no run has said that it waits")


def tags_of(instance: dg.DagsterInstance, run_id: str) -> Mapping[str, str]:
    run = instance.get_run_by_id(run_id)
    assert run
    return run.tags


def test_an_unattended_run_waits_and_goes_on_as_soon_as_the_lock_is_free(
    instance: dg.DagsterInstance, sets: list[BackupSet], holder: Daemon, tmp_path: Path
) -> None:
    """What the holder did meanwhile is in the plan, which is made when the wait is over."""
    config = asked_for(instance)
    began = time.monotonic()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(unattended, instance, config, **{dg.MAX_RUNTIME_SECONDS_TAG: "1"})
        waiting = until_it_waits(instance)
        make_set(Catalogue(tmp_path / "backups"), datetime.now(UTC) + timedelta(seconds=1), tier="daily", verified=True)
        time.sleep(2)
        monitored = instance.get_run_record_by_id(waiting.run_id)
        assert monitored
        check_run_timeout(instance, monitored, logging.getLogger(), SIX_HOURS)
        assert instance.get_runs(limit=1)[0].status is dg.DagsterRunStatus.STARTED, "while it waits, its time does not run"
        freed = time.monotonic()
        holder.stop(grace_s=0)
        run_id = running.result(60)
    assert time.monotonic() - freed < 20
    run = instance.get_run_by_id(run_id)
    assert run
    assert run.is_success, said(instance, run_id)
    assert not sets[9].directory.exists()
    (line,) = (line for line in said(instance, run_id) if "waiting for the lock" in line)
    assert f"{WHAT} (pid {holder.pid}, " in line
    assert " since 20" in line
    assert "; at most 120 min, until " in line
    assert any("is free after" in line for line in said(instance, run_id))
    waited = float(run.tags[WAITED])
    assert 2 <= waited <= freed - began + 1
    assert float(waiting.tags[dg.MAX_RUNTIME_SECONDS_TAG]) == pytest.approx(1 + 7200, abs=2)
    assert float(run.tags[dg.MAX_RUNTIME_SECONDS_TAG]) == pytest.approx(1 + waited, abs=1), "it is given what the wait took"
    facts = facts_of(instance, run_id)
    assert facts
    assert facts.started_at
    (event, *_) = events_of(facts, None, "")
    assert float(event.numbers["Took"].split()[0]) <= (facts.at - facts.started_at).total_seconds() - waited + 1
    assert event.numbers["It waited for the lock for"].endswith(" s")


def test_a_wait_that_runs_out_fails_as_busy_and_the_alert_names_the_holder(
    instance: dg.DagsterInstance, sets: list[BackupSet], holder: Daemon, settings_file: Path
) -> None:
    with settings_file.open("a") as out:
        out.write("BACKUP_UNATTENDED_LOCK_WAIT_S=1\n")
    run_id = unattended(instance, asked_for(instance))
    facts = facts_of(instance, run_id)
    assert facts
    assert (facts.ended, facts.code) == ("failure", "busy")
    (event,) = events_of(facts, None, "")
    assert f"another run holds the backup directory: {WHAT} (pid {holder.pid}, " in event.what
    assert "; it was waited for 1" in event.what
    assert event.subject.startswith(f"Retention refused: another run holds the backup directory: {WHAT}")
    assert len([s for s in sets if s.directory.exists()]) == 10


def test_a_command_gives_up_at_once_unless_its_own_setting_says_otherwise(
    instance: dg.DagsterInstance, sets: list[BackupSet], holder: Daemon, settings_file: Path
) -> None:
    config = asked_for(instance)["ops"]
    job = defs.resolve_job_def("retention")
    began = time.monotonic()
    with pytest.raises(Busy, match=rf"{WHAT} \(pid {holder.pid}, ") as caught:
        run_job(job, instance, progress=Silent(), config=config)
    assert time.monotonic() - began < 60
    assert "waited" not in caught.value.message
    assert WAITED not in tags_of(instance, instance.get_runs(limit=1)[0].run_id)
    with settings_file.open("a") as out:
        out.write("BACKUP_LOCK_WAIT_S=1\n")
    with pytest.raises(Busy, match="it was waited for 1"):
        run_job(job, instance, progress=Silent(), config=config)


def test_a_tag_that_is_typed_into_the_launchpad_makes_no_command_of_a_run(
    instance: dg.DagsterInstance, sets: list[BackupSet], holder: Daemon, settings_file: Path
) -> None:
    with settings_file.open("a") as out:
        out.write("BACKUP_UNATTENDED_LOCK_WAIT_S=1\n")
    facts = facts_of(instance, unattended(instance, asked_for(instance), **{STARTED_BY: "command line, kim@desk"}))
    assert facts
    assert "it was waited for 1" in facts.message


def test_a_command_that_is_executed_anew_from_the_ui_waits_with_limits_of_its_own(
    instance: dg.DagsterInstance, sets: list[BackupSet], holder: Daemon, settings_file: Path
) -> None:
    """Dagster gives such a run all tags of the one before it."""
    with settings_file.open("a") as out:
        out.write("BACKUP_LOCK_WAIT_S=1\nBACKUP_UNATTENDED_LOCK_WAIT_S=2\n")
    config = asked_for(instance)
    with pytest.raises(Busy, match="it was waited for 1"):
        run_job(defs.resolve_job_def("retention"), instance, progress=Silent(), config=config["ops"])
    (first,) = instance.get_runs(limit=1)
    assert first.tags[STARTED_BY].startswith("command line")
    given = {k: v for k, v in first.tags.items() if k not in {"dagster/sensor_name"}}
    again = unattended(instance, config, **given, **{"dagster/parent_run_id": first.run_id})
    facts = facts_of(instance, again)
    assert facts
    assert facts.how == "Dagster UI (nobody could be named)"
    assert "it was waited for 2" in facts.message
    assert facts.waited_s == pytest.approx(2, abs=0.7), "not what the run before it had waited"
    assert float(tags_of(instance, again)[dg.MAX_RUNTIME_SECONDS_TAG]) == pytest.approx(SIX_HOURS + 2, abs=1)
