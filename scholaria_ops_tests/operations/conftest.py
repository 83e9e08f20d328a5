"""One real backup of the sample, taken once and copied by whoever wants to damage it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from scholaria_ops.catalogue.sets import BackupSet
from scholaria_ops.operations.services import Services
from scholaria_ops.sandbox.sample import SampleStack
from scholaria_ops.sandbox.tools import Tools
from scholaria_ops_tests.operations.support import services_for, take

ServicesFactory = Callable[..., Services]


@pytest.fixture(scope="session")
def pristine(sample_stack: SampleStack, tools: Tools, tmp_path_factory: pytest.TempPathFactory) -> BackupSet:
    """A sealed set of the sample. Read-only: copy it before you touch it."""
    return take(services_for(sample_stack, tools, tmp_path_factory.mktemp("pristine")), note="pristine")


@pytest.fixture
def services_factory(sample_stack: SampleStack, tools: Tools, tmp_path: Path) -> ServicesFactory:
    """Services over the sample with a BACKUP_DIR of the test's own; extra settings by name."""

    def make(**settings: str) -> Services:
        return services_for(sample_stack, tools, tmp_path / "backups", **settings)

    return make
