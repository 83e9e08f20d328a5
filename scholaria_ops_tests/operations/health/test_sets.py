"""Health of the sets: each tier against what its schedule promises, and everything that makes a set no set."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

import pytest

from scholaria_ops.catalogue.manifest import Tier
from scholaria_ops.operations.health import sets
from scholaria_ops.operations.health.findings import Finding
from scholaria_ops.operations.inventory import missing_here
from scholaria_ops.operations.prune_state import PruneState, Seen
from scholaria_ops.operations.services import Services, make_services
from scholaria_ops.operations.standing import Standing, look, standing_of
from scholaria_ops.settings import load_settings
from scholaria_ops_tests.catalogue.factory import make_set
from scholaria_ops_tests.operations.test_standing import rehearsed

#: A Tuesday, 10:00: all ticks of that night are more than six hours past.
NOW = datetime(2026, 3, 3, 10, 0, tzinfo=UTC)
DAILY, WEEKLY, MONTHLY = (datetime(2026, 3, d, h, 0, 5, tzinfo=UTC) for d, h in ((3, 2), (1, 3), (1, 4)))
DAY = timedelta(days=1)


def with_settings(tmp_path: Path, **more: str) -> Services:
    return make_services(load_settings({"BACKUP_DIR": str(tmp_path / "b"), **more}))


@pytest.fixture
def services(tmp_path: Path) -> Services:
    return with_settings(tmp_path, BACKUP_S3_BUCKET="offsite-bucket")


@pytest.fixture
def full(services: Services) -> Services:
    """A site as it should be: every tier verified, shipped, and a proof."""
    add(services, "daily", DAILY)
    add(services, "weekly", WEEKLY)
    one = add(services, "monthly", MONTHLY)
    rehearsed(services.catalogue, one, "proven", datetime(2026, 3, 2, 5, 10, tzinfo=UTC))
    return services


def add(services: Services, tier: Tier, at: datetime, *, verified: bool = True, shipped: bool = True, size: int = 1000) -> str:
    one = make_set(services.catalogue, at, tier=tier, size=size)
    if verified:
        services.catalogue.records.append(one.id, "verified", at=at + timedelta(minutes=1), level="hash", passed=True)
    if shipped:
        services.catalogue.records.append(one.id, "shipped", at=at + timedelta(minutes=2), where="s3://b/", confirmed_by="readback")
    return one.id


def standing(services: Services, now: datetime = NOW) -> Standing:
    return standing_of(look(services), now)


def levels(found: Iterable[Finding]) -> dict[str, str]:
    """First word of what is said → level."""
    return {f.what.partition(":")[0]: f.level for f in found}


def fresh(services: Services, what: Literal["verified", "offsite"] = "verified", now: datetime = NOW) -> list[Finding]:
    return list(sets.fresh(standing(services, now), services.settings, what))


def test_a_site_as_it_should_be_is_ok_in_every_check(full: Services) -> None:
    for what in ("verified", "offsite"):
        assert levels(fresh(full, what)) == {"daily": "ok", "weekly": "ok", "monthly": "ok"}
    now = standing(full)
    for found in (sets.catalogue(now), sets.rehearsed(now, full.settings), sets.retention(now, full.settings, [])):
        assert [f.level for f in found] == ["ok"]
    assert list(sets.rotten(look(full))) == []


def test_an_empty_directory_is_unhealthy(services: Services) -> None:
    services.check_directory()
    for what in ("verified", "offsite"):
        (found,) = fresh(services, what)
        assert found.level == "critical"
        assert "`scholaria-ops" in found.next_step


@pytest.mark.parametrize(
    ("tier", "ok_until", "bad_from"),
    [
        ("daily", datetime(2026, 3, 4, 7, 59, tzinfo=UTC), datetime(2026, 3, 4, 8, 1, tzinfo=UTC)),
        ("weekly", datetime(2026, 3, 8, 8, 59, tzinfo=UTC), datetime(2026, 3, 8, 9, 1, tzinfo=UTC)),
        ("monthly", datetime(2026, 4, 1, 9, 59, tzinfo=UTC), datetime(2026, 4, 1, 10, 1, tzinfo=UTC)),
    ],
)
@pytest.mark.parametrize("what", ["verified", "offsite"])
def test_a_tier_is_missed_six_hours_after_it_was_due(
    full: Services, tier: str, ok_until: datetime, bad_from: datetime, what: Literal["verified", "offsite"]
) -> None:
    assert levels(fresh(full, what, ok_until))[tier] == "ok"
    late = next(f for f in fresh(full, what, bad_from) if f.what.startswith(tier))
    assert late.level == "critical"
    assert late.since in {datetime(2026, 3, 4, 2, tzinfo=UTC), datetime(2026, 3, 8, 3, tzinfo=UTC), datetime(2026, 4, 1, 4, tzinfo=UTC)}
    assert f"{tier}_age_s" in late.numbers


def test_grace_and_time_zone_are_the_operators(tmp_path: Path) -> None:
    services = with_settings(tmp_path, BACKUP_TIMEZONE="Asia/Seoul", BACKUP_HEALTH_GRACE_H="1")
    add(services, "daily", datetime(2026, 3, 2, 17, 0, 5, tzinfo=UTC))  # 02:00 in Seoul
    assert levels(fresh(services, now=datetime(2026, 3, 3, 17, 59, tzinfo=UTC)))["daily"] == "ok"
    assert levels(fresh(services, now=datetime(2026, 3, 3, 18, 1, tzinfo=UTC)))["daily"] == "critical"


def test_an_age_that_is_set_goes_before_the_schedule(tmp_path: Path) -> None:
    services = with_settings(tmp_path, BACKUP_HEALTH_DAILY_MAX_AGE_H="48")
    add(services, "daily", DAILY)
    assert levels(fresh(services, now=DAILY + timedelta(hours=47)))["daily"] == "ok"
    found = fresh(services, now=DAILY + timedelta(hours=49))
    assert levels(found)["daily"] == "critical"
    assert "at most 48 h old" in found[0].what


def test_a_sealed_set_that_nobody_verified_does_not_count(full: Services) -> None:
    add(full, "daily", DAILY + DAY, verified=False)
    assert levels(fresh(full, now=NOW + DAY))["daily"] == "critical"


def test_f81_a_schedule_that_never_ran_goes_red_although_sets_are_taken_by_hand(services: Services) -> None:
    for days in range(4):
        add(services, "manual", DAILY - days * DAY)
    found = fresh(services)
    assert levels(found) == {"daily": "critical", "weekly": "critical", "monthly": "critical"}
    assert "none is verified, and one was due at 2026-03-03 02:00" in found[0].what


def test_a_new_installation_waits_for_what_was_not_due_yet(services: Services) -> None:
    add(services, "manual", datetime(2026, 3, 3, 9, tzinfo=UTC))
    found = fresh(services)
    assert levels(found) == {"daily": "ok", "weekly": "ok", "monthly": "ok"}
    assert "none was due since the first set" in found[0].what
    assert levels(fresh(services, now=datetime(2026, 3, 4, 8, 1, tzinfo=UTC)))["daily"] == "critical"


def test_the_last_failure_is_told(full: Services) -> None:
    at = DAILY + DAY
    full.catalogue.records.reserve("20260304_020000", tier="daily")
    full.catalogue.records.append("20260304_020000", "failed", at=at, code="store", message="qdrant could not be backed up")
    late = next(f for f in fresh(full, now=NOW + DAY) if f.what.startswith("daily"))
    assert "the last attempt failed: qdrant could not be backed up" in late.what


def test_without_a_bucket_there_is_a_warning_and_nothing_worse(tmp_path: Path) -> None:
    services = with_settings(tmp_path)
    add(services, "daily", DAILY, shipped=False)
    (found,) = fresh(services, "offsite")
    assert found.level == "warning"


def test_a_damaged_copy_offsite_stays_red_until_it_is_shipped_or_read_again(full: Services) -> None:
    set_id = label(DAILY)
    records = full.catalogue.records
    records.append(set_id, "reread", at=NOW, passed=False, damage="redis.rdb.gz is not what was shipped")
    (found,) = sets.rotten(look(full))
    assert (found.check, found.level) == ("offsite", "critical")
    assert "redis.rdb.gz is not what was shipped" in found.what
    records.append(set_id, "shipped", at=NOW + timedelta(minutes=1), confirmed_by="earlier run")
    assert list(sets.rotten(look(full))), "a repeated shipment read nothing"
    records.append(set_id, "shipped", at=NOW + timedelta(minutes=2), confirmed_by="readback")
    assert not list(sets.rotten(look(full)))


def label(at: datetime) -> str:
    return f"{at:%Y%m%d_%H%M%S}"


def test_an_overdue_rehearsal_is_critical(full: Services) -> None:
    before = standing(full, datetime(2026, 4, 2, 10, 59, tzinfo=UTC))
    after = standing(full, datetime(2026, 4, 2, 11, 1, tzinfo=UTC))
    assert [f.level for f in sets.rehearsed(before, full.settings)] == ["ok"]
    (found,) = sets.rehearsed(after, full.settings)
    assert found.level == "critical"
    assert "a rehearsal was due at 2026-04-02 05:00" in found.what


def test_never_rehearsed_is_a_warning_until_one_was_due(services: Services) -> None:
    add(services, "daily", DAILY)
    assert [f.level for f in sets.rehearsed(standing(services), services.settings)] == ["warning"]
    later = standing(services, datetime(2026, 4, 2, 12, tzinfo=UTC))
    assert [f.level for f in sets.rehearsed(later, services.settings)] == ["critical"]


@pytest.mark.parametrize(("verdict", "level"), [("failed", "critical"), ("unproven", "warning")])
def test_a_last_rehearsal_that_did_not_prove_is_told(full: Services, verdict: str, level: str) -> None:
    rehearsed(full.catalogue, label(DAILY), verdict, NOW - timedelta(hours=1))
    found = list(sets.rehearsed(standing(full), full.settings))
    assert [f.level for f in found] == ["ok", level]
    assert label(DAILY) in found[1].what
    rehearsed(full.catalogue, label(WEEKLY), "proven", NOW)
    assert [f.level for f in sets.rehearsed(standing(full), full.settings)] == ["ok"]


def test_f67_damaged_and_unread_entries_are_critical_and_strays_are_only_named(full: Services) -> None:
    root = full.catalogue.layout.root
    (root / "lost+found").mkdir()
    assert "1 other" in next(iter(sets.catalogue(standing(full)))).what
    (root / f"scholaria_backup_{label(DAILY)}" / "SHA256SUMS").unlink()
    manifest = root / f"scholaria_backup_{label(WEEKLY)}" / "backup_manifest.json"
    manifest.unlink()
    manifest.mkdir()  # gives an error when it is read, also to a superuser
    found = list(sets.catalogue(standing(full)))
    assert {f.level for f in found} == {"critical"}
    assert any("is damaged: SHA256SUMS is missing" in f.what for f in found)
    assert any(label(WEEKLY) in f.what and "could not be read" in f.what for f in found)


def test_with_half_of_the_catalogue_unreadable_nothing_is_good_news(full: Services) -> None:
    for n in range(8):
        one = add(full, "manual", DAILY - (n + 2) * DAY)
        manifest = full.catalogue.layout.sealed(one) / "backup_manifest.json"
        manifest.unlink()
        manifest.mkdir()
    found = list(sets.catalogue(standing(full)))
    assert [f.level for f in found] == ["critical"] * 6
    assert "3 further entries could not be read" in found[-1].what


def test_a_set_that_failed_its_verification_or_rehearsal_is_critical(full: Services) -> None:
    full.catalogue.records.append(label(DAILY), "verified", at=NOW, level="hash", passed=False)
    rehearsed(full.catalogue, label(WEEKLY), "failed", NOW)
    found = list(sets.catalogue(standing(full)))
    assert {(f.level, f.what) for f in found} == {
        ("critical", f"scholaria_backup_{label(DAILY)} was verified and is not what was sealed"),
        ("critical", f"scholaria_backup_{label(WEEKLY)} was rehearsed and is not what was sealed"),
    }


def test_f84_a_partial_set_without_a_later_whole_one_is_a_warning(full: Services) -> None:
    make_set(full.catalogue, DAILY + timedelta(hours=1), tier="daily", missing=("qdrant",))
    (found,) = sets.catalogue(standing(full))
    assert found.level == "warning"
    assert "lacks a store" in found.what
    add(full, "daily", DAILY + timedelta(hours=2))
    (found,) = sets.catalogue(standing(full))
    assert found.level == "ok"
    assert "1 partial" in found.what


def test_a_newest_set_that_is_far_too_small_is_told_before_older_ones_go(full: Services) -> None:
    for n in range(3):
        add(full, "manual", DAILY - timedelta(hours=n + 1), size=100_000)
    (found,) = sets.retention(standing(full), full.settings, [])
    assert found.level == "warning"
    assert "is far smaller than the sets before it" in found.what
    assert "nothing is pruned meanwhile" in found.what


def test_f62_sets_that_went_away_by_themselves_are_critical(full: Services) -> None:
    entries = full.catalogue.entries()
    PruneState(full.catalogue.layout).remember(Seen(here=tuple(e.name for e in entries)))
    assert missing_here(full, entries) == []
    shutil.rmtree(full.catalogue.layout.sealed(label(DAILY)))
    missing = missing_here(full, full.catalogue.entries())
    assert missing == [f"scholaria_backup_{label(DAILY)}"]
    found = list(sets.retention(standing(full), full.settings, missing))
    assert [f.level for f in found] == ["critical"]
    full.catalogue.records.append(label(DAILY), "deleted", place="here")
    assert missing_here(full, full.catalogue.entries()) == [], "what we removed is not missed"


def test_f71_sets_from_the_future_hide_no_age(full: Services) -> None:
    add(full, "daily", NOW + 300 * DAY)
    found = levels(fresh(full, now=NOW + DAY))
    assert found["daily"] == "critical", "a set taken while the clock was ahead is not the newest one"
