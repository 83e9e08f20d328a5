"""Bringing Dagster's index into line with a catalogue that cannot be read in part."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest

from scholaria_ops.catalogue.layout import MANIFEST
from scholaria_ops.catalogue.sets import Catalogue
from scholaria_ops.pipeline.partitions import add_partition, known_partitions
from scholaria_ops.pipeline.resources import Estate
from scholaria_ops.pipeline.sync import sync_catalogue
from scholaria_ops.settings import ENV_FILE_VARIABLE
from scholaria_ops_tests.catalogue.factory import make_set


def test_a_set_that_cannot_be_read_keeps_its_partition_and_one_that_is_gone_loses_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, instance: dg.DagsterInstance
) -> None:
    settings = tmp_path / "site.env"
    settings.write_text(f"BACKUP_DIR={tmp_path / 'backups'}\n")
    monkeypatch.setenv(ENV_FILE_VARIABLE, str(settings))
    catalogue = Catalogue(tmp_path / "backups")
    good, unread, gone = (make_set(catalogue, datetime.now(UTC) - timedelta(days=n)) for n in (1, 2, 3))
    for one in (good, unread, gone):
        add_partition(instance, one.id)
    (unread.directory / MANIFEST).unlink()
    (unread.directory / MANIFEST).mkdir()  # reading it is an error for everybody, root included
    gone.directory.rename(tmp_path / "elsewhere")
    with Estate().services(logging.getLogger(__name__)) as services:
        result = sync_catalogue(services, instance)
    assert known_partitions(instance) == {good.id, unread.id}
    assert result.removed == [gone.id]
    assert unread.directory.name in result.skipped
