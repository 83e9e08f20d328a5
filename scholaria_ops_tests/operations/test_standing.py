"""Where we stand: marks, failures, forecast; and what cannot be read is named, never taken as absent."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from scholaria_ops.catalogue.layout import label
from scholaria_ops.catalogue.manifest import TIERS
from scholaria_ops.catalogue.records import Record
from scholaria_ops.catalogue.sets import Catalogue
from scholaria_ops.errors import Refused
from scholaria_ops.operations.forecast import HEADROOM_BYTES, DiskForecast, predict_next
from scholaria_ops.operations.inventory import take_stock
from scholaria_ops.operations.services import Services, make_services
from scholaria_ops.operations.standing import Look, Standing, look, standing_of, take_standing
from scholaria_ops.settings import load_settings
from scholaria_ops_tests.catalogue.factory import NOW, make_set

DAY = timedelta(days=1)
HOUR = timedelta(hours=1)


@pytest.fixture
def services(tmp_path: Path) -> Services:
    return make_services(load_settings({"BACKUP_DIR": str(tmp_path)}))


def standing(services: Services, now: datetime = NOW + 10 * DAY) -> Standing:
    return standing_of(look(services), now)


def rehearsed(catalogue: Catalogue, set_id: str, verdict: str, at: datetime, rto_s: float = 12.5) -> None:
    catalogue.records.append(
        set_id,
        "rehearsed",
        at=at,
        verdict=verdict,
        source="local",
        rto_s=rto_s,
        rpo_s=3600.0,
        fetch_s=0.0,
        stores={"redis": {"verdict": verdict, "detail": "3 keys lost", "rto_s": 1.5}},
    )


@contextlib.contextmanager
def _unreadable(*paths: Path) -> Iterator[None]:
    """Files that exist and give an error when they are read, also to a superuser."""
    for path in paths:
        path.rename(path.with_name(f"{path.name}.aside"))
        path.mkdir()
    yield
    for path in paths:
        path.rmdir()
        path.with_name(f"{path.name}.aside").rename(path)


def test_each_tier_has_its_own_newest_set_of_every_rank(services: Services) -> None:
    catalogue = services.catalogue
    proven = make_set(catalogue, NOW, tier="daily", verified=True)
    catalogue.records.append(proven.id, "shipped", at=NOW + HOUR, where="s3://b/x")
    rehearsed(catalogue, proven.id, "proven", NOW + 2 * HOUR)
    verified = make_set(catalogue, NOW + DAY, tier="daily", verified=True)
    sealed = make_set(catalogue, NOW + 2 * DAY, tier="daily")
    weekly = make_set(catalogue, NOW + 3 * DAY, tier="weekly", verified=True)
    found = standing(services)
    daily = found.tiers["daily"]
    assert [m and m.id for m in (daily.sealed, daily.verified, daily.offsite, daily.proven)] == [
        sealed.id,
        verified.id,
        proven.id,
        proven.id,
    ]
    assert daily.proven is not None
    assert daily.proven.at == NOW + 2 * HOUR
    assert daily.proven.age_s == 10 * 86400, "from the cut, not from the rehearsal"
    assert found.overall.verified is not None
    assert found.overall.verified.id == weekly.id
    assert found.tiers["monthly"].sealed is None
    assert set(found.tiers) == set(TIERS)
    assert found.overall.sets == 4
    assert found.complete


def test_partial_damaged_and_future_sets_rank_nowhere_and_are_named(services: Services) -> None:
    catalogue = services.catalogue
    good = make_set(catalogue, NOW, verified=True)
    partial = make_set(catalogue, NOW + DAY, missing=("qdrant",), verified=True)
    damaged = make_set(catalogue, NOW + 2 * DAY, verified=True)
    (damaged.directory / damaged.manifest.artifacts[0].path).unlink()
    future = make_set(catalogue, NOW + 30 * DAY, verified=True)
    (catalogue.layout.root / "lost+found").mkdir()
    found = standing(services)
    assert found.overall.verified is not None
    assert found.overall.verified.id == good.id, "a clock that was wrong once must not hide that backups stopped"
    assert [s.id for s in found.partial] == [partial.id]
    assert list(found.damaged) == [damaged.directory.name]
    assert [s.id for s in found.ahead_of_clock] == [future.id]
    assert found.stray == ["lost+found"]


def test_a_failure_stands_until_a_later_success_of_its_kind(services: Services) -> None:
    catalogue = services.catalogue
    catalogue.records.reserve("20260227_020000", tier="daily")
    catalogue.records.append("20260227_020000", "failed", at=NOW - 2 * DAY, code="postgres_unreachable", message="refused")
    assert [(f.what, f.code) for f in standing(services, NOW).tiers["daily"].failures] == [("backup", "postgres_unreachable")]
    done = make_set(catalogue, NOW - DAY, tier="daily", verified=True)
    found = standing(services, NOW)
    assert found.tiers["daily"].failures == []
    assert found.tiers["daily"].failures_total == {"backup": 1, "verification": 0, "rehearsal": 0}
    catalogue.records.append(
        done.id, "verified", at=datetime.now(UTC) + DAY, level="hash", passed=False, failed=[{"check": "digests", "detail": "one differs"}]
    )
    rehearsed(catalogue, done.id, "failed", NOW)
    found = standing(services, NOW)
    assert {(f.what, f.message) for f in found.overall.failures} == {
        ("verification", "digests: one differs"),
        ("rehearsal", "redis: 3 keys lost"),
    }
    assert [s.id for s in found.broken] == [done.id]
    rehearsed(catalogue, done.id, "proven", NOW + HOUR)
    assert {f.what for f in standing(services, NOW).overall.failures} == {"verification"}


def test_a_run_that_took_an_id_and_never_ended_is_a_failure_once_its_time_is_over(services: Services) -> None:
    set_id = label(NOW, UTC)
    services.catalogue.records.reserve(set_id, tier="weekly")
    began = services.catalogue.records.of(set_id)[0].at
    assert standing(services, began + 5 * HOUR).overall.failures == []
    (failure,) = standing(services, began + 7 * HOUR).tiers["weekly"].failures
    assert (failure.id, failure.code) == (set_id, "never_finished")


def test_a_copy_whose_original_was_pruned_still_counts_as_offsite(services: Services) -> None:
    catalogue = services.catalogue
    set_id = "20260228_040000"
    catalogue.records.reserve(set_id, tier="monthly")
    catalogue.records.append(
        set_id, "sealed", at=NOW - DAY, cut_at=(NOW - DAY).isoformat(), size_bytes=77, duration_s=5.5, counts={"rows": 9}
    )
    catalogue.records.append(set_id, "shipped", at=NOW - DAY + HOUR, where="s3://b/x")
    catalogue.records.append(set_id, "deleted", at=NOW, place="here")
    found = standing(services, NOW)
    assert found.tiers["monthly"].sealed is None
    assert found.tiers["monthly"].offsite is not None
    assert found.tiers["monthly"].offsite.age_s == 86400
    (gone,) = found.sets
    assert (gone.place, gone.size_bytes, gone.duration_s, gone.counts) == ("gone", 77, 5.5, {"rows": 9})
    catalogue.records.append(set_id, "deleted", at=datetime.now(UTC) + DAY, place="offsite")
    assert standing(services, NOW).tiers["monthly"].offsite is None


def test_rehearsals_keep_their_times_in_the_order_they_took_place(services: Services) -> None:
    catalogue = services.catalogue
    old, new = make_set(catalogue, NOW, tier="daily"), make_set(catalogue, NOW + DAY, tier="weekly")
    rehearsed(catalogue, new.id, "proven", NOW + 2 * DAY, rto_s=20)
    rehearsed(catalogue, old.id, "unproven", NOW + 3 * DAY, rto_s=10)
    found = standing(services)
    assert [(r.id, r.rto_s, r.verdict) for r in found.rehearsals] == [(new.id, 20.0, "proven"), (old.id, 10.0, "unproven")]
    assert found.rehearsals[0].stores == {"redis": 1.5}
    assert found.overall.last_rehearsal is not None
    assert found.overall.last_rehearsal.verdict == "unproven"


def test_holds_are_told_with_their_reason(services: Services) -> None:
    made = make_set(services.catalogue)
    services.catalogue.records.append(made.id, "held", why="audit of 2026")
    assert standing(services).held[made.id].startswith("audit of 2026 (")


def test_what_cannot_be_read_is_named_and_never_absent(services: Services) -> None:
    catalogue = services.catalogue
    good = make_set(catalogue, NOW, verified=True)
    closed = make_set(catalogue, NOW + DAY, verified=True)
    mute = make_set(catalogue, NOW + 2 * DAY, verified=True)
    catalogue.records.reserve("20260105_020000")
    with _unreadable(
        closed.directory / "backup_manifest.json", catalogue.layout.record(mute.id), catalogue.layout.record("20260105_020000")
    ):
        found = standing(services)
        assert set(found.unread) == {closed.directory.name, mute.directory.name, "20260105_020000"}
        assert found.damaged == {}, "unread is not damaged: nobody knows yet"
        assert not found.complete
        assert found.overall.verified is not None
        assert found.overall.verified.id == good.id
        assert set(take_stock(services, {}, offsite=False).here.unreadable) == {closed.directory.name, mute.directory.name}
        with pytest.raises(Refused, match="which set is the newest is not known"):
            catalogue.find("latest")
    assert standing(services).complete


def test_a_directory_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    root = tmp_path / "b"
    services = make_services(load_settings({"BACKUP_DIR": str(root)}))
    made = make_set(services.catalogue)
    records = services.catalogue.layout.records
    records.rename(records.with_name(".set-aside"))
    records.write_text("not a directory")
    with pytest.raises(Refused, match="cannot read"):
        take_standing(services)
    records.unlink()
    records.with_name(".set-aside").rename(records)
    assert take_standing(services).overall.sealed is not None
    assert made.id in {s.id for s in take_standing(services).sets}


def test_an_empty_directory_stands_nowhere(tmp_path: Path) -> None:
    found = standing_of(Look(tmp_path, ()), NOW)
    assert found.overall.sealed is None
    assert found.sets == []
    assert found.disk.predicted_next_bytes is None
    assert found.disk.fits is None, "not known is not yes"


def test_old_records_that_say_less_are_read(services: Services) -> None:
    record = Record.model_validate({"at": NOW, "event": "sealed", "by": "x", "detail": {"cut_at": "nonsense", "counts": None}})
    (gone,) = standing_of(Look(services.catalogue.layout.root, (), {"20260228_040000": [record]}), NOW).sets
    assert (gone.cut_at, gone.size_bytes, gone.tier) == (None, None, None)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([], None),
        ([100], 100),
        ([100, 110, 120, 130], 140),
        ([500, 400, 300], 500),
        ([100] * 20, 100),
        ([10, 10, 10, 10, 10, 10, 10, 1000], 1000),
    ],
    ids=["none", "one", "growing", "shrinking", "steady", "one sudden step"],
)
def test_the_prediction_errs_upwards(sizes: list[int], expected: int | None) -> None:
    assert predict_next(sizes) == expected


def test_the_forecast_counts_the_headroom() -> None:
    assert DiskForecast(HEADROOM_BYTES + 99, 10**9, 100, 3).fits is False
    assert DiskForecast(HEADROOM_BYTES + 100, 10**9, 100, 3).fits is True
    assert DiskForecast(HEADROOM_BYTES + 350, 10**9, 100, 3).sets_that_fit == 3
    assert DiskForecast(None, None, 100, 3, "Input/output error").fits is None
