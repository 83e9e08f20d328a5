"""S3 servers of the offsite tests, a fresh bucket and target for each test."""

from __future__ import annotations

import functools
import hashlib
import itertools
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import SecretStr

from scholaria_ops.catalogue.ledger import Ledger
from scholaria_ops.offsite.base import MARKER
from scholaria_ops.offsite.s3 import S3Options, S3Target
from scholaria_ops.sandbox.s3 import S3Server
from scholaria_ops.sandbox.sandbox import Sandbox
from scholaria_ops_tests.offsite.proxy import FaultProxy, running
from scholaria_ops_tests.offsite.support import FOLDER, LARGE, SMALL, LocalSet, make_set

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_numbers = itertools.count(1)


@dataclass(frozen=True)
class Bucket:
    """A bucket of one test and how to get at it past the product."""

    server: S3Server
    name: str
    client: S3Client

    def list_keys(self) -> list[str]:
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.name)
        return [o["Key"] for page in pages for o in page.get("Contents", ())]

    def read(self, key: str) -> bytes:
        return self.client.get_object(Bucket=self.name, Key=key)["Body"].read()

    def write(self, key: str, content: bytes, **extra: Any) -> None:
        self.client.put_object(Bucket=self.name, Key=key, Body=content, **extra)

    def half_sent(self) -> list[str]:
        """Keys of multipart uploads that were begun and not finished."""
        return [u["Key"] for u in self.client.list_multipart_uploads(Bucket=self.name).get("Uploads", ())]


def assert_whole(bucket: Bucket, local: LocalSet) -> None:
    """Every object is, byte for byte, what was to be shipped (looked at past the product and the proxy)."""
    there = {key.removeprefix(FOLDER): hashlib.sha256(bucket.read(key)).hexdigest() for key in bucket.list_keys() if key.startswith(FOLDER)}
    assert there == local.expected


def assert_uncommitted(bucket: Bucket) -> None:
    assert FOLDER + MARKER not in bucket.list_keys()


@pytest.fixture(scope="session")
def s3_server(sandbox: Sandbox) -> S3Server:
    return sandbox.s3(name="offsite-s3")


@pytest.fixture
def bucket(s3_server: S3Server) -> Bucket:
    return new_bucket(s3_server)


def new_bucket(server: S3Server) -> Bucket:
    name = f"bucket-{next(_numbers)}"
    server.create_bucket(name)
    return Bucket(server, name, _client(server.endpoint_url, server.access_key, server.secret_key))


@functools.cache
def _client(endpoint_url: str, access_key: str, secret_key: str) -> S3Client:
    import boto3

    return boto3.client(
        "s3", endpoint_url=endpoint_url, aws_access_key_id=access_key, aws_secret_access_key=secret_key, region_name=S3Server.region
    )


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "state" / "ledger.jsonl")


def options_for(bucket: Bucket, **changes: Any) -> S3Options:
    """Options for quick tests: short pauses, small parts, short timeouts."""
    values: dict[str, Any] = {
        "bucket": bucket.name,
        "prefix": "house/scholaria",
        "endpoint_url": bucket.server.endpoint_url,
        "region": bucket.server.region,
        "access_key": SecretStr(bucket.server.access_key),
        "secret_key": SecretStr(bucket.server.secret_key),
        "part_size": 5 << 20,
        "concurrency": 4,
        "read_timeout_s": 10.0,
        "max_attempts": 5,
        "backoff_s": 0.02,
        "backoff_cap_s": 0.1,
        # moto dates every multipart upload to 2010: without this, age alone would explain whatever is reaped.
        "stale_upload_s": 100 * 365 * 86_400.0,
    }
    return S3Options(**{**values, **changes})


TargetFactory = Callable[..., S3Target]


@pytest.fixture
def make_target(bucket: Bucket, ledger: Ledger) -> Iterator[TargetFactory]:
    """Make targets on this test's bucket; any option may be given."""
    made: list[S3Target] = []

    def make(**changes: Any) -> S3Target:
        made.append(S3Target(options_for(bucket, **changes), ledger))
        return made[-1]

    yield make
    for target in made:
        target.close()


@pytest.fixture
def proxy(s3_server: S3Server) -> Iterator[FaultProxy]:
    """A proxy in front of the S3 server; without rules it changes nothing."""
    with running(s3_server.endpoint_url) as found:
        yield found


@pytest.fixture
def target(make_target: TargetFactory, proxy: FaultProxy) -> S3Target:
    """The product, talking through the proxy."""
    return make_target(endpoint_url=proxy.url)


@pytest.fixture
def small(tmp_path: Path) -> LocalSet:
    return make_set(tmp_path / "local", SMALL)


@pytest.fixture
def large(tmp_path: Path) -> LocalSet:
    return make_set(tmp_path / "local", LARGE)


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    """No transfer thread outlives a call, however it ended."""
    yield
    left = [t.name for t in threading.enumerate() if t.name.startswith("offsite-")]
    assert left == []
