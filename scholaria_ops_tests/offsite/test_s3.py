"""What is particular to S3: preflight, checksums, commit races, parts, TLS, memory, secrets, options."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import logging
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from scholaria_ops.cancel import CancelToken
from scholaria_ops.catalogue.ledger import Ledger
from scholaria_ops.errors import AuthenticationFailed, ConfigError, OffsiteError, OffsiteUnavailable, OpsError, Refused, UsageError
from scholaria_ops.offsite.base import MARKER
from scholaria_ops.offsite.s3 import S3Options, S3Target
from scholaria_ops.process import run
from scholaria_ops.progress import Silent
from scholaria_ops_tests.offsite import proxy as faults
from scholaria_ops_tests.offsite.conftest import Bucket, TargetFactory, options_for
from scholaria_ops_tests.offsite.proxy import Exchange, FaultProxy, fail
from scholaria_ops_tests.offsite.support import FOLDER, MIB, NAME, SMALL, LocalSet, make_set
from scholaria_ops_tests.offsite.tls import TlsFront, tls_front

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
    _without_conditions(proxy, how)
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


# --- committing ------------------------------------------------------------------------------------------------------------


def test_payload_goes_first_and_the_marker_last(target: S3Target, proxy: FaultProxy, large: LocalSet) -> None:
    large.ship(target)
    writes = [r for r in proxy.log.requests if r.operation in {"PutObject", "CompleteMultipartUpload"}]
    assert [r.path.rpartition("/")[2] for r in writes[-2:]] == ["SHA256SUMS", MARKER]
    assert writes[-1].headers["If-None-Match"] == "*"
    confirmed = [n for n, r in enumerate(proxy.log.requests) if r.operation == "GetObject" and "big.bin" in r.path]
    assert max(confirmed) < proxy.log.requests.index(writes[-2]), "payload is confirmed before anything commits it"


def test_deleting_begins_with_the_marker(target: S3Target, proxy: FaultProxy, bucket: Bucket, small: LocalSet) -> None:
    small.ship(target)
    rule = proxy.on("DeleteObject", fail(403, "AccessDenied"), path="a.bin")
    with pytest.raises(AuthenticationFailed, match=r"a\.bin"):
        target.delete_set(NAME, cancel=CANCEL)
    assert proxy.log.of("DeleteObject")[0].path.endswith(MARKER)
    assert FOLDER + MARKER not in bucket.list_keys()
    assert FOLDER + "a.bin" in bucket.list_keys()
    rule.times = 0
    target.delete_set(NAME, cancel=CANCEL)
    assert bucket.list_keys() == []


def test_deleting_what_the_service_keeps_is_an_error(target: S3Target, proxy: FaultProxy, small: LocalSet) -> None:
    """Some rules of a bucket answer a delete with success and keep the object."""
    small.ship(target)
    proxy.on("DeleteObject", lambda exchange: exchange.reply(faults.Answer(204, [], b"")), path="a.bin")
    with pytest.raises(OffsiteError, match=r"1 file\(s\) of .* are still there, .*a\.bin"):
        target.delete_set(NAME, cancel=CANCEL)


@pytest.mark.parametrize("same", [True, False])
def test_whoever_commits_first_wins(target: S3Target, proxy: FaultProxy, bucket: Bucket, small: LocalSet, same: bool) -> None:
    content = small.content(MARKER) if same else b"of another installation"

    def overtaken(exchange: Exchange) -> None:
        bucket.write(FOLDER + MARKER, content)
        exchange.reply(exchange.forward())

    proxy.on("PutObject", overtaken, path=MARKER, times=1)
    if same:
        assert next(f for f in small.ship(target).files if f.path == MARKER).skipped
    else:
        with pytest.raises(Refused, match="another set of that name is complete"):
            small.ship(target)
    assert bucket.read(FOLDER + MARKER) == content


def test_a_lost_answer_to_the_commit_is_recognised_as_our_own(target: S3Target, proxy: FaultProxy, bucket: Bucket, small: LocalSet) -> None:
    proxy.on("PutObject", faults.lose_answer, path=MARKER, times=1)
    small.ship(target)
    assert bucket.read(FOLDER + MARKER) == small.content(MARKER)


@pytest.mark.parametrize("how", ["ignored", "unknown"])
def test_services_without_conditional_writes_are_looked_at_first(
    target: S3Target, proxy: FaultProxy, small: LocalSet, tmp_path: Path, how: str
) -> None:
    _without_conditions(proxy, how)
    report = small.ship(target)
    assert bool(report.warnings) is (how == "unknown")
    with pytest.raises(Refused, match="never overwritten"):
        make_set(tmp_path / "other", SMALL, seed=9).ship(target)


def _without_conditions(proxy: FaultProxy, how: str) -> None:
    def ignore(exchange: Exchange) -> None:
        del exchange.request.headers["If-None-Match"]
        exchange.reply(exchange.forward())

    action = (
        ignore if how == "ignored" else fail(501, "NotImplemented", "A header you provided implies functionality that is not implemented.")
    )
    proxy.on("PutObject", action, when=lambda r: "If-None-Match" in r.headers)


def test_foreign_files_below_an_unfinished_set_are_refused(make_target: TargetFactory, bucket: Bucket, small: LocalSet) -> None:
    bucket.write(FOLDER + "stray.bin", b"?")
    with pytest.raises(Refused, match=r"stray\.bin is in the way"):
        small.ship(make_target())
    assert bucket.read(FOLDER + "stray.bin") == b"?"


def test_foreign_files_beside_a_committed_set_are_told(make_target: TargetFactory, bucket: Bucket, small: LocalSet) -> None:
    target = make_target()
    small.ship(target)
    bucket.write(FOLDER + "stray.bin", b"?")
    assert any("stray.bin" in warning for warning in small.ship(target).warnings)


def test_objects_of_others_in_the_bucket_are_none_of_our_business(make_target: TargetFactory, bucket: Bucket, small: LocalSet) -> None:
    for key in (
        "top level",
        "house/other/x/backup_manifest.json",
        f"house/scholaria-2/{NAME}/{MARKER}",
        f"{FOLDER}",
        "house/scholaria/.hidden/x",
    ):
        bucket.write(key, b"theirs")
    target = make_target()
    small.ship(target)
    assert [found.name for found in target.list_sets(cancel=CANCEL)] == [NAME]
    target.delete_set(NAME, cancel=CANCEL)
    assert sorted(bucket.list_keys()) == [
        "house/other/x/backup_manifest.json",
        "house/scholaria-2/" + NAME + "/" + MARKER,
        "house/scholaria/.hidden/x",
        "top level",
    ]


@pytest.mark.parametrize("prefix", ["", "/deep/er/"])
def test_any_prefix_will_do(make_target: TargetFactory, bucket: Bucket, small: LocalSet, prefix: str) -> None:
    target = make_target(prefix=prefix)
    small.ship(target)
    assert f"{prefix.strip('/')}/{NAME}/{MARKER}".lstrip("/") in bucket.list_keys()
    assert target.list_sets(cancel=CANCEL)[0].complete


# --- objects ---------------------------------------------------------------------------------------------------------------


def test_large_files_go_in_parts_and_in_the_storage_class(
    make_target: TargetFactory, proxy: FaultProxy, bucket: Bucket, large: LocalSet
) -> None:
    large.ship(make_target(endpoint_url=proxy.url, storage_class="STANDARD_IA"))
    assert sorted(len(r.body) for r in proxy.log.of("UploadPart")) == [3, 5 * MIB, 5 * MIB]
    for path in large.expected:
        found = bucket.client.head_object(Bucket=bucket.name, Key=FOLDER + path)
        assert found["StorageClass"] == "STANDARD_IA"
        assert found["Metadata"]["sha256"] == large.expected[path]


def test_nothing_waits_for_permission_to_send(make_target: TargetFactory, proxy: FaultProxy, large: LocalSet) -> None:
    """Asking first costs a second per request with services that do not answer the question."""
    large.ship(make_target(endpoint_url=proxy.url))
    assert not [r for r in proxy.log.requests if "Expect" in r.headers]


def test_a_small_file_that_is_not_small_is_not_read(make_target: TargetFactory, bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scholaria_ops.offsite.s3.reading.SMALL_LIMIT", 10)
    bucket.write(FOLDER + MARKER, b"x" * 11)
    with pytest.raises(OffsiteError, match="11 bytes where a small file was expected"):
        make_target().read_small(NAME, MARKER, cancel=CANCEL)


def test_a_full_disk_is_told_before_anything_is_fetched(
    make_target: TargetFactory, small: LocalSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = make_target()
    small.ship(target)
    (tmp_path / "back").mkdir()
    usage = type("Usage", (), {"total": 10, "used": 0, "free": 10})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    with pytest.raises(OpsError, match="no space left"):
        target.download_set(NAME, tmp_path / "back", cancel=CANCEL, progress=Silent())


def test_archived_objects_say_what_to_do(target: S3Target, proxy: FaultProxy) -> None:
    proxy.on("GetObject", fail(403, "InvalidObjectState", "The operation is not valid for the object's storage class"))
    with pytest.raises(OpsError, match="request its restore"):
        target.read_small(NAME, MARKER, cancel=CANCEL)


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsFront]:
    with tls_front(tmp_path_factory.mktemp("tls")) as front:
        yield front


@pytest.mark.parametrize("checksums", ["when_supported", "when_required"])
def test_it_works_over_tls(
    make_target: TargetFactory, tls: TlsFront, bucket: Bucket, large: LocalSet, tmp_path: Path, checksums: str
) -> None:
    with tls.forward_to(bucket.server.port):
        target = make_target(endpoint_url=tls.url, ca_file=tls.ca_file, checksums=checksums)
        large.ship(target)
        (tmp_path / "back").mkdir()
        target.download_set(NAME, tmp_path / "back", expected=large.expected, cancel=CANCEL, progress=Silent())


def test_an_unknown_certificate_authority_is_a_permanent_error(make_target: TargetFactory, tls: TlsFront, bucket: Bucket) -> None:
    with tls.forward_to(bucket.server.port), pytest.raises(ConfigError, match="certificate"):
        make_target(endpoint_url=tls.url).list_sets(cancel=CANCEL)


# --- memory, secrets, options ----------------------------------------------------------------------------------------------

_PEAK = """
import sys, threading, time
from pathlib import Path
from pydantic import SecretStr
from scholaria_ops.cancel import CancelToken
from scholaria_ops.catalogue.ledger import Ledger
from scholaria_ops.offsite.s3 import S3Options, S3Target
from scholaria_ops.progress import Silent
from scholaria_ops_tests.offsite.support import NAME, LocalSet, FileToShip, LAST
from scholaria_ops.files import hash_file

directory, bucket, url = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
files = []
for path in sorted(p for p in directory.iterdir() if p.is_file()):
    found = hash_file(path)
    files.append(FileToShip(path.name, found.size, found.sha256))
peak = 0
def anonymous():
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
def watch():
    global peak
    while True:
        peak = max(peak, anonymous())
        time.sleep(0.01)
threading.Thread(target=watch, daemon=True).start()
target = S3Target(
    S3Options(bucket=bucket, endpoint_url=url, access_key=SecretStr("key"), secret_key=SecretStr("secret")),
    Ledger(directory.parent / "ledger.jsonl"),
)
LocalSet(directory, tuple(files)).ship(target)
after_upload = peak
back = directory.parent / "back"
back.mkdir()
target.download_set(NAME, back, cancel=CancelToken(), progress=Silent())
print(after_upload // 1024, peak // 1024)
"""


def test_memory_stays_flat_whatever_the_size(bucket: Bucket, tmp_path: Path) -> None:
    """120 MB each way with the default options, in a process of its own; measured: 65 MB up, 105 MB down, as with 500 MB."""
    local = tmp_path / "local"
    local.mkdir()
    with (local / "big.bin").open("wb") as out:
        out.truncate(96 * MIB)
    with (local / "second.bin").open("wb") as out:
        out.truncate(24 * MIB)
    (local / "SHA256SUMS").write_text("")
    (local / MARKER).write_text("{}")
    root = Path(__file__).parents[2]
    argv = [sys.executable, "-c", textwrap.dedent(_PEAK), str(local), bucket.name, bucket.server.endpoint_url]
    up, down = map(int, run(argv, env={"PYTHONPATH": str(root)}, cwd=root).stdout.split())
    assert up < 100
    assert down < 140


def test_secrets_stay_out_of_errors_and_logs(
    make_target: TargetFactory, proxy: FaultProxy, small: LocalSet, caplog: pytest.LogCaptureFixture
) -> None:
    """Even when the service repeats them in its answer."""
    caplog.set_level(logging.DEBUG, logger="scholaria_ops")
    secrets = {"access_key": "AKIAVERYSECRET00", "secret_key": "the-secret-key-itself", "session_token": "the-session-token"}
    target = make_target(endpoint_url=proxy.url, **{name: SecretStr(value) for name, value in secrets.items()})
    proxy.on("PutObject", fail(403, "SignatureDoesNotMatch", f"we computed {' and '.join(secrets.values())}"), times=1)
    with pytest.raises(AuthenticationFailed) as caught:
        small.ship(target)
    proxy.on("ListObjectsV2", fail(503, "SlowDown", " ".join(secrets.values())))
    with pytest.raises(OffsiteUnavailable) as again:
        target.list_sets(cancel=CANCEL)
    shown = "\n".join([str(caught.value), str(again.value), caplog.text, repr(target._options), target.where])
    assert not [value for value in secrets.values() if value in shown]


@pytest.mark.parametrize(
    "wrong",
    [
        {"bucket": "s3://bucket"},
        {"bucket": ""},
        {"prefix": "a/../b"},
        {"prefix": ".records"},
        {"endpoint_url": "s3.example.org"},
        {"endpoint_url": "https://key:secret@s3.example.org"},
        {"storage_class": "GLACIER"},
        {"storage_class": "DEEP_ARCHIVE"},
        {"access_key": SecretStr("only half")},
        {"part_size": 1 << 20},
        {"concurrency": 0},
        {"max_attempts": 0},
    ],
)
def test_options_that_cannot_work_are_refused_with_a_next_step(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError) as caught:
        S3Options(**{"bucket": "bucket", **wrong})  # type: ignore[arg-type]
    assert "secret@" not in str(caught.value)


def test_part_sizes_grow_so_that_ten_thousand_parts_are_enough() -> None:
    options = S3Options(bucket="bucket")
    assert options.part_size_for(1) == options.part_size_for(10_000 * options.part_size) == options.part_size
    for size in (10_000 * options.part_size + 1, 5 << 40):
        step = options.part_size_for(size)
        assert -(-size // step) <= 10_000
        assert step % MIB == 0


def test_the_address_names_bucket_prefix_and_endpoint(bucket: Bucket, ledger: Ledger) -> None:
    assert S3Target(options_for(bucket), ledger).where == f"s3://{bucket.name}/house/scholaria at {bucket.server.endpoint_url}"
    assert S3Target(S3Options(bucket="bucket"), ledger).where == "s3://bucket"


def test_a_record_that_is_too_large_is_refused(make_target: TargetFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scholaria_ops.offsite.s3.target.SMALL_LIMIT", 3)
    with pytest.raises(UsageError):
        make_target().put_records("20241001_020000", b"1234", cancel=CANCEL)


def test_the_command_line_starts_without_the_client_library() -> None:
    code = "import sys, scholaria_ops.offsite.s3; print(sorted(m for m in ('boto3', 'botocore', 'urllib3') if m in sys.modules))"
    root = Path(__file__).parents[2]
    assert run([sys.executable, "-c", code], env={"PYTHONPATH": str(root)}, cwd=root).stdout.strip() == b"[]"
