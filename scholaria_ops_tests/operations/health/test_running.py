"""Daemons, schedules and runs, judged from what Dagster's side of the protocol tells."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from scholaria_ops.operations.health.findings import Finding
from scholaria_ops.operations.health.running import DaemonState, RunState, ScheduleState, daemon, runs, schedules
from scholaria_ops.settings import load_settings

#: A Tuesday.
NOW = datetime(2026, 3, 3, 10, 0, tzinfo=UTC)
SETTINGS = load_settings({})
HOUR = timedelta(hours=1)

DAILY = ScheduleState(
    "daily_backup",
    "0 2 * * *",
    "0 2 * * *",
    vital=True,
    on=True,
    known_since=NOW - timedelta(days=30),
    last_tick=datetime(2026, 3, 3, 2, 0, tzinfo=UTC),
    outcome="started",
)
RUN = RunState("0123456789ab", "backup", "started", since=NOW - HOUR, last_word=NOW, max_runtime=6 * HOUR)


def judged(now: datetime = NOW, **changes: Any) -> Finding:
    (found,) = schedules([dataclasses.replace(DAILY, **changes)], SETTINGS, now)
    return found


def test_beating_daemons_are_ok() -> None:
    (found,) = daemon([DaemonState("scheduler", True, NOW), DaemonState("sensor", True, NOW)])
    assert (found.level, found.numbers) == ("ok", {"daemons": 2})


def test_a_daemon_that_never_ran_is_told_from_one_that_stopped() -> None:
    (never,) = daemon([DaemonState("scheduler", False), DaemonState("sensor", False)])
    assert (never.level, never.since) == ("critical", None)
    assert "has never run" in never.what
    (stopped,) = daemon([DaemonState("scheduler", False, NOW - 2 * HOUR), DaemonState("sensor", False, NOW - HOUR)])
    assert (stopped.level, stopped.since) == ("critical", NOW - HOUR)
    assert "is not running" in stopped.what


def test_one_dead_daemon_and_one_with_errors_are_named() -> None:
    found = list(daemon([DaemonState("scheduler", False, NOW - HOUR), DaemonState("sensor", True, NOW, ["boom"])]))
    assert [(f.level, "scheduler" in f.what or "boom" in f.what) for f in found] == [("critical", True), ("warning", True)]


def test_a_schedule_that_ticked_when_it_was_due_is_ok() -> None:
    assert judged().level == "ok"
    assert judged(now=datetime(2026, 3, 4, 2, 59, tzinfo=UTC)).level == "ok", "an hour of patience"


def test_f81_a_schedule_that_did_not_tick_is_critical() -> None:
    missed = judged(now=datetime(2026, 3, 4, 3, 1, tzinfo=UTC))
    assert missed.level == "critical"
    assert "was due at 2026-03-04 02:00" in missed.what
    never = judged(last_tick=None, outcome="none")
    assert never.level == "critical"
    assert "has never ticked" in never.what
    assert judged(last_tick=None, outcome="none", vital=False).level == "warning"


def test_f81_schedules_that_no_daemon_ever_looked_at_are_critical() -> None:
    states = [dataclasses.replace(DAILY, name=n, known_since=None, last_tick=None, outcome="none") for n in ("a", "b")]
    (found,) = schedules(states, SETTINGS, NOW)
    assert (found.level, "none of the 2 schedules" in found.what) == ("critical", True)
    assert [f.level for f in schedules([states[0], DAILY], SETTINGS, NOW)] == ["critical", "ok"]


def test_a_schedule_that_was_started_after_it_was_due_is_not_late() -> None:
    assert judged(known_since=datetime(2026, 3, 3, 2, 30, tzinfo=UTC), last_tick=None, outcome="none").level == "ok"


def test_a_schedule_that_is_switched_off_is_told() -> None:
    assert (judged(on=False).level, judged(on=False, vital=False).level) == ("critical", "warning")


def test_a_failed_tick_is_told_with_its_reason() -> None:
    found = judged(outcome="failed", detail="BACKUP_DAILY_CRON='99' is wrong")
    assert found.level == "critical"
    assert "BACKUP_DAILY_CRON='99' is wrong" in found.what


def test_a_tick_skipped_after_an_outage_is_a_warning_and_one_without_a_bucket_is_not() -> None:
    assert judged(outcome="skipped", detail="this tick was due 9 h ago").level == "warning"
    assert judged(outcome="skipped", detail="no bucket", vital=False).level == "ok"


def test_times_that_are_not_in_force_yet_are_a_warning() -> None:
    found = judged(cron="0 5 * * *")
    assert found.level == "warning"
    assert "still runs at 0 2 * * *; the settings say 0 5 * * *" in found.what


def run_of(**changes: Any) -> Finding:
    (found,) = runs([dataclasses.replace(RUN, **changes)], NOW)
    return found


def test_a_run_at_work_is_ok_and_so_is_none() -> None:
    assert run_of().level == "ok"
    assert [f.level for f in runs([], NOW)] == ["ok"]


@pytest.mark.parametrize(
    ("changes", "level", "said"),
    [
        ({"gone": "its process 7 on a is gone"}, "critical", "left unfinished: its process 7 on a is gone"),
        ({"since": NOW - 7 * HOUR}, "critical", "longer than any may be (6.0 h)"),
        ({"phase": "queued", "since": NOW - 2 * HOUR}, "warning", "waits to begin for 2.0 h"),
        ({"last_word": NOW - 3 * HOUR}, "warning", "has said nothing for 3.0 h"),
    ],
)
def test_a_run_that_cannot_end_by_itself_is_told(changes: dict[str, Any], level: str, said: str) -> None:
    found = run_of(**changes)
    assert found.level == level
    assert said in found.what
    assert "run 01234567 of the job backup" in found.what
    assert found.since
    assert found.next_step
