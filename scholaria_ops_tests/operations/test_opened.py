"""The verification right behind a backup: what its run has opened stands as long as the bytes are the same, and once only."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from scholaria_ops import hashed
from scholaria_ops.cancel import CancelToken
from scholaria_ops.catalogue.artifacts import Artifact
from scholaria_ops.catalogue.commit import Staging
from scholaria_ops.catalogue.layout import SUMS
from scholaria_ops.catalogue.sets import BackupSet
from scholaria_ops.errors import VerificationFailed
from scholaria_ops.files import Written, hash_file
from scholaria_ops.operations import backup as backing_up
from scholaria_ops.operations import verify as verifying
from scholaria_ops.operations.backup import BackupRequest, backup, reserve
from scholaria_ops.operations.services import AnyStore, Services
from scholaria_ops.operations.verify import VerifyReport, verify
from scholaria_ops.stores.base import Check
from scholaria_ops_tests.operations.conftest import ServicesFactory
from scholaria_ops_tests.operations.support import flip

STORES = {"postgres", "redis", "qdrant"}


class _Watched:
    """A store that notes when its artifacts are opened."""

    def __init__(self, store: AnyStore, opened: list[str]) -> None:
        self._store = store
        self._opened = opened

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def inspect(self, *arguments: Any) -> list[Check]:
        self._opened.append(self._store.name)
        return self._store.inspect(*arguments)


def _watched(services: Services) -> tuple[Services, list[str]]:
    opened: list[str] = []
    stores: Mapping[Any, Any] = {name: _Watched(store, opened) for name, store in services.stores.items()}
    return dataclasses.replace(services, stores=stores), opened


def _taken(services: Services, run_id: str) -> BackupSet:
    request = BackupRequest(requested_by="a test", run_id=run_id)
    return backup(services, reserve(services, request), request)


def _verified(services: Services, done: BackupSet, run_id: str = "") -> VerifyReport:
    return verify(services, services.catalogue.find(done.id), "readable", run_id=run_id)


def _found(report: VerifyReport) -> dict[str, bool | None]:
    return {f.name: f.check.passed for f in report.findings}


def test_the_run_that_made_a_set_opens_nothing_twice_and_everybody_else_everything(services_factory: ServicesFactory) -> None:
    services, opened = _watched(services_factory())
    done = _taken(services, "run-1")
    own = _verified(services, done, "run-1")
    assert opened == []
    assert set(own.opened_before) == STORES
    assert all(at >= done.manifest.started_at for at in own.opened_before.values())
    again = _verified(services, done, "run-1")
    assert sorted(opened) == sorted(STORES), "it is good for one verification"
    assert not again.opened_before
    # The same checks by name, each passed: what the dump saw is no shorter list than what a verification looks at.
    assert _found(own) == _found(again)
    assert set(_found(own).values()) == {True}
    numbers = {f.name: {k: v for k, v in f.check.numbers.items() if k != "seconds"} for f in again.findings}
    assert {f.name: {k: v for k, v in f.check.numbers.items() if k != "seconds"} for f in own.findings} == numbers
    records = [r for r in services.catalogue.records.of(done.id) if r.event == "verified"]
    assert [set(r.detail.get("opened_before", {})) for r in records] == [STORES, set()]


@pytest.mark.parametrize("run_id", ["", "run-2"])
def test_another_run_opens_everything(services_factory: ServicesFactory, run_id: str) -> None:
    services, opened = _watched(services_factory())
    report = _verified(services, _taken(services, "run-1"), run_id)
    assert report.passed
    assert sorted(opened) == sorted(STORES)
    assert not report.opened_before


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each artifact is read back and hashed. All of them count as large ones, which is done early."""
    counted: Counter[str] = Counter()

    def hashing(path: Path, **options: Any) -> Written:
        counted[path.name] += 1
        return hash_file(path, **options)

    for module in (hashed, verifying):
        monkeypatch.setattr(module, "hash_file", hashing)
    monkeypatch.setattr(backing_up, "_LARGE", 0)
    return counted


def test_large_artifacts_are_read_back_once_by_the_run_that_made_them(services_factory: ServicesFactory, reads: Counter[str]) -> None:
    services = services_factory()
    done = _taken(services, "run-1")
    names = {Path(artifact.path).name for artifact in done.manifest.artifacts if artifact.kind in {"dump", "rdb", "snapshot"}}
    assert {name: reads[name] for name in names} == dict.fromkeys(names, 1)
    own = _verified(services, done, "run-1")
    assert {name: reads[name] for name in names} == dict.fromkeys(names, 1)
    checksums = next(f.check for f in own.findings if f.check.name == "checksums")
    assert checksums.detail.endswith("was not read again")
    assert f"{own.bytes_read - (done.directory / SUMS).stat().st_size:,} bytes" in checksums.detail
    again = _verified(services, done)
    assert all(reads[name] >= 2 for name in names), "a verification that stands by itself reads what is on the disk"
    assert "not read again" not in " ".join(f.check.detail for f in again.findings)


def test_what_changes_after_it_was_read_back_early_is_not_sealed(
    services_factory: ServicesFactory, reads: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    services = services_factory()
    damaged: list[str] = []

    def reading(stage: Staging, artifact: Artifact, cancel: CancelToken | None = None) -> None:
        read_back(stage, artifact, cancel)
        if artifact.kind == "snapshot" and not damaged:
            damaged.append(artifact.path)
            flip(stage.path / artifact.path)

    read_back = Staging.read_back
    monkeypatch.setattr(Staging, "read_back", reading)
    with pytest.raises(VerificationFailed, match="reads back differently") as failure:
        _taken(services, "run-1")
    assert damaged[0] in failure.value.message
    assert services.catalogue.entries() == []


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("store", sorted(STORES))
def test_f19_a_byte_that_changes_between_sealing_and_verification_is_caught_by_name(
    services_factory: ServicesFactory, store: Any, early: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if early:
        monkeypatch.setattr(backing_up, "_LARGE", 0)
    services = services_factory()
    done = _taken(services, "run-1")
    artifact = done.manifest.artifacts_of(store)[0]
    flip(done.directory / artifact.path)
    report = _verified(services, done, "run-1")
    assert not report.passed
    assert artifact.path in "\n".join(f.check.detail for f in report.failed)
    assert any("not opened, because" in f.check.detail for f in report.unjudged)
    assert not report.opened_before
