"""An operator's settings file for the sample, for services that are given nothing but its name."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from scholaria_ops.sandbox.sample import SampleStack
from scholaria_ops.sandbox.tools import Tools
from scholaria_ops_tests.operations.support import environment


@pytest.fixture
def settings_file(sample_stack: SampleStack, tools: Tools, tmp_path: Path) -> Path:
    path = tmp_path / "scholaria.env"
    # A retention run follows every backup by itself, and what a test starts meanwhile waits for it; a backup waits for a
    # table that a test holds.
    patient = {"BACKUP_LOCK_WAIT_S": "120", "BACKUP_PG_LOCK_TIMEOUT_S": "300"}
    path.write_text("".join(f"{k}={v}\n" for k, v in environment(sample_stack, tools, tmp_path / "backups", **patient).items()))
    path.chmod(0o600)
    return path


@pytest.fixture
def run_directory() -> Iterator[Path]:
    """In the place of /run. A socket's path has 107 bytes at most, and pytest's own directories are long."""
    with tempfile.TemporaryDirectory(prefix="so-") as name:
        yield Path(name)
