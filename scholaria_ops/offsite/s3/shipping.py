"""Bringing one set to a bucket: payload first, commit marker last, every byte accounted for."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

from scholaria_ops.cancel import CancelToken
from scholaria_ops.catalogue.artifacts import check_relative
from scholaria_ops.catalogue.ledger import Ledger
from scholaria_ops.errors import OpsError, Refused, UsageError, VerificationFailed
from scholaria_ops.offsite.base import MARKER, Confirmation, Existing, FileToShip, ShippedFile, ShipReport
from scholaria_ops.offsite.guard import Guard, side_by_side
from scholaria_ops.offsite.s3.errors import NotSupported, PreconditionFailed
from scholaria_ops.offsite.s3.lanes import Lanes
from scholaria_ops.offsite.s3.listing import Listed
from scholaria_ops.offsite.s3.reading import Reader, head, read_whole
from scholaria_ops.offsite.s3.sending import Sender, Sent
from scholaria_ops.offsite.s3.wire import Wire, encoded
from scholaria_ops.progress import Progress

log = logging.getLogger("scholaria_ops.offsite")


@dataclass(frozen=True)
class Shipment:
    """One set on its way. ``folder`` is the key prefix of the set; ``there`` what stood below it at the beginning."""

    name: str
    directory: Path
    folder: str
    files: Mapping[str, FileToShip]
    last: Sequence[str]
    there: Mapping[str, Listed]
    confirm: Confirmation
    existing: Existing
    concurrency: int
    warnings: list[str] = field(default_factory=list)


class Shipping:
    """Carries out one :class:`Shipment`."""

    def __init__(self, wire: Wire, ledger: Ledger, guard: Guard, progress: Progress, shipment: Shipment) -> None:
        self._wire = wire
        self._ledger = ledger
        self._guard = guard
        self._progress = progress
        self._ship = shipment
        self._one_at_a_time = threading.Lock()
        self._up = f"offsite: upload {shipment.name}"
        self._back = f"offsite: read back {shipment.name}"

    def run(self) -> ShipReport:
        """Ship, confirm, commit. See ``OffsiteTarget.upload_set`` for the promises."""
        began = self._sent_at = time.monotonic()
        ship = self._ship
        committed = self._committed()
        if committed and ship.existing == "trust" and self._all_listed():
            shipped = [self._earlier(file) for file in ship.files.values()]
        else:
            shipped = self._transfer(committed=committed)
        return ShipReport(
            ship.name,
            self._wire.target(ship.folder),
            tuple(sorted(shipped, key=lambda s: s.path)),
            sum(s.size_bytes for s in shipped),
            sum(s.size_bytes for s in shipped if not s.skipped),
            time.monotonic() - began,
            already_there=all(s.skipped for s in shipped),
            warnings=tuple(ship.warnings),
            sending_s=self._sent_at - began,
        )

    def _committed(self) -> bool:
        """Whether this very set stands there complete. Another one of that name, or foreign files, are refused."""
        ship = self._ship
        if MARKER not in ship.there:
            if foreign := sorted(set(ship.there) - set(ship.files)):
                raise Refused(
                    f"{self._wire.target(ship.folder + foreign[0])} is in the way: {len(foreign)} file(s) there are not of this set",
                    hint="Nobody has committed them. See where they come from and remove them, then ship again.",
                )
            return False
        self._refuse_other_marker()
        if foreign := sorted(set(ship.there) - set(ship.files)):
            ship.warnings.append(f"files that are not of the set stand beside it: {', '.join(foreign[:5])}")
        return True

    def _refuse_other_marker(self) -> None:
        key = self._ship.folder + MARKER
        if hashlib.sha256(read_whole(self._wire, self._guard, key)).hexdigest() != self._ship.files[MARKER].sha256:
            raise Refused(
                f"another set of that name is complete offsite: {self._wire.target(key)} has other content",
                hint="It is never overwritten. Two installations may share this prefix: give each its own BACKUP_S3_PREFIX.",
            )

    def _all_listed(self) -> bool:
        """Whether every file of the committed set is there with its size; what is not will be shipped again."""
        there, files = self._ship.there, self._ship.files
        bad = sorted(p for p, f in files.items() if p not in there or there[p].size_bytes != f.size_bytes)
        if bad:
            self._ship.warnings.append(f"the committed copy had lost or damaged files, which were shipped again: {', '.join(bad[:5])}")
        return not bad

    def _earlier(self, file: FileToShip) -> ShippedFile:
        return self._shipped(file, skipped=True, confirmed_by="earlier")

    def _transfer(self, *, committed: bool) -> list[ShippedFile]:
        ship = self._ship
        total = sum(f.size_bytes for f in ship.files.values())
        self._progress.start(self._up, total=total)
        if ship.confirm == "readback":
            self._progress.start(self._back, total=total)
        with Lanes(self._guard, concurrency=ship.concurrency, buffer_size=self._wire.options.part_size) as lanes:
            self._sender = Sender(
                self._wire,
                self._ledger,
                self._guard,
                lanes,
                checksums=ship.confirm == "checksum" or self._wire.options.checksums == "when_supported",
                on_bytes=lambda n: self._progress.advance(self._up, n),
            )
            self._reader = Reader(self._wire, self._guard, lanes, on_bytes=lambda n: self._progress.advance(self._back, n))
            payload = [file for path, file in ship.files.items() if path not in ship.last]
            # Largest first: the longest one decides when everything is done.
            payload.sort(key=lambda f: -f.size_bytes)
            shipped = side_by_side(self._guard, [partial(self._deliver, file) for file in payload], workers=ship.concurrency)
            shipped += self._commit(committed=committed)
        self._progress.finish(self._up)
        if ship.confirm == "readback":
            self._progress.finish(self._back)
        return shipped

    def _deliver(self, file: FileToShip) -> ShippedFile:
        """Make sure that one file stands there, sending it only if it does not."""
        began = time.monotonic()
        listed = self._ship.there.get(file.path)
        if listed is not None and listed.size_bytes == file.size_bytes and (by := self._holds(file)):
            self._progress.advance(self._up, file.size_bytes)
            return self._shipped(file, skipped=True, confirmed_by=by, confirm_s=time.monotonic() - began)
        # The largest first and with all lanes, so that it is read back while the others are still being sent.
        with self._one_at_a_time if file.size_bytes > self._wire.options.part_size else contextlib.nullcontext():
            sent = self._sender.send(self._ship.directory / file.path, file, self._ship.folder + file.path)
        sent_at = time.monotonic()
        if file.path not in self._ship.last:
            self._sent_at = max(self._sent_at, sent_at)
        by = self._confirm(file, sent)
        return self._shipped(file, skipped=False, confirmed_by=by, upload_s=sent_at - began, confirm_s=time.monotonic() - sent_at)

    def _holds(self, file: FileToShip) -> Confirmation | None:
        """Whether what an earlier run left is this file. Metadata may rule it out; only its content rules it in."""
        key = self._ship.folder + file.path
        claimed = head(self._wire, self._guard, key)
        if claimed.sha256 not in {"", file.sha256}:
            return None
        if self._ship.confirm == "checksum" and claimed.checksum_sha256 == encoded(bytes.fromhex(file.sha256)):
            return "checksum"
        difference = self._reader.difference(key, self._sender.fingerprint(self._ship.directory / file.path, file))
        if not difference:
            return "readback"
        self._ship.warnings.append(f"{file.path} stood there with {difference} and was replaced")
        log.warning("%s stands there with %s; sending it again", self._wire.target(key), difference)
        return None

    def _confirm(self, file: FileToShip, sent: Sent) -> Confirmation:
        """Prove a file that was just sent."""
        key = self._ship.folder + file.path
        if self._ship.confirm == "checksum" and sent.plain:
            size = head(self._wire, self._guard, key).size_bytes
            if size != file.size_bytes:
                raise _came_back_wrong(self._wire.target(key), file, f"{size:,} bytes")
            return "checksum"
        if difference := self._reader.difference(key, sent.print):
            raise _came_back_wrong(self._wire.target(key), file, difference)
        return "readback"

    def _commit(self, *, committed: bool) -> list[ShippedFile]:
        """The last files one after another, then the marker, which must not be there yet."""
        shipped = [self._deliver(self._ship.files[path]) for path in self._ship.last[:-1]]
        marker = self._ship.files[MARKER]
        if committed:
            return [*shipped, self._shipped(marker, skipped=True, confirmed_by="readback")]
        began = time.monotonic()
        sent = self._put_marker(marker)
        sent_at = time.monotonic()
        if sent is None:
            return [*shipped, self._shipped(marker, skipped=True, confirmed_by="readback", confirm_s=sent_at - began)]
        try:
            by = self._confirm(marker, sent)
        except VerificationFailed:
            self._withdraw_marker()
            raise
        seconds = {"upload_s": sent_at - began, "confirm_s": time.monotonic() - sent_at}
        return [*shipped, self._shipped(marker, skipped=False, confirmed_by=by, **seconds)]

    def _put_marker(self, marker: FileToShip) -> Sent | None:
        """Commit. None if an identical set was committed meanwhile (by another host, or by our own attempt whose answer got lost)."""
        local, key = self._ship.directory / MARKER, self._ship.folder + MARKER
        try:
            return self._sender.send(local, marker, key, only_if_absent=True)
        except PreconditionFailed:
            self._refuse_other_marker()
            return None
        except NotSupported:
            # We looked a moment ago (preflight warns about such services), and our own lock keeps a second shipment out.
            self._ship.warnings.append("this service knows no conditional writes; the marker was written after looking")
            return self._sender.send(local, marker, key)

    def _withdraw_marker(self) -> None:
        """Our marker arrived damaged: nobody may take this set for complete."""
        key = self._ship.folder + MARKER
        bucket = self._wire.options.bucket
        with Guard(CancelToken(), what="withdrawing the marker", deadline_s=60.0) as guard:
            try:
                self._wire.call("DeleteObject", lambda client: client.delete_object(Bucket=bucket, Key=key), guard=guard, key=key)
            except OpsError as exc:
                log.error("%s is damaged and could not be removed: %s", self._wire.target(key), exc)  # noqa: TRY400 - the cause is raised next

    def _shipped(
        self,
        file: FileToShip,
        *,
        skipped: bool,
        confirmed_by: Confirmation | Literal["earlier"],
        upload_s: float = 0.0,
        confirm_s: float = 0.0,
    ) -> ShippedFile:
        where = self._wire.target(self._ship.folder + file.path)
        return ShippedFile(file.path, where, file.size_bytes, file.sha256, skipped, confirmed_by, upload_s, confirm_s)


def checked_files(files: Sequence[FileToShip], last: Sequence[str]) -> dict[str, FileToShip]:
    """``files`` by path, once they make sense together with ``last``."""
    by_path = {file.path: file for file in files}
    for path in by_path:
        check_relative(path)
    if len(by_path) != len(files):
        raise UsageError("a file is named twice in the set")
    if not last or last[-1] != MARKER or len(set(last)) != len(last) or not set(last) <= set(by_path):
        raise UsageError(f"the files that come last must be of the set, each once, and end with {MARKER}")
    return by_path


def _came_back_wrong(where: str, file: FileToShip, found: str) -> VerificationFailed:
    return VerificationFailed(
        f"{file.path} came back from {where} with {found}; it has {file.size_bytes:,} bytes, SHA-256 {file.sha256}",
        hint="It was damaged on the way or there. Ship again: files that are right are kept, this one is replaced.",
    )
