"""The report: one page that loads nothing, tells the numbers of the sets, and shows hostile text as text."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree as ET
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scholaria_ops.operations.plots import BYTES, MOST_POINTS, Series, line_plot, nice_top, thinned
from scholaria_ops.operations.report import figures, proof_days, report_page
from scholaria_ops.operations.services import Services, make_services
from scholaria_ops.operations.standing import Standing, look, standing_of
from scholaria_ops.operations.ticks import next_ticks
from scholaria_ops.settings import load_settings
from scholaria_ops_tests.catalogue.factory import NOW, make_set
from scholaria_ops_tests.operations.test_standing import rehearsed

DAY = timedelta(days=1)
HOSTILE = "<script>alert(1)</script>"


@pytest.fixture
def services(tmp_path: Path) -> Services:
    (tmp_path / "b").mkdir()
    return make_services(load_settings({"BACKUP_DIR": str(tmp_path / "b")}))


def standing(services: Services) -> Standing:
    return standing_of(look(services), NOW + 10 * DAY)


def page_of(services: Services) -> str:
    return report_page(standing(services), UTC, next_ticks(services.settings, NOW + 10 * DAY))


class _Tags(HTMLParser):
    """Collects tags that are open at the end and every attribute that could load something."""

    def __init__(self) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.seen: set[str] = set()
        self.loading: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        self.loading += [f"{tag} {name}={value}" for name, value in attrs if name in {"src", "href", "srcset", "action", "xlink:href"}]
        if tag not in {"meta", "line", "rect", "circle", "path", "polyline"}:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if self.stack and self.stack[-1] == tag:
            self.stack.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag


def test_the_page_loads_nothing_runs_nothing_and_is_well_formed(services: Services) -> None:
    made = make_set(services.catalogue, NOW, tier="daily", verified=True)
    services.catalogue.records.append(made.id, "held", why=HOSTILE)
    services.catalogue.records.append("20260227_020000", "failed", at=NOW + DAY, code="store", message=HOSTILE)
    (services.catalogue.layout.root / "scholaria_backup_20260101_000000").mkdir()
    rehearsed(services.catalogue, made.id, "proven", NOW + DAY)
    page = page_of(services)
    tags = _Tags()
    tags.feed(page)
    assert tags.stack == []
    assert tags.loading == []
    assert tags.seen & {"script", "link", "iframe", "img", "object"} == set()
    assert "url(" not in page
    assert "@import" not in page
    assert "&lt;script&gt;alert(1)" in page
    for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        ET.fromstring(svg)  # noqa: S314 - our own


def test_what_is_wrong_is_said_first_and_a_good_standing_says_so(services: Services) -> None:
    make_set(services.catalogue, NOW, tier="daily", verified=True)
    assert "Nothing on record is wrong" in page_of(services)
    broken = make_set(services.catalogue, NOW + DAY, tier="daily")
    services.catalogue.records.append(broken.id, "verified", level="hash", passed=False)
    page = page_of(services)
    assert f"{broken.id} is not to be relied upon" in page
    assert page.index("What is wrong") < page.index("By tier")


def test_an_empty_catalogue_has_a_page_too(services: Services) -> None:
    page = page_of(services)
    assert "Nothing to plot yet" in page
    assert "not known" in page


def test_each_day_shows_the_best_that_a_set_of_it_came_to(services: Services) -> None:
    catalogue = services.catalogue
    proven = make_set(catalogue, NOW, verified=True)
    rehearsed(catalogue, proven.id, "proven", NOW + 9 * DAY)
    offsite = make_set(catalogue, NOW + DAY, verified=True)
    catalogue.records.append(offsite.id, "shipped", where="s3://b/x")
    make_set(catalogue, NOW + DAY + timedelta(hours=1))
    make_set(catalogue, NOW + 2 * DAY, verified=True)
    make_set(catalogue, NOW + 3 * DAY)
    make_set(catalogue, NOW + 4 * DAY, missing=("redis",), verified=True)
    catalogue.records.append("20260306_020000", "failed", at=NOW + 5 * DAY, code="store", message="")
    make_set(catalogue, NOW + 6 * DAY, verified=True)
    days = {d.day: d for d in proof_days(standing(services), UTC)}
    states = [days[(NOW + n * DAY).date()].state for n in range(8)]
    assert states == ["proven", "offsite", "verified", "sealed", "none", "failed", "verified", "none"]
    assert days[(NOW + DAY).date()].text == "2 sets, verified and offsite"
    assert min(days).weekday() == 0
    assert max(days) == (NOW + 10 * DAY).date()


def test_days_are_those_of_the_operators_zone(services: Services) -> None:
    make_set(services.catalogue, datetime(2026, 3, 1, 17, tzinfo=UTC), verified=True)
    shown = [d.day.isoformat() for d in proof_days(standing(services), ZoneInfo("Asia/Seoul")) if d.state != "none"]
    assert shown == ["2026-03-02"]


def test_plots_carry_the_numbers_as_titles_and_as_a_table(services: Services) -> None:
    made = make_set(services.catalogue, NOW, tier="weekly", size=2_000_000)
    rehearsed(services.catalogue, made.id, "proven", NOW + DAY, rto_s=90.0)
    size, duration, _, rto, rpo = figures(standing(services), UTC)
    assert f"weekly {made.id}, 2026-03-01 02:00: 6.0 MB" in size.svg
    assert size.rows[0][1:] == ["weekly", made.id, "6.0 MB"]
    assert duration.rows[0][-1] == "4 s"
    assert (rto.rows[0][-1], rpo.rows[0][-1]) == ("90 s", "60 min")


def test_thousands_of_points_are_thinned_and_the_largest_stays() -> None:
    points = [(NOW + timedelta(hours=n), float(n % 7), "x") for n in range(10_000)]
    points[4321] = (points[4321][0], 99.0, "peak")
    kept = thinned(Series("daily", 0, points)).points
    assert len(kept) <= MOST_POINTS + 1
    assert (points[4321][0], 99.0, "peak") in kept
    assert [p[0] for p in kept] == sorted(p[0] for p in kept)
    assert len(line_plot("Size", [Series("daily", 0, points)], BYTES, str, UTC)) < 100_000


@given(st.floats(min_value=1e-6, max_value=1e15))
def test_axes_end_at_a_round_number_just_above(value: float) -> None:
    assert value <= nice_top(value) <= 10 * value


def test_next_ticks_come_in_the_order_of_time_and_leave_out_what_has_no_bucket() -> None:
    now = datetime(2026, 3, 1, 2, 30, tzinfo=UTC)
    found = next_ticks(load_settings({}), now)
    assert [t.what for t in found][:2] == ["weekly set", "monthly set"]
    assert all(t.at and t.at > now for t in found)
    assert "disaster drill" not in {t.what for t in found}
