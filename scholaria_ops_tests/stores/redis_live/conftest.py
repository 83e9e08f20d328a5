"""Redis servers of one test, and a backup."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from scholaria_ops.sandbox.sandbox import Sandbox
from scholaria_ops.sandbox.tools import Tools
from scholaria_ops_tests.conftest import ContextFactory
from scholaria_ops_tests.stores.redis_live.support import QUICK, DiskNotebook
from scholaria_ops_tests.stores.redis_support import Backup, fill, take


@pytest.fixture
def box(tools: Tools, tmp_path: Path) -> Iterator[Sandbox]:
    with Sandbox(tmp_path / "box", tools) as opened:
        yield opened


@pytest.fixture
def backup(box: Sandbox, tmp_path: Path, context_factory: ContextFactory) -> Backup:
    """Of a server that is gone."""
    source = box.redis(name="source", config=QUICK)
    fill(source, small=30)
    backup = take(source, context_factory(), tmp_path / "set")
    source.discard()
    return backup


@pytest.fixture
def notebook(tmp_path: Path) -> DiskNotebook:
    return DiskNotebook(tmp_path / "notebook")
