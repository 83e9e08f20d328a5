"""The verification right behind a backup: what its run has opened stands as long as the bytes are the same, and once only."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import pytest

from scholaria_ops.catalogue.sets import BackupSet
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


@pytest.mark.parametrize("store", sorted(STORES))
def test_f19_a_byte_that_changes_between_sealing_and_verification_is_caught_by_name(services_factory: ServicesFactory, store: Any) -> None:
    services = services_factory()
    done = _taken(services, "run-1")
    artifact = done.manifest.artifacts_of(store)[0]
    flip(done.directory / artifact.path)
    report = _verified(services, done, "run-1")
    assert not report.passed
    assert artifact.path in "\n".join(f.check.detail for f in report.failed)
    assert any("not opened, because" in f.check.detail for f in report.unjudged)
    assert not report.opened_before
