"""`metrics` as a process: printed, written for a collector, served."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import httpx
import pytest

from scholaria_ops.catalogue.sets import Catalogue
from scholaria_ops_tests.catalogue.factory import make_set
from scholaria_ops_tests.cli.conftest import COMMAND, Command
from scholaria_ops_tests.conftest import Ports
from scholaria_ops_tests.operations.test_metrics import exposed, key


@pytest.fixture
def env_file(tmp_path: Path) -> Path:
    """Settings of a site whose stores are never asked."""
    path = tmp_path / "ops.env"
    path.write_text(f"BACKUP_DIR={tmp_path / 'backups'}\n")
    return path


@pytest.fixture
def catalogue(tmp_path: Path) -> Catalogue:
    found = Catalogue(tmp_path / "backups")
    make_set(found, tier="daily", verified=True)
    return found


def test_metrics_are_printed_as_text_and_as_json(ops: Command, catalogue: Catalogue) -> None:
    assert exposed(ops("metrics").out)[key("scholaria_sets", tier="daily")] == 1
    document = ops("metrics", "--json").json()
    assert document["schema"] == "scholaria-ops/metrics/1"
    assert {"name": "scholaria_sets", "labels": {"tier": "daily"}, "value": 1.0} in document["samples"]


def test_a_textfile_is_replaced_whole_and_readable_by_the_collector(ops: Command, catalogue: Catalogue, tmp_path: Path) -> None:
    target = tmp_path / "collected" / "scholaria.prom"
    refused = ops("metrics", "--textfile", str(target))
    assert refused.code == 4
    assert "cannot write" in refused.err
    target.parent.mkdir()
    assert ops("metrics", "--textfile", str(target)).code == 0
    assert target.stat().st_mode & 0o777 == 0o644
    assert exposed(target.read_text())[key("scholaria_up")] == 1
    catalogue.layout.root.rename(tmp_path / "unmounted")
    failed = ops("metrics", "--textfile", str(target))
    assert failed.code == 4
    assert "does not exist" in failed.err
    assert exposed(target.read_text())[key("scholaria_up")] == 0, "the collector sees the failure, not the old numbers"
    assert [p.name for p in target.parent.iterdir()] == [target.name]


def test_served_metrics_answer_on_loopback_until_stopped(catalogue: Catalogue, env_file: Path, home: Path, hold_port: Ports) -> None:
    port = hold_port()
    server = subprocess.Popen(
        [str(COMMAND), "--env-file", str(env_file), "metrics", "--serve", str(port)], stderr=subprocess.PIPE, cwd=home
    )
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                text = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=30).text
                break
            except httpx.TransportError:
                assert time.monotonic() < deadline
                assert server.poll() is None
                time.sleep(0.2)
        assert exposed(text)[key("scholaria_sets", tier="daily")] == 1
        make_set(catalogue, tier="weekly", set_id="20260303_030000")
        text = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=30).text
        assert exposed(text)[key("scholaria_sets", tier="weekly")] == 1, "computed at the scrape"
    finally:
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 130


def test_an_address_that_is_none_is_a_usage_error(ops: Command, catalogue: Catalogue) -> None:
    for text in ("nine", "127.0.0.1:99999", "127.0.0.1:"):
        assert ops("metrics", "--serve", text).code == 2
    assert ops("metrics", "--serve", "127.0.0.1:9", "--json").code == 2
