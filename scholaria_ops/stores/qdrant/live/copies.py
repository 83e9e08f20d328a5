"""Copies of collections on the live server, and taking away what a restore made there."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from scholaria_ops.catalogue.artifacts import Artifact
from scholaria_ops.errors import DiskFull, Refused, StoreError, StoreUnavailable
from scholaria_ops.stores.base import Context
from scholaria_ops.stores.qdrant.load import recover_as, require_free, upload, wait_until_serving
from scholaria_ops.stores.qdrant.measure import collections_of, exact_count
from scholaria_ops.stores.qdrant.rest import NotFound, Rest, at
from scholaria_ops.stores.qdrant.snapshot import ServerSnapshot, make

#: Uploads of ours bear this name on the server.
UPLOAD = "scholaria-ops-"
#: How long a recovery that nobody waits for any more may go on (its client was killed).
_STRAGGLER_S = 900.0
#: A request that was sent shows up in the server's telemetry within this time.
_ARRIVAL_S = 1.0
#: What a server that does not tell what it is doing is given to end a recovery whose client is gone.
_UNTOLD_S = 10.0
_POLL_S = 0.1


def downloaded(rest: Rest, collection: str, ctx: Context, *, timeout_s: float) -> tuple[Path, Artifact]:
    """A snapshot of a collection as a file in ``ctx.scratch``, compared with the server's own digest; none stays on the server."""
    with _snapshot(rest, collection, ctx, timeout_s=timeout_s) as snapshot:
        return _fetched(snapshot, ctx, timeout_s=timeout_s)


@contextlib.contextmanager
def _snapshot(rest: Rest, collection: str, ctx: Context, *, timeout_s: float) -> Iterator[ServerSnapshot]:
    """A snapshot that stands on the server while the block lasts."""
    snapshot = make(rest, ctx, collection, timeout_s=timeout_s)
    try:
        yield snapshot
    finally:
        left = snapshot.remove()
        if left:
            ctx.log.warning("%s", left)


def _fetched(snapshot: ServerSnapshot, ctx: Context, *, timeout_s: float) -> tuple[Path, Artifact]:
    into = ctx.scratch / f"copy-{uuid.uuid4().hex}" / "copy.snapshot"
    into.parent.mkdir(mode=0o700)
    return into, snapshot.download(into, gzip=False, on_bytes=lambda _: None, timeout_s=timeout_s)


def copy(rest: Rest, source: str, to: str, ctx: Context, *, timeout_s: float) -> int:
    """Make ``to`` (which must not exist) a copy of the collection ``source``; returns its points, exactly counted.

    The server fetches its own snapshot where it can; else the snapshot goes over this host.
    """
    with _snapshot(rest, source, ctx, timeout_s=timeout_s) as snapshot:
        points = _by_itself(rest, snapshot, to, ctx, timeout_s=timeout_s)
        if points is not None:
            return points
        file, artifact = _fetched(snapshot, ctx, timeout_s=timeout_s)
    try:
        return recover_as(rest, file, artifact, to, expected_points=None, ctx=ctx, timeout_s=timeout_s).points
    finally:
        file.unlink(missing_ok=True)


def _by_itself(rest: Rest, snapshot: ServerSnapshot, to: str, ctx: Context, *, timeout_s: float) -> int | None:
    """Have the server recover ``to`` from its own snapshot, by the address that we know it by; None if it cannot.

    Measured (380 MB): 2.5 s of the server's processor time, and none of ours; over this host 3.3 s of both. The digest that it
    gave with the snapshot is sent back, so whatever answers at that address cannot pass other bytes off as it.
    """
    if not rest.takes_checksum or snapshot.made.sha256 is None:
        return None
    require_free(rest, to)
    body = {
        "location": rest.connection.url.rstrip("/") + at(snapshot.collection, "snapshots", snapshot.made.name),
        "priority": "snapshot",
        "checksum": snapshot.made.sha256,
        **({"api_key": key} if (key := rest.connection.api_key.get_secret_value()) else {}),
    }
    try:
        rest.put(at(to, "snapshots", "recover"), body, timeout_s=timeout_s, wait="true")
    except (DiskFull, StoreUnavailable):
        raise
    except StoreError as exc:
        # It cannot reach itself by that name (a tunnel, a gateway, a certificate of its own), or takes no addresses.
        ctx.log.info("%s does not fetch its own snapshot, which is taken over this host then: %s", rest.where, exc.message)
        remove_collection(rest, to)
        return None
    wait_until_serving(rest, to, ctx, timeout_s=timeout_s)
    return exact_count(rest, to)


def pour(rest: Rest, file: Path, artifact: Artifact, into: str, ctx: Context, *, timeout_s: float) -> int:
    """Replace what the collection ``into`` holds by a snapshot, in place: requests fail meanwhile. Returns its points.

    The checksum is always sent, so a server that would not compare it is refused: a file with flipped bytes was
    accepted without, green and with the right count.
    """
    if not rest.takes_checksum:
        raise Refused(
            f"{rest.where} is {rest.version}: it does not compare checksums, so nothing is recovered in place there",
            hint="Restore without the in-place option.",
            store="qdrant",
        )
    name = f"{UPLOAD}{uuid.uuid4().hex}.snapshot"
    try:
        with file.open("rb") as content:
            upload(rest, into, content, artifact.size_bytes, filename=name, sha256=artifact.sha256, timeout_s=timeout_s)
        wait_until_serving(rest, into, ctx, timeout_s=timeout_s)
    finally:
        with contextlib.suppress(NotFound, StoreError):
            rest.delete(at(into, "snapshots", name), timeout_s=120.0, wait="true")
    return exact_count(rest, into)


def sweep_uploads(rest: Rest, collection: str) -> list[str]:
    """Delete copies of our uploads that a kill left below a collection."""
    removed = []
    for found in rest.get(at(collection, "snapshots")):
        name = str(found["name"])
        if name.startswith(UPLOAD):
            with contextlib.suppress(NotFound):
                rest.delete(at(collection, "snapshots", name), timeout_s=120.0, wait="true")
            removed.append(f"removed the uploaded copy {name} of collection {collection}")
    return removed


def remove_collection(rest: Rest, name: str, *, finished: bool = True, damaged: bool = False) -> str:
    """Delete a collection of ours with its snapshots (which would outlive it on the server's disk); returns a line, or nothing.

    The uploaded file of a recovery that was killed can be reached only through a collection of its name: where there is
    none, and the recovery was not seen to be ``finished``, one is made for an instant. A ``damaged`` one is not counted.
    """
    existed = name in collections_of(rest)
    if not existed:
        if finished:
            return ""
        rest.put(at(name), {"vectors": {"size": 1, "distance": "Dot"}}, timeout_s=60.0)
    for found in rest.get(at(name, "snapshots")):
        with contextlib.suppress(NotFound):
            rest.delete(at(name, "snapshots", str(found["name"])), timeout_s=120.0, wait="true")
    points = f"{exact_count(rest, name):,} points" if existed and not damaged else "which does not answer"
    rest.delete(at(name), timeout_s=120.0)
    return f"removed collection {name}, {points}" if existed else ""


def wait_for_stragglers(rest: Rest, names: Collection[str], ctx: Context) -> None:
    """Wait until the server is done with recoveries whose client is gone: they would make their collection again.

    Servers older than 1.16 do not tell what they are doing; they are given some seconds.
    """
    deadline = time.monotonic() + _STRAGGLER_S
    settled = time.monotonic() + (_ARRIVAL_S if rest.at_least(1, 16) else _UNTOLD_S)
    while names:
        if not _recovering(rest, names) and time.monotonic() > settled:
            return
        if time.monotonic() > deadline:
            raise StoreError(
                f"{rest.where} is still recovering {', '.join(sorted(names))}",
                hint="Wait until it is done, then roll back again.",
                store="qdrant",
            )
        ctx.cancel.wait(_POLL_S)


def _recovering(rest: Rest, names: Collection[str]) -> bool:
    if not rest.at_least(1, 16):
        return False
    told = rest.get("/telemetry", details_level="2").get("collections", {}).get("snapshots") or []
    return any(one.get("id") in names and one.get("running_snapshot_recovery") for one in told)


_READS = ("/points/count", "/points/scroll", "/facet", "/telemetry")
_READ_WORDS = ("/search", "/query", "/recommend", "/discover", "/snapshots", "/aliases", "/exists")
_GRPC_READS = ("Get", "List", "Search", "Query", "Scroll", "Count", "Recommend", "Discover", "Facet", "Health", "CollectionExists")


def writes_counted(rest: Rest) -> str:
    """How many requests that may write the server has answered since it started, and when that was; empty if it does not tell.

    The counters are of the whole server: equal ones prove that nobody wrote, different ones prove nothing.
    """
    told = rest.get("/telemetry", details_level="3")
    started = (told.get("app") or {}).get("startup")
    requests = told.get("requests") or {}
    if not started or "rest" not in requests:
        return ""
    total = 0
    for route, answers in (requests["rest"].get("responses") or {}).items():
        method, _, path = route.partition(" ")
        if method == "GET" or path.endswith(_READS) or any(word in path for word in _READ_WORDS):
            continue
        if (method, path) == ("POST", "/collections/{name}/points"):  # points by their ids
            continue
        if (method, path) in {("PUT", "/collections/{name}"), ("DELETE", "/collections/{name}")}:
            continue
        total += _answers(answers)
    for method, answers in ((requests.get("grpc") or {}).get("responses") or {}).items():
        if not str(method).rpartition("/")[2].startswith(_GRPC_READS):
            total += _answers(answers)
    return f"{started} {total}"


def _answers(found: object) -> int:
    """REST counts by status (``{"200": {"count": 1}}``), gRPC per method (``{"count": 1}``)."""
    if not isinstance(found, dict):
        return 0
    if isinstance(found.get("count"), int):
        return int(found["count"])
    return sum(_answers(one) for one in found.values())


def present(rest: Rest, names: Iterable[str]) -> list[str]:
    return sorted(set(names) & set(collections_of(rest)))
