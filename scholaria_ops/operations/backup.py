"""Take one backup set: dump the three stores side by side, seal what came of it.

A set is whole or it is not a set: if a store fails for good, what the others gave is sealed as a *partial* set under
another name, and the run fails naming the store.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from scholaria_ops import __version__
from scholaria_ops.cancel import CancelToken
from scholaria_ops.catalogue.artifacts import Artifact
from scholaria_ops.catalogue.commit import Staging, staging
from scholaria_ops.catalogue.evidence.base import STORE_NAMES, StoreName
from scholaria_ops.catalogue.evidence.correspondence import Correspondence
from scholaria_ops.catalogue.ids import check_usable, mint
from scholaria_ops.catalogue.manifest import Manifest, Origin, Tier
from scholaria_ops.catalogue.records import whoami
from scholaria_ops.catalogue.sets import BackupSet
from scholaria_ops.errors import Cancelled, DiskFull, OpsError, StoreError
from scholaria_ops.hashed import SETTLED_S
from scholaria_ops.operations.correspondence import correspondence
from scholaria_ops.operations.gate import CutGate
from scholaria_ops.operations.opened import Opened, remember
from scholaria_ops.operations.preflight import Preflight, preflight
from scholaria_ops.operations.restore.journal import Journals
from scholaria_ops.operations.restore.live import live_stores
from scholaria_ops.operations.restore.options import RestoreOptions
from scholaria_ops.operations.restore.recover import recover
from scholaria_ops.operations.restore_text import restore_text
from scholaria_ops.operations.services import AnyStore, Services
from scholaria_ops.process import redact
from scholaria_ops.stores.base import Context, Dump

#: Smaller artifacts are read back when the set is sealed, which takes no time.
_LARGE = 4 << 20

#: Who may ask for a backup that Dagster's sensor then starts → what its reservation says.
STARTED_BY_SENSOR = {"job": "backup_now in Dagster", "restore": "a finished restore"}


@dataclass(frozen=True, slots=True)
class BackupRequest:
    """What was asked for. ``requested_by`` names a person, a schedule or a job."""

    tier: Tier = "manual"
    note: str = ""
    requested_by: str = ""
    run_id: str = ""
    #: Only these stores; the set is then a partial one, as a safety set before restoring them may be. Empty for all.
    only: tuple[StoreName, ...] = ()


class BackupIncomplete(StoreError):
    """At least one store could not be dumped. ``partial`` is what was sealed of the others, if anything."""

    code = "backup_incomplete"

    def __init__(self, failures: Mapping[StoreName, OpsError], partial: BackupSet | None) -> None:
        self.failures = dict(failures)
        self.partial = partial
        lines = [f"{name} could not be backed up: {error}" for name, error in failures.items()]
        if partial:
            kept = ", ".join(name for name, _ in partial.manifest.parts())
            lines.append(f"kept as a partial set (counts for nothing, restorable store by store): {partial.directory.name} with {kept}")
        super().__init__("\n".join(lines), hint="Mend the cause and run the backup again.")


def reserve(services: Services, request: BackupRequest, *, taken: frozenset[str] = frozenset()) -> str:
    """Reserve a fresh id for a backup that is about to be started."""
    services.check_directory()
    return mint(
        services.catalogue,
        services.settings.timezone,
        services.now(),
        taken=taken,
        tier=request.tier,
        note=request.note,
        requested_by=request.requested_by,
    )


def existing(services: Services, set_id: str) -> BackupSet | None:
    """The sealed set of that id, if there is one already (running an id again must not touch it)."""
    directory = services.catalogue.layout.sealed(set_id)
    return BackupSet.open(directory) if directory.exists() else None


def backup(services: Services, set_id: str, request: BackupRequest) -> BackupSet:
    """Dump all stores and seal the set ``set_id``. Returns the set; an already sealed one is returned untouched.

    Raises:
        BackupIncomplete: a store failed; the others are kept as a partial set.
        Refused: the id is too old, or every store refused.
        DiskFull: there is no room; nothing was written.
        Busy: another run is at work.
        Cancelled: told to stop; nothing remains, here or on the servers.
    """
    with services.locked(f"backup {set_id}"):
        _settle_restores(services)
        return backup_holding_the_lock(services, set_id, request)


def _settle_restores(services: Services) -> None:
    """Take back or finish a restore that was cut off. Where that fails the backup goes on: it shows what is served now."""
    try:
        if not Journals(services.catalogue.layout).unfinished():
            return
        with services.context("recover") as ctx:
            for line in recover(services, live_stores(services, RestoreOptions()), ctx):
                services.progress.say(line)
    except OpsError as exc:
        services.log.warning("a restore that was cut off could not be settled: %s", exc)


def backup_holding_the_lock(services: Services, set_id: str, request: BackupRequest) -> BackupSet:
    """:func:`backup`, for whoever holds the estate lock already."""
    if request.only:
        services = dataclasses.replace(services, stores={n: services.stores[n] for n in STORE_NAMES if n in request.only})
    asked = {"tier": request.tier, "note": request.note, "requested_by": request.requested_by}
    with services.audited("backup", set_id, run_id=request.run_id, **asked) as entry:
        if (done := existing(services, set_id)) is not None:
            entry.note(already_sealed=True)
            return done
        check_usable(services.catalogue.records, set_id, services.settings.timezone, services.now())
        with services.context(f"backup-{set_id}") as ctx:
            try:
                sealed = _backup(services, set_id, request, ctx)
                entry.note(size_bytes=sealed.manifest.size_bytes, sums_sha256=sealed.sums_sha256)
                return sealed
            except OpsError as exc:
                services.catalogue.records.append(
                    set_id, "failed", run_id=request.run_id, code=exc.code, message=redact(exc.message, services.settings.secrets)
                )
                raise


def _backup(services: Services, set_id: str, request: BackupRequest, ctx: Context) -> BackupSet:
    reap_servers(services, ctx)
    started_at = services.now()
    looked = preflight(services, ctx)
    if full := looked.room:
        raise full
    failures: dict[StoreName, OpsError] = dict(looked.refusals)
    if not looked.facts:
        raise BackupIncomplete(failures, None)
    with staging(services.catalogue.layout, set_id) as stage, ThreadPoolExecutor(1, thread_name_prefix="correspondence") as beside:
        pairs = beside.submit(_correspondence, services, looked)
        with _read_back_early(stage, services.cancel) as written:
            dumps, broken = _dump_all(services, stage, looked, dataclasses.replace(ctx, written=written))
        failures.update(broken)
        if any(isinstance(e, DiskFull) and e.store is None for e in failures.values()):
            raise next(e for e in failures.values() if isinstance(e, DiskFull))
        if not dumps:
            raise BackupIncomplete(failures, None)
        _only_artifacts(stage.path, dumps)
        manifest = _manifest(services, set_id, request, started_at, dumps, failures, pairs.result())
        text = restore_text(manifest, {n: services.stores[n].manual_restore(d.artifacts) for n, d in dumps.items()})
        sealed = stage.seal(manifest, text, cancel=services.cancel)
    remember(request.run_id, sealed.directory, _opened(dumps))
    services.catalogue.records.append(
        set_id,
        "sealed",
        run_id=request.run_id,
        sums_sha256=sealed.sums_sha256,
        partial=manifest.partial,
        tier=manifest.tier,
        size_bytes=manifest.size_bytes,
        duration_s=round(manifest.duration_s, 3),
        counts=manifest.counts(),
        cut_at=manifest.cut_at.astimezone(UTC).isoformat(),
    )
    if failures:
        raise BackupIncomplete(failures, sealed)
    return sealed


def reap_servers(services: Services, ctx: Context) -> list[str]:
    """Remove what killed runs left on the live servers. A store that cannot be asked now is left for the next time."""
    lines: list[str] = []
    for name, store in services.stores.items():
        try:
            found = store.reap(ctx)
        except OpsError as exc:
            services.log.warning("%s: could not look for leftovers: %s", name, exc)
            continue
        lines += found
        for line in found:
            services.progress.say(line)
    return lines


def _dump_all(
    services: Services, stage: Staging, looked: Preflight, ctx: Context
) -> tuple[dict[StoreName, Dump[Any]], dict[StoreName, OpsError]]:
    """Run the dumps side by side; a failing store does not stop the others, cancellation stops all."""
    gate = CutGate(len(looked.facts), cancel=services.cancel)
    futures: dict[Future[Dump[Any]], StoreName] = {}
    dumps: dict[StoreName, Dump[Any]] = {}
    failures: dict[StoreName, OpsError] = {}
    with ThreadPoolExecutor(max_workers=len(STORE_NAMES), thread_name_prefix="dump") as pool:
        try:
            for name in looked.facts:
                futures[pool.submit(_dump_one, services.stores[name], stage, gate, ctx)] = name
            waiting = set(futures)
            while waiting:
                finished, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                for future in finished:
                    error = future.exception()
                    if error is None:
                        dumps[futures[future]] = future.result()
                    elif isinstance(error, Cancelled) or not isinstance(error, OpsError):
                        raise error
                    else:
                        failures[futures[future]] = error
        except BaseException as exc:
            services.cancel.cancel(str(exc) or type(exc).__name__)
            raise
    services.cancel.check()
    return {n: dumps[n] for n in STORE_NAMES if n in dumps}, failures


@contextlib.contextmanager
def _read_back_early(stage: Staging, cancel: CancelToken) -> Iterator[Callable[[Artifact], None]]:
    """Read large artifacts back while other stores are still being dumped. What is found wrong is found again, and told, at the sealing."""

    def one(artifact: Artifact) -> None:
        with contextlib.suppress(OpsError, OSError):
            cancel.wait(SETTLED_S)  # what was written this very moment would have to be read once more
            stage.read_back(artifact, cancel)

    def written(artifact: Artifact) -> None:
        if artifact.size_bytes >= _LARGE:
            pool.submit(one, artifact)

    with ThreadPoolExecutor(1, thread_name_prefix="read-back") as pool:
        yield written


def _correspondence(services: Services, looked: Preflight) -> Correspondence | None:
    """How rows and points correspond now: the baseline of a later restore. A set without it is sound all the same."""
    if not {"postgres", "qdrant"} <= looked.facts.keys():
        return None
    try:
        return correspondence(services.settings.postgres, services.settings.qdrant, cancel=services.cancel)
    except Cancelled:
        return None  # whoever cancelled says so himself
    except OpsError as exc:
        services.log.warning("rows and points were not compared: %s", exc)
        return None


def _dump_one(store: AnyStore, stage: Staging, gate: CutGate, ctx: Context) -> Dump[Any]:
    arrived = False

    def at_the_cut() -> None:
        nonlocal arrived
        arrived = True
        gate.arrive()

    scratch = ctx.scratch / store.name
    scratch.mkdir(mode=0o700)
    try:
        return store.dump(stage.path, stage.id, dataclasses.replace(ctx, scratch=scratch, at_the_cut=at_the_cut))
    finally:
        if not arrived:
            gate.leave()


def _opened(dumps: Mapping[StoreName, Dump[Any]]) -> dict[StoreName, Opened]:
    return {
        name: Opened(dump.finished_at, {a.path: a.sha256 for a in dump.artifacts}, dump.opened)
        for name, dump in dumps.items()
        if dump.opened
    }


def _only_artifacts(directory: Path, dumps: Mapping[StoreName, Dump[Any]]) -> None:
    """Remove what failed dumps left in the staging directory, so that a partial set holds only what its manifest names."""
    named = {artifact.path for dump in dumps.values() for artifact in dump.artifacts}
    for path in sorted(directory.rglob("*"), reverse=True):
        if path.is_dir() and not path.is_symlink():
            if not any(path.iterdir()):
                path.rmdir()
        elif path.relative_to(directory).as_posix() not in named:
            path.unlink()


def _manifest(
    services: Services,
    set_id: str,
    request: BackupRequest,
    started_at: datetime,
    dumps: Mapping[StoreName, Dump[Any]],
    failures: Mapping[StoreName, OpsError],
    pairs: Correspondence | None,
) -> Manifest:
    cuts = [dump.evidence.cut_at for dump in dumps.values()]
    # Each store's field of the manifest checks that the part holds that store's kind of evidence.
    parts: dict[str, Any] = {
        name: {
            "source": services.stores[name].where,
            "tool_versions": dict(dump.tool_versions),
            "started_at": dump.started_at,
            "finished_at": dump.finished_at,
            "evidence": dump.evidence,
            "warnings": dump.warnings,
        }
        for name, dump in dumps.items()
    }
    by = whoami()
    return Manifest(
        id=set_id,
        tier=request.tier,
        timezone=services.settings.backup_timezone,
        started_at=started_at,
        finished_at=services.now(),
        skew_s=(max(cuts) - min(cuts)).total_seconds(),
        origin=Origin(
            product=f"scholaria-ops {__version__}",
            host=by.partition("@")[2],
            requested_by=request.requested_by or by,
            run_id=request.run_id,
            note=request.note,
        ),
        missing={
            **{name: "not asked for" for name in STORE_NAMES if name not in services.stores},
            **{name: redact(error.message, services.settings.secrets) for name, error in failures.items()},
        },
        correspondence=pairs,
        artifacts=tuple(a for dump in dumps.values() for a in dump.artifacts),
        **parts,
    )
