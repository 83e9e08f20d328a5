"""The dump: a snapshot of every collection, close together in time, each measured from the very file that was stored."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import threading
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from scholaria_ops.cancel import CancelToken
from scholaria_ops.catalogue.artifacts import Artifact
from scholaria_ops.catalogue.evidence.qdrant import CollectionEvidence, QdrantEvidence
from scholaria_ops.connections import QdrantConnection
from scholaria_ops.errors import StoreError
from scholaria_ops.files import make_private_dir, write_private
from scholaria_ops.stores.base import Context, Dump
from scholaria_ops.stores.qdrant.inspect import opened
from scholaria_ops.stores.qdrant.load import alias_actions
from scholaria_ops.stores.qdrant.measure import Limits, Look, aliases_of, collections_of, measure_collection
from scholaria_ops.stores.qdrant.names import file_name
from scholaria_ops.stores.qdrant.points import RestSource
from scholaria_ops.stores.qdrant.preflight import expected_sizes, leave_out, whole_node
from scholaria_ops.stores.qdrant.rest import NotFound, Rest
from scholaria_ops.stores.qdrant.scratch import Scratch, unfit
from scholaria_ops.stores.qdrant.snapshot import ServerSnapshot, make

#: At most so many of our snapshots are made or stand on the server at once: each takes the size of its collection there.
_ON_SERVER = 2


_Taking = concurrent.futures.Future[tuple[Artifact, CollectionEvidence]]


@dataclass(frozen=True, slots=True)
class Options:
    """How a dump is made. ``timeout_s`` bounds one request for a snapshot and one silence during a download."""

    gzip: bool = False
    limits: Limits = field(default_factory=Limits)
    timeout_s: float = 1800.0
    #: Collections that stand on the server for a restore's sake only, when a dump begins.
    kept: Callable[[], Collection[str]] = frozenset


def dump(connection: QdrantConnection, into: Path, set_id: str, ctx: Context, options: Options) -> Dump[QdrantEvidence]:
    """See :meth:`scholaria_ops.stores.base.Store.dump`."""
    started = datetime.now(UTC)
    with contextlib.ExitStack() as stack:
        inner = replace(ctx, cancel=stack.enter_context(_linked(ctx.cancel)))
        names, left_out = _names(connection, inner, options.kept())
        cluster = whole_node(connection, inner, names)
        rest = stack.enter_context(Rest(cluster.node, cancel=inner.cancel))
        problem = unfit(inner.tools, rest.version)
        sizes = expected_sizes(rest, names)
        scratch = None if problem else stack.enter_context(Scratch(inner, largest=max(sizes.values(), default=0)))
        directory = make_private_dir(into / f"qdrant_{set_id}")
        run = _Run(rest, scratch, directory, set_id, inner, options)
        warnings = [f"evidence measured on the live server: {problem}"] if problem else []
        if left_out:
            warnings.append(f"collections that are kept for undoing a restore are not in it: {', '.join(left_out)}")
        # The largest first: it takes the longest, and the others are made and measured beside it.
        artifacts, collections = run.all_of(sorted(names, key=lambda name: -sizes.get(name, 0)))
        aliases = aliases_of(rest)
        appeared = sorted(set(collections_of(rest)) - collections.keys() - set(left_out))
        if appeared:
            warnings.append(f"collections made during the backup are not in it: {', '.join(appeared)}")
        written = write_private(
            directory / "aliases.json", json.dumps(alias_actions(aliases), ensure_ascii=False, indent=1).encode() + b"\n"
        )
        listing = Artifact(
            store="qdrant", kind="aliases", path=f"{directory.name}/aliases.json", size_bytes=written.size, sha256=written.sha256
        )
        cuts = [one.snapshot.requested_at for one in collections.values() if one.snapshot]
        evidence = QdrantEvidence(
            server_version=rest.version,
            cut_at=max(cuts, default=run.cut_at),
            collections=collections,
            aliases=aliases,
            measured_on="live" if scratch is None else "snapshot",
            measured_by=rest.version if scratch is None else scratch.version,
            exact=scratch is not None or all(_quiet(one) for one in collections.values()),
            seed=set_id,
            left_out=left_out,
            cluster=f"{cluster.peers} peers" if cluster.peers else "disabled",
        )
        artifacts.append(listing)
        return Dump(
            artifacts=tuple(artifacts),
            evidence=evidence,
            started_at=started,
            finished_at=datetime.now(UTC),
            tool_versions={} if scratch is None else {"qdrant": scratch.version},
            warnings=(*warnings, *run.warnings),
            opened=tuple(opened(into, artifacts, evidence, inner)),
        )


def _names(connection: QdrantConnection, ctx: Context, kept: Collection[str]) -> tuple[list[str], tuple[str, ...]]:
    """The collections to dump, and those that are left out."""
    with Rest(connection, cancel=ctx.cancel) as rest:
        names = collections_of(rest)
        left_out = leave_out(names, aliases_of(rest), kept)
    return [name for name in names if name not in left_out], left_out


@contextlib.contextmanager
def _linked(outer: CancelToken) -> Iterator[CancelToken]:
    """A token of our own, cancelled with the outer one: the first failure then ends our other thread at once."""
    own = CancelToken()
    with outer.on_cancel(lambda: own.cancel(outer.reason)):
        yield own


class _Run:
    """One dump under way. Two threads ask for snapshots; a third one downloads and measures them, a fourth removes them."""

    def __init__(self, rest: Rest, scratch: Scratch | None, directory: Path, set_id: str, ctx: Context, options: Options) -> None:
        self._rest = rest
        self._scratch = scratch
        self._directory = directory
        self._set_id = set_id
        self._ctx = ctx
        self._options = options
        self._room = threading.BoundedSemaphore(_ON_SERVER)
        self._removing = concurrent.futures.ThreadPoolExecutor(1, "qdrant-remove")
        self._failing = threading.Lock()
        self._failure: BaseException | None = None
        self.cut_at = datetime.now(UTC)
        self.warnings: list[str] = []

    def all_of(self, names: list[str]) -> tuple[list[Artifact], dict[str, CollectionEvidence]]:
        """Artifacts and evidence of all collections, by name; begun in the order of ``names``. Of several failures the first is raised."""
        made: list[ServerSnapshot] = []
        try:
            results = self._all_threads(names, made)
        except BaseException as exc:  # noqa: BLE001 - raised again: it, or what failed before it
            raise self._note_failure(exc) from None
        finally:
            for snapshot in made:
                self._remove(snapshot)
        results.sort(key=lambda result: result[1].name)
        return [artifact for artifact, _ in results], {measured.name: measured for _, measured in results}

    def _all_threads(self, names: list[str], made: list[ServerSnapshot]) -> list[tuple[Artifact, CollectionEvidence]]:
        executor = concurrent.futures.ThreadPoolExecutor
        # Leaving the block waits for all pools; what was downloaded is removed from the server even then.
        with self._removing, executor(1, "qdrant-dump") as pool, executor(_ON_SERVER, "qdrant-make") as makers:
            try:
                self._ctx.at_the_cut()
                self.cut_at = datetime.now(UTC)
                begun = [makers.submit(self._begin, name, made, pool) for name in names]
                return [taken.result() for taken in [future.result() for future in begun] if taken is not None]
            except BaseException as exc:
                self._note_failure(exc)  # before the pools wait for the other threads: this ends them
                makers.shutdown(wait=False, cancel_futures=True)
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _begin(self, name: str, made: list[ServerSnapshot], pool: concurrent.futures.Executor) -> _Taking | None:
        """Have a snapshot made, and hand it to the thread that takes it in (in a maker's thread). None: the collection is gone."""
        try:
            while not self._room.acquire(timeout=0.1):
                self._ctx.cancel.check()
            snapshot = self._make(name)
            if snapshot is None:
                return None
            made.append(snapshot)
            return pool.submit(self._take_in, snapshot)
        except BaseException as exc:
            self._note_failure(exc)
            raise

    def _note_failure(self, error: BaseException) -> BaseException:
        """Remember the first failure, and have both threads end. Returns that first one."""
        with self._failing:
            if self._failure is None:
                self._failure = error
        self._ctx.cancel.cancel("another part of the Qdrant backup failed")
        return self._failure

    def _make(self, name: str) -> ServerSnapshot | None:
        try:
            return make(self._rest, self._ctx, name, timeout_s=self._options.timeout_s)
        except NotFound:
            self._room.release()
            if name in collections_of(self._rest):
                raise
            self.warnings.append(f"collection {name} was deleted during the backup and is not in it")
            return None

    def _take_in(self, snapshot: ServerSnapshot) -> tuple[Artifact, CollectionEvidence]:
        """Download, have it removed from the server, measure (in the thread for that)."""
        try:
            return self._downloaded(snapshot)
        except BaseException as exc:
            self._note_failure(exc)
            raise

    def _downloaded(self, snapshot: ServerSnapshot) -> tuple[Artifact, CollectionEvidence]:
        ctx, options = self._ctx, self._options
        name = file_name(snapshot.collection) + ".snapshot" + (".gz" if options.gzip else "")
        task = f"qdrant: {snapshot.collection}"
        ctx.progress.start(task, total=snapshot.made.size_bytes)
        try:
            artifact = snapshot.download(
                self._directory / name,
                gzip=options.gzip,
                on_bytes=lambda count: ctx.progress.advance(task, count),
                timeout_s=options.timeout_s,
            )
        finally:
            self._removing.submit(self._make_room, snapshot)
        ctx.written(artifact)
        measured = self._measure(snapshot, self._directory / name)
        ctx.progress.finish(task, f"{measured.points:,} points")
        return artifact, measured.model_copy(update={"snapshot": snapshot.facts})

    def _measure(self, snapshot: ServerSnapshot, path: Path) -> CollectionEvidence:
        look, limits, name = Look(self._set_id), self._options.limits, snapshot.collection
        scratch = self._scratch
        if scratch is None:
            return measure_collection(self._rest, RestSource(self._rest), name, look, limits, moving=True)
        try:
            scratch.recover(path, name, size=snapshot.made.size_bytes, compressed=self._options.gzip)
            measured = measure_collection(scratch.rest, scratch.source, name, look, limits)
        except StoreError as exc:
            raise StoreError(
                f"the snapshot that Qdrant made of collection {name!r} cannot be opened: {exc.message}",
                hint="The collection's storage may be damaged. Look at the server's log; nothing was sealed.",
                store="qdrant",
            ) from exc
        scratch.forget(name)
        times = snapshot.times
        if times.points_before == times.points_after != measured.points:
            raise StoreError(
                f"the snapshot of collection {name!r} holds {measured.points:,} points, while Qdrant served {times.points_before:,}",
                hint="If points are being replaced right now, run again; if not, the snapshot is not whole: look at the server's log.",
                store="qdrant",
            )
        return measured

    def _make_room(self, snapshot: ServerSnapshot) -> None:
        """Remove a downloaded snapshot, which takes the server a moment, and let the next one be made (in the thread for that)."""
        try:
            self._remove(snapshot)
        finally:
            self._room.release()

    def _remove(self, snapshot: ServerSnapshot) -> None:
        left = snapshot.remove()
        if left:
            self.warnings.append(left)
            self._ctx.log.warning("%s", left)


def _quiet(measured: CollectionEvidence) -> bool:
    made = measured.snapshot
    return made is not None and made.live_points_before == made.live_points_after == measured.points
