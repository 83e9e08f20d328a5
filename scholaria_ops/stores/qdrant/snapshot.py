"""One snapshot on the server: made, downloaded, and taken away again."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from scholaria_ops.catalogue.artifacts import Artifact
from scholaria_ops.catalogue.evidence.qdrant import SnapshotFacts
from scholaria_ops.errors import Cancelled, OpsError, StoreError, StoreUnavailable, VerificationFailed
from scholaria_ops.files import HashingWriter
from scholaria_ops.stores.base import Context
from scholaria_ops.stores.qdrant import bulk, leftovers
from scholaria_ops.stores.qdrant.leftovers import Intent, OnServer
from scholaria_ops.stores.qdrant.measure import exact_count
from scholaria_ops.stores.qdrant.rest import NoAnswer, Rest, at
from scholaria_ops.stores.qdrant.snapshot_file import refuse_foreign

#: Snapshots are named by the second: when somebody else's got ours, or ours theirs, the next second is free again.
_CLASHES = 4
_CLASH_WAIT_S = 1.1
#: How long to look for the snapshot of a request whose connection broke off.
_HUNG_UP_S = 60.0
#: What to wait, at most, for a snapshot that is being made while we are on our way out.
CLEANUP_S = 20.0
#: After these pauses (seconds) a server is asked once more for a checksum that it did not tell.
_CHECKSUM_PAUSES = (0.0, 0.1, 0.5)
#: gzip level of isal: 373 MB/s here, within a few percent of the size of zlib's default.
_GZIP_LEVEL = 2


class _Compressor(Protocol):
    def compress(self, data: bytes | memoryview) -> bytes: ...
    def flush(self) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Times:
    """When a snapshot was asked for and done, and what the live server counted right before and after."""

    requested_at: datetime
    finished_at: datetime
    points_before: int
    points_after: int


class ServerSnapshot:
    """A snapshot that stands on the server until :meth:`remove`. Made by :func:`make`."""

    def __init__(self, rest: Rest, ctx: Context, intent: Intent, made: OnServer, times: Times) -> None:
        self.collection = intent.collection
        self.made = made
        self.times = times
        self._rest = rest
        self._ctx = ctx
        self._intent = intent
        self._lock = threading.Lock()
        self._removed = False

    @property
    def facts(self) -> SnapshotFacts:
        return SnapshotFacts(
            name=self.made.name,
            size_bytes=self.made.size_bytes,
            server_sha256=self.made.sha256,
            requested_at=self.times.requested_at,
            finished_at=self.times.finished_at,
            live_points_before=self.times.points_before,
            live_points_after=self.times.points_after,
        )

    def download(self, into: Path, *, gzip: bool, on_bytes: Callable[[int], None], timeout_s: float) -> Artifact:
        """Stream it into a new file, comparing length and checksum with what the server told.

        Raises:
            StoreUnavailable: the connection broke off.
            VerificationFailed: it came short, or is not what the server made.
        """
        path = at(self.collection, "snapshots", self.made.name)
        raw = hashlib.sha256()
        size = 0
        with bulk.download(self._rest, path, timeout_s=timeout_s, cancel=self._ctx.cancel) as body, HashingWriter(into) as out:
            if body.length is not None:
                self._require_size(body.length)
            pack = _compressor() if gzip else None
            for block in body.blocks():
                self._ctx.cancel.check()
                if size == 0:
                    refuse_foreign(bytes(block[:512]))
                size += len(block)
                on_bytes(len(block))
                if pack is not None:
                    raw.update(block)
                    out.write(pack.compress(block))
                else:
                    out.write(block)
            if pack is not None:
                out.write(pack.flush())
            self._require_size(size)
            digest = raw.hexdigest() if gzip else out.result.sha256
            self._require_digest(digest)
        written = out.result
        return Artifact(
            store="qdrant",
            kind="snapshot",
            path=f"{into.parent.name}/{into.name}",
            size_bytes=written.size,
            sha256=written.sha256,
            compression="gzip" if gzip else "none",
            raw_size_bytes=size if gzip else None,
            raw_sha256=digest if gzip else None,
            subject=self.collection,
        )

    def remove(self) -> str:
        """Delete it on the server (once). Returns why it may still be there, or nothing; never raises."""
        with self._lock:
            if self._removed:
                return ""
            self._removed = True
        return leftovers.take_back(self._rest.connection, self._ctx, self._intent, self.made.name, patience_s=CLEANUP_S)

    def _require_digest(self, digest: str) -> None:
        told = self.made.sha256
        if told is not None and digest != told:
            raise VerificationFailed(
                f"the snapshot of collection {self.collection!r} arrived with other content than Qdrant sent "
                f"(SHA-256 {digest[:16]}… instead of {told[:16]}…)",
                hint="The network or a gateway changes bytes on the way; nothing was sealed.",
                store="qdrant",
            )

    def _require_size(self, size: int) -> None:
        if size != self.made.size_bytes:
            raise VerificationFailed(
                f"the snapshot of collection {self.collection!r} came with {size:,} bytes instead of {self.made.size_bytes:,}",
                hint="The server or a gateway cut the download; nothing was sealed. Run again.",
                store="qdrant",
            )


def make(rest: Rest, ctx: Context, collection: str, *, timeout_s: float) -> ServerSnapshot:
    """Have the server make a snapshot. On failure nothing of it remains there, or the ledger knows what may.

    A request that ends without an answer (time limit, gateway) is not repeated: the server goes on with it, so its
    snapshot is waited for and adopted.
    """
    before = exact_count(rest, collection)
    for _ in range(_CLASHES):
        intent = leftovers.intend(rest, ctx.ledger, collection)
        requested = datetime.now(UTC)
        made = _ask(rest, ctx, intent, timeout_s)
        if made.name not in intent.existing:
            break
        # Made in the same second as another one, whose file it replaced: that one is not ours to delete.
        ctx.ledger.close(intent.key)
        ctx.cancel.wait(_CLASH_WAIT_S)
    else:
        raise StoreError(
            f"{rest.where} keeps giving snapshots of collection {collection!r} names that are taken",
            hint="Another program makes snapshots every second; stop it during the backup.",
            store="qdrant",
        )
    finished = datetime.now(UTC)
    try:
        ctx.ledger.update(intent.key, name=made.name)
        made = _with_checksum(rest, ctx, collection, made)
        after = exact_count(rest, collection)
    except BaseException:
        leftovers.take_back(rest.connection, ctx, intent, made.name, patience_s=CLEANUP_S)
        raise
    return ServerSnapshot(rest, ctx, intent, made, Times(requested, finished, before, after))


def _with_checksum(rest: Rest, ctx: Context, collection: str, made: OnServer) -> OnServer:
    """The same, with the checksum that the server lists, where it told none with its answer.

    Up to 1.16 a server reads the checksum back before it has been written for good, and now and then answers with an empty one.
    """
    for pause in _CHECKSUM_PAUSES if rest.takes_checksum else ():
        if made.sha256 is not None:
            break
        ctx.cancel.wait(pause)
        made = next((found for found in leftovers.listed(rest, collection) if found.name == made.name), made)
    return made


def _ask(rest: Rest, ctx: Context, intent: Intent, timeout_s: float) -> OnServer:
    try:
        return OnServer.of(rest.post(at(intent.collection, "snapshots"), timeout_s=timeout_s, wait="true"))
    except StoreUnavailable as exc:
        patience = timeout_s if isinstance(exc, NoAnswer) else min(timeout_s, _HUNG_UP_S)
        return _adopt(rest, ctx, intent, exc, patience)
    except OpsError as exc:
        if isinstance(exc, Cancelled):
            leftovers.take_back(rest.connection, ctx, intent, None, patience_s=CLEANUP_S)
        else:
            leftovers.refused(rest.connection, ctx, intent)
        raise
    except BaseException:
        leftovers.take_back(rest.connection, ctx, intent, None, patience_s=CLEANUP_S)
        raise


def _adopt(rest: Rest, ctx: Context, intent: Intent, error: StoreUnavailable, patience_s: float) -> OnServer:
    """Wait for the snapshot of a request that got no answer; the original error if none comes."""
    found = None
    try:
        found = leftovers.wait_for(rest, intent, patience_s, ctx.cancel)
    except Cancelled:
        leftovers.take_back(rest.connection, ctx, intent, None, patience_s=CLEANUP_S)
        raise
    except OpsError as exc:
        ctx.log.warning("%s", exc)
    if found is None:
        left = leftovers.take_back(rest.connection, ctx, intent, None, patience_s=0.0)
        error.hint = " ".join(part for part in (error.hint, f"{left[0].upper()}{left[1:]}." if left else "") if part)
        raise error
    ctx.log.warning("no answer to the request for a snapshot of %r (%s); it was made nevertheless", intent.collection, error.message)
    return found


def _compressor() -> _Compressor:
    from isal import isal_zlib

    made: _Compressor = isal_zlib.compressobj(_GZIP_LEVEL, isal_zlib.DEFLATED, 31)
    return made
