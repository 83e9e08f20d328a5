"""What the preflight tries out, and the question whether a service really verifies checksums."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from scholaria_ops.errors import AuthenticationFailed, OffsiteError, Refused
from scholaria_ops.offsite.base import TargetFacts
from scholaria_ops.offsite.guard import Guard
from scholaria_ops.offsite.s3.errors import ChecksumRejected, NoSuchBucket, NoSuchObject, NotSupported, PreconditionFailed
from scholaria_ops.offsite.s3.reading import read_whole
from scholaria_ops.offsite.s3.sending import abort
from scholaria_ops.offsite.s3.wire import Wire, encoded

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

#: Enough to ride out a hiccup, little enough for somebody who waits for an answer.
_ATTEMPTS = 3
_CONTENT = b"scholaria-ops probe\n"
log = logging.getLogger("scholaria_ops.offsite")


class Probe:
    """Tries things out below the target's prefix and removes them again."""

    def __init__(self, wire: Wire, guard: Guard) -> None:
        self._wire = wire
        self._guard = guard
        self._bucket = wire.options.bucket
        self._folder = f"{wire.options.prefix}.probe/"

    def preflight(self) -> TargetFacts:
        """See whether this bucket can be listed, written, read and cleaned; name what cannot."""
        options = self._wire.options
        warnings: list[str] = []
        try:
            self._list()
        except (NoSuchBucket, NoSuchObject) as exc:
            raise Refused(
                f"the bucket {options.bucket} does not exist{' at ' + options.endpoint_url if options.endpoint_url else ''}",
                hint="Create it, or correct BACKUP_S3_BUCKET, BACKUP_S3_ENDPOINT_URL and AWS_REGION.",
            ) from exc
        key = f"{self._folder}{uuid.uuid4().hex}"
        try:
            self._put(key)
            if read_whole(self._wire, self._guard, key) != _CONTENT:
                raise Refused(f"{self._wire.target(key)} came back with other bytes", hint="Do not trust this service with a backup.")
            conditional = self._honours_if_none_match(key)
        finally:
            warnings += self._remove(key)
        if not conditional:
            warnings.append(
                "this service ignores If-None-Match: that no set is overwritten rests on looking first, so let one host at a time ship"
            )
        versioning = self._versioning()
        return TargetFacts(
            {
                "bucket": options.bucket,
                "prefix": options.prefix or "(none)",
                "endpoint": options.endpoint_url or "AWS",
                "storage class": options.storage_class,
                "conditional writes": "honoured" if conditional else "ignored",
                "versioning": versioning,
            },
            tuple(warnings),
        )

    def require_checksums(self) -> None:
        """Refuse unless the service was seen to reject a wrong SHA-256, in one piece and in parts.

        Some accept and even store a wrong one; with those, only reading back proves an upload.
        """
        for how, rejects in (("an object", self._rejects_object), ("a part", self._rejects_part)):
            if not rejects():
                raise Refused(
                    f"{self._wire.options.where} accepted {how} with a wrong SHA-256, so its checksums prove nothing",
                    hint="Set BACKUP_S3_CONFIRM=readback.",
                )

    def _list(self) -> None:
        def ask(client: S3Client) -> None:
            client.list_objects_v2(Bucket=self._bucket, Prefix=self._wire.options.prefix, MaxKeys=1)

        self._wire.call("ListObjectsV2", ask, guard=self._guard, key=self._wire.options.prefix, attempts=_ATTEMPTS)

    def _put(self, key: str, **extra: Any) -> None:
        storage_class: Any = self._wire.options.storage_class
        headers = {**self._wire.checksum(_CONTENT), **extra}

        def ask(client: S3Client) -> None:
            client.put_object(Bucket=self._bucket, Key=key, Body=_CONTENT, StorageClass=storage_class, **headers)

        self._wire.call("PutObject", ask, guard=self._guard, key=key, attempts=_ATTEMPTS, retry_damage=False)

    def _honours_if_none_match(self, key: str) -> bool:
        try:
            self._put(key, IfNoneMatch="*")
        except PreconditionFailed:
            return True
        except NotSupported:
            return False
        return False

    def _remove(self, key: str) -> list[str]:
        try:
            self._wire.call(
                "DeleteObject",
                lambda client: client.delete_object(Bucket=self._bucket, Key=key),
                guard=self._guard,
                key=key,
                attempts=_ATTEMPTS,
            )
        except (AuthenticationFailed, OffsiteError) as exc:
            return [
                f"objects cannot be deleted, so prune has to happen elsewhere, and a probe stays at {self._wire.target(key)}: {exc.message}"
            ]
        return []

    def _versioning(self) -> str:
        try:
            reply = self._wire.call(
                "GetBucketVersioning",
                lambda client: client.get_bucket_versioning(Bucket=self._bucket),
                guard=self._guard,
                attempts=_ATTEMPTS,
            )
        except (AuthenticationFailed, OffsiteError) as exc:
            log.debug("versioning is not to be seen: %s", exc)
            return "unknown"
        return reply.get("Status", "off").lower()

    def _rejects_object(self) -> bool:
        key = f"{self._folder}{uuid.uuid4().hex}"
        try:
            self._put(key, ChecksumSHA256=_wrong())
        except ChecksumRejected:
            return True
        self._remove(key)
        return False

    def _rejects_part(self) -> bool:
        key = f"{self._folder}{uuid.uuid4().hex}"
        with self._upload(key) as upload_id:

            def ask(client: S3Client) -> None:
                client.upload_part(Bucket=self._bucket, Key=key, UploadId=upload_id, PartNumber=1, Body=_CONTENT, ChecksumSHA256=_wrong())

            try:
                self._wire.call("UploadPart", ask, guard=self._guard, key=key, attempts=_ATTEMPTS, retry_damage=False)
            except ChecksumRejected:
                return True
            return False

    @contextlib.contextmanager
    def _upload(self, key: str) -> Iterator[str]:
        upload_id = self._wire.call(
            "CreateMultipartUpload",
            lambda client: client.create_multipart_upload(Bucket=self._bucket, Key=key, ChecksumAlgorithm="SHA256")["UploadId"],
            guard=self._guard,
            key=key,
            attempts=_ATTEMPTS,
        )
        try:
            yield upload_id
        finally:
            abort(self._wire, self._guard, key, upload_id)


def _wrong() -> str:
    return encoded(hashlib.sha256(b"not what is sent").digest())
