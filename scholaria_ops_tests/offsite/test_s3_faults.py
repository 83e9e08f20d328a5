"""What S3 and the way there do wrong, on a real server behind a proxy that misbehaves."""

from __future__ import annotations

import hashlib
import os
import re
import sys
import textwrap
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from scholaria_ops.cancel import CancelToken
from scholaria_ops.catalogue.ledger import Ledger
from scholaria_ops.errors import AuthenticationFailed, Cancelled, OffsiteError, OffsiteUnavailable, VerificationFailed
from scholaria_ops.offsite.base import MARKER
from scholaria_ops.offsite.s3 import S3Target
from scholaria_ops.offsite.s3.sending import UPLOAD
from scholaria_ops.process import start_daemon
from scholaria_ops.progress import Silent
from scholaria_ops_tests.offsite import proxy as faults
from scholaria_ops_tests.offsite.conftest import Bucket, TargetFactory
from scholaria_ops_tests.offsite.proxy import Exchange, FaultProxy, fail
from scholaria_ops_tests.offsite.support import MIB, NAME, SMALL, LocalSet, make_set

CANCEL = CancelToken()
FOLDER = f"house/scholaria/{NAME}/"
LARGE = {"big.bin": 10 * MIB + 3, "a.bin": 9_000, "b.bin": 0}


@pytest.fixture
def small(tmp_path: Path) -> LocalSet:
    return make_set(tmp_path / "local", SMALL)


@pytest.fixture
def large(tmp_path: Path) -> LocalSet:
    return make_set(tmp_path / "local", LARGE)


@pytest.fixture
def target(make_target: TargetFactory, proxy: FaultProxy) -> S3Target:
    """The product, talking through the proxy."""
    return make_target(endpoint_url=proxy.url)


def assert_whole(bucket: Bucket, local: LocalSet) -> None:
    """Every object is, byte for byte, what was to be shipped (looked at past the product and the proxy)."""
    there = {key.removeprefix(FOLDER): hashlib.sha256(bucket.read(key)).hexdigest() for key in bucket.list_keys() if key.startswith(FOLDER)}
    assert there == local.expected


def assert_uncommitted(bucket: Bucket) -> None:
    assert FOLDER + MARKER not in bucket.list_keys()


# --- F55 -------------------------------------------------------------------------------------------------------------------


def test_f55_a_burst_of_slow_down_is_waited_out(target: S3Target, proxy: FaultProxy, bucket: Bucket, large: LocalSet) -> None:
    slow = fail(503, "SlowDown", "Please reduce your request rate.")
    rules = [proxy.on(op, slow, times=3) for op in ("PutObject", "UploadPart", "GetObject", "CreateMultipartUpload", "ListObjectsV2")]
    large.ship(target)
    assert [rule.used for rule in rules] == [3] * 5
    assert_whole(bucket, large)


def test_f55_slow_down_without_end_is_a_bounded_retryable_failure(
    target: S3Target, proxy: FaultProxy, bucket: Bucket, large: LocalSet, ledger: Ledger
) -> None:
    proxy.on("UploadPart", fail(503, "SlowDown"))
    with pytest.raises(OffsiteUnavailable, match=r"UploadPart on s3://.*/big\.bin failed after 5 attempts: SlowDown") as caught:
        large.ship(target)
    assert caught.value.retryable
    assert len(proxy.log.of("UploadPart")) <= 3 * 5
    assert_uncommitted(bucket)
    assert bucket.half_sent() == []
    assert ledger.entries(UPLOAD) == []


def test_f55_pauses_grow_and_are_spread(make_target: TargetFactory, proxy: FaultProxy) -> None:
    proxy.on("ListObjectsV2", fail(503, "SlowDown"))
    target = make_target(endpoint_url=proxy.url, backoff_s=0.1, backoff_cap_s=0.4, max_attempts=6)
    began = time.monotonic()
    with pytest.raises(OffsiteUnavailable):
        target.list_sets(cancel=CANCEL)
    # Bounds 0.1, 0.2, 0.4, 0.4, 0.4; each pause is at least a quarter of its bound.
    assert 0.37 <= time.monotonic() - began <= 4.0
    assert len(proxy.log.of("ListObjectsV2")) == 6


def test_f55_cancelling_ends_a_pause_at_once(make_target: TargetFactory, proxy: FaultProxy) -> None:
    proxy.on("ListObjectsV2", fail(503, "SlowDown"))
    target = make_target(endpoint_url=proxy.url, backoff_s=60.0, backoff_cap_s=60.0)
    token = CancelToken()
    threading.Timer(0.3, lambda: token.cancel("enough")).start()
    began = time.monotonic()
    with pytest.raises(Cancelled, match="enough"):
        target.list_sets(cancel=token)
    assert time.monotonic() - began < 5.0


# --- F56 -------------------------------------------------------------------------------------------------------------------


def test_f56_an_error_inside_a_200_at_complete_is_tried_again(target: S3Target, proxy: FaultProxy, bucket: Bucket, large: LocalSet) -> None:
    proxy.on("CompleteMultipartUpload", fail(200, "InternalError", "We encountered an internal error."), times=2)
    large.ship(target)
    assert len(proxy.log.of("CompleteMultipartUpload")) == 3
    assert_whole(bucket, large)


def test_f56_an_error_inside_every_200_is_a_failure(
    target: S3Target, proxy: FaultProxy, bucket: Bucket, large: LocalSet, ledger: Ledger
) -> None:
    proxy.on("CompleteMultipartUpload", fail(200, "InternalError"))
    with pytest.raises(OffsiteUnavailable, match="CompleteMultipartUpload"):
        large.ship(target)
    assert FOLDER + "big.bin" not in bucket.list_keys()
    assert_uncommitted(bucket)
    assert bucket.half_sent() == []
    assert ledger.entries(UPLOAD) == []


def test_f56_a_lost_answer_at_complete_is_settled_by_reading_back(
    target: S3Target, proxy: FaultProxy, bucket: Bucket, large: LocalSet
) -> None:
    proxy.on("CompleteMultipartUpload", faults.lose_answer, times=1)
    report = large.ship(target)
    assert next(f for f in report.files if f.path == "big.bin").confirmed_by == "readback"
    assert_whole(bucket, large)


def test_f56_an_upload_that_somebody_removed_is_a_failure(target: S3Target, proxy: FaultProxy, bucket: Bucket, large: LocalSet) -> None:
    def remove_first(exchange: Exchange) -> None:
        upload_id = exchange.request.query["uploadId"][0]
        bucket.client.abort_multipart_upload(Bucket=bucket.name, Key=FOLDER + "big.bin", UploadId=upload_id)
        # moto answers 500 here, AWS this.
        exchange.reply(faults.error(404, "NoSuchUpload", "The specified upload does not exist."))

    proxy.on("CompleteMultipartUpload", remove_first)
    with pytest.raises(OffsiteError, match="somebody removed the upload"):
        large.ship(target)
    assert_uncommitted(bucket)


# --- F57 -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("operation", "path"), [("UploadPart", r"big\.bin"), ("PutObject", r"a\.bin"), ("PutObject", "SHA256SUMS")])
def test_f57_bytes_changed_on_the_way_up_are_found_by_name(
    target: S3Target, proxy: FaultProxy, bucket: Bucket, large: LocalSet, operation: str, path: str
) -> None:
    proxy.on(operation, faults.flip_sent, path=path, times=1)
    with pytest.raises(VerificationFailed, match=rf"{path} came back .* with other bytes between"):
        large.ship(target)
    assert_uncommitted(bucket)

    again = large.ship(target)
    assert any(re.search(path, warning) for warning in again.warnings)
    assert_whole(bucket, large)


def test_f57_a_marker_that_arrived_damaged_is_withdrawn(target: S3Target, proxy: FaultProxy, bucket: Bucket, small: LocalSet) -> None:
    proxy.on("PutObject", faults.flip_sent, path=MARKER, times=1)
    with pytest.raises(VerificationFailed, match=MARKER):
        small.ship(target)
    assert_uncommitted(bucket)
    small.ship(target)
    assert_whole(bucket, small)


def test_f57_bytes_changed_on_the_way_back_do_not_pass(
    target: S3Target, proxy: FaultProxy, bucket: Bucket, large: LocalSet, tmp_path: Path
) -> None:
    rule = proxy.on("GetObject", faults.flip_received, path=r"big\.bin", times=1)
    with pytest.raises(VerificationFailed, match=r"big\.bin"):
        large.ship(target)
    large.ship(target)
    rule.used = 0
    (tmp_path / "back").mkdir()
    with pytest.raises(VerificationFailed, match=r"big\.bin"):
        target.download_set(NAME, tmp_path / "back", expected=large.expected, cancel=CANCEL, progress=Silent())
    assert not (tmp_path / "back" / "big.bin").exists()


@pytest.mark.parametrize("damage", [lambda b: faults.flip(b, 3), lambda b: b[:-1], lambda b: b + b"x", lambda b: b[:0]])
def test_f57_what_an_unfinished_run_left_is_read_again_before_it_counts(
    target: S3Target, bucket: Bucket, large: LocalSet, damage: Callable[[bytes], bytes]
) -> None:
    """Size and metadata of the leftover say that it is ours; its bytes decide."""
    for file in large.files[:2]:
        content = damage(large.content(file.path))
        bucket.write(FOLDER + file.path, content, Metadata={"sha256": file.sha256})
    report = large.ship(target)
    assert not any(f.skipped for f in report.files)
    assert_whole(bucket, large)


def test_f57_a_damaged_download_through_a_lying_length_is_an_error(
    target: S3Target, proxy: FaultProxy, small: LocalSet, tmp_path: Path
) -> None:
    small.ship(target)

    def shorter(exchange: Exchange) -> None:
        answer = exchange.forward()
        exchange.reply(faults.Answer(answer.status, answer.headers, answer.body[:-10]))

    proxy.on("GetObject", shorter, path=r"a\.bin")
    (tmp_path / "back").mkdir()
    with pytest.raises(OffsiteError, match=r"a\.bin"):
        target.download_set(NAME, tmp_path / "back", cancel=CANCEL, progress=Silent())


# --- F58 -------------------------------------------------------------------------------------------------------------------


def _ship_in_a_process(tmp_path: Path, bucket: Bucket, url: str) -> int:
    """Start shipping in a process of its own; returns its pid."""
    script = textwrap.dedent(
        """
        import sys
        from pathlib import Path
        from pydantic import SecretStr
        from scholaria_ops.catalogue.ledger import Ledger
        from scholaria_ops.offsite.s3 import S3Options, S3Target
        from scholaria_ops_tests.offsite.support import make_set
        from scholaria_ops_tests.offsite.test_s3_faults import LARGE

        directory, ledger, bucket, url = sys.argv[1:]
        options = S3Options(
            bucket=bucket, prefix="house/scholaria", endpoint_url=url, access_key=SecretStr("key"), secret_key=SecretStr("secret"),
            part_size=5 << 20, concurrency=2,
        )
        make_set(Path(directory), LARGE).ship(S3Target(options, Ledger(Path(ledger))))
        """
    )
    argv = [sys.executable, "-c", script, str(tmp_path / "local"), str(tmp_path / "state" / "ledger.jsonl"), bucket.name, url]
    root = Path(__file__).parents[2]
    return start_daemon(argv, log=tmp_path / "child.log", cwd=root, env={"PYTHONPATH": str(root)}).pid


@pytest.mark.parametrize("moment", ["CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload", "PutObject"])
def test_f58_killed_at_any_moment_the_next_run_reaps_and_finishes(
    make_target: TargetFactory, proxy: FaultProxy, bucket: Bucket, large: LocalSet, tmp_path: Path, moment: str
) -> None:
    """``moment`` is carried out by the server, then the process is killed before it hears of it."""
    path = MARKER if moment == "PutObject" else r"big\.bin"
    reached = threading.Event()

    def hold(exchange: Exchange) -> None:
        exchange.forward()
        reached.set()
        exchange.sleep(60)

    proxy.on(moment, hold, path=path, times=1)
    pid = _ship_in_a_process(tmp_path, bucket, proxy.url)
    try:
        assert reached.wait(30), (tmp_path / "child.log").read_text()
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
    begun = moment in {"CreateMultipartUpload", "UploadPart"}
    assert bucket.half_sent() == [FOLDER + "big.bin"] * begun

    target = make_target(endpoint_url=proxy.url)
    reaped = target.reap(cancel=CANCEL)
    assert len(reaped) == begun
    assert bucket.half_sent() == []
    assert target.reap(cancel=CANCEL) == []

    large.ship(target)
    assert_whole(bucket, large)


def test_f58_the_upload_of_a_run_that_is_alive_is_left_alone(
    make_target: TargetFactory, bucket: Bucket, large: LocalSet, proxy: FaultProxy
) -> None:
    reached, go_on = threading.Event(), threading.Event()

    def hold(exchange: Exchange) -> None:
        reached.set()
        go_on.wait(30)
        exchange.reply(exchange.forward())

    proxy.on("CompleteMultipartUpload", hold, times=1)
    with ThreadPoolExecutor(1) as pool:
        shipping = pool.submit(large.ship, make_target(endpoint_url=proxy.url))
        try:
            assert reached.wait(30)
            assert make_target().reap(cancel=CANCEL) == []
        finally:
            go_on.set()
        shipping.result()
    assert_whole(bucket, large)


@pytest.mark.parametrize("ignores_prefix", [False, True])
def test_f58_abandoned_uploads_of_a_lost_host_are_reaped_by_age_and_prefix(
    make_target: TargetFactory, proxy: FaultProxy, bucket: Bucket, ignores_prefix: bool
) -> None:
    for key in (FOLDER + "lost.bin", "of somebody else"):
        bucket.client.create_multipart_upload(Bucket=bucket.name, Key=key)
    begun = datetime.now(UTC) - timedelta(hours=23)

    def dated(exchange: Exchange) -> None:
        if ignores_prefix:
            exchange.request.target = exchange.request.target.split("&prefix=")[0]
        answer = exchange.forward()
        stamp = begun.strftime("<Initiated>%Y-%m-%dT%H:%M:%S.000Z</Initiated>").encode()
        exchange.reply(faults.Answer(answer.status, answer.headers, re.sub(rb"<Initiated>[^<]*</Initiated>", stamp, answer.body)))

    proxy.on("ListMultipartUploads", dated)
    target = make_target(endpoint_url=proxy.url, stale_upload_s=24 * 3600.0)
    assert target.reap(cancel=CANCEL) == []
    begun -= timedelta(hours=2)
    assert len(target.reap(cancel=CANCEL)) == 1
    assert bucket.half_sent() == ["of somebody else"]


def test_f58_a_list_of_uploads_without_the_word_truncated_is_whole(target: S3Target, proxy: FaultProxy, bucket: Bucket) -> None:
    """Small services leave it out."""

    def terse(exchange: Exchange) -> None:
        answer = exchange.forward()
        exchange.reply(faults.Answer(answer.status, answer.headers, re.sub(rb"<IsTruncated>.*?</IsTruncated>", b"", answer.body)))

    proxy.on("ListMultipartUploads", terse)
    bucket.client.create_multipart_upload(Bucket=bucket.name, Key=FOLDER + "lost.bin")
    assert target.reap(cancel=CANCEL) == []


def test_f58_parts_that_could_not_be_removed_are_removed_by_the_next_run(
    target: S3Target, make_target: TargetFactory, proxy: FaultProxy, bucket: Bucket, large: LocalSet
) -> None:
    proxy.on("UploadPart", fail(400, "EntityTooLarge"))
    proxy.on("AbortMultipartUpload", fail(500, "InternalError"))
    with pytest.raises(OffsiteError, match="EntityTooLarge"):
        large.ship(target)
    assert bucket.half_sent() == [FOLDER + "big.bin"]
    assert len(make_target(endpoint_url=proxy.url.replace("127.0.0.1", "localhost")).reap(cancel=CANCEL)) == 0  # another target's
    proxy.rules.clear()
    assert len(target.reap(cancel=CANCEL)) == 1
    assert bucket.half_sent() == []


# --- F61 -------------------------------------------------------------------------------------------------------------------


def fetch(target: S3Target, tmp_path: Path, local: LocalSet, *, deadline_s: float | None = None, cancel: CancelToken = CANCEL) -> None:
    into = tmp_path / "back"
    into.mkdir(exist_ok=True)
    target.download_set(NAME, into, expected=local.expected, deadline_s=deadline_s, cancel=cancel, progress=Silent())


def test_f61_a_download_that_is_cut_is_tried_again(target: S3Target, proxy: FaultProxy, large: LocalSet, tmp_path: Path) -> None:
    large.ship(target)
    rule = proxy.on("GetObject", faults.cut, times=3)
    fetch(target, tmp_path, large)
    assert rule.used == 3
    for file in large.files:
        assert (tmp_path / "back" / file.path).read_bytes() == large.content(file.path)


def test_f61_a_download_that_is_always_cut_is_an_error(target: S3Target, proxy: FaultProxy, large: LocalSet, tmp_path: Path) -> None:
    large.ship(target)
    proxy.on("GetObject", faults.cut, path=r"big\.bin")
    with pytest.raises(OffsiteUnavailable, match=r"big\.bin failed after 5 attempts"):
        fetch(target, tmp_path, large)
    assert not (tmp_path / "back" / "big.bin").exists()


@pytest.mark.parametrize("fault", [faults.stall, faults.trickle])
def test_f61_a_stalled_download_ends_within_its_deadline(
    make_target: TargetFactory, proxy: FaultProxy, large: LocalSet, tmp_path: Path, fault: faults.Action
) -> None:
    """The read timeout is far longer than the deadline: only breaking the connection off can end this in time."""
    target = make_target(endpoint_url=proxy.url, read_timeout_s=100.0)
    large.ship(target)
    proxy.on("GetObject", fault, path=r"big\.bin")
    began = time.monotonic()
    with pytest.raises(OffsiteUnavailable, match="did not finish within 2 s"):
        fetch(target, tmp_path, large, deadline_s=1.5)
    assert time.monotonic() - began < 4.0


def test_f61_a_read_that_trickles_is_broken_off_without_a_deadline_too(
    make_target: TargetFactory, proxy: FaultProxy, large: LocalSet, tmp_path: Path
) -> None:
    target = make_target(endpoint_url=proxy.url, read_timeout_s=100.0, part_timeout_s=0.5)
    large.ship(make_target())
    rule = proxy.on("GetObject", faults.trickle, path=r"big\.bin", times=2)
    fetch(target, tmp_path, large)
    assert rule.used == 2


def test_f61_cancelling_breaks_a_stalled_read_off(make_target: TargetFactory, proxy: FaultProxy, large: LocalSet, tmp_path: Path) -> None:
    target = make_target(endpoint_url=proxy.url, read_timeout_s=100.0)
    large.ship(target)
    proxy.on("GetObject", faults.stall, path=r"big\.bin")
    token = CancelToken()
    threading.Timer(0.5, lambda: token.cancel("the operator")).start()
    began = time.monotonic()
    with pytest.raises(Cancelled, match="the operator"):
        fetch(target, tmp_path, large, cancel=token)
    assert time.monotonic() - began < 4.0


def test_f61_a_server_that_never_answers_is_given_up(make_target: TargetFactory, proxy: FaultProxy) -> None:
    proxy.on("ListObjectsV2", lambda exchange: exchange.sleep(60))
    target = make_target(endpoint_url=proxy.url, read_timeout_s=0.3, max_attempts=2)
    with pytest.raises(OffsiteUnavailable, match="ReadTimeout"):
        target.list_sets(cancel=CANCEL)


# --- F62 -------------------------------------------------------------------------------------------------------------------


def test_f62_a_listing_of_more_than_a_thousand_keys_is_complete(make_target: TargetFactory, bucket: Bucket) -> None:
    names = [f"house/scholaria/scholaria_backup_20240101_{n:06d}/{MARKER}" for n in range(1005)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda key: bucket.write(key, b"{}"), names))
    bucket.write(f"house/scholaria/{NAME}/x", b"1")
    found = make_target().list_sets(cancel=CANCEL)
    assert len(found) == 1006
    assert [s.name for s in found if not s.complete] == [NAME]


@pytest.fixture
def paged(proxy: FaultProxy, bucket: Bucket) -> None:
    """Three sets, listed two keys a page."""
    for n in range(3):
        bucket.write(f"house/scholaria/scholaria_backup_2024010{n}_000000/{MARKER}", b"{}")

    def two_at_a_time(exchange: Exchange) -> None:
        exchange.request.target += "&max-keys=2"
        exchange.reply(exchange.forward())

    proxy.on("ListObjectsV2", two_at_a_time)


@pytest.mark.usefixtures("paged")
def test_f62_every_page_is_read(target: S3Target, proxy: FaultProxy) -> None:
    assert len(target.list_sets(cancel=CANCEL)) == 3
    assert len(proxy.log.of("ListObjectsV2")) == 2


@pytest.mark.usefixtures("paged")
@pytest.mark.parametrize("action", [fail(500, "InternalError"), faults.cut, faults.Exchange.drop])
def test_f62_a_page_that_fails_fails_the_listing(target: S3Target, proxy: FaultProxy, action: faults.Action) -> None:
    rule = faults.Rule("ListObjectsV2", action, when=lambda r: "continuation-token" in r.query)
    proxy.rules.insert(0, rule)
    with pytest.raises(OffsiteUnavailable, match="ListObjectsV2"):
        target.list_sets(cancel=CANCEL)
    assert rule.used == 5


def _rewrite(pattern: bytes, replacement: bytes) -> faults.Action:
    def act(exchange: Exchange) -> None:
        exchange.request.target += "&max-keys=2"
        answer = exchange.forward()
        exchange.reply(faults.Answer(answer.status, answer.headers, re.sub(pattern, replacement, answer.body)))

    return act


@pytest.mark.usefixtures("paged")
@pytest.mark.parametrize(
    "action",
    [
        _rewrite(rb"<NextContinuationToken>.*</NextContinuationToken>", b""),
        _rewrite(rb"<IsTruncated>false</IsTruncated>", b"<IsTruncated>true</IsTruncated>"),
        _rewrite(rb"<Key>house/scholaria/", b"<Key>another/place/"),
        _rewrite(rb"<Contents>.*?</Contents>", b""),
    ],
)
def test_f62_a_listing_that_contradicts_itself_is_an_error(target: S3Target, proxy: FaultProxy, action: faults.Action) -> None:
    proxy.rules.insert(0, faults.Rule("ListObjectsV2", action))
    with pytest.raises(OffsiteError, match="cannot be trusted"):
        target.list_sets(cancel=CANCEL)


@pytest.mark.parametrize("body", [b"<html><body>Please log in</body></html>", b"", b"<!DOCTYPE html><p>unclosed", b"{}"])
def test_f62_a_page_that_is_no_listing_is_never_an_empty_bucket(target: S3Target, proxy: FaultProxy, body: bytes) -> None:
    """A login page of some network in between answers 200 to everything."""
    for operation in ("ListObjectsV2", "ListMultipartUploads"):
        proxy.on(operation, lambda exchange: exchange.reply(faults.Answer(200, [("Content-Type", "text/html")], body)))
    for ask in (target.list_sets, target.get_records, target.reap):
        with pytest.raises(OffsiteError):
            ask(cancel=CANCEL)
    with pytest.raises(OffsiteError):
        target.delete_set(NAME, cancel=CANCEL)


def test_f62_keys_that_leave_their_set_are_an_error(make_target: TargetFactory, bucket: Bucket, tmp_path: Path) -> None:
    bucket.write(f"{FOLDER}{MARKER}", b"{}")
    bucket.write(f"{FOLDER}a//../../escape", b"x")
    with pytest.raises(OffsiteError, match="no plain path"):
        make_target().download_set(NAME, tmp_path, cancel=CANCEL, progress=Silent())


def test_f62_records_that_cannot_all_be_read_are_an_error(target: S3Target, proxy: FaultProxy) -> None:
    for n in range(3):
        target.put_records(f"2024010{n}_000000", b"{}\n", cancel=CANCEL)
    proxy.on("GetObject", fail(500, "InternalError"), path="20240101")
    with pytest.raises(OffsiteUnavailable, match="20240101"):
        target.get_records(cancel=CANCEL)


# --- F64 -------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Write the shared credentials file that the usual AWS chain reads; nothing else offers any."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")

    def write(key: str) -> None:
        text = f"[default]\naws_access_key_id = {key}\naws_secret_access_key = secret-of-{key}\naws_session_token = token-of-{key}\n"
        # Whole at once, as a renewing agent writes it: several transfers may read it at this very moment.
        fresh = tmp_path / f"credentials-{uuid.uuid4().hex}"
        fresh.write_text(text)
        fresh.replace(tmp_path / "credentials")

    return write


def _expire(key: str) -> tuple[faults.Action, Callable[[faults.Request], bool]]:
    return fail(400, "ExpiredToken", "The provided token has expired."), lambda r: f"Credential={key}/" in r.headers["Authorization"]


def test_f64_credentials_that_expire_midway_are_read_afresh_once(
    make_target: TargetFactory, proxy: FaultProxy, bucket: Bucket, large: LocalSet, credentials: Callable[[str], None]
) -> None:
    credentials("OLDKEY")
    target = make_target(endpoint_url=proxy.url, access_key=None, secret_key=None)
    action, old = _expire("OLDKEY")

    def renew(exchange: Exchange) -> None:
        credentials("NEWKEY")
        action(exchange)

    # From the second part on, whoever still comes with the old key is turned away.
    proxy.on("UploadPart", renew, when=lambda r: old(r) and r.query["partNumber"] != ["1"])
    for operation in ("GetObject", "CompleteMultipartUpload", "PutObject", "HeadObject"):
        proxy.on(operation, renew, when=old, path=r"big\.bin")
    large.ship(target)
    assert_whole(bucket, large)
    assert "NEWKEY" in proxy.log.requests[-1].headers["Authorization"]


@pytest.mark.parametrize("static", [False, True])
def test_f64_credentials_that_stay_expired_are_a_permanent_error(
    make_target: TargetFactory, proxy: FaultProxy, bucket: Bucket, small: LocalSet, credentials: Callable[[str], None], static: bool
) -> None:
    credentials("OLDKEY")
    target = make_target(endpoint_url=proxy.url) if static else make_target(endpoint_url=proxy.url, access_key=None, secret_key=None)
    expired = fail(400, "ExpiredToken", "The provided token has expired.")
    proxy.on("PutObject", expired, path=r"a\.bin")
    with pytest.raises(AuthenticationFailed, match="ExpiredToken") as caught:
        small.ship(target)
    assert not caught.value.retryable
    assert len(proxy.log.of("PutObject", r"a\.bin")) == 2
    assert_uncommitted(bucket)


def test_f64_without_any_credentials_the_error_says_what_to_set(
    make_target: TargetFactory, proxy: FaultProxy, credentials: Callable[[str], None]
) -> None:
    target = make_target(endpoint_url=proxy.url, access_key=None, secret_key=None)
    with pytest.raises(AuthenticationFailed, match="AWS_ACCESS_KEY_ID"):
        target.list_sets(cancel=CANCEL)
    assert proxy.log.requests == []


# --- F66 -------------------------------------------------------------------------------------------------------------------


def test_f66_rot_of_an_old_object_is_found_by_reading_back_and_healed_by_shipping_again(
    make_target: TargetFactory, bucket: Bucket, large: LocalSet
) -> None:
    target = make_target()
    large.ship(target)
    rotten = faults.flip(large.content("big.bin"), 6 * MIB)
    bucket.write(FOLDER + "big.bin", rotten, Metadata={"sha256": large.expected["big.bin"]})
    found = target.read_back(NAME, "big.bin", cancel=CANCEL, progress=Silent())
    assert found.sha256 == hashlib.sha256(rotten).hexdigest() != large.expected["big.bin"]

    assert large.ship(target).already_there, "a committed set is believed unless asked otherwise"
    healed = large.ship(target, existing="reread")
    assert [f.path for f in healed.files if not f.skipped] == ["big.bin"]
    assert any("big.bin" in warning and "5,242,880" in warning for warning in healed.warnings)
    assert_whole(bucket, large)


def test_f66_a_lost_or_shortened_file_of_a_committed_set_is_seen_without_reading(
    make_target: TargetFactory, bucket: Bucket, large: LocalSet
) -> None:
    target = make_target()
    large.ship(target)
    bucket.client.delete_object(Bucket=bucket.name, Key=FOLDER + "a.bin")
    bucket.write(FOLDER + "big.bin", b"short")
    healed = large.ship(target)
    assert {f.path for f in healed.files if not f.skipped} == {"a.bin", "big.bin"}
    assert any("a.bin, big.bin" in warning for warning in healed.warnings)
    assert_whole(bucket, large)


def test_f66_an_object_that_is_replaced_while_it_is_read_is_an_error(
    target: S3Target, proxy: FaultProxy, bucket: Bucket, large: LocalSet
) -> None:
    large.ship(target)

    def replace_first(exchange: Exchange) -> None:
        bucket.write(FOLDER + "big.bin", b"x" * (10 * MIB + 3))
        exchange.reply(exchange.forward())

    proxy.on("GetObject", replace_first, path=r"big\.bin", when=lambda r: "bytes=5242880-" in r.headers.get("Range", ""))
    with pytest.raises(OffsiteError, match="was replaced while it was being read"):
        target.read_back(NAME, "big.bin", cancel=CANCEL, progress=Silent())
