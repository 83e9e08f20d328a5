"""What S3 and the way there do wrong while it is read: downloads, listings, old objects. A real server behind a proxy that misbehaves."""

from __future__ import annotations

import hashlib
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from scholaria_ops.cancel import CancelToken
from scholaria_ops.errors import Cancelled, OffsiteError, OffsiteUnavailable
from scholaria_ops.offsite.base import MARKER
from scholaria_ops.offsite.s3 import S3Target
from scholaria_ops.progress import Silent
from scholaria_ops_tests.offsite import proxy as faults
from scholaria_ops_tests.offsite.conftest import Bucket, TargetFactory, assert_whole
from scholaria_ops_tests.offsite.proxy import Exchange, FaultProxy, fail
from scholaria_ops_tests.offsite.support import FOLDER, MIB, NAME, LocalSet

CANCEL = CancelToken()


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
    assert time.monotonic() - began < 60.0


def test_f61_a_read_that_trickles_is_broken_off_without_a_deadline_too(
    make_target: TargetFactory, proxy: FaultProxy, large: LocalSet, tmp_path: Path
) -> None:
    target = make_target(endpoint_url=proxy.url, read_timeout_s=100.0, part_timeout_s=2.0, max_attempts=10)
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
    assert time.monotonic() - began < 60.0


def test_f61_a_server_that_never_answers_is_given_up(make_target: TargetFactory, proxy: FaultProxy) -> None:
    proxy.on("ListObjectsV2", lambda exchange: exchange.sleep(60))
    target = make_target(endpoint_url=proxy.url, read_timeout_s=0.3, max_attempts=2)
    with pytest.raises(OffsiteUnavailable, match="ReadTimeout"):
        target.list_sets(cancel=CANCEL)


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
