"""Take an old-style set over: load its files into throw-away servers, measure them, and seal a regular set of the result.

The old scripts wrote no evidence, so nothing can prove that a file still holds what was once in the store. What can be shown
is shown: every file is read to its end, loaded into the store's own software, and measured; from then on the new set is
proven against that. It remembers whose data it holds: the old set's name, and the digest of each of its files.

No live store is touched. The old set stays as it is.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from scholaria_ops import __version__
from scholaria_ops.cancel import CancelToken
from scholaria_ops.catalogue.commit import staging
from scholaria_ops.catalogue.evidence.base import STORE_NAMES, StoreName
from scholaria_ops.catalogue.layout import id_from_name, label_instant
from scholaria_ops.catalogue.legacy import LegacySet
from scholaria_ops.catalogue.manifest import Adopted, AdoptedFile, Manifest, Origin
from scholaria_ops.catalogue.records import whoami
from scholaria_ops.catalogue.sets import BackupSet, Entry
from scholaria_ops.errors import Cancelled, DiskFull, OpsError, Refused, UsageError, VerificationFailed
from scholaria_ops.files import hash_file
from scholaria_ops.operations.backup import BackupRequest, reserve
from scholaria_ops.operations.restore_text import restore_text
from scholaria_ops.operations.services import Services
from scholaria_ops.operations.verify import VerifyReport, verify
from scholaria_ops.operations.verify_legacy import verify_legacy
from scholaria_ops.sandbox.identity import server_account
from scholaria_ops.sandbox.sandbox import Sandbox
from scholaria_ops.stores.base import Context, Dump
from scholaria_ops.stores.postgres import adopt as postgres
from scholaria_ops.stores.postgres.dump import DumpOptions
from scholaria_ops.stores.qdrant import adopt as qdrant
from scholaria_ops.stores.qdrant.measure import Limits, collections_of
from scholaria_ops.stores.qdrant.names import opens
from scholaria_ops.stores.qdrant.rest import Rest
from scholaria_ops.stores.qdrant.scratch import program_version
from scholaria_ops.stores.redis import adopt as redis

#: A compressed dump as a database with its indexes, and an archive or an RDB unpacked beside what is served from it.
_GROWS = {"postgres": 10, "redis": 4, "qdrant": 3}
_HEADROOM_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class AdoptOptions:
    """What was asked for, beside the old set."""

    #: Empty for every store.
    components: tuple[StoreName, ...] = ()
    #: The collection of a Qdrant snapshot that does not tell it.
    collection: str = ""


@dataclass(frozen=True, slots=True)
class Adoption:
    """The regular set that stands for an old one. ``verified`` is None if it had been adopted before."""

    set: BackupSet
    old: str
    verified: VerifyReport | None

    @property
    def fresh(self) -> bool:
        return self.verified is not None

    @property
    def warnings(self) -> tuple[str, ...]:
        """What could not be known, store by store."""
        return tuple(f"{name}: {line}" for name, part in self.set.manifest.parts() for line in part.warnings)


def adopt(services: Services, reference: str, options: AdoptOptions, *, run_id: str = "") -> Adoption:
    """Seal a regular set of what an old-style one holds, and verify it. One that was adopted already is returned as it is.

    Args:
        reference: id or path of the old-style set.

    Raises:
        UsageError: it is no old-style set, or has not what was asked for.
        Refused: a file is missing, nobody vouches for it, or no program here reads it; the message says what to leave out.
        VerificationFailed: a file is damaged.
        DiskFull: there is no room for it.
        Cancelled: told to stop; nothing remains.
    """
    entry = services.catalogue.find(reference)
    legacy = entry.legacy
    if legacy is None:
        raise UsageError(f"{entry.name} is no old-style set: it is {entry.kind}", hint=_hint_for(entry))
    names = _components(entry, reference, legacy, options)
    origin = _origin(legacy, names, services)
    if known := _adopted_already(services, origin):
        services.progress.say(f"{entry.name} was adopted already, as {known.id}")
        if not services.catalogue.find(known.id).verified_at:  # stopped before it was verified
            _verified(services, known.id, run_id)
        return Adoption(known, entry.name, None)
    files = ", ".join(f.name for f in origin.files)
    services.progress.say(
        f"adopting {entry.name}: {files} are loaded into throw-away servers here, measured, and sealed as a regular set. "
        "No live store is touched by that, and the old set stays as it is."
    )
    request = BackupRequest(note=f"adopted from {entry.name}", requested_by=whoami(), run_id=run_id)
    set_id = reserve(services, request)
    with (
        services.audited("adopt", set_id, run_id=run_id, old=entry.name, files={f.name: f.sha256 for f in origin.files}) as audited,
        services.locked(f"adopt {entry.name}"),
        services.context(f"adopt-{set_id}") as ctx,
    ):
        sealed = _Job(services, reference, legacy, names, options, origin, set_id, request, ctx).run()
        audited.note(size_bytes=sealed.manifest.size_bytes, sums_sha256=sealed.sums_sha256)
    return Adoption(sealed, entry.name, _verified(services, set_id, run_id))


def _verified(services: Services, set_id: str, run_id: str) -> VerifyReport:
    report = verify(services, services.catalogue.find(set_id), "readable", run_id=run_id)
    report.raise_if_failed()
    return report


def _hint_for(entry: Entry) -> str:
    return f"Restore it as it is: scholaria-ops restore {entry.id}" if entry.set else entry.reason


def _components(entry: Entry, reference: str, legacy: LegacySet, options: AdoptOptions) -> tuple[StoreName, ...]:
    """What is taken over. Nothing is left out in silence: a store that cannot be is refused until somebody says which others."""
    troubles = {name: legacy.trouble_of(name) for name in STORE_NAMES}
    sound = [name for name in STORE_NAMES if not troubles[name]]
    wanted = tuple(name for name in STORE_NAMES if name in (options.components or STORE_NAMES))
    if wrong := [f"{name}: {troubles[name]}" for name in wanted if troubles[name]]:
        rest = " ".join(f"--component {name}" for name in sound)
        raise Refused(
            f"{entry.name} cannot be restored as a whole: {'; '.join(wrong)}" if not options.components else f"{entry.name}: {wrong[0]}",
            hint=f"What is sound can be restored alone: scholaria-ops restore {reference} {rest}" if sound else "Use another set.",
        )
    return wanted


def _origin(legacy: LegacySet, names: Sequence[StoreName], services: Services) -> Adopted:
    """Name and digest of every file, as it lies there now."""
    files = []
    for name in names:
        for path in legacy.files_of(name):
            services.cancel.check()
            found = hash_file(path)
            files.append(AdoptedFile(store=name, name=path.name, size_bytes=found.size, sha256=found.sha256))
    return Adopted(name=legacy.directory.name, files=tuple(files))


def _adopted_already(services: Services, origin: Adopted) -> BackupSet | None:
    """The newest set that was made of these very files, unless its newest verification failed."""
    for entry in reversed(services.catalogue.entries()):
        sealed = entry.last("sealed")
        failed = entry.last("verified") and not entry.verified_at
        if entry.set and not failed and sealed and sealed.detail.get("adopted") == origin.name:
            found = BackupSet.open(entry.directory)
            if found.manifest.origin.adopted == origin:
                return found
    return None


@dataclass
class _Job:
    """One adoption under way, under the lock."""

    services: Services
    reference: str
    legacy: LegacySet
    names: tuple[StoreName, ...]
    options: AdoptOptions
    origin: Adopted
    set_id: str
    request: BackupRequest
    ctx: Context

    def run(self) -> BackupSet:
        services = self.services
        started = services.now()
        self._refuse_full()
        self._read_everything()
        with (
            staging(services.catalogue.layout, self.set_id) as stage,
            Sandbox(services.settings.scratch_root, services.tools, label="adopt", cancel=services.cancel) as box,
        ):
            dumps = self._take_all(box, stage.path)
            self._still_the_same()
            manifest = self._manifest(started, dumps)
            text = restore_text(manifest, {n: services.stores[n].manual_restore(d.artifacts) for n, d in dumps.items()})
            sealed = stage.seal(manifest, text, cancel=services.cancel)
        self._record(sealed.manifest, sealed.sums_sha256)
        return sealed

    def _refuse_full(self) -> None:
        """An estimate on the safe side; whatever runs full nevertheless leaves nothing behind."""
        sizes = {n: sum(p.stat().st_size for p in self.legacy.files_of(n)) for n in self.names}
        scratch = sum(_GROWS[n] * size for n, size in sizes.items()) + _HEADROOM_BYTES
        needs: dict[Path, int] = {self.services.catalogue.layout.root: 2 * sum(sizes.values()) + _HEADROOM_BYTES, self.ctx.scratch: scratch}
        if server_account():
            needs[Path("/var/tmp")] = scratch  # noqa: S108 - where servers of another account keep their data
        for place, needed in needs.items():
            free = shutil.disk_usage(place).free
            if free < needed:
                raise DiskFull(
                    f"adopting {self.origin.name} may need {needed:,} bytes in {place}; {free:,} are free",
                    hint="Free space there, or take fewer stores at a time with --component.",
                )

    def _read_everything(self) -> None:
        """Its own checksums if there are any, and every file to its end. What nobody vouches for is not opened at all."""
        found = list(verify_legacy(self.legacy, "readable", self.ctx, stores=self.names))
        if failed := [f"  {subject}: {check.detail}" for subject, check in found if check.passed is False]:
            raise VerificationFailed(
                f"{self.origin.name} is damaged:\n" + "\n".join(failed), hint="Use another set, or only its sound stores with --component."
            )
        if unjudged := [f"  {name}: {check.detail}" for name, check in found if check.passed is None and name != "set"]:
            raise Refused(
                f"{self.origin.name} is not opened:\n" + "\n".join(unjudged),
                hint="If you trust these files: chown them to yourself and chmod go-w them and their directory; install what is missing.",
            )

    def _take_all(self, box: Sandbox, into: Path) -> dict[StoreName, Dump[Any]]:
        """Side by side. The first failure stops the others."""
        makers: Mapping[StoreName, Callable[[Context], Dump[Any]]] = {
            "postgres": lambda ctx: self._postgres(box, into, ctx),
            "redis": lambda ctx: redis.adopt(self._file("redis"), into, self.set_id, self._named_at(), ctx),
            "qdrant": lambda ctx: self._qdrant(into, ctx),
        }

        token = CancelToken()

        def one(name: StoreName) -> Dump[Any]:
            scratch = self.ctx.scratch / name
            scratch.mkdir(mode=0o700)
            try:
                return makers[name](replace(self.ctx, scratch=scratch, cancel=token))
            except BaseException as exc:
                token.cancel(f"{name}: {exc}")
                raise

        outer = self.services.cancel
        with outer.on_cancel(lambda: token.cancel(outer.reason)), ThreadPoolExecutor(len(STORE_NAMES), "adopt") as pool:
            futures = {name: pool.submit(one, name) for name in self.names}
            try:
                wait(futures.values())
            except BaseException as exc:
                token.cancel(str(exc) or type(exc).__name__)  # the pool waits for its threads
                raise
        outer.check()
        if failures := [f for future in futures.values() if (f := future.exception()) is not None]:
            # What was stopped because of another store's failure is not the reason.
            raise next((f for f in failures if not isinstance(f, Cancelled)), failures[0])
        return {name: future.result() for name, future in futures.items()}

    def _file(self, name: StoreName) -> Path:
        return self.legacy.files_of(name)[0]

    def _named_at(self) -> datetime:
        """The instant in the set's name. The scripts ran in the server's zone, which nothing records."""
        found = id_from_name(self.legacy.directory.name)
        return label_instant(found, self.services.settings.timezone) if found else datetime.fromtimestamp(0, UTC)

    def _postgres(self, box: Sandbox, into: Path, ctx: Context) -> Dump[Any]:
        settings = self.services.settings
        server = box.postgres(name="postgres")
        old = postgres.Old(self._file("postgres"), settings.postgres.dbname, self._named_at())
        options = DumpOptions(settings.pg_compression, settings.pg_lock_timeout_s, settings.fingerprint_max_bytes)
        return postgres.adopt(old, server, options, into, self.set_id, ctx)

    def _qdrant(self, into: Path, ctx: Context) -> Dump[Any]:
        limits = Limits()
        if (most := self.services.settings.qdrant_fingerprint_max_points) is not None:
            limits = replace(limits, fingerprint_max_points=most)
        version, names = self._live_qdrant(ctx)
        try:
            old = qdrant.look_into(self.legacy.files_of("qdrant"), ctx, collection=self.options.collection)
        except Refused as exc:
            if "--collection" in exc.hint:
                exc.hint = f"Name it once: scholaria-ops adopt {self.reference} --collection NAME, and repeat what you did. " + (
                    f"The live Qdrant has {', '.join(names)}." if names else "The live Qdrant does not tell which it has."
                )
            raise
        return qdrant.adopt(old, into, self.set_id, self._named_at(), version, limits, ctx)

    def _live_qdrant(self, ctx: Context) -> tuple[str, list[str]]:
        """The live server's version, if its snapshots open here, and its collections; empty where it does not answer."""
        ours = program_version(ctx.tools)
        try:
            with Rest(self.services.settings.qdrant, cancel=ctx.cancel) as rest:
                return (rest.version if ours and opens(rest.version, ours) else ""), collections_of(rest)
        except OpsError as exc:
            ctx.cancel.check()
            self.services.log.info("the live Qdrant does not tell its version: %s", exc)
            return "", []

    def _still_the_same(self) -> None:
        if _origin(self.legacy, self.names, self.services) != self.origin:
            raise Refused(f"the files of {self.origin.name} changed while they were read", hint="Leave it alone and run again.")

    def _manifest(self, started: datetime, dumps: Mapping[StoreName, Dump[Any]]) -> Manifest:
        by = whoami()
        parts: dict[str, Any] = {
            name: {
                "source": f"{self.origin.name}: {', '.join(self.origin.names_of(name))}",
                "tool_versions": dict(made.tool_versions),
                "started_at": made.started_at,
                "finished_at": made.finished_at,
                "evidence": made.evidence,
                "warnings": made.warnings,
            }
            for name, made in dumps.items()
        }
        cuts = [made.evidence.cut_at for made in dumps.values()]
        return Manifest(
            id=self.set_id,
            tier=self.request.tier,
            timezone=self.services.settings.backup_timezone,
            started_at=started,
            finished_at=self.services.now(),
            skew_s=(max(cuts) - min(cuts)).total_seconds(),
            origin=Origin(
                product=f"scholaria-ops {__version__}",
                host=by.partition("@")[2],
                requested_by=self.request.requested_by,
                run_id=self.request.run_id,
                note=self.request.note,
                adopted=self.origin,
            ),
            missing={n: "not taken over from the old set" for n in STORE_NAMES if n not in dumps},
            artifacts=tuple(a for made in dumps.values() for a in made.artifacts),
            **parts,
        )

    def _record(self, manifest: Manifest, sums_sha256: str) -> None:
        """The same as for a backup; and it is held, because by the age of its data retention would remove it at once."""
        records = self.services.catalogue.records
        records.append(
            self.set_id,
            "sealed",
            run_id=self.request.run_id,
            sums_sha256=sums_sha256,
            partial=manifest.partial,
            tier=manifest.tier,
            size_bytes=manifest.size_bytes,
            duration_s=round(manifest.duration_s, 3),
            counts=manifest.counts(),
            cut_at=manifest.cut_at.astimezone(UTC).isoformat(),
            adopted=self.origin.name,
        )
        records.append(self.set_id, "held", run_id=self.request.run_id, why=self.request.note)
