"""Services over the sample."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from scholaria_ops.operations.services import Services
from scholaria_ops.sandbox.sample import SampleStack
from scholaria_ops.sandbox.tools import Tools
from scholaria_ops_tests.operations.support import services_for

ServicesFactory = Callable[..., Services]


@pytest.fixture
def services_factory(sample_stack: SampleStack, tools: Tools, tmp_path: Path) -> ServicesFactory:
    """Services over the sample with a BACKUP_DIR of the test's own; extra settings by name."""

    def make(**settings: str) -> Services:
        return services_for(sample_stack, tools, tmp_path / "backups", **settings)

    return make
