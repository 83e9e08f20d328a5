"""Schedules of rehearsals, the drill and re-reading: what a tick asks for, and why it asks for nothing."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from scholaria_ops.catalogue.lock import estate_lock
from scholaria_ops.catalogue.sets import Catalogue
from scholaria_ops.definitions import defs
from scholaria_ops.pipeline.freshness import settings_in_force
from scholaria_ops.pipeline.partitions import known_partitions
from scholaria_ops.pipeline.resources import Estate
from scholaria_ops.pipeline.upkeep import UPKEEP, make_upkeep
from scholaria_ops.settings import ENV_FILE_VARIABLE, load_settings
from scholaria_ops_tests.catalogue.factory import make_set

KINDS = {kind.name: kind for kind in UPKEEP}
NEED_BUCKET = ["offsite_rehearsal", "quarterly_drill", "weekly_reread"]


@pytest.fixture
def settings_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A site whose bucket does not answer: no tick may ask it."""
    path = tmp_path / "site.env"
    path.write_text(
        f"BACKUP_DIR={tmp_path / 'backups'}\nBACKUP_S3_BUCKET=nowhere\nBACKUP_S3_ENDPOINT_URL=http://127.0.0.1:1\n"
        "AWS_ACCESS_KEY_ID=x\nAWS_SECRET_ACCESS_KEY=y\n"
    )
    monkeypatch.setenv(ENV_FILE_VARIABLE, str(path))
    return path


@pytest.fixture
def catalogue(settings_file: Path, tmp_path: Path) -> Catalogue:
    return Catalogue(tmp_path / "backups")


def tick(instance: dg.DagsterInstance, name: str, due: datetime | None = None) -> Any:
    schedule = make_upkeep(KINDS[name], *settings_in_force())
    context = dg.build_schedule_context(
        instance=instance, scheduled_execution_time=due or datetime.now(UTC), resources={"estate": Estate()}
    )
    return schedule(context)


def skipped(answer: Any) -> str:
    assert isinstance(answer, dg.SkipReason), answer
    return answer.skip_message or ""


def test_they_are_on_by_default_at_the_documented_times() -> None:
    found = {name: make_upkeep(kind, load_settings({})) for name, kind in KINDS.items()}
    assert {n: s.cron_schedule for n, s in found.items()} == {
        "health": "30 */6 * * *",
        "monthly_rehearsal": "0 5 2 * *",
        "offsite_rehearsal": "0 5 16 3,9 *",
        "quarterly_drill": "0 5 9 1,4,7,10 *",
        "weekly_reread": "0 6 * * 3",
    }
    assert {s.default_status for s in found.values()} == {dg.DefaultScheduleStatus.RUNNING}
    repository = defs.get_repository_def()
    assert KINDS.keys() <= {s.name for s in repository.schedule_defs}
    assert all(repository.has_job(kind.job_name) for kind in UPKEEP)


def test_the_times_and_the_zone_are_the_operators(settings_file: Path) -> None:
    with settings_file.open("a") as out:
        out.write("BACKUP_DRILL_CRON=0 7 1 6 *\nBACKUP_TIMEZONE=Asia/Seoul\n")
    made = make_upkeep(KINDS["quarterly_drill"], *settings_in_force())
    assert (made.cron_schedule, made.execution_timezone) == ("0 7 1 6 *", "Asia/Seoul")


def test_settings_that_cannot_be_read_leave_the_default_times_and_say_so(settings_file: Path) -> None:
    settings_file.write_text("BACKUP_DRILL_CRON=0 25 1 6 *\n")
    made = make_upkeep(KINDS["quarterly_drill"], *settings_in_force())
    assert made.cron_schedule == "0 5 9 1,4,7,10 *"
    assert "DEFAULT TIMES ARE IN FORCE" in str(made.description)


def test_the_newest_verified_set_is_rehearsed(instance: dg.DagsterInstance, catalogue: Catalogue) -> None:
    now = datetime.now(UTC)
    make_set(catalogue, now - timedelta(days=3), verified=True)
    wanted = make_set(catalogue, now - timedelta(days=2), verified=True, tier="weekly")
    make_set(catalogue, now - timedelta(days=1))
    make_set(catalogue, now, verified=True, missing=("qdrant",))
    request = tick(instance, "monthly_rehearsal")
    assert request.partition_key == wanted.id
    assert wanted.id in known_partitions(instance), "a run of a partition that Dagster does not know would die"
    assert request.run_config["ops"]["rehearsal__restored"]["config"] == {"source": "local"}
    assert request.tags["scholaria/tier"] == "weekly"


def test_a_tick_that_is_evaluated_twice_starts_one_run(instance: dg.DagsterInstance, catalogue: Catalogue) -> None:
    make_set(catalogue, verified=True)
    due = datetime.now(UTC)
    assert tick(instance, "monthly_rehearsal", due).run_key == tick(instance, "monthly_rehearsal", due).run_key
    assert tick(instance, "monthly_rehearsal", due - timedelta(days=1)).run_key != tick(instance, "monthly_rehearsal", due).run_key


def test_from_offsite_only_what_was_shipped_and_still_stands_there(instance: dg.DagsterInstance, catalogue: Catalogue) -> None:
    now = datetime.now(UTC)
    shipped, removed, _never = (make_set(catalogue, now - timedelta(days=3 - n), verified=True) for n in range(3))
    assert "no verified set was shipped" in skipped(tick(instance, "offsite_rehearsal"))
    assert "no set was shipped" in skipped(tick(instance, "quarterly_drill"))
    for one in (shipped, removed):
        catalogue.records.append(one.id, "shipped", where="s3://nowhere/", confirmed_by="readback")
    catalogue.records.append(removed.id, "deleted", place="offsite")
    request = tick(instance, "offsite_rehearsal")
    assert request.partition_key == shipped.id
    assert request.run_config["ops"]["rehearsal__restored"]["config"] == {"source": "offsite"}
    assert isinstance(tick(instance, "quarterly_drill"), dg.RunRequest)
    assert isinstance(tick(instance, "weekly_reread"), dg.RunRequest)


def test_nothing_to_rehearse_is_a_reason_not_a_failure(instance: dg.DagsterInstance, catalogue: Catalogue) -> None:
    assert "nothing to rehearse" in skipped(tick(instance, "monthly_rehearsal"))
    make_set(catalogue)
    assert "nothing to rehearse" in skipped(tick(instance, "monthly_rehearsal")), "an unverified set is not rehearsed"


@pytest.mark.parametrize("name", NEED_BUCKET)
def test_without_a_bucket_there_is_a_reason(instance: dg.DagsterInstance, catalogue: Catalogue, settings_file: Path, name: str) -> None:
    settings_file.write_text(f"BACKUP_DIR={catalogue.layout.root}\n")
    one = make_set(catalogue, verified=True)
    catalogue.records.append(one.id, "shipped", where="s3://of-old/", confirmed_by="readback")
    assert "BACKUP_S3_BUCKET" in skipped(tick(instance, name))


@pytest.mark.parametrize("name", KINDS)
def test_the_machine_asleep_over_two_ticks_gives_two_reasons(instance: dg.DagsterInstance, catalogue: Catalogue, name: str) -> None:
    make_set(catalogue, verified=True)
    now = datetime.now(UTC)
    for late in (KINDS[name].late + timedelta(hours=1), 2 * KINDS[name].late):
        assert "the machine or the daemon was not running" in skipped(tick(instance, name, now - late))


@pytest.mark.parametrize("name", KINDS)
def test_only_one_at_a_time(instance: dg.DagsterInstance, catalogue: Catalogue, name: str) -> None:
    one = make_set(catalogue, verified=True)
    catalogue.records.append(one.id, "shipped", where="s3://nowhere/", confirmed_by="readback")
    job = defs.resolve_job_def(KINDS[name].job_name)
    instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED)
    assert "one at a time" in skipped(tick(instance, name))


def test_a_backup_that_holds_the_lock_stops_no_tick(instance: dg.DagsterInstance, catalogue: Catalogue) -> None:
    make_set(catalogue, verified=True)
    with estate_lock(catalogue.layout.lock, "backup of a test"):
        assert isinstance(tick(instance, "monthly_rehearsal"), dg.RunRequest)


def test_health_is_looked_at_whatever_cannot_be_read(instance: dg.DagsterInstance, settings_file: Path) -> None:
    """A tick that fails tells nobody; a run that fails is told to people."""
    settings_file.write_text("BACKUP_DIR=relative/path\n")
    assert isinstance(tick(instance, "health"), dg.RunRequest)
    with pytest.raises(dg.Failure, match="BACKUP_DIR"):
        tick(instance, "monthly_rehearsal")
