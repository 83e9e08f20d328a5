"""Metrics: right numbers, none where nothing is known, and a failed look that says so."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from scholaria_ops.operations.metrics import registry_of
from scholaria_ops.operations.services import Services, make_services
from scholaria_ops.operations.standing import look, standing_of, take_standing
from scholaria_ops.settings import load_settings
from scholaria_ops_tests.catalogue.factory import NOW, make_set
from scholaria_ops_tests.operations.test_standing import rehearsed

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


@pytest.fixture
def services(tmp_path: Path) -> Services:
    (tmp_path / "b").mkdir()
    return make_services(load_settings({"BACKUP_DIR": str(tmp_path / "b")}))


def exposed(text: str) -> Samples:
    """Samples of an exposition, read back by the official parser."""
    return {(s.name, frozenset(s.labels.items())): s.value for family in text_string_to_metric_families(text) for s in family.samples}


def key(name: str, **labels: str) -> tuple[str, frozenset[tuple[str, str]]]:
    return name, frozenset(labels.items())


def test_ages_sizes_and_rehearsals_are_those_of_the_sets(services: Services) -> None:
    catalogue = services.catalogue
    proven = make_set(catalogue, NOW, tier="daily", verified=True)
    rehearsed(catalogue, proven.id, "proven", NOW + timedelta(hours=1), rto_s=31.5)
    make_set(catalogue, NOW + timedelta(days=1), tier="daily", size=2000, drift=3)
    make_set(catalogue, NOW + timedelta(days=1, hours=1), missing=("redis",))
    registry, _ = registry_of(lambda: standing_of(look(services), NOW + timedelta(days=2)))
    found = exposed(generate_latest(registry).decode())
    assert found[key("scholaria_up")] == 1
    assert found[key("scholaria_newest_set_age_seconds", tier="daily", rank="sealed")] == 86400
    assert found[key("scholaria_newest_set_age_seconds", tier="daily", rank="rehearsed")] == 2 * 86400
    assert found[key("scholaria_newest_set_cut_timestamp_seconds", tier="daily", rank="verified")] == NOW.timestamp()
    assert key("scholaria_newest_set_age_seconds", tier="daily", rank="offsite") not in found
    assert key("scholaria_newest_set_age_seconds", tier="weekly", rank="sealed") not in found, "no sample, no stale zero"
    assert found[key("scholaria_newest_set_size_bytes", tier="daily")] == 6000
    assert found[key("scholaria_predicted_next_set_bytes")] == 9000
    assert found[key("scholaria_rehearsal_rto_seconds", source="local")] == 31.5
    assert found[key("scholaria_rehearsal_store_rto_seconds", source="local", store="redis")] == 1.5
    assert found[key("scholaria_rehearsal_proven", source="local")] == 1
    assert found[key("scholaria_partial_sets")] == 1
    assert found[key("scholaria_newest_set_drift_items", tier="daily", what="row without point")] == 3
    assert found[key("scholaria_disk_free_bytes")] > 0


def test_a_failed_look_tells_nothing_but_that(services: Services) -> None:
    make_set(services.catalogue, tier="daily", verified=True)
    registry, collector = registry_of(lambda: take_standing(services))
    assert key("scholaria_sets", tier="daily") in exposed(generate_latest(registry).decode())
    root = services.catalogue.layout.root
    root.rename(root.with_name("unmounted"))
    for times in (1, 2):
        found = exposed(generate_latest(registry).decode())
        assert found[key("scholaria_up")] == 0
        assert found[key("scholaria_scrape_errors_total", reason="refused")] == times
        assert {name for name, _ in found} == {
            "scholaria_up",
            "scholaria_build_info",
            "scholaria_scrape_errors_total",
            "scholaria_scrape_duration_seconds",
        }
    assert "does not exist" in str(collector.error)
    root.with_name("unmounted").rename(root)
    assert exposed(generate_latest(registry).decode())[key("scholaria_up")] == 1
    assert collector.error is None


def test_failures_of_ids_whose_tier_nobody_wrote_down_are_counted_too(services: Services) -> None:
    services.catalogue.records.append("20260227_020000", "failed", at=NOW, code="store", message="refused")
    registry, _ = registry_of(lambda: take_standing(services))
    found = exposed(generate_latest(registry).decode())
    assert found[key("scholaria_failures_total", tier="unknown", what="backup")] == 1
    assert found[key("scholaria_unanswered_failures", tier="unknown", what="backup")] == 1
