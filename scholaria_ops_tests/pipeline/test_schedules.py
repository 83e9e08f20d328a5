"""The tiers' schedules: when they tick, what a tick asks for, what becomes of late ones, and settings that cannot be read."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import dagster as dg
import pytest
from dagster._utils.schedules import schedule_execution_time_iterator

from scholaria_ops.catalogue.sets import Catalogue
from scholaria_ops.definitions import defs
from scholaria_ops.pipeline.partitions import known_partitions
from scholaria_ops.pipeline.resources import Estate
from scholaria_ops.pipeline.schedules import SCHEDULED, STALE_AFTER, ScheduledTier, Timing, make_schedule, stale, timing
from scholaria_ops.process import run
from scholaria_ops.settings import ENV_FILE_VARIABLE, load_settings


@pytest.fixture
def settings_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "site.env"
    path.write_text(f"BACKUP_DIR={tmp_path / 'backups'}\nBACKUP_TIMEZONE=Asia/Seoul\n")
    monkeypatch.setenv(ENV_FILE_VARIABLE, str(path))
    return path


def ticks(tier: ScheduledTier, zone: str, since: datetime, count: int, **cron: str) -> list[datetime]:
    """The next ticks as Dagster computes them."""
    schedule = make_schedule(tier, Timing.of(load_settings({"BACKUP_TIMEZONE": zone, **cron})))
    found = schedule_execution_time_iterator(since.timestamp(), schedule.cron_schedule, schedule.execution_timezone)
    return [t.astimezone(ZoneInfo(zone)) for t in itertools.islice(found, count)]


def evaluate(instance: dg.DagsterInstance, tier: ScheduledTier, due: datetime) -> Any:
    schedule = make_schedule(tier, timing())
    return schedule(dg.build_schedule_context(instance=instance, scheduled_execution_time=due, resources={"estate": Estate()}))


def test_three_schedules_are_on_by_default_at_the_documented_times() -> None:
    with_defaults = Timing.of(load_settings({}))
    found = {tier: make_schedule(tier, with_defaults) for tier in SCHEDULED}
    assert {t: s.cron_schedule for t, s in found.items()} == {"daily": "0 2 * * *", "weekly": "0 3 * * 0", "monthly": "0 4 1 * *"}
    assert {s.default_status for s in found.values()} == {dg.DefaultScheduleStatus.RUNNING}
    names = {s.name for s in defs.get_repository_def().schedule_defs}
    assert {f"{tier}_backup" for tier in SCHEDULED} <= names


def test_a_tick_mints_an_id_of_its_tier_and_asks_for_its_backup(instance: dg.DagsterInstance, settings_file: Path, tmp_path: Path) -> None:
    for tier in SCHEDULED:
        request = evaluate(instance, tier, datetime.now(UTC))
        set_id = request.partition_key
        assert request.run_key == set_id
        assert request.tags["scholaria/tier"] == tier
        assert request.run_config["ops"]["take_backup"]["config"]["tier"] == tier
        assert set_id in known_partitions(instance)
        (record,) = Catalogue(tmp_path / "backups").records.of(set_id)
        assert (record.event, record.detail["tier"]) == ("reserved", tier)
        local = datetime.strptime(set_id, "%Y%m%d_%H%M%S").replace(tzinfo=ZoneInfo("Asia/Seoul"))
        assert abs(local - datetime.now(UTC)) < timedelta(minutes=1), "the id tells the time on the operators' wall"
    assert len(known_partitions(instance)) == 3, "three ticks in one second get three ids"


def test_a_tick_that_is_evaluated_twice_gets_the_same_id(instance: dg.DagsterInstance, settings_file: Path) -> None:
    due = datetime.now(UTC).replace(microsecond=0)
    first, again = (evaluate(instance, "daily", due).run_key for _ in range(2))
    assert first == again, "the daemon may die between minting and starting the run"
    assert evaluate(instance, "daily", due + timedelta(minutes=1)).run_key != first
    assert evaluate(instance, "weekly", due).run_key != first


def test_stale_ticks_are_skipped_with_a_reason_and_mint_nothing(instance: dg.DagsterInstance, settings_file: Path, tmp_path: Path) -> None:
    """The machine slept over two ticks: Dagster catches up on both, and neither is the state of its time."""
    now = datetime.now(UTC)
    for due in (now - timedelta(days=2), now - timedelta(days=1), now - STALE_AFTER - timedelta(minutes=1)):
        skipped = evaluate(instance, "daily", due)
        assert isinstance(skipped, dg.SkipReason)
        assert "h ago" in (skipped.skip_message or "")
    assert not known_partitions(instance)
    assert not Catalogue(tmp_path / "backups").records.ids()
    assert isinstance(evaluate(instance, "daily", now - timedelta(hours=3)), dg.RunRequest)


def test_stale_is_decided_by_the_instant_whatever_the_zone() -> None:
    due = datetime(2026, 3, 29, 2, 0, tzinfo=ZoneInfo("Europe/Berlin"))
    assert not stale(due, due.astimezone(UTC) + STALE_AFTER)
    assert "was due at 2026-03-29 02:00" in stale(due, due.astimezone(UTC) + STALE_AFTER + timedelta(seconds=1))
    assert not stale(due, due - timedelta(hours=1)), "a clock that was set back makes no tick stale"


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Seoul"])
def test_f71_every_day_gets_one_daily_tick_across_both_changes_of_the_clock(zone: str) -> None:
    found = ticks("daily", zone, datetime(2026, 1, 1, 12, tzinfo=UTC), 400)
    assert len({t.date() for t in found}) == 400, "no day without a tick, none with two"
    assert all((t.hour, t.minute) in {(2, 0), (2, 30), (3, 0)} for t in found)
    assert sum((t.hour, t.minute) != (2, 0) for t in found) <= 3, "only where 02:00 does not exist on the wall"


def test_f71_weekly_ticks_fall_on_sundays_across_both_changes_of_the_clock() -> None:
    found = ticks("weekly", "Europe/Berlin", datetime(2026, 1, 1, tzinfo=UTC), 60)
    assert {t.weekday() for t in found} == {6}
    assert len({t.date() for t in found}) == 60
    assert datetime(2026, 3, 29).date() in {t.date() for t in found}  # noqa: DTZ001 - a date of the wall calendar


def test_monthly_ticks_come_once_in_every_month_and_at_the_end_only_where_there_is_one() -> None:
    found = ticks("monthly", "Asia/Seoul", datetime(2027, 12, 15, tzinfo=UTC), 15)
    assert [(t.year, t.month) for t in found] == [*((2028, m) for m in range(1, 13)), (2029, 1), (2029, 2), (2029, 3)]
    assert {(t.day, t.hour) for t in found} == {(1, 4)}
    ends = ticks("monthly", "Asia/Seoul", datetime(2028, 1, 1, tzinfo=UTC), 4, BACKUP_MONTHLY_CRON="0 4 29 * *")
    assert [(t.month, t.day) for t in ends] == [(1, 29), (2, 29), (3, 29), (4, 29)], "2028 has a 29th of February"
    ends = ticks("monthly", "Asia/Seoul", datetime(2027, 1, 1, tzinfo=UTC), 3, BACKUP_MONTHLY_CRON="0 4 31 * *")
    assert [t.month for t in ends] == [1, 3, 5]


def test_the_ids_of_a_repeated_hour_differ(instance: dg.DagsterInstance, settings_file: Path) -> None:
    now = datetime.now(UTC)  # once: a minute that ends between two of them would make one tick of both
    made = {evaluate(instance, "daily", now - timedelta(minutes=n)).run_key for n in range(5)}
    assert len(made) == 5


def test_cron_strings_and_the_zone_come_from_the_settings(settings_file: Path) -> None:
    with settings_file.open("a") as out:
        out.write("BACKUP_DAILY_CRON=15 1 * * 1-5\n")
    found = timing()
    assert (found.crons["daily"], found.crons["weekly"], found.zone, found.trouble) == ("15 1 * * 1-5", "0 3 * * 0", "Asia/Seoul", "")
    assert "15 1 * * 1-5, Asia/Seoul" in str(make_schedule("daily", found).description)


@pytest.fixture
def broken(settings_file: Path) -> Iterator[Path]:
    settings_file.write_text("BACKUP_DIR=relative/path\nBACKUP_DAILY_CRON=99 2 * * *\n")
    return settings_file  # type: ignore[return-value]


def test_settings_that_cannot_be_read_leave_the_defaults_and_say_so(broken: Path) -> None:
    found = timing()
    assert (found.crons["daily"], found.zone) == ("0 2 * * *", "UTC")
    assert "BACKUP_DAILY_CRON='99 2 * * *'" in found.trouble
    description = str(make_schedule("daily", found).description)
    assert "DEFAULT TIMES ARE IN FORCE" in description
    assert "BACKUP_DAILY_CRON" in description


def test_a_broken_settings_file_does_not_break_the_code_location(broken: Path) -> None:
    program = (
        "from scholaria_ops.definitions import defs\n"
        "for s in defs.get_repository_def().schedule_defs: print(s.name, s.cron_schedule, s.execution_timezone)\n"
    )
    loaded = run([sys.executable, "-c", program], env={ENV_FILE_VARIABLE: str(broken)}, cwd=broken.parent)
    assert "daily_backup 0 2 * * * UTC" in loaded.stdout.decode().splitlines()


def test_a_tick_with_unreadable_settings_fails_instead_of_doing_nothing(instance: dg.DagsterInstance, broken: Path) -> None:
    with pytest.raises(Exception, match="BACKUP_DAILY_CRON"):
        evaluate(instance, "daily", datetime.now(UTC))
    assert not known_partitions(instance)
