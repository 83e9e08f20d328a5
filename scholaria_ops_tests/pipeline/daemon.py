"""Dagster's own daemon over the code location, with the project's ``dagster.yaml``."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from scholaria_ops.process import start_daemon
from scholaria_ops.settings import ENV_FILE_VARIABLE

PROJECT = Path(__file__).parents[2]


@contextlib.contextmanager
def served(home: Path, settings_file: Path) -> Iterator[None]:
    """``home`` is made, and a real daemon serves it. No schedule of a tier comes while the block runs: they are twelve hours away."""
    home.mkdir()
    (home / "dagster.yaml").write_bytes((PROJECT / "dagster.yaml").read_bytes())
    far = (datetime.now(UTC) + timedelta(hours=12)).hour
    with settings_file.open("a") as out:
        out.write(f"BACKUP_DAILY_CRON=0 {far} * * *\nBACKUP_WEEKLY_CRON=0 {far} * * 0\nBACKUP_MONTHLY_CRON=0 {far} 1 * *\n")
    program = Path(sys.executable).parent / "dagster-daemon"
    child = start_daemon(
        [str(program), "run", "-m", "scholaria_ops.definitions"],
        log=home.with_suffix(".log"),
        cwd=home,
        env={"DAGSTER_HOME": str(home), ENV_FILE_VARIABLE: str(settings_file), "PATH": os.environ["PATH"]},
    )
    try:
        yield
    finally:
        os.killpg(child.pid, 9)
        os.waitpid(child.pid, 0)


def until(true: Callable[[], bool], seconds: float = 150) -> None:
    """Wait for it."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(1)
