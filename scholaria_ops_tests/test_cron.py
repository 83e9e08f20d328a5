"""Limits that follow the schedules agree with the ticks that Dagster computes."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from dagster._utils.schedules import schedule_execution_time_iterator

from scholaria_ops.settings import check_cron
from scholaria_ops.settings.cron import Cron

SINCE = datetime(2026, 1, 1, 12, tzinfo=UTC)
STRINGS = [
    "0 2 * * *",
    "0 3 * * 0",
    "0 4 1 * *",
    "30 */6 * * *",
    "0 5 9 1,4,7,10 *",
    "0 5 16 3,9 *",
    "15 1 * * 1-5",
    "5/20 8-10 * * 7",
    "0 0 13 * 5",
    "0 4 31 * *",
    "0 0 29 2 *",
    "*/7 3 1-7/2 * *",
]


@pytest.mark.parametrize("text", STRINGS)
@pytest.mark.parametrize("zone", ["UTC", "Asia/Seoul", "America/New_York"])
def test_ticks_are_those_of_dagster_within_a_change_of_the_clock(text: str, zone: str) -> None:
    cron, tz = Cron.parse(check_cron(text)), ZoneInfo(zone)
    expected = [t.astimezone(UTC) for t in itertools.islice(schedule_execution_time_iterator(SINCE.timestamp(), text, zone), 40)]
    at = SINCE
    for tick in expected:
        found = cron.next_after(at, tz)
        assert found
        assert abs(found - tick) <= timedelta(hours=1), (found, tick)
        at = tick
    for earlier, later in itertools.pairwise(expected):
        if later - earlier > timedelta(hours=3):
            found = cron.last_before(later - timedelta(hours=2), tz)
            assert found
            assert abs(found - earlier) <= timedelta(hours=1)


def test_what_is_never_due_has_no_tick() -> None:
    assert Cron.parse("0 0 31 2 *").next_after(SINCE, UTC) is None
    assert Cron.parse("0 0 31 2 *").last_before(SINCE, UTC) is None
