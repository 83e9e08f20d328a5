"""Taking a set: whole, private, exact; and what happens when something is in the way."""

from __future__ import annotations

import contextlib
import shutil
import stat
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from scholaria_ops.catalogue.lock import estate_lock
from scholaria_ops.catalogue.sets import BackupSet, Kind
from scholaria_ops.errors import Busy, Cancelled, DiskFull, Refused
from scholaria_ops.operations.backup import BackupIncomplete, BackupRequest, backup, reserve
from scholaria_ops.operations.gate import CutGate
from scholaria_ops.operations.services import Services
from scholaria_ops.process import run
from scholaria_ops.sandbox.sample import SampleStack
from scholaria_ops_tests.operations.conftest import ServicesFactory
from scholaria_ops_tests.operations.support import leftover_processes, take


def snapshots_on(stack: SampleStack) -> list[str]:
    """Every snapshot on the Qdrant server, asked without the product."""
    headers = {"api-key": stack.qdrant.api_key.get_secret_value()}
    names = []
    with httpx.Client(base_url=stack.qdrant.url, headers=headers) as client:
        for collection in client.get("/collections").json()["result"]["collections"]:
            names += [s["name"] for s in client.get(f"/collections/{collection['name']}/snapshots").json()["result"]]
    return names


def test_a_set_holds_what_was_seeded(pristine: BackupSet, sample_stack: SampleStack) -> None:
    manifest = pristine.manifest
    counts = manifest.counts()
    assert counts["rows"] == sum(sample_stack.rows.values())
    assert counts["points"] == sum(sample_stack.points.values())
    assert counts["keys"] <= sum(sample_stack.keys.values()), "keys may expire, never multiply"
    assert counts["keys"] > 0.9 * sum(sample_stack.keys.values())
    assert manifest.skew_s < 30
    assert manifest.postgres
    assert manifest.postgres.evidence.alembic_revision == sample_stack.alembic_revision
    assert manifest.qdrant
    assert manifest.qdrant.evidence.aliases == {sample_stack.alias: sample_stack.collection}


def test_standard_tools_agree_and_everything_is_private(pristine: BackupSet) -> None:
    run(["sha256sum", "--strict", "-c", "SHA256SUMS"], cwd=pristine.directory)
    for path in (pristine.directory, *pristine.directory.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
    text = (pristine.directory / "RESTORE.txt").read_text()
    for name in ("pg_restore", "REDIS", "curl", "sha256sum -c SHA256SUMS"):
        assert name.lower() in text.lower()


def test_nothing_is_left_behind(pristine: BackupSet, sample_stack: SampleStack) -> None:
    root = pristine.directory.parent
    assert snapshots_on(sample_stack) == []
    assert leftover_processes(root / ".scratch") == []
    assert sorted(p.name for p in root.iterdir()) == [".records", ".scratch", ".staging", ".state", pristine.directory.name]
    assert [p for d in (".scratch", ".staging") for p in (root / d).iterdir()] == []


def test_running_a_sealed_id_again_returns_it_untouched(services_factory: ServicesFactory) -> None:
    services = services_factory()
    first = take(services)
    before = {p: p.stat().st_mtime_ns for p in first.directory.rglob("*")}
    again = backup(services, first.id, BackupRequest())
    assert again.manifest == first.manifest
    assert {p: p.stat().st_mtime_ns for p in first.directory.rglob("*")} == before


def test_an_old_unsealed_id_is_refused(services_factory: ServicesFactory) -> None:
    with pytest.raises(Refused, match="20200101_020000 is not sealed"):
        backup(services_factory(), "20200101_020000", BackupRequest())


def test_f84_a_failing_store_is_named_and_the_rest_is_kept_as_partial(services_factory: ServicesFactory) -> None:
    services = services_factory(QDRANT_URL="http://127.0.0.1:1")
    with pytest.raises(BackupIncomplete, match="qdrant could not be backed up") as caught:
        take(services)
    assert list(caught.value.failures) == ["qdrant"]
    (entry,) = services.catalogue.entries()
    assert entry.kind is Kind.PARTIAL
    assert entry.set
    assert [name for name, _ in entry.set.manifest.parts()] == ["postgres", "redis"]
    assert services.catalogue.sealed() == []
    run(["sha256sum", "--strict", "-c", "SHA256SUMS"], cwd=entry.directory)


def test_f84_a_store_that_fails_while_dumping_leaves_no_file_in_the_partial_set(
    services_factory: ServicesFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Redis dump breaks off after its artifact was begun."""
    services = services_factory()
    from scholaria_ops.errors import StoreUnavailable

    def broken(into: Path, set_id: str, ctx: object) -> None:
        (into / f"redis_{set_id}.rdb.gz").write_bytes(b"half")
        raise StoreUnavailable("connection reset by peer", store="redis")

    monkeypatch.setattr(services.stores["redis"], "dump", broken)
    with pytest.raises(BackupIncomplete) as caught:
        take(services)
    partial = caught.value.partial
    assert partial
    assert not list(partial.directory.glob("redis*"))
    assert partial.manifest.missing == {"redis": "connection reset by peer"}


def test_all_stores_down_leaves_no_set_at_all(services_factory: ServicesFactory) -> None:
    services = services_factory(QDRANT_URL="http://127.0.0.1:1", REDIS_PORT="1", DB_PORT="1")
    with pytest.raises(BackupIncomplete) as caught:
        take(services)
    assert set(caught.value.failures) == {"postgres", "redis", "qdrant"}
    assert caught.value.partial is None
    assert services.catalogue.entries() == []


def test_f07_a_disk_without_room_is_refused_before_anything_is_written(
    services_factory: ServicesFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    services = services_factory()
    usage = shutil.disk_usage("/")._replace(free=1_000_000)
    monkeypatch.setattr("scholaria_ops.operations.preflight.shutil.disk_usage", lambda _: usage)
    with pytest.raises(DiskFull, match=r"may need [\d,]+ bytes, but only 1,000,000 bytes are free"):
        take(services)
    assert services.catalogue.entries() == []


def test_a_second_run_is_told_who_is_at_work(services_factory: ServicesFactory) -> None:
    services = services_factory()
    services.check_directory()
    with estate_lock(services.catalogue.layout.lock, "restore 20260101_020000"), pytest.raises(Busy, match="restore 20260101_020000"):
        take(services)


@pytest.mark.parametrize("delay_s", [0.05, 0.4, 0.8, 1.2])
def test_f83_cancelling_at_any_time_takes_everything_back(
    services_factory: ServicesFactory, sample_stack: SampleStack, delay_s: float
) -> None:
    services: Services = services_factory()
    threading.Timer(delay_s, services.cancel.cancel, args=["the operator changed his mind"]).start()
    with contextlib.suppress(Cancelled):
        take(services)
    # On a fast machine the set may have been sealed before: whole, then, or not there at all.
    assert all(e.kind is Kind.SEALED for e in services.catalogue.entries())
    root = services.catalogue.layout.root
    assert snapshots_on(sample_stack) == []
    assert leftover_processes(root / ".scratch") == []
    assert [p for d in (".scratch", ".staging") if (root / d).exists() for p in (root / d).iterdir()] == []
    with estate_lock(services.catalogue.layout.lock, "free again"):
        pass


def test_the_gate_opens_for_the_others_when_a_party_leaves(services_factory: ServicesFactory) -> None:
    services = services_factory()
    gate = CutGate(3, cancel=services.cancel, patience_s=600)
    arrived: list[float] = []

    def party() -> None:
        gate.arrive()
        arrived.append(time.monotonic())

    threads = [threading.Thread(target=party) for _ in range(2)]
    for thread in threads:
        thread.start()
    time.sleep(0.2)
    assert arrived == []
    gate.leave()
    for thread in threads:
        thread.join(60)
    assert len(arrived) == 2


def test_reservations_carry_what_was_asked_for(services_factory: ServicesFactory) -> None:
    services = services_factory()
    set_id = reserve(services, BackupRequest(tier="weekly", note="before the migration", requested_by="kim"))
    (record,) = services.catalogue.records.of(set_id)
    assert record.detail == {"tier": "weekly", "note": "before the migration", "requested_by": "kim"}
    assert abs((record.at - datetime.now(UTC)).total_seconds()) < 60
