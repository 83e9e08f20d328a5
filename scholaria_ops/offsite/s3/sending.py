"""Sending files: small ones in one request, larger ones in parts. Every file is hashed in one pass that runs just ahead of its parts."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scholaria_ops.cancel import CancelToken
from scholaria_ops.catalogue.ledger import Entry, Ledger
from scholaria_ops.errors import OffsiteError, OpsError, VerificationFailed
from scholaria_ops.files import BLOCK
from scholaria_ops.offsite.base import FileToShip
from scholaria_ops.offsite.guard import Guard
from scholaria_ops.offsite.s3.errors import NoSuchObject, NoSuchUpload
from scholaria_ops.offsite.s3.lanes import Lanes, PartBody
from scholaria_ops.offsite.s3.reading import Print, head
from scholaria_ops.offsite.s3.wire import Wire, encoded
from scholaria_ops.process import is_alive, process_start_time

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

#: The ledger's kind for a multipart upload that may be half-sent.
UPLOAD = "s3-multipart-upload"
log = logging.getLogger("scholaria_ops.offsite")
#: Ledger keys of the uploads that this process is busy with; an open entry of ours that is not among them was left behind.
_at_work: set[str] = set()


@dataclass(frozen=True, slots=True)
class Sent:
    """A file that was sent: the fingerprint of what was read, and whether the service acknowledged it plainly.

    Without a plain answer only reading it back can tell whether it is there.
    """

    print: Print
    plain: bool


class Sender:
    """Sends files to one bucket within one operation.

    Args:
        checksums: send a SHA-256 with every request for the service to verify.
    """

    def __init__(
        self, wire: Wire, ledger: Ledger, guard: Guard, lanes: Lanes, *, checksums: bool, on_bytes: Callable[[int], None] = lambda _: None
    ) -> None:
        self._wire = wire
        self._ledger = ledger
        self._guard = guard
        self._lanes = lanes
        self._checksums = checksums
        self._on_bytes = on_bytes

    def send(self, local: Path, file: FileToShip, key: str, *, only_if_absent: bool = False) -> Sent:
        """Store ``local`` under ``key``. Nothing appears there unless all of it arrived and it was what ``file`` says.

        ``only_if_absent`` sends the file in one piece whatever its size.

        Raises:
            VerificationFailed: the local file is not what ``file`` says.
            PreconditionFailed: with ``only_if_absent``, an object is there.
        """
        with local.open("rb", buffering=0) as source:
            fd = source.fileno()
            if only_if_absent or file.size_bytes <= self._wire.options.part_size:
                step = max(file.size_bytes, 1)
                parts = tuple(digest for _, digest in self._hashed(fd, local, file, step))
                self._lanes.submit(partial(self._put, fd, file, key, parts[0], only_if_absent)).result()
                return Sent(Print(file.size_bytes, step, parts), plain=True)
            return self._send_large(fd, local, file, key)

    def fingerprint(self, local: Path, file: FileToShip) -> Print:
        """The fingerprint of a local file that need not be sent."""
        step = self._wire.options.part_size_for(file.size_bytes)
        with local.open("rb", buffering=0) as source:
            return Print(file.size_bytes, step, tuple(digest for _, digest in self._hashed(source.fileno(), local, file, step)))

    def _hashed(self, fd: int, local: Path, file: FileToShip, step: int) -> Iterator[tuple[int, bytes]]:
        """Read a file once, in order; yield the start and SHA-256 of every part. Raises at the end if the whole is not ``file``."""
        if os.fstat(fd).st_size != file.size_bytes:
            raise _changed(local, file)
        whole = hashlib.sha256()
        buffer = bytearray(min(BLOCK, step))
        for start in range(0, max(file.size_bytes, 1), step):
            part = hashlib.sha256()
            at, end = start, min(start + step, file.size_bytes)
            while at < end:
                self._guard.check()
                view = memoryview(buffer)[: end - at]
                if (n := os.preadv(fd, [view], at)) == 0:
                    raise _changed(local, file)
                whole.update(view[:n])
                part.update(view[:n])
                at += n
            yield start, part.digest()
        if whole.hexdigest() != file.sha256:
            raise _changed(local, file)

    def _put(self, fd: int, file: FileToShip, key: str, digest: bytes, only_if_absent: bool) -> None:
        options = self._wire.options
        extra: dict[str, Any] = {"IfNoneMatch": "*"} if only_if_absent else {}
        if self._checksums:
            extra["ChecksumSHA256"] = encoded(digest)

        def ask(client: S3Client) -> None:
            body: Any = PartBody(fd, 0, file.size_bytes, digest, self._guard)
            storage_class: Any = options.storage_class
            client.put_object(
                Bucket=options.bucket, Key=key, Body=body, Metadata={"sha256": file.sha256}, StorageClass=storage_class, **extra
            )

        self._wire.call("PutObject", ask, guard=self._guard, key=key)
        self._on_bytes(file.size_bytes)

    def _send_large(self, fd: int, local: Path, file: FileToShip, key: str) -> Sent:
        options = self._wire.options
        me = os.getpid()
        where = {"endpoint": options.endpoint_url or "", "bucket": options.bucket, "key": key}
        entry = self._ledger.open(UPLOAD, **where, pid=me, start_time=process_start_time(me))
        upload_id = ""
        _at_work.add(entry)
        try:
            upload_id = self._begin(key, file.sha256)
            self._ledger.update(entry, upload_id=upload_id)
            parts, fingerprint = self._send_parts(fd, local, file, key, upload_id)
            plain = self._complete(key, upload_id, parts, file)
        except BaseException:
            self._take_back(entry, key, upload_id)
            raise
        finally:
            _at_work.discard(entry)
        self._ledger.close(entry)
        return Sent(fingerprint, plain)

    def _begin(self, key: str, sha256: str) -> str:
        options = self._wire.options
        extra: dict[str, Any] = {"ChecksumAlgorithm": "SHA256"} if self._checksums else {}

        def ask(client: S3Client) -> str:
            storage_class: Any = options.storage_class
            made = client.create_multipart_upload(
                Bucket=options.bucket, Key=key, Metadata={"sha256": sha256}, StorageClass=storage_class, **extra
            )
            return made["UploadId"]

        return self._wire.call("CreateMultipartUpload", ask, guard=self._guard, key=key)

    def _send_parts(self, fd: int, local: Path, file: FileToShip, key: str, upload_id: str) -> tuple[list[dict[str, Any]], Print]:
        """Send the parts side by side while the hashing pass goes on."""
        step = self._wire.options.part_size_for(file.size_bytes)
        sent: list[Future[dict[str, Any]]] = []
        digests: list[bytes] = []
        try:
            for start, digest in self._hashed(fd, local, file, step):
                digests.append(digest)
                length = min(step, file.size_bytes - start)
                sent.append(self._lanes.submit(partial(self._send_part, fd, start, length, digest, key, upload_id, len(digests))))
                self._lanes.throttle(sent)
                _raise_early(sent)
            return [part.result() for part in sent], Print(file.size_bytes, step, tuple(digests))
        finally:
            # A part that arrives after the upload was aborted would stay there unseen: all of them end first.
            wait(sent)

    def _send_part(self, fd: int, start: int, length: int, digest: bytes, key: str, upload_id: str, number: int) -> dict[str, Any]:
        bucket = self._wire.options.bucket
        extra: dict[str, Any] = {"ChecksumSHA256": encoded(digest)} if self._checksums else {}

        def ask(client: S3Client) -> dict[str, Any]:
            body: Any = PartBody(fd, start, length, digest, self._guard)
            reply = client.upload_part(Bucket=bucket, Key=key, UploadId=upload_id, PartNumber=number, Body=body, **extra)
            # Every checksum that the service computed must be given back at the end, or some of them refuse to join the parts.
            return {"PartNumber": number, "ETag": reply["ETag"], **{k: v for k, v in reply.items() if k.startswith("Checksum")}}

        part = self._wire.call("UploadPart", ask, guard=self._guard, key=key)
        self._on_bytes(length)
        return part

    def _complete(self, key: str, upload_id: str, parts: list[dict[str, Any]], file: FileToShip) -> bool:
        bucket = self._wire.options.bucket
        joined: Any = {"Parts": parts}

        def ask(client: S3Client) -> None:
            # A 200 with an error in its body is raised as an error by the client library, and then tried again like any other.
            client.complete_multipart_upload(Bucket=bucket, Key=key, UploadId=upload_id, MultipartUpload=joined)

        try:
            self._wire.call("CompleteMultipartUpload", ask, guard=self._guard, key=key)
        except NoSuchUpload as exc:
            # Either an earlier attempt was carried out and its answer lost, or somebody removed the upload: the object tells.
            try:
                there = head(self._wire, self._guard, key)
            except NoSuchObject:
                raise OffsiteError(f"{exc.message}; somebody removed the upload", hint="Run again; confirmed files are skipped.") from exc
            if there.size_bytes != file.size_bytes or there.sha256 not in {"", file.sha256}:
                raise
            return False
        return True

    def _take_back(self, entry: str, key: str, upload_id: str) -> None:
        """Remove the parts of a failed upload. If even that fails, the ledger's entry stays open for the next run."""
        if not upload_id:
            return  # the service may have begun one all the same; the next run looks for it
        with Guard(CancelToken(), what="cleaning up", deadline_s=30.0) as guard:
            try:
                abort(self._wire, guard, key, upload_id)
            except OpsError as exc:
                log.warning("the parts of %s stay behind until the next run: %s", self._wire.target(key), exc)
                return
        self._ledger.close(entry)


def is_abandoned(entry: Entry) -> bool:
    """Whether nobody works on this upload any more: its process is gone, or it is ours and has given up."""
    if entry.facts["pid"] == os.getpid() and entry.facts["start_time"] == process_start_time(os.getpid()):
        return entry.key not in _at_work
    return not is_alive(int(entry.facts["pid"]), entry.facts["start_time"])


def abort(wire: Wire, guard: Guard, key: str, upload_id: str) -> bool:
    """Remove the parts of an upload; False if there was no such upload any more."""
    bucket = wire.options.bucket

    def ask(client: S3Client) -> None:
        client.abort_multipart_upload(Bucket=bucket, Key=key, UploadId=upload_id)

    try:
        wire.call("AbortMultipartUpload", ask, guard=guard, key=key, attempts=3)
    except (NoSuchUpload, NoSuchObject):
        return False
    return True


def _raise_early(sent: list[Future[dict[str, Any]]]) -> None:
    """Stop reading a file as soon as one of its parts has failed."""
    for part in sent:
        if part.done() and part.exception() is not None:
            part.result()


def _changed(local: Path, file: FileToShip) -> VerificationFailed:
    return VerificationFailed(
        f"{file.path} in {local.parent} is not what the set says it is: expected {file.size_bytes:,} bytes, SHA-256 {file.sha256}",
        hint="The local set is damaged; verify it and ship another one. Nothing was committed offsite.",
    )
