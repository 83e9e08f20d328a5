"""Bringing snapshots into a server: upload, recover, wait, aliases. The same code for a rehearsal and for production."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from scholaria_ops.catalogue.artifacts import Artifact
from scholaria_ops.connections import QdrantConnection
from scholaria_ops.errors import OpsError, Refused, StoreError
from scholaria_ops.files import BLOCK
from scholaria_ops.stores.base import Context
from scholaria_ops.stores.qdrant.measure import aliases_of, collections_of, exact_count
from scholaria_ops.stores.qdrant.names import opens, version_tuple
from scholaria_ops.stores.qdrant.rest import NotFound, Rest, at
from scholaria_ops.stores.qdrant.snapshot_file import opened

NONCE_PREFIX = "scholaria_ops_nonce_"
_POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class Recovered:
    """A snapshot that has become a collection. ``notes`` are worth telling."""

    collection: str
    points: int
    seconds: float
    notes: tuple[str, ...] = ()


def upload(rest: Rest, collection: str, content: IO[bytes], size: int, *, filename: str, sha256: str | None, timeout_s: float) -> None:
    """Send a snapshot of ``size`` bytes and have it recovered as ``collection``; memory stays flat.

    ``sha256`` is compared by servers since 1.8 before they touch anything. Raises what :class:`Rest` raises, and
    StoreError when the server accepts the snapshot but does not report it recovered.
    """
    boundary = uuid.uuid4().hex
    head = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="snapshot"; filename="{filename}"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    ).encode()
    tail = f"\r\n--{boundary}--\r\n".encode()

    def body() -> Iterator[bytes]:
        yield head
        while block := content.read(BLOCK):
            yield block
        yield tail

    params = {"priority": "snapshot", "wait": "true"}
    if sha256 is not None and rest.takes_checksum:
        params["checksum"] = sha256
    reply = rest.call(
        "POST",
        at(collection, "snapshots", "upload"),
        content=body(),
        headers={"content-type": f"multipart/form-data; boundary={boundary}", "content-length": str(len(head) + size + len(tail))},
        params=params,
        timeout_s=timeout_s,
    )
    if reply.result is not True:
        raise StoreError(f"{rest.where} accepted the snapshot of {collection!r} but did not recover it", store="qdrant")


def recover_as(
    rest: Rest, path: Path, artifact: Artifact, collection: str, *, expected_points: int | None, ctx: Context, timeout_s: float
) -> Recovered:
    """Make ``collection`` (which must not exist) of a snapshot artifact, and leave no copy of the file on the server.

    Raises:
        Refused: a collection or an alias of that name exists.
        StoreError: it was not recovered, or is not what was expected; what had come of it is deleted again.
    """
    began = time.monotonic()
    require_free(rest, collection)
    filename = f"scholaria-ops-{uuid.uuid4().hex}.snapshot"
    compressed = artifact.compression == "gzip"
    size = artifact.raw_size_bytes if artifact.raw_size_bytes is not None else artifact.size_bytes
    notes = () if rest.takes_checksum else (f"{rest.where} is {rest.version}: it does not compare checksums of uploads",)
    try:
        with opened(path, compressed=compressed) as content:
            upload(rest, collection, content, size, filename=filename, sha256=artifact.raw_sha256 or artifact.sha256, timeout_s=timeout_s)
        note = wait_until_serving(rest, collection, ctx, timeout_s=timeout_s)
        points = exact_count(rest, collection)
        if expected_points is not None and points != expected_points:
            raise StoreError(
                f"collection {collection!r} on {rest.where} was recovered with {points:,} points instead of {expected_points:,}",
                hint="Do not use it; verify the set.",
                store="qdrant",
            )
    except BaseException:
        _undo(rest.connection, collection, filename)
        raise
    with contextlib.suppress(NotFound):
        rest.delete(at(collection, "snapshots", filename), timeout_s=120.0, wait="true")
    return Recovered(collection, points, time.monotonic() - began, notes + ((note,) if note else ()))


def require_free(rest: Rest, name: str) -> None:
    """Raise Refused if a collection or an alias of that name exists."""
    if name in collections_of(rest) or name in aliases_of(rest):
        raise Refused(f"{rest.where} already has a collection or an alias {name!r}", hint="Restore into an empty place.", store="qdrant")


def wait_until_serving(rest: Rest, collection: str, ctx: Context, *, timeout_s: float) -> str:
    """Wait until a collection answers and no part of it has failed; returns a note if its indexes are still being built.

    Green, yellow (optimizing) and grey (optimizations pending) all answer every request in full; red does not.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        info = rest.get(at(collection))
        status = info["status"]
        failed = info.get("optimizer_status")
        if isinstance(failed, Mapping):
            raise StoreError(f"collection {collection!r} on {rest.where}: its optimizer failed: {failed.get('error')}", store="qdrant")
        if status == "green":
            return ""
        if status in {"yellow", "grey"}:
            return f"collection {collection!r} is {status}: it answers, its indexes are still being built"
        if time.monotonic() > deadline:
            raise StoreError(f"collection {collection!r} on {rest.where} stays {status}", hint="Look at the server's log.", store="qdrant")
        ctx.cancel.wait(_POLL_S)


def _undo(connection: QdrantConnection, collection: str, filename: str) -> None:
    """After a failure: delete the half-made collection and the uploaded copy. The original error goes on."""
    with contextlib.suppress(OpsError), Rest(connection) as rest:
        if collection not in collections_of(rest):
            # The copy is reachable only through a collection of that name; ours was absent before, so this one is ours too.
            rest.put(at(collection), {"vectors": {"size": 1, "distance": "Dot"}}, timeout_s=60.0)
        with contextlib.suppress(NotFound):
            rest.delete(at(collection, "snapshots", filename), timeout_s=120.0, wait="true")
        rest.delete(at(collection), timeout_s=120.0)


def require_fitting_version(source: str, target: str, where: str) -> None:
    """Raise Refused, naming both versions, unless a server of version ``target`` opens snapshots of ``source``."""
    if not opens(source, target):
        major, minor, _ = version_tuple(source)
        raise Refused(
            f"the snapshots are of Qdrant {source}, the server at {where} is {target}",
            hint=f"Snapshots open in the same minor version or the next one: use a server of {major}.{minor} or {major}.{minor + 1}.",
            store="qdrant",
        )


def make_aliases(rest: Rest, aliases: Mapping[str, str]) -> None:
    """Create all aliases in one request, which the server applies as one step."""
    if aliases:
        rest.post("/collections/aliases", alias_actions(aliases), timeout_s=60.0)


def alias_actions(aliases: Mapping[str, str]) -> dict[str, Any]:
    """The request that creates these aliases; ``aliases.json`` of a set is exactly this."""
    return {"actions": [{"create_alias": {"alias_name": a, "collection_name": c}} for a, c in sorted(aliases.items())]}


def write_nonce(connection: QdrantConnection) -> str:
    """Make an empty collection with a random name on a target and return the name.

    Qdrant servers carry no identity. If this collection appears on the live server, target and live are the same.
    """
    name = NONCE_PREFIX + uuid.uuid4().hex
    with Rest(connection) as rest:
        rest.put(at(name), {"vectors": {"size": 1, "distance": "Dot"}}, timeout_s=60.0)
    return name


def has_nonce(connection: QdrantConnection, nonce: str) -> bool:
    """Whether a server shows the collection that :func:`write_nonce` made."""
    with Rest(connection) as rest:
        return nonce in collections_of(rest)


def remove_nonce(connection: QdrantConnection, nonce: str) -> None:
    """Delete a nonce collection again. Refuses any other name."""
    if not nonce.startswith(NONCE_PREFIX):
        raise Refused(f"{nonce!r} is no nonce", store="qdrant")
    with Rest(connection) as rest:
        rest.delete(at(nonce), timeout_s=60.0)
