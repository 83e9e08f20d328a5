"""Reading objects: ranges fetched side by side, each one checked for its length, compared or handed on in order."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scholaria_ops.errors import OffsiteError, VerificationFailed
from scholaria_ops.files import BLOCK, HashingWriter
from scholaria_ops.offsite.base import SMALL_LIMIT, Digest
from scholaria_ops.offsite.guard import Guard
from scholaria_ops.offsite.s3.errors import NoSuchRange, PreconditionFailed, ShortRead
from scholaria_ops.offsite.s3.lanes import Lanes
from scholaria_ops.offsite.s3.wire import Wire, breakable

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

#: Most parts that are compared in one request: fewer requests against more to repeat when one breaks.
_PARTS_PER_SEGMENT = 8


@dataclass(frozen=True, slots=True)
class Head:
    """What a HEAD says: ``sha256`` is what the uploader claimed (metadata), never proof of content."""

    size_bytes: int
    etag: str
    sha256: str
    checksum_sha256: str


@dataclass(frozen=True, slots=True)
class Print:
    """The fingerprint of a local file: SHA-256 of every ``step`` bytes, taken in the same pass as the SHA-256 of the whole.

    It allows a remote copy to be compared in any order and many places at once; equal parts mean an equal whole.
    """

    size_bytes: int
    step: int
    parts: tuple[bytes, ...]


class Reader:
    """Reads objects of one bucket within one operation."""

    def __init__(self, wire: Wire, guard: Guard, lanes: Lanes, *, on_bytes: Callable[[int], None] = lambda _: None) -> None:
        self._wire = wire
        self._guard = guard
        self._lanes = lanes
        self._on_bytes = on_bytes

    def difference(self, key: str, expected: Print) -> str:
        """Read an object in full and compare it with ``expected``; says where it differs first, or nothing."""
        each = min(_PARTS_PER_SEGMENT, -(-len(expected.parts) // self._lanes.concurrency)) * expected.step
        starts = range(0, max(expected.size_bytes, 1), max(each, 1))
        if len(starts) > 1:
            # Some services compute something on first access (rclone: an MD5 of the whole); once is enough, not once per lane.
            # Measured with a file of 380 MB: 2.8 s without this, 1.1 s with it.
            head(self._wire, self._guard, key)
        running = [
            self._lanes.submit(partial(self._compare, key, expected, start, min(each, expected.size_bytes - start))) for start in starts
        ]
        return next((found for future in running if (found := future.result())), "")

    def digest(self, path: str, key: str) -> Digest:
        """Read an object in full and hash it."""
        there = head(self._wire, self._guard, key)
        sha256 = hashlib.sha256()
        for block in self._blocks(key, there.size_bytes, there.etag):
            sha256.update(block)
        return Digest(path, there.size_bytes, sha256.hexdigest())

    def download(self, path: str, key: str, target: Path, *, size: int, etag: str, expected: str | None) -> Digest:
        """Write an object to a new private file, hashing on the way; the file is removed if its content is not ``expected``."""
        with HashingWriter(target) as out:
            for block in self._blocks(key, size, etag):
                out.write(block)
            found = out.result.sha256
            if expected is not None and found != expected:
                raise VerificationFailed(
                    f"{path} from {self._wire.target(key)} is not what was shipped: SHA-256 {found}, expected {expected}",
                    hint="The offsite copy is damaged. Use another set, or ship this one again from where it is whole.",
                )
        return Digest(path, size, found)

    def _blocks(self, key: str, size: int, etag: str) -> Iterator[memoryview]:
        """The content of an object in order. ``etag`` pins its version: an object replaced meanwhile is an error."""
        step = self._wire.options.part_size
        parts = [(min(step, size - start), partial(self._fetch, key, start, size, etag)) for start in range(0, size, step)]
        for part in self._lanes.in_order(parts):
            for at in range(0, len(part), BLOCK):
                block = part[at : at + BLOCK]
                self._guard.check()
                yield block
                self._on_bytes(len(block))

    def _fetch(self, key: str, start: int, size: int, etag: str, into: memoryview) -> None:
        """Fill ``into`` with the range of an object of ``size`` bytes that begins at ``start``."""

        def ask(client: S3Client) -> None:
            at = 0
            try:
                for block in self._range(client, key, start, len(into), size, etag):
                    into[at : at + len(block)] = block
                    at += len(block)
            except _OtherSizeError as exc:
                raise ShortRead(f"{exc} came where {size:,} are listed") from exc

        try:
            self._wire.call("GetObject", ask, guard=self._guard, key=key)
        except (PreconditionFailed, NoSuchRange) as exc:
            raise OffsiteError(
                f"{self._wire.target(key)} was replaced while it was being read", hint="Somebody else writes there; find out who."
            ) from exc

    def _compare(self, key: str, expected: Print, start: int, length: int) -> str:
        """Compare one segment, which begins at a part's border."""

        def ask(client: S3Client) -> str:
            number = start // expected.step
            left = min(expected.step, length)
            sha256 = hashlib.sha256()
            for block in self._range(client, key, start, length, expected.size_bytes, "", stop_at=expected.step):
                sha256.update(block)
                left -= len(block)
                if left == 0:
                    if sha256.digest() != expected.parts[number]:
                        return (
                            f"other bytes between {number * expected.step:,} and {min((number + 1) * expected.step, expected.size_bytes):,}"
                        )
                    number += 1
                    left = min(expected.step, start + length - number * expected.step)
                    sha256 = hashlib.sha256()
            return ""

        try:
            found = self._wire.call("GetObject", ask, guard=self._guard, key=key)
        except _OtherSizeError as exc:
            return str(exc)
        except NoSuchRange:
            return "fewer bytes"
        self._on_bytes(length)
        return found

    def _range(self, client: S3Client, key: str, start: int, length: int, size: int, etag: str, *, stop_at: int = BLOCK) -> Iterator[bytes]:
        """Yield one range in blocks of at most 1 MiB that never cross a multiple of ``stop_at``; :class:`ShortRead` if it ends early."""
        options = self._wire.options
        wanted: dict[str, Any] = {"IfMatch": etag} if etag else {}
        if length < size:
            wanted["Range"] = f"bytes={start}-{start + length - 1}"
        reply = client.get_object(Bucket=options.bucket, Key=key, **wanted)
        # The limit is for one part; a longer range may take longer.
        limit_s = options.part_timeout_s * max(1, length // options.part_size)
        with breakable(reply["Body"], self._guard, limit_s=limit_s) as body:
            total = int(reply.get("ContentRange", "").rpartition("/")[2] or reply["ContentLength"])
            if total != size:
                raise _OtherSizeError(f"{total:,} bytes")
            if reply["ContentLength"] != length:
                raise ShortRead(f"{reply['ContentLength']:,} bytes announced where {length:,} were asked for")
            left, at = length, start
            while left:
                block = body.read(min(BLOCK, left, stop_at - at % stop_at))
                self._guard.check()
                if not block:
                    raise ShortRead(f"the connection ended {left:,} bytes early, or was broken off for being too slow")
                yield block
                left -= len(block)
                at += len(block)


class _OtherSizeError(Exception):
    """Inner signal: the object has another size than it should."""


def head(wire: Wire, guard: Guard, key: str) -> Head:
    """Size, version and metadata of one object; ``NoSuchObject`` if there is none."""
    bucket = wire.options.bucket

    def ask(client: S3Client) -> Head:
        found = client.head_object(Bucket=bucket, Key=key, ChecksumMode="ENABLED")
        return Head(found["ContentLength"], found["ETag"], found["Metadata"].get("sha256", ""), found.get("ChecksumSHA256", ""))

    return wire.call("HeadObject", ask, guard=guard, key=key)


def read_whole(wire: Wire, guard: Guard, key: str) -> bytes:
    """The content of a small object; refuses one over :data:`SMALL_LIMIT` before reading it."""
    options = wire.options

    def ask(client: S3Client) -> bytes:
        reply = client.get_object(Bucket=options.bucket, Key=key)
        with breakable(reply["Body"], guard, limit_s=options.part_timeout_s) as body:
            size = reply["ContentLength"]
            if size > SMALL_LIMIT:
                raise OffsiteError(f"{wire.target(key)} has {size:,} bytes where a small file was expected", hint="It is not one of ours.")
            content = body.read(size) if size else b""
        if len(content) != size:
            raise ShortRead(f"{len(content):,} of {size:,} bytes came")
        return content

    return wire.call("GetObject", ask, guard=guard, key=key)
