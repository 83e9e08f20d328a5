"""The jobs of proof in Dagster: the disaster drill fills a cell, re-reading mends and tells."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import dagster as dg
import pytest

from scholaria_ops.catalogue.sets import Catalogue
from scholaria_ops.errors import ConfigError, VerificationFailed
from scholaria_ops.operations.backup import BackupRequest, reserve
from scholaria_ops.operations.services import make_services
from scholaria_ops.sandbox.s3 import S3Server
from scholaria_ops.sandbox.sandbox import Sandbox
from scholaria_ops.settings import load_settings
from scholaria_ops_tests.pipeline.conftest import JobRunner

BUCKET = "proof-of-jobs"


@pytest.fixture(scope="module")
def endpoint(sandbox: Sandbox) -> Iterator[S3Server]:
    server = sandbox.s3(name="proof-s3")
    server.create_bucket(BUCKET)
    yield server
    server.stop()


@pytest.fixture
def shipped(env_file: Path, endpoint: S3Server, run: JobRunner, tmp_path: Path) -> str:
    """A set that was backed up, verified and shipped by its job."""
    with env_file.open("a") as out:
        out.write(
            f"BACKUP_S3_BUCKET={BUCKET}\nBACKUP_S3_PREFIX={tmp_path.name}\nBACKUP_S3_ENDPOINT_URL={endpoint.endpoint_url}\n"
            f"AWS_ACCESS_KEY_ID={endpoint.access_key}\nAWS_SECRET_ACCESS_KEY={endpoint.secret_key}\nAWS_REGION={endpoint.region}\n"
        )
    set_id = reserve(make_services(load_settings()), BackupRequest())
    run("backup", partition=set_id)
    return set_id


def output(instance: dg.DagsterInstance, run_id: str) -> dict[str, Any]:
    for record in instance.get_records_for_run(run_id).records:
        event = record.event_log_entry.dagster_event
        if event and event.event_type_value == "STEP_OUTPUT":
            return {k: v.value for k, v in event.step_output_data.metadata.items()}
    raise AssertionError("the step gave nothing")


@pytest.mark.slow(10)
@pytest.mark.timeout(600)
def test_the_drill_proves_the_set_and_fills_its_cell(instance: dg.DagsterInstance, shipped: str, run: JobRunner) -> None:
    told = output(instance, run("disaster_drill"))
    assert (told["set"], told["verdict"], told["sets_in_the_bucket"]) == (shipped, "proven", 1)
    event = instance.get_latest_materialization_event(dg.AssetKey(["rehearsal", "restored"]))
    assert event
    assert event.asset_materialization
    assert event.asset_materialization.partition == shipped
    assert event.asset_materialization.metadata["drill"].value is True
    assert event.asset_materialization.metadata["rto_s"].value == told["rto_s"] > 0


@pytest.mark.slow(10)
@pytest.mark.timeout(600)
def test_rereading_tells_what_it_read_and_fails_on_what_cannot_be_mended(
    instance: dg.DagsterInstance, shipped: str, run: JobRunner, endpoint: S3Server, tmp_path: Path
) -> None:
    told = output(instance, run("reread_offsite"))
    assert (told["read"], told["not_due"], told["damaged"]) == (0, 1, 0), "it was read back an instant ago"
    catalogue = Catalogue(load_settings().backup_dir)
    # The endpoint's word alone: from then on the copy counts as never read.
    path = catalogue.layout.record(shipped)
    path.write_text(path.read_text().replace('"readback"', '"checksum"'))
    told = output(instance, run("reread_offsite"))
    assert (told["read"], told["damaged"], told["mended"]) == (1, 0, 0)
    record = catalogue.records.last(shipped, "reread")
    assert record
    assert record.detail["passed"] is True

    client = boto3.client(
        "s3",
        endpoint_url=endpoint.endpoint_url,
        aws_access_key_id=endpoint.access_key,
        aws_secret_access_key=endpoint.secret_key,
        region_name=endpoint.region,
    )
    client.put_object(Bucket=BUCKET, Key=f"{tmp_path.name}/scholaria_backup_{shipped}/redis_{shipped}.rdb.gz", Body=b"rot")
    catalogue.records.append(shipped, "reread", passed=False, damage="as found")
    catalogue.records.append(shipped, "verified", level="hash", passed=False)
    with pytest.raises(VerificationFailed, match="redis"):
        run("reread_offsite")


def test_without_a_bucket_both_jobs_say_what_to_set(instance: dg.DagsterInstance, run: JobRunner) -> None:
    for job in ("disaster_drill", "reread_offsite"):
        with pytest.raises(ConfigError, match="no offsite place is set"):
            run(job)
