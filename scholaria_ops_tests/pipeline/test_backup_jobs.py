"""The jobs of the pipeline on a real Dagster instance and real stores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from scholaria_ops.catalogue.sets import Catalogue
from scholaria_ops.definitions import defs
from scholaria_ops.errors import OpsError, Refused, VerificationFailed
from scholaria_ops.operations.backup import BackupIncomplete, BackupRequest, reserve
from scholaria_ops.operations.services import make_services
from scholaria_ops.pipeline.assets_verified import CHECKS
from scholaria_ops.pipeline.partitions import known_partitions
from scholaria_ops.pipeline.resources import ESTATE_POOL, Estate
from scholaria_ops.pipeline.sensors import requested_backups
from scholaria_ops.sandbox.sample import SampleStack
from scholaria_ops.settings import load_settings
from scholaria_ops_tests.operations.support import flip
from scholaria_ops_tests.pipeline.conftest import JobRunner

STORES = ("postgres", "redis", "qdrant")


def _reserved(env_file: Path) -> str:
    return reserve(make_services(load_settings({}, env_file=env_file)), BackupRequest())


def _newest(instance: dg.DagsterInstance, *key: str) -> Any:
    event = instance.get_latest_materialization_event(dg.AssetKey(list(key)))
    assert event
    assert event.asset_materialization
    return event.asset_materialization


def test_a_backup_run_fills_a_partition_with_cells_and_metadata(instance: dg.DagsterInstance, env_file: Path, run: JobRunner) -> None:
    set_id = _reserved(env_file)
    run_id = run("backup", partition=set_id, config={"take_backup": {"config": {"note": "first"}}})
    assert known_partitions(instance) == {set_id}
    for key in (*(("backup", s) for s in STORES), ("backup", "sealed"), ("backup", "verified")):
        assert set_id in instance.get_materialized_partitions(dg.AssetKey(list(key))), key
    sealed = _newest(instance, "backup", "sealed").metadata
    for name, kind in {"size_bytes": int, "duration_s": float, "throughput_mb_s": float, "rows": int, "keys": int, "points": int}.items():
        assert isinstance(sealed[name].value, kind), name
        assert sealed[name].value > 0, name
    assert {r.data["store"] for r in sealed["components"].records} == set(STORES)
    assert set_id in sealed["summary"].value
    directory = Path(sealed["path"].value)
    assert directory.is_dir()
    for store, count in zip(STORES, ("rows", "keys", "points"), strict=True):
        metadata = _newest(instance, "backup", store).metadata
        assert {"size_bytes", "duration_s", count, "files", "cut_at"} <= metadata.keys()
    stats = instance.get_run_by_id(run_id)
    assert stats
    assert stats.is_success
    assert stats.tags["scholaria/tier"] == sealed["tier"].value == _newest(instance, "backup", "sealed").tags["scholaria/tier"] == "manual"
    checks = _evaluations(instance, run_id)
    assert {name: e.passed for name, e in checks.items()} == dict.fromkeys(CHECKS, True)


def _evaluations(instance: dg.DagsterInstance, run_id: str) -> dict[str, dg.AssetCheckEvaluation]:
    found = {}
    for record in instance.get_records_for_run(run_id).records:
        event = record.event_log_entry.dagster_event
        if event and event.event_type_value == "ASSET_CHECK_EVALUATION":
            evaluation = event.event_specific_data
            assert isinstance(evaluation, dg.AssetCheckEvaluation)
            found[evaluation.check_name] = evaluation
    return found


def test_without_a_bucket_the_offsite_cell_stays_empty_and_the_log_says_why(
    instance: dg.DagsterInstance, env_file: Path, run: JobRunner
) -> None:
    set_id = _reserved(env_file)
    run_id = run("backup", partition=set_id)
    assert set_id not in instance.get_materialized_partitions(dg.AssetKey(["backup", "offsite"]))
    messages = [r.event_log_entry.user_message for r in instance.get_records_for_run(run_id).records]
    assert any("No bucket is set" in m for m in messages)


def test_running_a_sealed_partition_again_verifies_it_and_touches_nothing(
    instance: dg.DagsterInstance, env_file: Path, run: JobRunner
) -> None:
    set_id = _reserved(env_file)
    run("backup", partition=set_id)
    catalogue = Catalogue(load_settings({}, env_file=env_file).backup_dir)
    digest = catalogue.find(set_id).set
    assert digest
    run("backup", partition=set_id)
    again = catalogue.find(set_id)
    assert again.set
    assert again.set.sums_sha256 == digest.sums_sha256
    assert [r.event for r in again.records].count("verified") == 2


def test_an_old_unsealed_partition_is_refused(instance: dg.DagsterInstance, run: JobRunner) -> None:
    with pytest.raises(Refused, match="is not sealed"):
        run("backup", partition="20200101_020000")


def test_a_failing_store_leaves_no_cell_green(instance: dg.DagsterInstance, env_file: Path, run: JobRunner) -> None:
    with env_file.open("a") as out:
        out.write("QDRANT_URL=http://127.0.0.1:1\n")
    set_id = _reserved(env_file)
    with pytest.raises(BackupIncomplete):
        run("backup", partition=set_id)
    for key in (*(("backup", s) for s in STORES), ("backup", "sealed"), ("backup", "verified")):
        assert set_id not in instance.get_materialized_partitions(dg.AssetKey(list(key))), key


def test_a_damaged_set_turns_its_check_and_its_cell_red(instance: dg.DagsterInstance, env_file: Path, run: JobRunner) -> None:
    set_id = _reserved(env_file)
    run("backup", partition=set_id)
    found = Catalogue(load_settings({}, env_file=env_file).backup_dir).find(set_id).set
    assert found
    flip(found.directory / found.manifest.artifacts_of("redis")[0].path)
    with pytest.raises(VerificationFailed, match="redis_"):
        run("verify", partition=set_id)
    failed = next(r for r in instance.get_runs() if r.job_name == "verify")
    assert failed.is_failure
    checks = _evaluations(instance, failed.run_id)
    assert checks["set_checksums"].passed is False
    assert checks["redis_loads"].passed is False
    assert checks["set_manifest"].passed is False, "the manifest's digest of that file disagrees too"
    event = next(
        r for r in instance.get_records_for_run(failed.run_id).records if "STEP_FAILURE" in str(r.event_log_entry.dagster_event_type)
    )
    assert "does not verify" in str(event.event_log_entry)


def test_level_hash_calls_nothing_readable(instance: dg.DagsterInstance, env_file: Path, run: JobRunner) -> None:
    set_id = _reserved(env_file)
    run("backup", partition=set_id)
    run_id = run("verify", partition=set_id, config={"backup__verified": {"config": {"level": "hash"}}})
    checks = _evaluations(instance, run_id)
    assert checks["set_checksums"].passed
    assert not checks["postgres_rows"].passed
    assert checks["postgres_rows"].severity is dg.AssetCheckSeverity.WARN


@pytest.mark.parametrize(
    ("job", "op", "config"), [("backup", "take_backup", {"tier": "hourly"}), ("verify", "backup__verified", {"level": "deep"})]
)
def test_bad_run_config_is_answered_with_what_is_right(env_file: Path, run: JobRunner, job: str, op: str, config: dict[str, str]) -> None:
    with pytest.raises(OpsError, match="does not exist") as caught:
        run(job, partition=_reserved(env_file), config={op: {"config": config}})
    assert caught.value.hint.startswith("Use one of")


def test_backup_now_mints_an_id_and_the_sensor_starts_its_run_once(instance: dg.DagsterInstance, env_file: Path, run: JobRunner) -> None:
    run("backup_now", config={"mint_backup_id": {"config": {"tier": "weekly", "note": "a [bracketed] note"}}})
    (set_id,) = known_partitions(instance)
    estate = Estate()
    with dg.build_sensor_context(instance=instance) as context:
        result = requested_backups(context, estate=estate)
    assert isinstance(result, dg.SensorResult)
    (request,) = result.run_requests or []
    assert (request.run_key, request.partition_key) == (set_id, set_id)
    run("backup", partition=set_id, config=request.run_config["ops"])
    entry = Catalogue(load_settings({}, env_file=env_file).backup_dir).find(set_id)
    assert entry.set
    assert (entry.set.manifest.tier, entry.set.manifest.origin.note) == ("weekly", "a [bracketed] note")
    with dg.build_sensor_context(instance=instance) as context:
        assert isinstance(requested_backups(context, estate=estate), dg.SkipReason)


def test_sync_rebuilds_the_index_on_a_new_machine_and_forgets_what_is_gone(env_file: Path, run: JobRunner, tmp_path: Path) -> None:
    set_id = _reserved(env_file)
    run("backup", partition=set_id)
    home = tmp_path / "another"
    home.mkdir()
    with dg.DagsterInstance.local_temp(str(home)) as fresh:
        job = defs.resolve_job_def("sync")
        for _ in range(2):
            assert job.execute_in_process(instance=fresh, resources={"estate": Estate()}).success
            assert known_partitions(fresh) == {set_id}
            for key in (*(("backup", s) for s in STORES), ("backup", "sealed"), ("backup", "verified")):
                assert set_id in fresh.get_materialized_partitions(dg.AssetKey(list(key))), key
        count = fresh.fetch_materializations(dg.AssetKey(["backup", "sealed"]), limit=10).records
        assert len(count) == 1, "a second sync reports nothing again"
        found = Catalogue(load_settings({}, env_file=env_file).backup_dir).find(set_id)
        found.directory.rename(tmp_path / "moved-away")
        assert job.execute_in_process(instance=fresh, resources={"estate": Estate()}).success
        assert known_partitions(fresh) == frozenset()


def test_f23_no_secret_is_in_any_event_file_or_manifest(
    instance: dg.DagsterInstance, env_file: Path, run: JobRunner, sample_stack: SampleStack, tmp_path: Path
) -> None:
    """Everything that the runs wrote anywhere, good and bad ones, is searched for every password."""
    run("backup", partition=_reserved(env_file))
    with env_file.open("a") as out:
        out.write("REDIS_PASSWORD=wrong-secret-0815\n")
    with pytest.raises(OpsError):
        run("backup", partition=_reserved(env_file))
    secrets = ["wrong-secret-0815"] + [
        s.get_secret_value() for s in (sample_stack.postgres_admin.password, sample_stack.redis.password, sample_stack.qdrant.api_key)
    ]
    secrets = [s for s in secrets if len(s) > 5]
    assert len(secrets) >= 3
    read = 0
    for root in (tmp_path / "backups", tmp_path / "dagster"):
        for path in root.rglob("*"):
            if path.is_file():
                data = path.read_bytes()
                read += 1
                for secret in secrets:
                    assert secret.encode() not in data, f"a secret is in {path}"
    assert read > 15


def test_run_config_can_name_no_path_and_no_address() -> None:
    """The open-source UI knows no users: whoever reaches it may not point a run at another directory or server."""
    for job in defs.resolve_all_job_defs():
        schema = str(job.run_config_schema.config_type.fields["resources"].config_type.fields["estate"].config_type.__dict__)  # type: ignore[attr-defined]
        assert "env_file" not in schema, job.name


def test_lineage_begins_at_the_live_stores() -> None:
    graph = defs.resolve_asset_graph()
    for store in STORES:
        assert graph.get(dg.AssetKey(["backup", store])).parent_keys == {dg.AssetKey(["live", store])}
        assert graph.get(dg.AssetKey(["live", store])).is_external
    assert graph.get(dg.AssetKey(["backup", "sealed"])).parent_keys == {dg.AssetKey(["backup", s]) for s in STORES}
    assert graph.get(dg.AssetKey(["backup", "verified"])).parent_keys == {dg.AssetKey(["backup", "sealed"])}
    assert graph.get(dg.AssetKey(["backup", "offsite"])).parent_keys == {dg.AssetKey(["backup", "verified"])}
    for spec in defs.resolve_all_asset_specs():
        assert spec.description, spec.key
        assert spec.kinds, spec.key
        assert spec.group_name in {"live", "backup", "rehearsal", "health"}


def test_the_manifest_names_the_run_that_made_it(env_file: Path, run: JobRunner) -> None:
    set_id = _reserved(env_file)
    run_id = run("backup", partition=set_id)
    entry = Catalogue(load_settings({}, env_file=env_file).backup_dir).find(set_id)
    manifest = json.loads((entry.directory / "backup_manifest.json").read_text())
    assert manifest["origin"]["run_id"] == run_id


def test_whatever_wants_the_estate_lock_waits_in_one_pool() -> None:
    """Runs that are queued wait for each other instead of failing at the lock."""
    wanting = {"backup": "take_backup", "restore": "execute_restore", "retention": "retain", "fetch": "fetch_set"}
    for job, name in wanting.items():
        (found,) = (node.definition for node in defs.resolve_job_def(job).graph.nodes if node.name == name)
        assert isinstance(found, dg.OpDefinition)
        assert found.pool == ESTATE_POOL, job
