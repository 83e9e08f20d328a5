"""An S3 bucket as an offsite target: the seam's methods, each delegating to the module that does the work."""

from __future__ import annotations

import contextlib
import re
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from scholaria_ops.cancel import CancelToken
from scholaria_ops.catalogue.artifacts import check_relative
from scholaria_ops.catalogue.ledger import Entry, Ledger
from scholaria_ops.errors import OffsiteError, UsageError, VerificationFailed
from scholaria_ops.files import disk_full, fsync_dir, make_private_dir
from scholaria_ops.offsite.base import (
    MARKER,
    SMALL_LIMIT,
    Confirmation,
    Digest,
    Existing,
    FetchReport,
    FileToShip,
    RemoteFile,
    RemoteSet,
    ShipReport,
    TargetFacts,
    check_name,
)
from scholaria_ops.offsite.guard import Guard, side_by_side
from scholaria_ops.offsite.s3 import listing
from scholaria_ops.offsite.s3.errors import NoSuchObject, NoSuchUpload, NotSupported
from scholaria_ops.offsite.s3.lanes import Lanes
from scholaria_ops.offsite.s3.listing import Listed
from scholaria_ops.offsite.s3.options import S3Options
from scholaria_ops.offsite.s3.probing import Probe
from scholaria_ops.offsite.s3.reading import Reader, read_whole
from scholaria_ops.offsite.s3.sending import UPLOAD, abort, is_abandoned
from scholaria_ops.offsite.s3.shipping import Shipment, Shipping, checked_files
from scholaria_ops.offsite.s3.wire import Wire
from scholaria_ops.progress import Progress

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_RECORDS = ".records/"
_RECORD_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")


class S3Target:
    """Keeps sets below a bucket's prefix: ``<prefix>/<set>/<path>``, records in ``<prefix>/.records/<id>.jsonl``.

    Keeps the promises of ``OffsiteTarget``. ``ledger`` remembers multipart uploads across a crash.
    """

    def __init__(self, options: S3Options, ledger: Ledger) -> None:
        self._options = options
        self._ledger = ledger
        self._wire = Wire(options)
        self._checksums_proven = False

    @property
    def where(self) -> str:
        """The target's address, safe to print."""
        return self._options.where

    def close(self) -> None:
        """Give back connections. The target may be used again afterwards."""
        self._wire.close()

    def preflight(self, *, cancel: CancelToken) -> TargetFacts:
        """See whether sets could be shipped; see ``OffsiteTarget.preflight``."""
        with Guard(cancel, what=f"the preflight of {self.where}") as guard:
            return Probe(self._wire, guard).preflight()

    def upload_set(
        self,
        directory: Path,
        name: str,
        files: Sequence[FileToShip],
        last: Sequence[str],
        *,
        confirm: Confirmation,
        cancel: CancelToken,
        progress: Progress,
        existing: Existing = "trust",
        concurrency: int | None = None,
    ) -> ShipReport:
        """Bring a set to the bucket and prove that it is there; see ``OffsiteTarget.upload_set``."""
        folder = self._folder(name)
        by_path = checked_files(files, last)
        with Guard(cancel, what=f"shipping {name}") as guard:
            if confirm == "checksum" and not self._checksums_proven:
                Probe(self._wire, guard).require_checksums()
                self._checksums_proven = True
            there = self._below(guard, folder)
            lanes = concurrency or self._options.concurrency
            shipment = Shipment(name, directory, folder, by_path, tuple(last), there, confirm, existing, lanes)
            return Shipping(self._wire, self._ledger, guard, progress, shipment).run()

    def download_set(
        self,
        name: str,
        into: Path,
        *,
        cancel: CancelToken,
        progress: Progress,
        only: Collection[str] | None = None,
        expected: Mapping[str, str] | None = None,
        deadline_s: float | None = None,
        concurrency: int | None = None,
    ) -> FetchReport:
        """Fetch a complete set or some of its files; see ``OffsiteTarget.download_set``."""
        began = time.monotonic()
        folder = self._folder(name)
        with Guard(cancel, what=f"fetching {name}", deadline_s=deadline_s) as guard:
            wanted = self._wanted(guard, name, folder, only, expected)
            total = sum(found.size_bytes for found in wanted.values())
            if shutil.disk_usage(into).free < total:
                raise disk_full(into, needed=total)
            for parent in sorted({(into / path).parent for path in wanted}):
                make_private_dir(parent, exist_ok=True)
            task = f"offsite: fetch {name}"
            progress.start(task, total=total)
            with self._reading(guard, lambda n: progress.advance(task, n), concurrency) as (reader, workers):
                jobs = [
                    partial(
                        reader.download,
                        path,
                        found.key,
                        into / path,
                        size=found.size_bytes,
                        etag=found.etag,
                        expected=expected[path] if expected is not None else None,
                    )
                    for path, found in sorted(wanted.items(), key=lambda item: -item[1].size_bytes)
                ]
                digests: list[Digest] = side_by_side(guard, jobs, workers=workers)
            for parent in {(into / path).parent for path in wanted} | {into}:
                fsync_dir(parent)
            progress.finish(task)
        return FetchReport(name, tuple(sorted(digests, key=lambda d: d.path)), total, time.monotonic() - began)

    def list_sets(self, *, cancel: CancelToken) -> list[RemoteSet]:
        """Every set below the prefix, complete or not; see ``OffsiteTarget.list_sets``."""
        found: dict[str, list[Listed]] = {}
        prefix = self._options.prefix
        with Guard(cancel, what=f"listing {self.where}") as guard:
            for listed in listing.objects(self._wire, guard, prefix):
                name, slash, path = listed.key.removeprefix(prefix).partition("/")
                if slash and path and not name.startswith("."):
                    found.setdefault(name, []).append(listed)
        return [
            RemoteSet(
                name,
                any(f.key == f"{prefix}{name}/{MARKER}" for f in files),
                len(files),
                sum(f.size_bytes for f in files),
                max(f.modified for f in files),
            )
            for name, files in sorted(found.items())
        ]

    def list_files(self, name: str, *, cancel: CancelToken) -> list[RemoteFile]:
        """The files of one set; see ``OffsiteTarget.list_files``."""
        with Guard(cancel, what=f"listing {name}") as guard:
            there = self._below(guard, self._folder(name))
        return [RemoteFile(path, found.size_bytes, found.modified) for path, found in sorted(there.items())]

    def read_small(self, name: str, path: str, *, cancel: CancelToken) -> bytes:
        """The content of a small file; see ``OffsiteTarget.read_small``."""
        with Guard(cancel, what=f"reading {path} of {name}") as guard, _existing(name, path):
            return read_whole(self._wire, guard, self._key(name, path))

    def read_back(self, name: str, path: str, *, cancel: CancelToken, progress: Progress) -> Digest:
        """Read one file in full and hash it; see ``OffsiteTarget.read_back``."""
        key = self._key(name, path)
        task = f"offsite: read back {name}/{path}"
        with Guard(cancel, what=f"reading back {path} of {name}") as guard, _existing(name, path):
            progress.start(task)
            with self._reading(guard, lambda n: progress.advance(task, n), None) as (reader, _):
                digest = reader.digest(path, key)
            progress.finish(task)
        return digest

    def put_records(self, set_id: str, content: bytes, *, cancel: CancelToken) -> None:
        """Replace the records of a set and read them back; see ``OffsiteTarget.put_records``."""
        if not _RECORD_ID.fullmatch(set_id):
            raise UsageError(f"{set_id!r} is not the id of a set")
        if len(content) > SMALL_LIMIT:
            raise UsageError(f"the records of {set_id} have {len(content):,} bytes; {SMALL_LIMIT:,} are allowed")
        key = f"{self._options.prefix}{_RECORDS}{set_id}.jsonl"
        with Guard(cancel, what=f"storing the records of {set_id}") as guard:

            def ask(client: S3Client) -> None:
                # Standard class: these are replaced often, and others charge a minimum stay for every version.
                client.put_object(Bucket=self._options.bucket, Key=key, Body=content, **self._wire.checksum(content))

            self._wire.call("PutObject", ask, guard=guard, key=key)
            if read_whole(self._wire, guard, key) != content:
                raise VerificationFailed(f"{self._wire.target(key)} came back with other bytes than were sent", hint="Ship the set again.")

    def get_records(self, *, cancel: CancelToken) -> dict[str, bytes]:
        """All records by set id; see ``OffsiteTarget.get_records``."""
        folder = f"{self._options.prefix}{_RECORDS}"
        with Guard(cancel, what=f"reading the records in {self.where}") as guard:
            keys = [found.key for found in listing.objects(self._wire, guard, folder)]
            ids = {key: key.removeprefix(folder).removesuffix(".jsonl") for key in keys if key.endswith(".jsonl")}
            ours = [key for key, set_id in ids.items() if _RECORD_ID.fullmatch(set_id)]
            jobs = [partial(read_whole, self._wire, guard, key) for key in ours]
            contents: list[bytes] = side_by_side(guard, jobs, workers=self._options.concurrency)
        return {ids[key]: content for key, content in zip(ours, contents, strict=True)}

    def delete_set(self, name: str, *, cancel: CancelToken) -> int:
        """Remove a set, its marker first; see ``OffsiteTarget.delete_set``."""
        folder = self._folder(name)
        with Guard(cancel, what=f"deleting {name}") as guard:
            keys = [found.key for found in listing.objects(self._wire, guard, folder)]
            marker = folder + MARKER
            if marker in keys:
                self._delete(guard, marker)
            # One by one: the bulk call answers 200 with errors inside, and providers disagree about the checksum it needs.
            jobs = [partial(self._delete, guard, key) for key in keys if key != marker]
            side_by_side(guard, jobs, workers=self._options.concurrency)
            if left := [found.key for found in listing.objects(self._wire, guard, folder)]:
                raise OffsiteError(
                    f"{len(left)} file(s) of {name} are still there, the first is {self._wire.target(left[0])}",
                    hint="Something keeps them or writes there again; look at the bucket's rules, then delete again.",
                )
        return len(keys)

    def reap(self, *, cancel: CancelToken) -> list[str]:
        """Remove multipart uploads that killed runs left: those in our ledger, and any below our prefix that is long abandoned."""
        done: list[str] = []
        with Guard(cancel, what=f"cleaning up in {self.where}") as guard:
            entries = self._ledger.entries(UPLOAD)
            # Whoever is alive is spared under whatever address it reaches the bucket.
            alive = {str(e.facts["key"]) for e in entries if not is_abandoned(e)}
            orphans = [e for e in entries if is_abandoned(e) and self._is_here(e)]
            known = {str(e.facts["upload_id"]): str(e.facts["key"]) for e in orphans if "upload_id" in e.facts}
            done += [self._aborted(key, "by the ledger") for upload_id, key in known.items() if abort(self._wire, guard, key, upload_id)]
            # Begun but killed before its id was written down: only its key and time are known.
            unnamed = {str(e.facts["key"]): e.at for e in orphans if "upload_id" not in e.facts}
            done += self._reap_unknown(guard, unnamed, alive, known)
            for entry in orphans:
                self._ledger.close(entry.key)
        return done

    def _reap_unknown(self, guard: Guard, unnamed: Mapping[str, datetime], alive: set[str], known: Mapping[str, str]) -> list[str]:
        done: list[str] = []
        abandoned = datetime.now(UTC) - timedelta(seconds=self._options.stale_upload_s)
        try:
            pending = list(listing.uploads(self._wire, guard, self._options.prefix))
        except (NotSupported, NoSuchUpload):
            return done  # the service keeps no such list (rclone's endpoint answers so): nothing to find
        for upload in pending:
            ours = upload.key in unnamed or upload.initiated < abandoned
            if (
                ours
                and upload.key not in alive
                and upload.upload_id not in known
                and abort(self._wire, guard, upload.key, upload.upload_id)
            ):
                done.append(self._aborted(upload.key, f"begun {upload.initiated:%Y-%m-%d %H:%M} UTC"))
        return done

    def _aborted(self, key: str, why: str) -> str:
        return f"removed the half-sent {self._wire.target(key)} ({why})"

    def _is_here(self, entry: Entry) -> bool:
        facts = entry.facts
        return (facts["endpoint"], facts["bucket"]) == (self._options.endpoint_url or "", self._options.bucket)

    @contextlib.contextmanager
    def _reading(self, guard: Guard, on_bytes: Callable[[int], None], concurrency: int | None) -> Iterator[tuple[Reader, int]]:
        workers = concurrency or self._options.concurrency
        with Lanes(guard, concurrency=workers, buffer_size=self._options.part_size) as lanes:
            yield Reader(self._wire, guard, lanes, on_bytes=on_bytes), workers

    def _delete(self, guard: Guard, key: str) -> None:
        self._wire.call("DeleteObject", lambda client: client.delete_object(Bucket=self._options.bucket, Key=key), guard=guard, key=key)

    def _folder(self, name: str) -> str:
        return f"{self._options.prefix}{check_name(name)}/"

    def _key(self, name: str, path: str) -> str:
        check_relative(path)
        return self._folder(name) + path

    def _below(self, guard: Guard, folder: str) -> dict[str, Listed]:
        """Objects of one set by relative path. Folder placeholders that consoles make are passed over."""
        found = (o for o in listing.objects(self._wire, guard, folder) if not o.key.endswith("/"))
        return {listing.safe_path(self._wire, o, folder): o for o in found}

    def _wanted(
        self, guard: Guard, name: str, folder: str, only: Collection[str] | None, expected: Mapping[str, str] | None
    ) -> dict[str, Listed]:
        there = self._below(guard, folder)
        if MARKER not in there:
            raise UsageError(f"there is no complete set {name} in {self.where}", hint="List the sets that are there.")
        wanted = there if only is None else {path: there[path] for path in only if path in there}
        if only is not None and (missing := sorted(set(only) - set(there))):
            raise UsageError(
                f"{missing[0]} is not in {name} in {self.where}", hint="The offsite copy is damaged, or it never had that file."
            )
        if expected is not None:
            if missing := sorted(set(expected) - set(there)) if only is None else []:
                raise VerificationFailed(
                    f"{missing[0]} is missing from {name} in {self.where}", hint="Use another set; this copy is damaged."
                )
            if stray := sorted(set(wanted) - set(expected)):
                raise VerificationFailed(f"{stray[0]} in {name} in {self.where} is not of the set", hint="Find out who put it there.")
        return wanted


@contextlib.contextmanager
def _existing(name: str, path: str) -> Iterator[None]:
    """A missing object is the caller's mistake, in the caller's words."""
    try:
        yield
    except NoSuchObject as exc:
        raise UsageError(
            f"there is no {path} in {name} offsite: {exc.message}", hint="`scholaria-ops sync` names the sets that are there and not here."
        ) from exc
