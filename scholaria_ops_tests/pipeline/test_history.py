"""What a command writes into Dagster's history is what Dagster itself would have written, and Dagster reads it."""

import sqlite3
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from scholaria_ops.definitions import defs
from scholaria_ops.pipeline import history
from scholaria_ops.pipeline.one_job import one_job
from scholaria_ops.pipeline.runner import open_instance, run_job
from scholaria_ops.progress import Silent

PROJECT = Path(__file__).parents[2]
PARTS = dg.DynamicPartitionsDefinition(name="backups")
BROKEN, SOUND = "broken", "sound"


@dg.asset(partitions_def=PARTS, check_specs=[dg.AssetCheckSpec(name, asset="thing") for name in (SOUND, BROKEN)])
def thing(context: dg.AssetExecutionContext) -> Iterator[Any]:
    speaking = [threading.Thread(target=context.log.info, args=(f"from thread {n}",)) for n in range(4)]
    for thread in speaking:
        thread.start()
    for thread in speaking:
        thread.join()
    yield dg.AssetCheckResult(check_name=SOUND, passed=True)
    yield dg.AssetCheckResult(check_name=BROKEN, passed=False, metadata={"rows": 3})
    yield dg.MaterializeResult(metadata={"size_bytes": 12})


JOB = dg.Definitions(assets=[thing], jobs=[dg.define_asset_job("make", executor_def=dg.in_process_executor)]).resolve_job_def("make")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "dagster.yaml").write_bytes((PROJECT / "dagster.yaml").read_bytes())
    return tmp_path / "home"


@pytest.fixture
def plain(tmp_path: Path) -> dg.DagsterInstance:
    """An instance with Dagster's own classes."""
    (tmp_path / "plain").mkdir()
    return dg.DagsterInstance.local_temp(str(tmp_path / "plain"))


def seen(instance: dg.DagsterInstance, run_id: str) -> dict[str, Any]:
    """What the UI shows of a run and its asset, without what differs from run to run."""
    key = thing.key
    logs = instance.all_logs(run_id)
    checks = [
        instance.event_log_storage.get_asset_check_execution_history(dg.AssetCheckKey(key, name), limit=5) for name in (SOUND, BROKEN)
    ]
    made = instance.fetch_materializations(key, limit=5).records
    run = instance.get_run_by_id(run_id)
    assert run is not None
    return {
        "status": run.status,
        "events": [e.dagster_event_type or "log" for e in logs],
        "made": [(r.partition_key, _size(r)) for r in made],
        "checks": [[(c.status, c.partition, c.event is not None) for c in found] for found in checks],
        "snapshot": run.job_snapshot_id,
        "partitions": instance.get_dynamic_partitions("backups"),
        "cells": instance.get_materialized_partitions(key),
    }


def as_the_web_server(home: Path) -> dg.DagsterInstance:
    """The same history, opened by Dagster's own classes."""
    own = str(home / ".dagster" / "storage")
    return dg.DagsterInstance.local_temp(str(home), overrides={"storage": {"sqlite": {"base_dir": own}}})


def _size(record: dg.EventLogRecord) -> object:
    assert record.asset_materialization is not None
    return record.asset_materialization.metadata["size_bytes"].value


def schema(path: Path) -> tuple[list[Any], Any, Any]:
    with sqlite3.connect(path) as raw:
        tables = sorted(raw.execute("SELECT type, name, tbl_name, sql FROM sqlite_master").fetchall(), key=str)
        return tables, raw.execute("SELECT version_num FROM alembic_version").fetchall(), raw.execute("PRAGMA journal_mode").fetchone()


def databases(root: Path, run_id: str) -> dict[str, Path]:
    return {path.name.replace(run_id, "run"): path for path in root.rglob("*.db")}


def test_dagster_reads_what_a_command_wrote_as_if_it_had_written_it_itself(home: Path, plain: dg.DagsterInstance, tmp_path: Path) -> None:
    ours, theirs = str(uuid.uuid4()), str(uuid.uuid4())
    with open_instance(home) as instance:
        assert {type(instance.run_storage).__module__, type(instance.event_log_storage).__module__} == {history.__name__}
        run_job(JOB, instance, progress=Silent(), partition="20260101_020000", run_id=ours)
        with_us = seen(instance, ours)
    with plain:
        run_job(JOB, plain, progress=Silent(), partition="20260101_020000", run_id=theirs)
        expected = seen(plain, theirs)
    assert with_us == expected
    own = home / ".dagster" / "storage"
    with as_the_web_server(home) as reading:
        assert seen(reading, ours) == expected
    written, by_dagster = databases(own, ours), databases(tmp_path / "plain", theirs)
    assert {"index.db", "run.db", "runs.db"} <= written.keys()
    for name in ("index.db", "run.db", "runs.db"):
        assert schema(written[name]) == schema(by_dagster[name]), name


def test_a_command_goes_on_in_a_history_that_dagster_began_and_the_other_way_round(home: Path) -> None:
    runs = [str(uuid.uuid4()) for _ in range(4)]
    for n, run_id in enumerate(runs):
        opened = open_instance(home) if n % 2 else as_the_web_server(home)
        with opened as instance:
            run_job(JOB, instance, progress=Silent(), partition=f"2026010{n + 1}_020000", run_id=run_id)
            assert len(instance.get_materialized_partitions(thing.key)) == n + 1


def test_while_a_command_has_its_history_open_the_web_server_reads_and_the_daemon_writes(home: Path) -> None:
    first, second = str(uuid.uuid4()), str(uuid.uuid4())
    with open_instance(home) as instance:
        run_job(JOB, instance, progress=Silent(), partition="20260101_020000", run_id=first)
        with as_the_web_server(home) as other:
            assert seen(other, first)["status"] == dg.DagsterRunStatus.SUCCESS
            run_job(JOB, other, progress=Silent(), partition="20260102_020000", run_id=second)
        assert seen(instance, second)["status"] == dg.DagsterRunStatus.SUCCESS


def test_at_the_end_nothing_waits_in_the_write_ahead_logs(home: Path) -> None:
    with open_instance(home) as instance:
        run_job(JOB, instance, progress=Silent(), partition="20260101_020000")
    left = [p for p in (home / ".dagster").rglob("*.db-wal") if p.stat().st_size]
    assert not left


@pytest.mark.parametrize("name", ["backup", "verify", "offsite", "fetch", "rehearsal", "restore", "retention", "sync"])
def test_a_job_alone_is_the_job_that_the_web_server_knows(name: str) -> None:
    alone = one_job(name)
    assert alone is not None
    assert alone.get_job_snapshot_id() == defs.resolve_job_def(name).get_job_snapshot_id()
