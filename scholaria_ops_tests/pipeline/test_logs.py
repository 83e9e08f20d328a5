"""Logs in files: one per day, private, without secrets, and never in the way."""

from __future__ import annotations

import logging
import multiprocessing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from scholaria_ops.catalogue.sets import Catalogue
from scholaria_ops.definitions import defs
from scholaria_ops.errors import ConfigError, VerificationFailed
from scholaria_ops.operations.logs import log_directory, logged_to_file
from scholaria_ops.pipeline.runner import run_job
from scholaria_ops.progress import Silent
from scholaria_ops.settings import ENV_FILE_VARIABLE, Settings, load_settings
from scholaria_ops_tests.catalogue.factory import make_set

SECRET = "s3cr3t-of-the-log"


def settings_of(tmp_path: Path, **more: str) -> Settings:
    return load_settings({"BACKUP_DIR": str(tmp_path / "b"), "LOG_DIR": str(tmp_path / "logs"), "DB_PASSWORD": SECRET, **more})


def today() -> str:
    """Name of the file of this moment's day."""
    return f"backup-{datetime.now(UTC):%Y%m%d}.log"


def content(tmp_path: Path) -> str:
    return "".join(p.read_text() for p in sorted((tmp_path / "logs").glob("backup-*.log")))


def test_f23_lines_and_the_error_at_the_end_are_written_without_secrets(tmp_path: Path) -> None:
    log = logging.getLogger("scholaria_ops_tests.logs")
    log.setLevel(logging.DEBUG)

    def work() -> None:
        with logged_to_file(settings_of(tmp_path), log, "backup 20260301_020000"):
            log.info("begun with %s", SECRET)
            log.debug("not worth a line")
            raise VerificationFailed(f"two\nlines with {SECRET}")

    before = today()
    with pytest.raises(VerificationFailed):
        work()
    log.info("after the block")
    lines = content(tmp_path).splitlines()
    assert [line.split("] ", 1)[1] for line in lines] == ["begun with ***", "ended by VerificationFailed: two", "lines with ***"]
    assert "INFO    [backup 20260301_020000]" in lines[0]
    written = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "logs").iterdir()}
    assert set(written.values()) == {0o600}
    assert written.keys() <= {before, today()}, "two of them at midnight"


def test_the_oldest_logs_go_and_other_files_stay(tmp_path: Path) -> None:
    directory = tmp_path / "logs"
    directory.mkdir()
    for name in [*(f"backup-202001{d:02}.log" for d in range(1, 20)), "backup-mine.log", "other.log"]:
        (directory / name).write_text("x")
    before = today()
    with logged_to_file(settings_of(tmp_path, BACKUP_LOG_KEEP="3"), logging.getLogger("scholaria_ops_tests.logs"), "x"):
        logging.getLogger("scholaria_ops_tests.logs").warning("today")
    left = {p.name for p in directory.iterdir()}
    (fresh,) = left - {"backup-20200118.log", "backup-20200119.log", "backup-mine.log", "other.log"}
    assert len(left) == 5
    assert fresh in {before, today()}


def test_a_place_that_cannot_be_written_is_said_and_fails_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "logs").write_text("a file where a directory should be")
    with logged_to_file(settings_of(tmp_path), logging.getLogger("scholaria_ops_tests.logs"), "x"):
        logging.getLogger("scholaria_ops_tests.logs").warning("the work goes on")
    assert "no log is written" in caplog.text
    assert "the work goes on" in caplog.text


def test_the_usual_place_is_taken_if_it_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load_settings({"BACKUP_DIR": str(tmp_path / "b")})
    (tmp_path / "usual").mkdir()
    monkeypatch.setattr("scholaria_ops.operations.logs.USUAL", tmp_path / "usual")
    assert log_directory(settings) == tmp_path / "usual"
    monkeypatch.setattr("scholaria_ops.operations.logs.USUAL", tmp_path / "no" / "such" / "parent")
    assert log_directory(settings) == tmp_path / "b" / ".state" / "logs"


def _hammer(root: str, number: int) -> None:
    log = logging.getLogger(f"scholaria_ops_tests.logs.{number}")
    with logged_to_file(settings_of(Path(root)), log, f"process {number}"):
        for n in range(100):
            log.warning("line %d of %d %s", n, number, "x" * 200)


def test_processes_share_a_file_without_tearing_lines(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    workers: list[Any] = [spawn.Process(target=_hammer, args=(str(tmp_path), n)) for n in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(150)
    lines = content(tmp_path).splitlines()
    assert len(lines) == 300
    assert all(line.endswith("x" * 200) and line.count("[process") == 1 for line in lines)


def test_a_run_in_dagster_writes_its_lines_and_its_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, instance: dg.DagsterInstance
) -> None:
    (tmp_path / "site.env").write_text(f"BACKUP_DIR={tmp_path / 'b'}\nLOG_DIR={tmp_path / 'logs'}\n")
    monkeypatch.setenv(ENV_FILE_VARIABLE, str(tmp_path / "site.env"))
    one = make_set(Catalogue(tmp_path / "b"), datetime.now(UTC), tier="daily", verified=True)
    run_id = run_job(defs.resolve_job_def("sync"), instance, progress=Silent())
    assert f"[sync {run_id[:8]}] " not in content(tmp_path), "nothing was said while services were held"
    with pytest.raises(ConfigError, match="no offsite place is set"):
        run_job(defs.resolve_job_def("fetch"), instance, progress=Silent(), config={"fetch_set": {"config": {"set_id": one.id}}})
    assert "] ended by ConfigError: no offsite place is set" in content(tmp_path)
    run_job(defs.resolve_job_def("retention"), instance, progress=Silent())
    assert "INFO    [retention " in content(tmp_path)
    assert "Nothing was removed" in content(tmp_path)
