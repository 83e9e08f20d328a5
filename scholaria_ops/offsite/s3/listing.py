"""Listing a bucket: every page or an error. A short listing would make prune believe that sets are gone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from scholaria_ops.catalogue.artifacts import check_relative
from scholaria_ops.errors import OffsiteError, VerificationFailed
from scholaria_ops.offsite.guard import Guard
from scholaria_ops.offsite.s3.wire import Wire

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


@dataclass(frozen=True, slots=True)
class Listed:
    """One object as listed; ``etag`` is its version."""

    key: str
    size_bytes: int
    etag: str
    modified: datetime


@dataclass(frozen=True, slots=True)
class Pending:
    """One multipart upload that was begun and neither finished nor removed."""

    key: str
    upload_id: str
    initiated: datetime


def objects(wire: Wire, guard: Guard, prefix: str) -> Iterator[Listed]:
    """Every object below ``prefix``, in the order of the service."""
    bucket = wire.options.bucket
    seen: set[str] = set()
    token = ""
    while True:

        def ask(client: S3Client, token: str = token) -> Any:
            more: dict[str, Any] = {"ContinuationToken": token} if token else {}
            return client.list_objects_v2(Bucket=bucket, Prefix=prefix, **more)

        page = wire.call("ListObjectsV2", ask, guard=guard, key=prefix)
        _require_listing(wire, prefix, page, ("Name", "IsTruncated"))
        if page.get("KeyCount", len(page.get("Contents", ()))) != len(page.get("Contents", ())):
            raise _broken(wire, prefix, "it names another number of keys than it counts")
        for found in page.get("Contents", ()):
            if found["Key"] in seen or not found["Key"].startswith(prefix):
                raise _broken(wire, prefix, f"it named {found['Key']!r} where that cannot be")
            seen.add(found["Key"])
            yield Listed(found["Key"], found["Size"], found.get("ETag", ""), found["LastModified"])
        if not page.get("IsTruncated"):
            return
        following = page.get("NextContinuationToken", "")
        if not following or following == token:
            raise _broken(wire, prefix, "it says that there is more and not where")
        token = following


def uploads(wire: Wire, guard: Guard, prefix: str) -> Iterator[Pending]:
    """Every unfinished multipart upload below ``prefix``."""
    bucket = wire.options.bucket
    marks: tuple[str, str] = ("", "")
    while True:

        def ask(client: S3Client, marks: tuple[str, str] = marks) -> Any:
            more: dict[str, Any] = {"KeyMarker": marks[0], "UploadIdMarker": marks[1]} if marks[0] else {}
            return client.list_multipart_uploads(Bucket=bucket, Prefix=prefix, **more)

        page = wire.call("ListMultipartUploads", ask, guard=guard, key=prefix)
        # Small services (rclone) leave IsTruncated out of this reply when there is no more.
        _require_listing(wire, prefix, page, ("Bucket",))
        for found in page.get("Uploads", ()):
            # Some services ignore the prefix here; another's upload is none of our business.
            if found["Key"].startswith(prefix):
                yield Pending(found["Key"], found["UploadId"], found["Initiated"])
        if not page.get("IsTruncated"):
            return
        following = (page.get("NextKeyMarker", ""), page.get("NextUploadIdMarker", ""))
        if not following[0] or following == marks:
            raise _broken(wire, prefix, "it says that there are more uploads and not where")
        marks = following


def safe_path(wire: Wire, listed: Listed, folder: str) -> str:
    """The path of a listed object relative to its set, once it is known to stay inside it."""
    path = listed.key.removeprefix(folder)
    try:
        check_relative(path)
    except VerificationFailed as exc:
        raise _broken(wire, folder, f"the key {listed.key!r} is no plain path below it") from exc
    return path


def _require_listing(wire: Wire, prefix: str, page: Any, members: tuple[str, ...]) -> None:
    """See that the reply is a listing at all: a login page that answers 200 parses as one without any keys."""
    if missing := [name for name in members if name not in page]:
        raise _broken(wire, prefix, f"the reply has no {missing[0]}, so it is not from an S3 service")


def _broken(wire: Wire, prefix: str, why: str) -> OffsiteError:
    return OffsiteError(
        f"the listing of {wire.target(prefix)} cannot be trusted: {why}", hint="Nothing was decided on it; report this to the provider."
    )
