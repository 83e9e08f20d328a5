"""Whether somebody is told."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from scholaria_ops.operations.alerts import Attempt, alerts_of
from scholaria_ops.operations.health import telling
from scholaria_ops.operations.services import Services, make_services
from scholaria_ops.settings import load_settings

NOW = datetime(2026, 3, 3, 10, tzinfo=UTC)


@pytest.fixture
def services(tmp_path: Path) -> Services:
    return make_services(load_settings({"BACKUP_DIR": str(tmp_path)}))


def attempt(services: Services, target: str, *, delivered: bool, minute: int = 0) -> None:
    one = Attempt(
        at=NOW.replace(minute=minute),
        target=target,
        level="failure",
        subject="a backup failed",
        delivered=delivered,
        error="" if delivered else "410",
    )
    alerts_of(services.catalogue.layout).record(one)


def test_nobody_ever_told_is_a_warning(services: Services) -> None:
    (found,) = telling.alerts(services)
    assert (found.level, bool(found.next_step)) == ("warning", True)


def test_an_alert_that_arrived_is_ok(services: Services) -> None:
    attempt(services, "slack hooks.example.org", delivered=True)
    (found,) = telling.alerts(services)
    assert found.level == "ok"
    assert "slack hooks.example.org on 2026-03-03 10:00 UTC: a backup failed" in found.what


def test_f82_a_target_that_takes_no_alerts_is_critical_though_another_does(services: Services) -> None:
    attempt(services, "mail ops@example.org", delivered=True)
    attempt(services, "slack hooks.example.org", delivered=False, minute=1)
    (found,) = telling.alerts(services)
    assert found.level == "critical"
    assert "slack hooks.example.org does not take alerts: 410" in found.what
    attempt(services, "slack hooks.example.org", delivered=True, minute=2)
    assert [f.level for f in telling.alerts(services)] == ["ok"]


def test_a_file_that_cannot_be_read_is_no_silence(services: Services) -> None:
    path = alerts_of(services.catalogue.layout).path
    path.mkdir(parents=True)
    with pytest.raises(OSError, match="directory"):
        list(telling.alerts(services))
