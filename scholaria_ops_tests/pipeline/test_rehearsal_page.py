"""What a rehearsal shows beside its verdict."""

from __future__ import annotations

import logging
from datetime import timedelta
from pathlib import Path

import pytest

from scholaria_ops.operations.services import make_services
from scholaria_ops.pipeline.assets_rehearsal import page_metadata
from scholaria_ops.settings import load_settings
from scholaria_ops_tests.catalogue.factory import NOW, make_set
from scholaria_ops_tests.operations.test_standing import rehearsed

LOG = logging.getLogger(__name__)


def test_the_page_is_written_and_the_last_rehearsals_are_shown_newest_first(tmp_path: Path) -> None:
    services = make_services(load_settings({"BACKUP_DIR": str(tmp_path)}))
    services.check_directory()
    made = make_set(services.catalogue, NOW, verified=True)
    for n in range(15):
        rehearsed(services.catalogue, made.id, "proven", NOW + timedelta(days=n), rto_s=10.0 + n)
    shown = page_metadata(services, LOG)
    assert made.id in Path(shown["report"].path).read_text()
    rows = [r.data for r in shown["recent_rehearsals"].records]
    assert len(rows) == 12
    assert (rows[0]["rto"], rows[0]["rpo"], rows[0]["verdict"]) == ("24 s", "60 min", "proven")


def test_a_page_that_cannot_be_written_is_logged_and_takes_no_verdict_away(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    services = make_services(load_settings({"BACKUP_DIR": str(tmp_path / "gone")}))
    assert page_metadata(services, LOG) == {}
    assert "the report was not written" in caplog.text
