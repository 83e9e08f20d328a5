"""Records, the ledger, and the minting of ids."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from scholaria_ops.catalogue.ids import check_usable, mint
from scholaria_ops.catalogue.layout import check_id, is_id, label, label_instant
from scholaria_ops.catalogue.ledger import Ledger
from scholaria_ops.catalogue.records import parse
from scholaria_ops.catalogue.sets import Catalogue
from scholaria_ops.errors import Refused, UsageError

NOW = datetime(2026, 3, 1, 2, 0, 0, tzinfo=UTC)


def test_ids_are_labels_in_the_configured_zone(tmp_path: Path) -> None:
    assert mint(Catalogue(tmp_path), ZoneInfo("Asia/Seoul"), NOW) == "20260301_110000"


def test_f71_ids_stay_unique_when_the_clock_jumps_back(tmp_path: Path) -> None:
    catalogue = Catalogue(tmp_path)
    ids = [mint(catalogue, UTC, NOW), mint(catalogue, UTC, NOW), mint(catalogue, UTC, NOW - timedelta(seconds=1))]
    assert ids == ["20260301_020000", "20260301_020001", "20260301_015959"]


def test_f71_the_hour_that_winter_time_repeats_gives_two_ids(tmp_path: Path) -> None:
    catalogue, berlin = Catalogue(tmp_path), ZoneInfo("Europe/Berlin")
    first = datetime(2026, 10, 25, 0, 30, tzinfo=UTC)
    ids = {mint(catalogue, berlin, first), mint(catalogue, berlin, first + timedelta(hours=1))}
    assert ids == {"20261025_023000", "20261025_023001"}


def test_an_id_is_never_given_out_twice_not_even_after_its_set_is_gone(tmp_path: Path) -> None:
    catalogue = Catalogue(tmp_path)
    gone = mint(catalogue, UTC, NOW)
    catalogue.records.append(gone, "deleted")
    assert mint(catalogue, UTC, NOW) != gone
    assert mint(catalogue, UTC, NOW, taken=frozenset({"20260301_020002"})) == "20260301_020003", "known to Dagster alone"


def test_f74_concurrent_minting_gives_everybody_an_id_of_their_own(tmp_path: Path) -> None:
    minted: list[str] = []
    threads = [threading.Thread(target=lambda: minted.append(mint(Catalogue(tmp_path), UTC, NOW))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(minted)) == 8


def test_an_old_unsealed_id_is_refused_but_a_fresh_reservation_is_not(tmp_path: Path) -> None:
    catalogue = Catalogue(tmp_path)
    fresh = mint(catalogue, UTC, datetime.now(UTC))
    check_usable(catalogue.records, fresh, UTC, datetime.now(UTC))
    with pytest.raises(Refused, match="is not sealed and its time is"):
        check_usable(catalogue.records, "20200101_020000", UTC, NOW)


@pytest.mark.parametrize("text", ["20261301_000000", "20260101-000000", "../etc", "20260101_000000/..", "", "latest"])
def test_what_is_no_id_reaches_no_path(text: str) -> None:
    assert not is_id(text)
    with pytest.raises(UsageError):
        check_id(text)


def test_labels_and_instants_agree() -> None:
    seoul = ZoneInfo("Asia/Seoul")
    assert label_instant(label(NOW, seoul), seoul) == NOW


def test_records_are_read_back_in_order_and_torn_lines_are_passed_over(tmp_path: Path) -> None:
    records = Catalogue(tmp_path).records
    records.append("20260301_020000", "sealed", at=NOW, sums_sha256="x")
    records.append("20260301_020000", "verified", at=NOW + timedelta(hours=1), passed=True)
    path = tmp_path / ".records" / "20260301_020000.jsonl"
    path.write_bytes(path.read_bytes() + b'{"at": "2026')
    assert [r.event for r in records.of("20260301_020000")] == ["sealed", "verified"]
    last = records.last("20260301_020000", "verified")
    assert last
    assert last.detail["passed"] is True


def test_merging_foreign_records_is_idempotent(tmp_path: Path) -> None:
    here, there = Catalogue(tmp_path / "a").records, Catalogue(tmp_path / "b").records
    there.append("20260301_020000", "sealed", at=NOW)
    there.append("20260301_020000", "shipped", at=NOW + timedelta(minutes=1), where="bucket")
    data = (tmp_path / "b" / ".records" / "20260301_020000.jsonl").read_bytes()
    assert here.merge("20260301_020000", data) == 2
    assert here.merge("20260301_020000", data) == 0
    assert here.of("20260301_020000") == parse(data)


def test_the_ledger_remembers_what_was_not_crossed_out(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "state" / "ledger.jsonl")
    kept = ledger.open("qdrant_snapshot", collection="c")
    gone = ledger.open("qdrant_snapshot", collection="d")
    ledger.update(kept, name="c-1.snapshot")
    ledger.close(gone)
    (entry,) = Ledger(tmp_path / "state" / "ledger.jsonl").entries("qdrant_snapshot")
    assert (entry.key, dict(entry.facts)) == (kept, {"collection": "c", "name": "c-1.snapshot"})
    assert ledger.entries("something_else") == []
