"""What is particular to S3: commit races, parts, TLS, memory, secrets, options."""

from __future__ import annotations

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
    faults.without_conditions(proxy, how)
    report = small.ship(target)
    assert bool(report.warnings) is (how == "unknown")
    with pytest.raises(Refused, match="never overwritten"):
        make_set(tmp_path / "other", SMALL, seed=9).ship(target)


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
