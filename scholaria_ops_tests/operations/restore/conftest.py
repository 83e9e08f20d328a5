"""The bench, and nothing that follows a switch of real stores."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from scholaria_ops.catalogue.sets import BackupSet
from scholaria_ops.operations.restore import recover, undo
from scholaria_ops.operations.restore.after import After, Aftermath
from scholaria_ops_tests.operations.conftest import ServicesFactory
from scholaria_ops_tests.operations.restore.bench import Bench, BenchFactory
from scholaria_ops_tests.operations.support import copied


@pytest.fixture(autouse=True)
def _no_aftermath(monkeypatch: pytest.MonkeyPatch) -> None:
    """What follows a switch concerns real stores, which the stand-ins are not; it has tests of its own."""
    monkeypatch.setattr(After, "before_switch", lambda *_: None)
    monkeypatch.setattr(After, "_raise_sequences", lambda *_: None)
    for module in (undo, recover):
        monkeypatch.setattr(module, "ids_given_out", lambda *_: ({}, []))
    monkeypatch.setattr(recover, "raise_sequences", lambda *_: ([], []))
    monkeypatch.setattr(After, "look", lambda *_: Aftermath())
    monkeypatch.setattr(After, "ask_for_backup", lambda _self, _set, found: found)


@pytest.fixture
def bench(tmp_path: Path, pristine: BackupSet, services_factory: ServicesFactory) -> BenchFactory:
    def make(*, hook: str = "", stop: str = "echo stopped > {}", start: str = "echo running > {}") -> Bench:
        writers = tmp_path / "writers"
        writers.write_text("running\n")
        shell = "sh -c " + shlex.quote(stop.format(writers)), "sh -c " + shlex.quote(start.format(writers))
        services = services_factory(
            BACKUP_FENCE="command", BACKUP_FENCE_STOP=shell[0], BACKUP_FENCE_START=shell[1], BACKUP_RESTORE_HOOK=hook
        )
        services.check_directory()
        copied(pristine, services.catalogue.layout.root)
        return Bench(services, tmp_path, pristine.id, {})

    return make
