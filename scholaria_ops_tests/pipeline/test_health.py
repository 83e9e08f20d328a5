"""Health in Dagster: what the instance tells of daemons, schedules and runs, and how the job shows what was found."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from scholaria_ops.catalogue.sets import Catalogue
from scholaria_ops.definitions import defs
from scholaria_ops.operations.health import CHECKS, Unhealthy
from scholaria_ops.operations.health.running import daemon, runs, schedules
from scholaria_ops.pipeline.assets_health import HEALTH
from scholaria_ops.pipeline.dispatcher import DagsterDispatcher
from scholaria_ops.pipeline.freshness import freshness_policies
from scholaria_ops.pipeline.marks import TAG, ProcessMark
from scholaria_ops.pipeline.runner import open_instance, run_job
from scholaria_ops.process import run
from scholaria_ops.progress import Silent
from scholaria_ops.settings import ENV_FILE_VARIABLE, Settings, load_settings
from scholaria_ops_tests.catalogue.factory import make_set
from scholaria_ops_tests.pipeline.daemon import PROJECT, served, until

NAMES = {
    "daily_backup",
    "weekly_backup",
    "monthly_backup",
    "health",
    "monthly_rehearsal",
    "offsite_rehearsal",
    "quarterly_drill",
    "weekly_reread",
}


@pytest.fixture
def settings_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A site whose stores are away: health has something to say."""
    path = tmp_path / "site.env"
    path.write_text(f"BACKUP_DIR={tmp_path / 'backups'}\nDB_PORT=1\nREDIS_PORT=1\nQDRANT_URL=http://127.0.0.1:1\n")
    monkeypatch.setenv(ENV_FILE_VARIABLE, str(path))
    return path


@pytest.fixture
def settings(settings_file: Path) -> Settings:
    return load_settings()


def _evaluations(instance: dg.DagsterInstance) -> dict[str, dg.AssetCheckEvaluation]:
    found = {}
    (record, *_) = instance.get_run_records(limit=1)
    for entry in instance.get_records_for_run(record.dagster_run.run_id).records:
        event = entry.event_log_entry.dagster_event
        if event and event.event_type_value == "ASSET_CHECK_EVALUATION":
            assert isinstance(event.event_specific_data, dg.AssetCheckEvaluation)
            found[event.event_specific_data.check_name] = event.event_specific_data
    return found


def test_an_unhealthy_site_fails_the_run_and_the_report_stands(instance: dg.DagsterInstance, settings: Settings) -> None:
    make_set(Catalogue(settings.backup_dir), datetime.now(UTC), verified=True)
    settings.backup_dir.chmod(0o755)
    with pytest.raises(Unhealthy, match="stores: postgres"):
        run_job(defs.resolve_job_def("health"), instance, progress=Silent())
    checks = _evaluations(instance)
    assert checks.keys() == CHECKS.keys()
    assert {n for n, c in checks.items() if not c.passed and c.severity is dg.AssetCheckSeverity.ERROR} == {"stores", "daemon", "schedules"}
    assert not checks["directory"].passed
    assert checks["directory"].severity is dg.AssetCheckSeverity.WARN
    assert "chmod 0700" in str(checks["directory"].metadata["next step"].value)
    assert checks["catalogue"].passed
    event = instance.get_latest_materialization_event(HEALTH)
    assert event
    assert event.asset_materialization
    metadata: Any = event.asset_materialization.metadata
    assert metadata["level"].value == "critical"
    assert metadata["critical"].value >= 3
    assert isinstance(metadata["free_bytes"].value, float)
    assert "✖ critical · stores" in str(metadata["summary"].value)
    (record,) = instance.get_run_records(limit=1)
    assert record.dagster_run.status is dg.DagsterRunStatus.FAILURE
    kept = json.loads((settings.backup_dir / ".state" / "health.json").read_text())
    assert kept["level"] == "critical"


def test_a_run_bears_the_mark_of_its_process(instance: dg.DagsterInstance, settings: Settings) -> None:
    with pytest.raises(Unhealthy):
        run_job(defs.resolve_job_def("health"), instance, progress=Silent())
    (record,) = instance.get_run_records(limit=1)
    assert ProcessMark.parse(record.dagster_run.tags[TAG]) == ProcessMark.own()


@pytest.fixture
def dead() -> ProcessMark:
    """The mark of a process that was killed."""
    program = "from scholaria_ops.pipeline.marks import ProcessMark; print(ProcessMark.own())"
    mark = ProcessMark.parse(run([sys.executable, "-c", program]).stdout.decode().strip())
    assert mark
    return mark


def started(instance: dg.DagsterInstance, tags: dict[str, str]) -> str:
    made = instance.create_run_for_job(defs.resolve_job_def("sync"), tags=tags)
    instance.report_dagster_event(
        dg.DagsterEvent(event_type_value="PIPELINE_START", job_name=made.job_name, message="began"), run_id=made.run_id
    )
    return made.run_id


def test_a_run_left_started_by_a_dead_host_or_process_is_noticed(
    instance: dg.DagsterInstance, settings: Settings, dead: ProcessMark
) -> None:
    own = ProcessMark.own()
    left = started(instance, {TAG: str(dead)})
    rebooted = started(instance, {TAG: str(ProcessMark(own.host, "another-boot", own.namespace, own.pid, own.start_time))})
    alive = started(instance, {TAG: str(own)})
    elsewhere = started(instance, {TAG: str(ProcessMark("another-host", "x", "y", 1, 1))})
    unmarked = started(instance, {})
    told = {r.run_id: r.gone for r in DagsterDispatcher(instance, settings).unfinished_runs()}
    assert told[left] == f"its process {dead.pid} on {own.host} is gone"
    assert "was started anew since" in told[rebooted]
    assert [told[i] for i in (alive, elsewhere, unmarked)] == ["", "", ""], "nobody is called dead who may be alive"
    found = list(runs(DagsterDispatcher(instance, settings).unfinished_runs(), datetime.now(UTC)))
    assert {f.what.split()[1] for f in found} == {left[:8], rebooted[:8]}
    later = list(runs(DagsterDispatcher(instance, settings).unfinished_runs(), datetime.now(UTC) + timedelta(hours=7)))
    assert {f.level for f in later} == {"critical"}, "past their time, all of them are told"
    assert len(later) == 5


def test_run_monitoring_ends_what_is_past_its_time(tmp_path: Path) -> None:
    """The product's own dagster.yaml: the default launcher cannot see a dead host, so a run has a maximum."""
    (tmp_path / "dagster.yaml").write_bytes((PROJECT / "dagster.yaml").read_bytes())
    with open_instance(tmp_path) as instance:
        assert instance.run_monitoring_enabled
        assert instance.run_monitoring_max_runtime_seconds == 6 * 3600
        assert not instance.run_launcher.supports_check_run_worker_health
        assert "MONITORING" in instance.get_required_daemon_types()
        assert "FRESHNESS_DAEMON" in instance.get_required_daemon_types()
    for job in defs.get_repository_def().get_all_jobs():
        limit = job.tags.get("dagster/max_runtime")
        assert limit is None or float(limit) <= 12 * 3600, job.name


def test_f81_an_instance_that_no_daemon_ever_served_is_critical(instance: dg.DagsterInstance, settings: Settings) -> None:
    dispatcher = DagsterDispatcher(instance, settings)
    assert [f.level for f in daemon(dispatcher.daemons())] == ["critical"]
    assert {s.name for s in dispatcher.schedules()} == NAMES
    assert [f.level for f in schedules(dispatcher.schedules(), settings, datetime.now(UTC))] == ["critical"]


def test_every_schedule_of_the_code_location_is_watched(settings: Settings, instance: dg.DagsterInstance) -> None:
    assert {s.name for s in defs.get_repository_def().schedule_defs} == {s.name for s in DagsterDispatcher(instance, settings).schedules()}


@pytest.mark.slow(10)
@pytest.mark.timeout(400)
def test_f81_a_real_daemon_makes_it_green_and_a_schedule_switched_off_red_again(tmp_path: Path, settings_file: Path) -> None:
    with served(tmp_path / "home", settings_file), open_instance(tmp_path / "home") as instance:
        settings = load_settings()
        dispatcher = DagsterDispatcher(instance, settings)
        until(lambda: all(s.known_since for s in dispatcher.schedules()) and all(d.alive for d in dispatcher.daemons()))
        assert [f.level for f in daemon(dispatcher.daemons())] == ["ok"]
        found = dispatcher.schedules()
        assert {(s.name, s.on, s.cron == s.cron_in_force) for s in found} == {(n, True, True) for n in NAMES}
        assert [f.level for f in schedules(found, settings, datetime.now(UTC))] == ["ok"]
        # The same daemon, of which nothing was heard for a day and a half: no tick came.
        late = list(schedules(found, settings, datetime.now(UTC) + timedelta(hours=36)))
        assert any(f.level == "critical" and f.what.startswith("daily_backup has never ticked") for f in late)
        _switch_off(instance, "daily_backup")
        off = [f for f in schedules(dispatcher.schedules(), settings, datetime.now(UTC)) if f.level == "critical"]
        assert [f.what for f in off] == ["daily_backup is switched off"]


def _switch_off(instance: dg.DagsterInstance, name: str) -> None:
    from dagster._core.scheduler.instigation import InstigatorStatus, InstigatorType

    (state,) = (s for s in instance.all_instigator_state(instigator_type=InstigatorType.SCHEDULE) if s.name == name)
    instance.update_instigator_state(state.with_status(InstigatorStatus.STOPPED))


def test_freshness_policies_follow_the_schedules() -> None:
    found: dict[str, Any] = freshness_policies(load_settings({"BACKUP_S3_BUCKET": "offsite-bucket"}))

    def hours(name: str) -> tuple[float, float]:
        policy = found[name]
        return tuple(w.to_timedelta() / timedelta(hours=1) for w in (policy.warn_window, policy.fail_window))

    assert hours("sealed") == hours("verified") == hours("offsite") == (26, 30)
    assert hours("restored") == (31 * 24 + 7 * 24 - 4, 31 * 24 + 7 * 24)
    assert hours("report") == (7, 8)
    assert freshness_policies(load_settings({}))["offsite"] is None, "where nothing is shipped, nothing is late"
    weekdays: Any = freshness_policies(load_settings({"BACKUP_DAILY_CRON": "0 2 * * 1-5"}))["sealed"]
    assert weekdays.fail_window.to_timedelta() == timedelta(days=3, hours=6), "over the longest gap of the schedule"


def test_the_assets_carry_their_freshness_policies() -> None:
    graph = defs.resolve_asset_graph()
    with_policy = {k.path[-1] for k in graph.get_all_asset_keys() if graph.get(k).freshness_policy}
    assert {"sealed", "verified", "restored", "report"} <= with_policy
    assert "postgres" not in with_policy
