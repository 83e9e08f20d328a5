"""Requests are signed by the digest that is known, and are the very requests that the client library would have signed itself."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import botocore.auth
import botocore.compat
import pytest
from pydantic import SecretStr

from scholaria_ops.cancel import CancelToken
from scholaria_ops.offsite.guard import Guard
from scholaria_ops.offsite.s3.lanes import PartBody
from scholaria_ops.offsite.s3.options import S3Options
from scholaria_ops.offsite.s3.wire import Wire

CONTENT = os.urandom(3 << 20)
#: Operation → its call without a body.
CALLS: dict[str, Callable[..., Any]] = {
    "PutObject": lambda client, **body: client.put_object(Bucket="bucket", Key="a key", Metadata={"sha256": "0"}, **body),
    "UploadPart": lambda client, **body: client.upload_part(Bucket="bucket", Key="a key", UploadId="u", PartNumber=3, **body),
}


class Enough(Exception):
    """Raised instead of sending."""


class CountingBody(PartBody):
    reads = 0

    def read(self, amount: int | None = None) -> bytes:
        self.reads += 1
        return super().read(amount)


def signed_headers(endpoint: str, operation: str, body: Any) -> dict[str, str]:
    """The headers of a request as it would have gone out."""
    found: dict[str, str] = {}
    options = S3Options(
        bucket="bucket", endpoint_url=endpoint, region="us-east-1", access_key=SecretStr("AKEXAMPLE"), secret_key=SecretStr("not a secret")
    )

    def seen(request: Any, **_: Any) -> None:
        found.update({name: value.decode() if isinstance(value, bytes) else value for name, value in request.headers.items()})
        raise Enough

    client, _ = Wire(options)._client()
    client.meta.events.register("before-send.s3", seen)
    checksum = botocore.compat.ensure_unicode("x" * 43 + "=")
    with pytest.raises(Enough):
        CALLS[operation](client, Body=body, ChecksumSHA256=checksum)
    return found


@pytest.mark.parametrize("operation", CALLS)
@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:9", "https://s3.example.org"])
def test_a_known_digest_gives_the_very_signature_of_the_client_library(
    operation: str, endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(botocore.auth, "get_current_datetime", lambda: datetime(2026, 1, 1, 2, tzinfo=UTC).replace(tzinfo=None))
    path = tmp_path / "part"
    path.write_bytes(b"before" + CONTENT)
    with path.open("rb") as source, Guard(CancelToken(), what="a test") as guard:
        ours = CountingBody(source.fileno(), 6, len(CONTENT), hashlib.sha256(CONTENT).digest(), guard)
        with_us = signed_headers(endpoint, operation, ours)
        assert ours.reads == 0, "nobody reads a body to sign it"
    expected = signed_headers(endpoint, operation, CONTENT)
    assert with_us["X-Amz-Content-SHA256"] == hashlib.sha256(CONTENT).hexdigest()
    assert with_us["Authorization"] == expected["Authorization"]
