"""What S3 and the way there do wrong while a set is sent, on a real server behind a proxy that misbehaves."""

from __future__ import annotations

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
from scholaria_ops_tests.offsite.conftest import Bucket, TargetFactory, assert_uncommitted, assert_whole
from scholaria_ops_tests.offsite.proxy import Exchange, FaultProxy, fail
from scholaria_ops_tests.offsite.support import FOLDER, NAME, LocalSet

CANCEL = CancelToken()


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
    assert 0.37 <= time.monotonic() - began <= 30.0
    assert len(proxy.log.of("ListObjectsV2")) == 6


def test_f55_cancelling_ends_a_pause_at_once(make_target: TargetFactory, proxy: FaultProxy) -> None:
    proxy.on("ListObjectsV2", fail(503, "SlowDown"))
    target = make_target(endpoint_url=proxy.url, backoff_s=60.0, backoff_cap_s=60.0)
    token = CancelToken()
    threading.Timer(0.3, lambda: token.cancel("enough")).start()
    began = time.monotonic()
    with pytest.raises(Cancelled, match="enough"):
        target.list_sets(cancel=token)
    assert time.monotonic() - began < 50.0


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
        from scholaria_ops_tests.offsite.support import LARGE

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
        exchange.sleep(150)

    proxy.on(moment, hold, path=path, times=1)
    pid = _ship_in_a_process(tmp_path, bucket, proxy.url)
    try:
        assert reached.wait(120), (tmp_path / "child.log").read_text()
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
            assert reached.wait(120)
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
