"""Stores, tools, bucket and clocks; and the whole look at a real site, at an empty one, and at a large one."""

from __future__ import annotations

import dataclasses
import json
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from scholaria_ops.catalogue.sets import BackupSet
from scholaria_ops.errors import Refused
from scholaria_ops.operations.health import CHECKS, DaemonState, HealthReport, RunState, ScheduleState, Unhealthy, check_health, outside
from scholaria_ops.operations.health.kept import keep_report, kept_path, report_json
from scholaria_ops.operations.services import Services, make_services
from scholaria_ops.operations.standing import look, standing_of
from scholaria_ops.operations.verify import verify
from scholaria_ops.settings import load_settings
from scholaria_ops_tests.catalogue.factory import make_set
from scholaria_ops_tests.operations.conftest import ServicesFactory
from scholaria_ops_tests.operations.support import copied

NOBODY = {"DB_PORT": "1", "REDIS_PORT": "1", "QDRANT_URL": "http://127.0.0.1:1"}


class Content:
    """A Dagster of which there is nothing to complain."""

    def daemons(self) -> list[DaemonState]:
        return [DaemonState("scheduler", True, datetime.now(UTC))]

    def schedules(self) -> list[ScheduleState]:
        now = datetime.now(UTC)
        return [ScheduleState("daily_backup", "0 2 * * *", "0 2 * * *", True, True, now, None)]

    def unfinished_runs(self) -> list[RunState]:
        return []


class Broken(Content):
    def daemons(self) -> list[DaemonState]:
        raise Refused("the database of Dagster is locked", hint="Look at it.")


@pytest.fixture
def site(services_factory: ServicesFactory, pristine: BackupSet) -> Services:
    services = services_factory()
    services.check_directory()
    copied(pristine, services.catalogue.layout.root)
    verify(services, services.catalogue.find(pristine.id), "hash")
    return services


def levels(report: HealthReport, check: str) -> list[str]:
    return [f.level for f in report.of(check)]


def test_a_good_site_is_healthy_and_every_check_says_something(site: Services) -> None:
    report = check_health(site, Content())
    assert [f for f in report.findings if f.level == "critical"] == []
    assert {f.check for f in report.findings} == CHECKS.keys()
    assert len(report.of("stores")) == 3
    report.raise_if_unhealthy()
    with pytest.raises(Unhealthy, match="offsite"):
        report.raise_if_unhealthy(strict=True)
    assert list(site.settings.scratch_root.iterdir()) == [], "it leaves nothing behind"
    (clock,) = report.of("clock")
    assert "postgres, redis, qdrant" in clock.what


def test_an_empty_site_is_unhealthy_and_stays_empty(tmp_path: Path) -> None:
    services = make_services(load_settings({"BACKUP_DIR": str(tmp_path / "absent"), **NOBODY}))
    report = check_health(services, Refused("no dagster.yaml here", hint="Set DAGSTER_HOME."))
    for check in ("directory", "space", "verified", "stores", "daemon", "schedules", "runs"):
        assert levels(report, check)[0] == "critical", check
    with pytest.raises(Unhealthy, match="verified: cannot be judged"):
        report.raise_if_unhealthy()
    assert not (tmp_path / "absent").exists()


def test_every_store_that_does_not_answer_is_named_with_the_next_step(tmp_path: Path) -> None:
    services = make_services(load_settings({"BACKUP_DIR": str(tmp_path), **NOBODY}))
    found = list(outside.stores(outside.ask(services)))
    assert [f.level for f in found] == ["critical"] * 3
    assert {f.what.partition(":")[0] for f in found} == {"postgres", "redis", "qdrant"}
    assert all(f.next_step for f in found)


def test_a_bucket_that_does_not_answer_is_critical(tmp_path: Path) -> None:
    elsewhere = {"BACKUP_S3_BUCKET": "offsite-bucket", "BACKUP_S3_ENDPOINT_URL": "http://127.0.0.1:1"}
    credentials = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "y", "AWS_REGION": "us-east-1"}
    services = make_services(load_settings({"BACKUP_DIR": str(tmp_path), **NOBODY, **elsewhere, **credentials}))
    (found,) = outside.bucket(services, outside.ask(services))
    assert found.level == "critical"


def test_missing_tools_are_critical_where_they_dump_and_a_warning_where_they_prove(site: Services) -> None:
    assert [f.level for f in outside.tools(site)] == ["ok"]
    without = dataclasses.replace(site, tools=dataclasses.replace(site.tools, pg_bin_dir=None, qdrant=None))
    found = list(outside.tools(without))
    assert [f.level for f in found] == ["critical", "critical", "warning", "warning", "warning"]
    assert "no backup can be taken" in found[0].what


@pytest.mark.parametrize(("ahead", "level"), [(1.0, "ok"), (-119.0, "ok"), (121.0, "warning"), (-121.0, "warning"), (-4000.0, "critical")])
def test_f71_a_store_whose_clock_differs_is_told(site: Services, ahead: float, level: str) -> None:
    answers = outside.ask(site)
    facts = answers.stores["postgres"]
    assert not isinstance(facts, Exception)
    shifted = outside.Answers({"postgres": dataclasses.replace(facts, clock_ahead_s=ahead)})
    (found,) = outside.clock(site, shifted, None, datetime.now(UTC))
    assert found.level == level
    if level != "ok":
        assert f"{abs(ahead):,.0f} s {'ahead of' if ahead > 0 else 'behind'} ours" in found.what


def test_f71_a_clock_that_was_set_back_is_seen_from_what_was_written_down(site: Services, pristine: BackupSet) -> None:
    found_here = look(site)
    newest = outside.newest_word(found_here, standing_of(found_here, datetime.now(UTC)))
    assert newest
    assert [f.level for f in outside.clock(site, outside.Answers(), newest, newest - timedelta(minutes=9))] == ["ok"]
    (found,) = outside.clock(site, outside.Answers(), newest, newest - timedelta(hours=3))
    assert found.level == "critical"
    assert "10,800 s ahead of the clock" in found.what


def test_what_cannot_be_looked_at_is_a_finding(site: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    report = check_health(site, Broken())
    (found,) = report.of("daemon")
    assert (found.level, found.what) == ("critical", "could not be looked at: the database of Dagster is locked")
    assert levels(report, "schedules") == ["ok"], "the other checks go on"


def test_a_catalogue_that_cannot_be_read_makes_every_check_of_it_critical(site: Services) -> None:
    records = site.catalogue.layout.records
    records.rename(records.with_name("aside"))
    records.write_text("no directory")
    report = check_health(site, Content())
    for check in ("catalogue", "verified", "offsite", "rehearsed", "retention", "space"):
        assert levels(report, check) == ["critical"], check


def test_the_report_is_kept_for_others(site: Services) -> None:
    report = check_health(site, Content())
    assert keep_report(site, report)
    kept = json.loads(kept_path(site.catalogue.layout).read_text())
    assert kept == json.loads(json.dumps(report_json(report)))
    assert keep_report(site, report), "a second one replaces it"
    assert (kept["level"], kept["healthy"]) == ("warning", True)
    assert {"check", "level", "what", "since", "next_step", "numbers"} == kept["findings"][0].keys()
    assert oct(kept_path(site.catalogue.layout).stat().st_mode & 0o777) == "0o600"


@pytest.mark.slow(12)
@pytest.mark.timeout(600)
def test_ten_thousand_sets_are_judged_quickly(tmp_path: Path) -> None:
    services = make_services(load_settings({"BACKUP_DIR": str(tmp_path / "b"), **NOBODY}))
    services.check_directory()
    first = make_set(services.catalogue, datetime(2026, 3, 1, tzinfo=UTC), tier="daily", verified=True)
    _multiply(services, first, 10_000)
    began = time.process_time()
    report = check_health(services, Content())
    seconds = time.process_time() - began
    assert "10,000" in report.of("catalogue")[0].what.replace("10000", "10,000")
    # 2 s are asked for on a quiet machine. Processor time, which others' work hardly lengthens: a quadratic loop takes far more.
    assert seconds < 10, f"{seconds:.1f} s of processor time"


def _multiply(services: Services, one: BackupSet, count: int) -> None:
    """Directories like ``one``, a day apart; manifests and records written, artifacts linked."""
    manifest = (one.directory / "backup_manifest.json").read_text()
    record = services.catalogue.layout.record(one.id).read_text()
    layout = services.catalogue.layout
    for n in range(1, count):
        at = datetime(2026, 3, 1, tzinfo=UTC) - timedelta(hours=n)
        set_id = f"{at:%Y%m%d_%H%M%S}"
        directory = layout.sealed(set_id)
        (directory / f"qdrant_{set_id}").mkdir(parents=True)
        text = manifest.replace(one.id, set_id).replace("2026-03-01T00:00:00Z", f"{at:%Y-%m-%dT%H:%M:%SZ}")
        (directory / "backup_manifest.json").write_text(text)
        for path in one.directory.rglob("*"):
            target = directory / str(path.relative_to(one.directory)).replace(one.id, set_id)
            if path.is_file() and not target.exists():
                target.hardlink_to(path)
        layout.record(set_id).write_text(record.replace("2026-03-01T00:00:00", f"{at:%Y-%m-%dT%H:%M:%S}"))
