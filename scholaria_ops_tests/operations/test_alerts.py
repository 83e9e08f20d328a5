"""The record of what became of alerts, as health and status read it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from scholaria_ops.catalogue.layout import Layout
from scholaria_ops.operations.alerts import Attempt, Summary, alerts_of

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


def attempt(minutes: int, target: str, *, delivered: bool, error: str = "") -> Attempt:
    at = NOW + timedelta(minutes=minutes)
    return Attempt(at=at, target=target, level="failure", subject="Backup failed", delivered=delivered, error=error)


def test_without_any_alert_there_is_nothing_to_say(tmp_path: Path) -> None:
    assert alerts_of(Layout(tmp_path)).summary() == Summary(None, None, {})


def test_a_target_is_failing_until_its_next_delivery(tmp_path: Path) -> None:
    alerts = alerts_of(Layout(tmp_path))
    alerts.record(attempt(0, "slack hooks.slack.com", delivered=True))
    alerts.record(attempt(1, "mail ops@example.org", delivered=False, error="550 no such user"))
    alerts.record(attempt(2, "slack hooks.slack.com", delivered=False, error="refused"))
    seen = alerts.summary()
    assert seen.last_delivered == attempt(0, "slack hooks.slack.com", delivered=True)
    assert {t: a.error for t, a in seen.failing.items()} == {"mail ops@example.org": "550 no such user", "slack hooks.slack.com": "refused"}
    alerts.record(attempt(3, "slack hooks.slack.com", delivered=True))
    assert list(alerts.summary().failing) == ["mail ops@example.org"]
    assert alerts.path.stat().st_mode & 0o777 == 0o600
    assert len(alerts.attempts(since=NOW + timedelta(minutes=2))) == 2


def test_a_torn_line_is_passed_over_and_only_the_end_of_a_long_file_is_read(tmp_path: Path) -> None:
    alerts = alerts_of(Layout(tmp_path))
    alerts.record(attempt(0, "a", delivered=True))
    with alerts.path.open("ab") as file:
        file.write(b'{"at": "2026-03')
    alerts.record(attempt(1, "b", delivered=True))
    assert [a.target for a in alerts.attempts()] == ["a", "b"]
    line = alerts.path.read_bytes().splitlines()[-1] + b"\n"
    with alerts.path.open("ab") as file:
        file.write(line * (2 * (1 << 20) // len(line)))
    seen = alerts.attempts()
    assert {a.target for a in seen} == {"b"}
    assert len(seen) > 1000
