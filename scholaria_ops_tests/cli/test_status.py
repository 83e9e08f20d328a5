"""`status` and `report` as processes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from scholaria_ops.catalogue.layout import MANIFEST
from scholaria_ops.catalogue.sets import Catalogue
from scholaria_ops_tests.catalogue.factory import make_set
from scholaria_ops_tests.cli.conftest import Command


@pytest.fixture
def env_file(tmp_path: Path) -> Path:
    """Settings of a site whose stores are never asked."""
    path = tmp_path / "ops.env"
    path.write_text(f"BACKUP_DIR={tmp_path / 'backups'}\nBACKUP_TIMEZONE=Asia/Seoul\n")
    return path


@pytest.fixture
def catalogue(tmp_path: Path) -> Catalogue:
    found, now = Catalogue(tmp_path / "backups"), datetime.now(UTC)
    make_set(found, now - timedelta(hours=30), tier="daily", verified=True)
    made = make_set(found, now - timedelta(hours=3), tier="daily")
    found.records.append(made.id, "held", why="audit [2026]")
    found.records.append("20260227_020000", "failed", code="store_unavailable", message="[qdrant] refused")
    return found


def test_status_says_where_the_sets_stand(ops: Command, catalogue: Catalogue) -> None:
    told = ops("status")
    assert told.code == 0, told.err
    daily = next(line.split() for line in told.out.splitlines() if line.startswith("daily"))
    assert daily[:2] == ["daily", "2"]
    assert "30 h ago" in told.out
    assert "held: audit [2026]" in told.out
    assert "store_unavailable, [qdrant] refused" in told.out
    assert "never rehearsed" in told.out
    assert "daily set" in told.out
    assert "(Asia/Seoul)" in told.out
    document = ops("status", "--json").json()
    assert document["schema"] == "scholaria-ops/status/1"
    assert document["tiers"]["daily"]["verified"]["age_s"] == pytest.approx(30 * 3600, abs=600)
    assert document["tiers"]["weekly"]["sealed"] is None
    assert document["disk"]["fits"] is True
    assert document["complete"] is True
    assert [s["place"] for s in document["sets"]] == ["whole", "whole"]


def test_what_cannot_be_read_is_told_and_turns_absence_into_a_question(ops: Command, catalogue: Catalogue) -> None:
    for entry in catalogue.entries():
        (entry.directory / MANIFEST).unlink()
        (entry.directory / MANIFEST).mkdir()
    told = ops("status")
    assert told.out.count("could not be read") == 2
    assert "?" in next(line for line in told.out.splitlines() if line.startswith("daily"))
    assert ops("status", "--json").json()["complete"] is False


def test_a_directory_that_is_not_there_is_an_error(ops: Command) -> None:
    told = ops("status")
    assert told.code == 4
    assert "does not exist" in told.err


def test_the_report_is_written_whole(ops: Command, catalogue: Catalogue, tmp_path: Path) -> None:
    told = ops("report", "--output", str(tmp_path / "page.html"), "--json").json()
    page = (tmp_path / "page.html").read_text()
    assert told["bytes"] == len(page.encode())
    assert page.startswith("<!doctype html>")
    assert "store_unavailable" in page
    refused = ops("report", "--output", str(tmp_path / "nowhere" / "page.html"))
    assert refused.code == 4
    assert "cannot write" in refused.err


def test_a_long_table_says_the_same_as_a_short_one(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console

    from scholaria_ops.cli import output

    rows = [["[bold red]damaged[/]", output.plain("a [note]"), "7"], ["sealed", "메모", "1234"]]

    def printed() -> list[list[str]]:
        output.print_table(["kind", "remark", "size"], rows, right=["size"])
        return [line.split() for line in capsys.readouterr().out.splitlines()]

    monkeypatch.setattr(output, "out", Console(width=200, soft_wrap=True))
    short = printed()
    monkeypatch.setattr(output, "_MANY_ROWS", 1)
    assert printed() == short == [["kind", "remark", "size"], ["damaged", "a", "[note]", "7"], ["sealed", "메모", "1234"]]


def test_room_is_told_in_numbers_that_mean_something() -> None:
    from scholaria_ops.cli.status import _room

    assert [_room(n, fits=True) for n in (1, 12, 4_711)] == ["room for that one only", "room for 12 of that size", "ample room"]
    assert _room(0, fits=False) == "NO ROOM FOR IT"
