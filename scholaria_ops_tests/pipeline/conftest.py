"""Dagster instances with real storage, and the code location's jobs against the sample."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from scholaria_ops.definitions import defs
from scholaria_ops.pipeline.runner import run_job
from scholaria_ops.progress import Silent
from scholaria_ops.sandbox.sample import SampleStack
from scholaria_ops.sandbox.tools import Tools
from scholaria_ops.settings import ENV_FILE_VARIABLE
from scholaria_ops_tests.operations.support import environment

JobRunner = Callable[..., str]


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    """An instance on disk, as in production (SQLite)."""
    home = tmp_path / "dagster"
    home.mkdir()
    with dg.DagsterInstance.local_temp(str(home)) as made:
        yield made


@pytest.fixture
def settings_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Settings of a site whose stores are never asked."""
    path = tmp_path / "site.env"
    path.write_text(f"BACKUP_DIR={tmp_path / 'backups'}\n")
    monkeypatch.setenv(ENV_FILE_VARIABLE, str(path))
    return path


@pytest.fixture
def env_file(sample_stack: SampleStack, tools: Tools, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An operator's settings file for the sample, in force; append to it to change a setting."""
    monkeypatch.setenv(ENV_FILE_VARIABLE, str(tmp_path / "ops.env"))
    path = tmp_path / "ops.env"
    path.write_text("".join(f"{k}={v}\n" for k, v in environment(sample_stack, tools, tmp_path / "backups").items()))
    return path


@pytest.fixture
def run(instance: dg.DagsterInstance, env_file: Path) -> JobRunner:
    """Run a job of the code location in this process, as the command line does."""

    def go(job: str, *, partition: str | None = None, config: dict[str, Any] | None = None) -> str:
        return run_job(defs.resolve_job_def(job), instance, progress=Silent(), partition=partition, config=config)

    return go
