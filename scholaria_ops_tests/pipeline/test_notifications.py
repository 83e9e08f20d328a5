"""Alerts from a real Dagster instance: the sensors see every run, however it ended."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import pytest

from scholaria_ops.catalogue.sets import BackupSet, Catalogue
from scholaria_ops.definitions import defs
from scholaria_ops.errors import OpsError, VerificationFailed
from scholaria_ops.operations.services import make_services
from scholaria_ops.pipeline.notifications import (
    NOTIFICATION_SENSORS,
    alerts,
    tell_of_cancellations,
    tell_of_failures,
    tell_of_successes,
    tell_without_daemon,
    told_by_the_daemon,
)
from scholaria_ops.pipeline.resources import Estate
from scholaria_ops.pipeline.runner import run_job
from scholaria_ops.progress import Silent
from scholaria_ops.settings import ENV_FILE_VARIABLE, load_settings
from scholaria_ops_tests.catalogue.factory import make_set
from scholaria_ops_tests.notify.receivers import Receiver, receiver


@pytest.fixture
def web() -> Iterator[Receiver]:
    with receiver() as known:
        yield known


@pytest.fixture
def one(tmp_path: Path, web: Receiver, monkeypatch: pytest.MonkeyPatch) -> BackupSet:
    """A site whose stores are never asked, with a set and a webhook."""
    path = tmp_path / "site.env"
    path.write_text(f"BACKUP_DIR={tmp_path / 'backups'}\nBACKUP_NOTIFY_WEBHOOK={web.url}/hook\nBACKUP_UI_URL=http://ui:3000\n")
    monkeypatch.setenv(ENV_FILE_VARIABLE, str(path))
    return make_set(Catalogue(tmp_path / "backups"), datetime.now(UTC), tier="daily", verified=True)


class Daemon:
    """Ticks of the notifying sensors, with the cursors that Dagster keeps for them."""

    def __init__(self, instance: dg.DagsterInstance) -> None:
        self._instance = instance
        self._cursors: dict[str, str | None] = {}
        self.tick()

    def tick(self) -> str:
        for sensor in (tell_of_failures, tell_of_successes, tell_of_cancellations):
            result = self._evaluate(sensor)
            self._cursors[sensor.name] = result.cursor
            assert [r.error for r in result.dagster_run_reactions if r.error] == []
        return str(self._evaluate(alerts).skip_message)

    def _evaluate(self, sensor: dg.SensorDefinition) -> dg.SensorExecutionData:
        context = dg.build_sensor_context(
            self._instance,
            cursor=self._cursors.get(sensor.name),
            repository_def=defs.get_repository_def(),
            resources={"estate": Estate()},
        )
        with context:
            return sensor.evaluate_tick(context)


def verify_it(instance: dg.DagsterInstance, one: BackupSet) -> str:
    config = {"backup__verified": {"config": {"level": "hash"}}}
    return run_job(defs.resolve_job_def("verify"), instance, progress=Silent(), partition=one.id, config=config)


def test_a_failure_is_told_with_a_link_folded_and_its_end_is_told(instance: dg.DagsterInstance, one: BackupSet, web: Receiver) -> None:
    daemon = Daemon(instance)
    good = (one.directory / "RESTORE.txt").read_bytes()
    (one.directory / "RESTORE.txt").write_bytes(b"x")
    for _ in range(2):
        with pytest.raises(VerificationFailed):
            verify_it(instance, one)
        daemon.tick()
    (told,) = [s.body for s in web.seen]
    assert told["title"].startswith(f"[FAILED] Verification {one.id} failed: the set {one.id} does not verify")
    assert "RESTORE.txt" in told["message"]
    assert f"Run: http://ui:3000/runs/{told['run_id']} (command line)" in told["message"]
    assert "Newest verified set: there is none" in told["message"], "its own verification has just failed"
    (one.directory / "RESTORE.txt").write_bytes(good)
    verify_it(instance, one)
    verify_it(instance, one)
    daemon.tick()
    assert [s.body["level"] for s in web.seen] == ["failure", "recovery"]
    assert ", 2 times" in web.seen[1].body["message"]


def test_a_worker_that_was_killed_is_told_although_no_code_of_ours_ran(instance: dg.DagsterInstance, one: BackupSet, web: Receiver) -> None:
    daemon = Daemon(instance)
    tags = {"dagster/partition": one.id, "dagster/schedule_name": "daily_backup", "scholaria/tier": "daily"}
    run = instance.create_run_for_job(defs.resolve_job_def("backup"), tags=tags, status=dg.DagsterRunStatus.STARTED)
    instance.report_run_failed(run)
    assert "delivered to json" in daemon.tick()
    (told,) = [s.body for s in web.seen]
    assert told["title"].startswith(f"[FAILED] Backup of daily set {one.id} failed: The process that ran it is gone")
    assert "(schedule daily_backup)" in told["message"]


def test_a_cancelled_schedule_is_a_warning(instance: dg.DagsterInstance, one: BackupSet, web: Receiver) -> None:
    daemon = Daemon(instance)
    tags = {"dagster/partition": one.id, "dagster/schedule_name": "daily_backup"}
    instance.report_run_canceled(instance.create_run_for_job(defs.resolve_job_def("backup"), tags=tags))
    daemon.tick()
    assert [s.body["level"] for s in web.seen] == ["warning"]


def test_a_refused_prune_is_a_warning(instance: dg.DagsterInstance, one: BackupSet, web: Receiver) -> None:
    daemon = Daemon(instance)
    with pytest.raises(OpsError, match="nobody asked for retention"):
        run_job(defs.resolve_job_def("retention"), instance, progress=Silent(), config={"retain": {"config": {"after": one.id}}})
    daemon.tick()
    assert [s.body["title"].split(":")[0] for s in web.seen] == ["[WARNING] Retention refused"]


def test_f82_a_channel_that_is_down_fails_no_tick_and_no_run(instance: dg.DagsterInstance, one: BackupSet, web: Receiver) -> None:
    daemon = Daemon(instance)
    web.answer = 500
    tags = {"dagster/partition": one.id}
    instance.report_run_failed(instance.create_run_for_job(defs.resolve_job_def("backup"), tags=tags))
    assert f"not delivered to json 127.0.0.1:{web.port}, tried again later" in daemon.tick()
    verify_it(instance, one)
    daemon.tick()


def test_without_a_daemon_the_command_line_tells_and_a_daemon_that_comes_later_does_not_tell_again(
    instance: dg.DagsterInstance, one: BackupSet, web: Receiver
) -> None:
    daemon = Daemon(instance)
    assert not told_by_the_daemon(instance)
    run = instance.create_run_for_job(defs.resolve_job_def("backup"), tags={"dagster/partition": one.id})
    instance.report_run_failed(run)
    services = make_services(load_settings())
    tell_without_daemon(services, instance, run.run_id)
    assert len(web.seen) == 1
    daemon.tick()
    assert len(web.seen) == 1


def test_what_health_was_not_content_with_is_told_as_a_warning(instance: dg.DagsterInstance, one: BackupSet, web: Receiver) -> None:
    @dg.asset(name="report", check_specs=[dg.AssetCheckSpec(name, asset="report") for name in ("room", "clock", "alerts")])
    def report() -> Iterator[dg.AssetCheckResult | dg.MaterializeResult[None]]:
        yield from (
            dg.AssetCheckResult(check_name="room", passed=False, severity=dg.AssetCheckSeverity.WARN, description="room for 3 more sets"),
            dg.AssetCheckResult(check_name="clock", passed=True),
            dg.AssetCheckResult(check_name="alerts", passed=False, severity=dg.AssetCheckSeverity.WARN, description="nobody hears"),
        )
        yield dg.MaterializeResult()

    daemon = Daemon(instance)
    job = dg.Definitions(assets=[report], jobs=[dg.define_asset_job("health", "report")]).resolve_job_def("health")
    assert job.execute_in_process(instance=instance).success
    daemon.tick()
    (told,) = [s.body for s in web.seen]
    assert told["title"] == "[WARNING] Health check went well, with 1 warning: room: room for 3 more sets"
    assert "nobody hears" not in told["message"], "an alert about alerts would go on for ever"


def test_every_notifying_sensor_is_on_by_default() -> None:
    assert {s.name for s in NOTIFICATION_SENSORS} <= {s.name for s in defs.sensors or ()}
    assert {s.default_status for s in NOTIFICATION_SENSORS} == {dg.DefaultSensorStatus.RUNNING}
