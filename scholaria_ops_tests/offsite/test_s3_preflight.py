"""Shipping to S3: what is asked of a service beforehand, and whether its checksums can be relied on."""

from __future__ import annotations

import base64
import dataclasses
import hashlib

import pytest

from scholaria_ops.cancel import CancelToken
from scholaria_ops.catalogue.ledger import Ledger
from scholaria_ops.errors import AuthenticationFailed, OffsiteError, OffsiteUnavailable, Refused
from scholaria_ops.offsite.s3 import S3Target
from scholaria_ops_tests.offsite import proxy as faults
from scholaria_ops_tests.offsite.conftest import Bucket, TargetFactory, options_for
from scholaria_ops_tests.offsite.proxy import Exchange, FaultProxy, fail, without_conditions
from scholaria_ops_tests.offsite.support import FOLDER, NAME, LocalSet

CANCEL = CancelToken()


# --- preflight -------------------------------------------------------------------------------------------------------------


def test_preflight_tells_what_the_service_does(make_target: TargetFactory, bucket: Bucket) -> None:
    facts = make_target(storage_class="STANDARD_IA").preflight(cancel=CANCEL)
    assert facts.details["bucket"] == bucket.name
    assert facts.details["storage class"] == "STANDARD_IA"
    assert facts.details["conditional writes"] == "honoured"
    assert facts.details["versioning"] == "off"
    assert facts.warnings == ()
    assert bucket.list_keys() == []


def test_preflight_refuses_a_bucket_that_is_not_there(bucket: Bucket, ledger: Ledger) -> None:
    with pytest.raises(Refused, match="bucket no-such-bucket does not exist") as caught:
        S3Target(dataclasses.replace(options_for(bucket), bucket="no-such-bucket"), ledger).preflight(cancel=CANCEL)
    assert "BACKUP_S3_BUCKET" in caught.value.hint


@pytest.mark.parametrize("operation", ["ListObjectsV2", "PutObject", "GetObject"])
def test_preflight_names_the_permission_that_is_missing(target: S3Target, proxy: FaultProxy, bucket: Bucket, operation: str) -> None:
    proxy.on(operation, fail(403, "AccessDenied", "Access Denied"))
    with pytest.raises(AuthenticationFailed, match=f"{operation} on s3://{bucket.name}/house/scholaria/.*AccessDenied") as caught:
        target.preflight(cancel=CANCEL)
    assert "Grant s3:PutObject" in caught.value.hint
    assert len(proxy.log.of(operation)) == 1, "a refusal is never tried again"
    assert bucket.list_keys() == []


def test_preflight_only_warns_when_objects_cannot_be_deleted(target: S3Target, proxy: FaultProxy) -> None:
    proxy.on("DeleteObject", fail(403, "AccessDenied"))
    assert "cannot be deleted" in target.preflight(cancel=CANCEL).warnings[0]


def test_preflight_refuses_a_storage_class_that_the_service_does_not_know(target: S3Target, proxy: FaultProxy) -> None:
    proxy.on("PutObject", fail(400, "InvalidStorageClass", "The storage class you specified is not valid"))
    with pytest.raises(OffsiteError, match="BACKUP_S3_STORAGE_CLASS"):
        target.preflight(cancel=CANCEL)


@pytest.mark.parametrize("how", ["ignored", "unknown"])
def test_preflight_warns_of_services_without_conditional_writes(target: S3Target, proxy: FaultProxy, how: str) -> None:
    without_conditions(proxy, how)
    facts = target.preflight(cancel=CANCEL)
    assert facts.details["conditional writes"] == "ignored"
    assert "If-None-Match" in facts.warnings[0]


def test_preflight_refuses_a_service_that_changes_bytes(target: S3Target, proxy: FaultProxy) -> None:
    proxy.on("GetObject", faults.flip_received)
    with pytest.raises(Refused, match="other bytes"):
        target.preflight(cancel=CANCEL)


def test_an_endpoint_that_is_not_there_is_unavailable(make_target: TargetFactory) -> None:
    target = make_target(endpoint_url="http://127.0.0.1:9", connect_timeout_s=1.0)
    with pytest.raises(OffsiteUnavailable, match="ListObjectsV2 on s3://") as caught:
        target.preflight(cancel=CANCEL)
    assert caught.value.retryable


def test_wrong_credentials_are_refused_once(target: S3Target, proxy: FaultProxy) -> None:
    proxy.on("ListObjectsV2", fail(403, "InvalidAccessKeyId", "The AWS Access Key Id you provided does not exist in our records."))
    with pytest.raises(AuthenticationFailed, match="InvalidAccessKeyId"):
        target.list_sets(cancel=CANCEL)
    assert len(proxy.log.requests) == 1


def test_a_clock_that_is_off_is_named(target: S3Target, proxy: FaultProxy) -> None:
    proxy.on(
        "ListObjectsV2", fail(403, "RequestTimeTooSkewed", "The difference between the request time and the current time is too large.")
    )
    with pytest.raises(AuthenticationFailed, match="clock"):
        target.list_sets(cancel=CANCEL)


# --- checksums -------------------------------------------------------------------------------------------------------------


def test_checksum_mode_is_refused_where_wrong_checksums_are_accepted(make_target: TargetFactory, bucket: Bucket, small: LocalSet) -> None:
    """The server behind this test stores anything under any SHA-256."""
    with pytest.raises(Refused, match="accepted an object with a wrong SHA-256") as caught:
        small.ship(make_target(), confirm="checksum")
    assert "BACKUP_S3_CONFIRM=readback" in caught.value.hint
    assert bucket.list_keys() == []


def test_checksum_mode_is_refused_where_only_parts_go_unverified(
    target: S3Target, proxy: FaultProxy, bucket: Bucket, small: LocalSet
) -> None:
    proxy.on("PutObject", faults.verify_checksum)
    with pytest.raises(Refused, match="accepted a part with a wrong SHA-256"):
        small.ship(target, confirm="checksum")
    assert bucket.list_keys() == []
    assert bucket.half_sent() == []


@pytest.fixture
def verifying(proxy: FaultProxy) -> FaultProxy:
    """A service that compares checksums with bodies."""
    proxy.on("PutObject", faults.verify_checksum)
    proxy.on("UploadPart", faults.verify_checksum)
    return proxy


def test_checksum_mode_reads_nothing_back(target: S3Target, verifying: FaultProxy, bucket: Bucket, large: LocalSet) -> None:
    report = large.ship(target, confirm="checksum")
    assert {f.confirmed_by for f in report.files} == {"checksum"}
    assert verifying.log.of("GetObject") == []
    assert hashlib.sha256(bucket.read(FOLDER + "big.bin")).hexdigest() == large.expected["big.bin"]
    probes = len(verifying.log.of("PutObject", r"\.probe/"))
    large.ship(target, confirm="checksum", name=NAME.replace("01_", "02_"))
    assert len(verifying.log.of("PutObject", r"\.probe/")) == probes, "proven once per target is enough"


def test_checksum_mode_sends_damaged_parts_again(target: S3Target, verifying: FaultProxy, bucket: Bucket, large: LocalSet) -> None:
    def damage_then_verify(exchange: Exchange) -> None:
        exchange.request.body = faults.flip(exchange.request.body, 77)
        faults.verify_checksum(exchange)

    for operation, path in (("UploadPart", r"big\.bin"), ("PutObject", r"a\.bin")):
        verifying.rules.insert(0, faults.Rule(operation, damage_then_verify, path, times=1))
    large.ship(target, confirm="checksum")
    for path, digest in large.expected.items():
        assert hashlib.sha256(bucket.read(FOLDER + path)).hexdigest() == digest


def test_checksum_mode_resumes_by_checksum_and_reads_what_has_none(
    target: S3Target, verifying: FaultProxy, bucket: Bucket, large: LocalSet
) -> None:
    small_digest = base64.b64encode(bytes.fromhex(large.expected["a.bin"])).decode()
    bucket.write(FOLDER + "a.bin", large.content("a.bin"), ChecksumAlgorithm="SHA256", ChecksumSHA256=small_digest)
    bucket.write(FOLDER + "big.bin", large.content("big.bin"))
    report = large.ship(target, confirm="checksum")
    assert {f.path: f.confirmed_by for f in report.files if f.skipped} == {"a.bin": "checksum", "big.bin": "readback"}
    assert verifying.log.of("GetObject", r"a\.bin") == []


@pytest.mark.parametrize("checksums", ["when_supported", "when_required"])
def test_checksum_headers_are_a_setting(make_target: TargetFactory, proxy: FaultProxy, large: LocalSet, checksums: str) -> None:
    large.ship(make_target(endpoint_url=proxy.url, checksums=checksums))
    writes = [*proxy.log.of("PutObject"), *proxy.log.of("UploadPart")]
    carrying = [r for r in writes if "x-amz-checksum-sha256" in r.headers]
    assert carrying == (writes if checksums == "when_supported" else [])
    assert not [r for r in writes if "x-amz-trailer" in r.headers or "x-amz-checksum-crc32" in r.headers]
