"""Old offsite copies are read back in full when they are due; rot is mended from here, or named."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import boto3
import pytest

from scholaria_ops.catalogue.records import Record
from scholaria_ops.catalogue.sets import Catalogue
from scholaria_ops.errors import ConfigError, OffsiteError, VerificationFailed
from scholaria_ops.operations.offsite import ship
from scholaria_ops.operations.reread import due, last_read, reread
from scholaria_ops.operations.services import Services, make_services
from scholaria_ops.sandbox.s3 import S3Server
from scholaria_ops.sandbox.sandbox import Sandbox
from scholaria_ops.settings import load_settings
from scholaria_ops_tests.catalogue.factory import make_set

NOW = datetime(2026, 6, 1, tzinfo=UTC)


def event(name: Any, days_ago: float, **detail: Any) -> Record:
    return Record(at=NOW - timedelta(days=days_ago), event=name, by="a test", detail=detail)


def test_what_counts_as_read_back_in_full() -> None:
    shipped = event("shipped", 40, confirmed_by="readback")
    assert last_read([shipped]) == shipped.at
    assert last_read([event("shipped", 40, confirmed_by="checksum")]) is None, "an endpoint's word is no reading"
    assert last_read([shipped, event("shipped", 1, confirmed_by="earlier run")]) == shipped.at, "repeating a shipment reads nothing"
    sound = event("reread", 5, passed=True)
    assert last_read([shipped, sound]) == sound.at
    assert last_read([shipped, sound, event("reread", 1, passed=False)]) is None, "rot stays due until it is mended"
    assert last_read([shipped, event("deleted", 1, place="here")]) == shipped.at
    assert last_read([shipped, event("deleted", 1, place="offsite")]) is None


def test_due_are_the_oldest_first_and_only_after_the_time() -> None:
    histories = {
        "20260101_000000": [event("shipped", 29, confirmed_by="readback")],
        "20260102_000000": [event("shipped", 31, confirmed_by="readback")],
        "20260103_000000": [event("shipped", 200, confirmed_by="readback")],
        "20260104_000000": [event("shipped", 1, confirmed_by="checksum")],
    }
    assert due(histories, NOW, timedelta(days=30)) == ["20260104_000000", "20260103_000000", "20260102_000000"]


@pytest.fixture(scope="module")
def endpoint(sandbox: Sandbox) -> Iterator[S3Server]:
    server = sandbox.s3(name="reread-s3")
    yield server
    server.stop()


@pytest.fixture
def services(endpoint: S3Server, request: pytest.FixtureRequest, tmp_path: Path) -> Services:
    bucket = f"r{abs(hash(request.node.name)) % 10**12}"
    endpoint.create_bucket(bucket)
    return make_services(
        load_settings(
            {
                "BACKUP_DIR": str(tmp_path / "backups"),
                "BACKUP_S3_BUCKET": bucket,
                "BACKUP_S3_ENDPOINT_URL": endpoint.endpoint_url,
                "AWS_ACCESS_KEY_ID": endpoint.access_key,
                "AWS_SECRET_ACCESS_KEY": endpoint.secret_key,
                "AWS_REGION": endpoint.region,
                # Every copy counts as due: a moment has passed.
                "BACKUP_REREAD_AFTER_DAYS": "1",
            }
        )
    )


@pytest.fixture
def shipped(services: Services, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Two sets here and offsite, read back two days ago as the records say it."""
    made = [make_set(services.catalogue, datetime.now(UTC) - timedelta(days=n), verified=True) for n in (3, 2)]
    for one in made:
        ship(services, services.catalogue.find(one.id))
    monkeypatch.setattr(Services, "now", lambda _self: datetime.now(UTC) + timedelta(days=2))
    return [one.id for one in made]


def spoil(services: Services, endpoint: S3Server, set_id: str) -> str:
    """Change one byte of an artifact in the bucket; returns its path in the set."""
    client = boto3.client(
        "s3",
        endpoint_url=endpoint.endpoint_url,
        aws_access_key_id=endpoint.access_key,
        aws_secret_access_key=endpoint.secret_key,
        region_name=endpoint.region,
    )
    path = f"redis_{set_id}.rdb.gz"
    bucket, key = str(services.settings.s3_bucket), f"scholaria_backup_{set_id}/{path}"
    good = client.get_object(Bucket=bucket, Key=key)
    data = bytearray(good["Body"].read())
    data[len(data) // 2] ^= 1
    client.put_object(Bucket=bucket, Key=key, Body=bytes(data), Metadata=good["Metadata"])
    return path


def test_sound_copies_are_read_and_are_not_due_again(services: Services, shipped: list[str]) -> None:
    report = reread(services, run_id="r")
    assert [(c.set_id, c.mended, c.damage) for c in report.copies] == [(i, False, "") for i in shipped]
    assert report.size_bytes > 0
    report.raise_if_damaged()
    for set_id in shipped:
        record = services.catalogue.records.last(set_id, "reread")
        assert record
        assert (record.detail["passed"], record.run_id) == (True, "r")
    again = due({i: services.catalogue.records.of(i) for i in shipped}, datetime.now(UTC) + timedelta(hours=20), timedelta(days=1))
    assert again == []


def test_f66_rot_of_an_old_copy_is_mended_from_the_set_here(services: Services, shipped: list[str], endpoint: S3Server) -> None:
    spoil(services, endpoint, shipped[0])
    report = reread(services)
    assert [(c.set_id, c.mended) for c in report.copies] == [(shipped[0], True), (shipped[1], False)]
    report.raise_if_damaged()
    assert not any(c.mended for c in reread(services).copies), "it is whole again"


def test_f66_rot_of_a_copy_that_stands_only_offsite_is_named_and_stays_due(
    services: Services, shipped: list[str], endpoint: S3Server
) -> None:
    path = spoil(services, endpoint, shipped[0])
    for set_id in shipped:
        shutil.rmtree(services.catalogue.layout.sealed(set_id))
    report = reread(services)
    assert [c.set_id for c in report.damaged] == [shipped[0]]
    assert len(report.copies) == 2, "the others are read all the same"
    with pytest.raises(VerificationFailed, match=f"{shipped[0]}: {path} is not what was shipped"):
        report.raise_if_damaged()
    assert due({shipped[0]: services.catalogue.records.of(shipped[0])}, datetime.now(UTC), timedelta(days=1)) == [shipped[0]]


def test_a_damaged_set_here_mends_nothing(services: Services, shipped: list[str], endpoint: S3Server) -> None:
    spoil(services, endpoint, shipped[0])
    services.catalogue.records.append(shipped[0], "verified", level="hash", passed=False)
    report = reread(services)
    assert [c.set_id for c in report.damaged] == [shipped[0]]


def test_a_new_machine_reads_what_the_bucket_holds(services: Services, shipped: list[str], tmp_path: Path) -> None:
    elsewhere = dataclasses.replace(services, catalogue=Catalogue(tmp_path / "elsewhere"))
    elsewhere.check_directory()
    report = reread(elsewhere)
    assert [(c.set_id, c.damage) for c in report.copies] == [(i, "") for i in shipped]
    assert {r.event for r in elsewhere.catalogue.records.of(shipped[0])} >= {"sealed", "shipped", "reread"}, "its history came first"


def test_a_bucket_that_is_away_is_an_error_and_no_bucket_a_setting(services: Services, tmp_path: Path) -> None:
    bare = make_services(load_settings({"BACKUP_DIR": str(tmp_path / "bare")}))
    with pytest.raises(ConfigError):
        reread(bare)
    settings = {
        "BACKUP_DIR": str(tmp_path / "bare"),
        "BACKUP_S3_BUCKET": "no-such-bucket-here",
        "BACKUP_S3_ENDPOINT_URL": str(services.settings.s3_endpoint_url),
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "y",
        "AWS_REGION": "us-east-1",
    }
    with pytest.raises(OffsiteError):
        reread(make_services(load_settings(settings)))
