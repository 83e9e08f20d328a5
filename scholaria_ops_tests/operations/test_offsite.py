"""Out of the house and back: from nothing but the bucket and the settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import boto3
import pytest

from scholaria_ops.catalogue.sets import BackupSet
from scholaria_ops.errors import ConfigError, Refused, UsageError, VerificationFailed
from scholaria_ops.operations.drill import drill
from scholaria_ops.operations.offsite import at_hand, fetch, offsite_id, offsite_sets, ship
from scholaria_ops.operations.rehearse import rehearse
from scholaria_ops.operations.services import Services
from scholaria_ops.operations.verify import verify
from scholaria_ops.sandbox.s3 import S3Server
from scholaria_ops.sandbox.sample import SampleStack
from scholaria_ops.sandbox.sandbox import Sandbox
from scholaria_ops.sandbox.tools import Tools
from scholaria_ops_tests.operations.conftest import ServicesFactory
from scholaria_ops_tests.operations.support import copied, flip, services_for

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


@pytest.fixture(scope="module")
def endpoint(sandbox: Sandbox) -> Iterator[S3Server]:
    server = sandbox.s3(name="operations-s3")
    yield server
    server.stop()


@pytest.fixture
def offsite(endpoint: S3Server, request: pytest.FixtureRequest) -> dict[str, str]:
    """Settings of a fresh bucket."""
    bucket = f"b{abs(hash(request.node.name)) % 10**12}"
    endpoint.create_bucket(bucket)
    return {
        "BACKUP_S3_BUCKET": bucket,
        "BACKUP_S3_PREFIX": "house/a",
        "BACKUP_S3_ENDPOINT_URL": endpoint.endpoint_url,
        "AWS_ACCESS_KEY_ID": endpoint.access_key,
        "AWS_SECRET_ACCESS_KEY": endpoint.secret_key,
        "AWS_REGION": endpoint.region,
    }


@pytest.fixture
def client(endpoint: S3Server) -> S3Client:
    return boto3.client(
        "s3",
        endpoint_url=endpoint.endpoint_url,
        aws_access_key_id=endpoint.access_key,
        aws_secret_access_key=endpoint.secret_key,
        region_name=endpoint.region,
    )


@pytest.fixture
def shipped(services_factory: ServicesFactory, pristine: BackupSet, offsite: dict[str, str]) -> Services:
    """A BACKUP_DIR with a copy of the pristine set, verified and shipped."""
    services = services_factory(**offsite)
    services.check_directory()
    copied(pristine, services.catalogue.layout.root)
    verify(services, services.catalogue.find(pristine.id), "hash")
    ship(services, services.catalogue.find(pristine.id))
    return services


@pytest.fixture
def new_machine(sample_stack: SampleStack, tools: Tools, tmp_path: Path, offsite: dict[str, str]) -> Services:
    """Settings and the bucket, nothing else: another BACKUP_DIR, and every live store gone."""
    return services_for(
        sample_stack, tools, tmp_path / "new" / "backups", **offsite, DB_PORT="1", REDIS_PORT="1", QDRANT_URL="http://127.0.0.1:1"
    )


def test_a_set_comes_back_on_a_machine_that_has_only_the_bucket(shipped: Services, new_machine: Services, pristine: BackupSet) -> None:
    assert offsite_id(new_machine, "latest") == pristine.id
    entry = fetch(new_machine, "latest")
    assert entry.set
    assert entry.set.sums_sha256 == pristine.sums_sha256
    for path in pristine.directory.rglob("*"):
        if path.is_file():
            assert (entry.directory / path.relative_to(pristine.directory)).read_bytes() == path.read_bytes()
    assert verify(new_machine, entry, "readable").failed == ()
    events = [r.event for r in new_machine.catalogue.records.of(pristine.id)]
    assert {"reserved", "sealed", "verified", "shipped", "fetched"} <= set(events), "its history came along"
    with pytest.raises(UsageError, match="is here already"):
        fetch(new_machine, pristine.id)


def _unlink(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("damage", [flip, _unlink])
def test_a_damaged_set_here_makes_way_for_the_offsite_copy_and_is_kept(
    shipped: Services, pristine: BackupSet, damage: Callable[[Path], None]
) -> None:
    here = shipped.catalogue.layout.sealed(pristine.id)
    victim = here / pristine.manifest.artifacts_of("redis")[0].path
    damage(victim)
    left = victim.read_bytes() if victim.exists() else None
    entry = at_hand(shipped, "latest")
    assert entry.directory == here
    assert verify(shipped, entry, "hash").failed == ()
    aside = shipped.catalogue.layout.root / f"damaged-{pristine.id}"
    kept = aside / victim.relative_to(here)
    assert (kept.read_bytes() if kept.exists() else None) == left
    assert (aside / "backup_manifest.json").exists()
    record = shipped.catalogue.records.last(pristine.id, "fetched")
    assert record
    assert str(record.detail["replaced"]).startswith(f"damaged-{pristine.id}: ")
    damage(victim)
    at_hand(shipped, pristine.id)
    assert (shipped.catalogue.layout.root / f"damaged-{pristine.id}-2").is_dir(), "an earlier one is not written over"


def test_a_sound_set_here_is_never_replaced(shipped: Services, pristine: BackupSet) -> None:
    here = shipped.catalogue.layout.sealed(pristine.id)
    before = here.stat().st_ino, shipped.catalogue.records.last(pristine.id, "fetched")
    assert at_hand(shipped, "latest").directory == here
    assert fetch(shipped, pristine.id, replace_damaged=True).directory == here
    assert (here.stat().st_ino, shipped.catalogue.records.last(pristine.id, "fetched")) == before


def test_a_damaged_set_stays_where_the_offsite_copy_is_no_better(
    shipped: Services, pristine: BackupSet, client: S3Client, offsite: dict[str, str]
) -> None:
    path = pristine.manifest.artifacts_of("redis")[0].path
    here = shipped.catalogue.layout.sealed(pristine.id)
    flip(here / path)
    before = {p: p.read_bytes() for p in here.rglob("*") if p.is_file()}
    client.put_object(Bucket=offsite["BACKUP_S3_BUCKET"], Key=f"house/a/{pristine.directory.name}/{path}", Body=b"rot")
    with pytest.raises(VerificationFailed):
        at_hand(shipped, pristine.id)
    assert {p: p.read_bytes() for p in here.rglob("*") if p.is_file()} == before
    assert [e.name for e in shipped.catalogue.entries()] == [here.name]
    assert not list(shipped.catalogue.layout.staging.iterdir())


def test_a_rehearsal_from_the_bucket_alone_proves_the_set(shipped: Services, new_machine: Services, pristine: BackupSet) -> None:
    report = rehearse(new_machine, "latest", source="offsite")
    assert report.verdict == "proven", [s.detail for s in report.stores]
    assert report.fetch_s > 0
    assert new_machine.catalogue.entries() == [], "nothing was kept in BACKUP_DIR"
    assert list(new_machine.settings.scratch_root.iterdir()) == []


def test_f57_f66_one_changed_byte_in_the_bucket_is_caught_by_name(
    shipped: Services, new_machine: Services, pristine: BackupSet, client: S3Client, offsite: dict[str, str]
) -> None:
    bucket = offsite["BACKUP_S3_BUCKET"]
    listed = client.list_objects_v2(Bucket=bucket, Prefix="house/a/").get("Contents", [])
    keys = [o["Key"] for o in listed if pristine.directory.name in o["Key"]]
    assert len(keys) == len([p for p in pristine.directory.rglob("*") if p.is_file()])
    for key in keys:
        good = client.get_object(Bucket=bucket, Key=key)
        data, metadata = bytearray(good["Body"].read()), good["Metadata"]
        data[len(data) // 2] ^= 1
        client.put_object(Bucket=bucket, Key=key, Body=bytes(data), Metadata=metadata)
        name = key.rpartition(f"{pristine.directory.name}/")[2]
        with pytest.raises(VerificationFailed) as caught:
            fetch(new_machine, pristine.id)
        assert name in str(caught.value) or name == "SHA256SUMS", f"{name} is not named in: {caught.value}"
        assert new_machine.catalogue.entries() == []
        data[len(data) // 2] ^= 1
        client.put_object(Bucket=bucket, Key=key, Body=bytes(data), Metadata=metadata)
    assert fetch(new_machine, pristine.id).id == pristine.id


def test_f66_rot_is_found_and_mended_by_reading_the_copy_again(
    shipped: Services, pristine: BackupSet, client: S3Client, offsite: dict[str, str]
) -> None:
    name = pristine.manifest.artifacts_of("redis")[0].path
    key = f"house/a/{pristine.directory.name}/{name}"
    body = client.get_object(Bucket=offsite["BACKUP_S3_BUCKET"], Key=key)["Body"].read()
    client.put_object(Bucket=offsite["BACKUP_S3_BUCKET"], Key=key, Body=body[:-1] + b"!")
    again = ship(shipped, shipped.catalogue.find(pristine.id), reread=True)
    assert [f.path for f in again.report.files if not f.skipped] == [name]
    assert client.get_object(Bucket=offsite["BACKUP_S3_BUCKET"], Key=key)["Body"].read() == body


def test_shipping_again_sends_nothing_and_says_so(shipped: Services, pristine: BackupSet) -> None:
    again = ship(shipped, shipped.catalogue.find(pristine.id))
    assert again.report.already_there
    assert again.report.sent_bytes == 0
    (remote,) = offsite_sets(shipped)
    assert (remote.id, remote.verified) == (pristine.id, True)


def test_what_leaves_the_house_unencrypted_is_said(shipped: Services, pristine: BackupSet) -> None:
    warnings = " ".join(ship(shipped, shipped.catalogue.find(pristine.id)).warnings)
    assert "password hashes" in warnings
    assert "sessions" in warnings


def test_a_set_that_did_not_verify_is_not_shipped(services_factory: ServicesFactory, pristine: BackupSet, offsite: dict[str, str]) -> None:
    services = services_factory(**offsite)
    services.check_directory()
    copied(pristine, services.catalogue.layout.root)
    services.catalogue.records.append(pristine.id, "verified", level="hash", passed=False)
    with pytest.raises(Refused, match="newest verification"):
        ship(services, services.catalogue.find(pristine.id))
    assert offsite_sets(services) == []


def test_without_an_offsite_place_the_setting_is_named(services_factory: ServicesFactory, pristine: BackupSet) -> None:
    services = dataclasses.replace(services_factory(), offsite=None)
    with pytest.raises(ConfigError) as caught:
        fetch(services, "latest")
    assert "BACKUP_S3_BUCKET" in caught.value.hint


def test_the_drill_brings_all_back_from_nothing_but_the_bucket(shipped: Services, new_machine: Services, pristine: BackupSet) -> None:
    report = drill(new_machine, run_id="r")
    assert (report.rehearsal.verdict, report.found, report.unreadable) == ("proven", 1, {})
    assert report.rehearsal.set_id == pristine.id
    assert 0 < report.rehearsal.fetch_s < report.rehearsal.rto_s
    assert new_machine.catalogue.entries() == [], "the empty environment was one of its own"
    assert list(new_machine.settings.scratch_root.iterdir()) == []
    record = new_machine.catalogue.records.last(pristine.id, "rehearsed")
    assert record
    assert (record.detail["source"], record.detail["drill"], record.detail["verdict"]) == ("offsite", True, "proven")
    (there,) = offsite_sets(new_machine)
    assert any(r.event == "rehearsed" and r.detail.get("drill") for r in there.records), "the bucket tells of it too"


def test_the_drill_fails_on_damage_that_the_disk_here_would_hide(
    shipped: Services, pristine: BackupSet, client: S3Client, offsite: dict[str, str]
) -> None:
    path = pristine.manifest.artifacts_of("redis")[0].path
    bucket, key = offsite["BACKUP_S3_BUCKET"], f"house/a/{pristine.directory.name}/{path}"
    client.put_object(Bucket=bucket, Key=key, Body=b"rot")
    with pytest.raises(VerificationFailed, match="redis"):
        drill(shipped)
    assert shipped.catalogue.find(pristine.id).set, "the set here is as it was"
    assert list(shipped.settings.scratch_root.iterdir()) == []


def test_the_drill_names_every_set_whose_manifest_cannot_be_read(
    shipped: Services, pristine: BackupSet, client: S3Client, offsite: dict[str, str]
) -> None:
    bucket = offsite["BACKUP_S3_BUCKET"]
    client.put_object(Bucket=bucket, Key="house/a/scholaria_backup_20200101_000000/backup_manifest.json", Body=b"{}")
    report = drill(shipped)
    assert report.rehearsal.verdict == "proven"
    assert list(report.unreadable) == ["20200101_000000"]
    with pytest.raises(VerificationFailed, match="20200101_000000"):
        report.raise_if_unreadable()


def test_the_drill_needs_a_bucket_and_a_set_in_it(new_machine: Services, services_factory: ServicesFactory) -> None:
    with pytest.raises(UsageError, match="no verified set can be read"):
        drill(new_machine)
    with pytest.raises(ConfigError, match="no offsite place"):
        drill(services_factory())
