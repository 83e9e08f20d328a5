"""Snapshots that we make on a Qdrant server are taken away again, also when we were killed in between.

The order of writing is the promise: the intent (which snapshots stood there, the server's clock) goes into the ledger
before the server is asked, the name as soon as it is known, the closing line once the server says that it is gone. A
snapshot whose name never reached us (killed, or no answer in time) is recognised by three things together: it was not
there before, its name carries a time right after the intent on the server's own clock, and it belongs to that very
collection. Anything else on the server is somebody else's.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from scholaria_ops.cancel import CancelToken
from scholaria_ops.catalogue.ledger import Entry, Ledger
from scholaria_ops.connections import QdrantConnection
from scholaria_ops.errors import OpsError
from scholaria_ops.stores.base import Context
from scholaria_ops.stores.qdrant.names import stamp_of
from scholaria_ops.stores.qdrant.rest import NotFound, Rest, at

KIND = "qdrant_snapshot"
#: A snapshot's name is stamped when the server begins with it, which it does at once; one second is the stamp's resolution.
_EARLIEST = timedelta(seconds=-2)
_LATEST = timedelta(seconds=60)
#: When the server tells neither its clock nor whether it is still at work, an intent is given up after this time.
_GIVE_UP = timedelta(hours=24)
#: A request that was sent shows up in the server's telemetry within this time.
_ARRIVAL = timedelta(seconds=5)
_POLL_S = 0.2
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class OnServer:
    """A snapshot as the server lists it. ``sha256`` is None on servers older than 1.8, and where no whole checksum was told."""

    name: str
    size_bytes: int
    sha256: str | None

    @classmethod
    def of(cls, described: Mapping[str, Any]) -> OnServer:
        told = str(described.get("checksum") or "").lower()
        return cls(str(described["name"]), int(described["size"]), told if _SHA256.fullmatch(told) else None)


@dataclass(frozen=True, slots=True)
class Intent:
    """A snapshot that is about to be made, as the ledger knows it."""

    key: str
    collection: str
    existing: frozenset[str]
    #: The server's clock right before the request.
    since: datetime
    #: Our own clock then.
    opened: datetime
    name: str | None = None

    @classmethod
    def of(cls, entry: Entry) -> Intent:
        facts = entry.facts
        since = datetime.fromisoformat(facts["since"]) if facts.get("since") else entry.at
        return cls(entry.key, str(facts["collection"]), frozenset(facts.get("existing", ())), since, entry.at, facts.get("name"))


def listed(rest: Rest, collection: str) -> list[OnServer]:
    """The finished snapshots of a collection on the server."""
    return [OnServer.of(found) for found in rest.get(at(collection, "snapshots"))]


def intend(rest: Rest, ledger: Ledger, collection: str) -> Intent:
    """Write down that a snapshot of ``collection`` is about to be made."""
    reply = rest.call("GET", at(collection, "snapshots"))
    existing = sorted(str(found["name"]) for found in reply.result)
    since = reply.server_time or datetime.now(UTC)
    key = ledger.open(KIND, url=_server(rest.connection), collection=collection, existing=existing, since=since.isoformat())
    return Intent(key, collection, frozenset(existing), since, datetime.now(UTC))


def find(rest: Rest, intent: Intent) -> OnServer | None:
    """The finished snapshot that came of an intent whose answer we never saw; None if there is none (yet)."""
    fresh: list[tuple[datetime, OnServer]] = []
    for found in listed(rest, intent.collection):
        stamp = stamp_of(found.name)
        if found.name in intent.existing or stamp is None or not found.name.startswith(f"{intent.collection}-"):
            continue
        if intent.since + _EARLIEST <= stamp <= intent.since + _LATEST:
            fresh.append((stamp, found))
    return min(fresh, key=lambda pair: pair[0])[1] if fresh else None


def wait_for(rest: Rest, intent: Intent, patience_s: float, cancel: CancelToken | None = None) -> OnServer | None:
    """Like :func:`find`, but as long as the server may still be at work (at most ``patience_s`` seconds)."""
    deadline = time.monotonic() + patience_s
    while True:
        found = find(rest, intent)
        if found is not None:
            return found
        arrived = datetime.now(UTC) - intent.opened > _ARRIVAL
        if time.monotonic() > deadline or (arrived and _at_work(rest, intent.collection) is False):
            return find(rest, intent)  # it may have been finished between the two questions
        if cancel is not None:
            cancel.wait(_POLL_S)
        else:
            time.sleep(_POLL_S)


def remove(rest: Rest, ledger: Ledger, intent: Intent, name: str) -> None:
    """Delete the snapshot ``name`` on the server and cross the intent out. One that is gone already counts as deleted."""
    with contextlib.suppress(NotFound):
        rest.delete(at(intent.collection, "snapshots", name), timeout_s=120.0, wait="true")
    ledger.close(intent.key)


def take_back(connection: QdrantConnection, ctx: Context, intent: Intent, name: str | None, *, patience_s: float) -> str:
    """Remove what came of an intent, on the way out of a failure: never raises, and works after a cancellation too.

    Returns why something may still be there (then the ledger keeps it for the next run), or nothing.
    """
    try:
        with Rest(connection) as rest:
            if name is None:
                found = wait_for(rest, intent, patience_s)
                name = found.name if found else None
            if name is not None:
                remove(rest, ctx.ledger, intent, name)
                return ""
            if _at_work(rest, intent.collection) is False:
                ctx.ledger.close(intent.key)
                return ""
    except OpsError as exc:
        return f"a snapshot of collection {intent.collection!r} may be left on {connection.where}: {exc.message}; the next run removes it"
    return f"{connection.where} may still be making a snapshot of collection {intent.collection!r}; the next run removes it"


def refused(connection: QdrantConnection, ctx: Context, intent: Intent) -> None:
    """After the server itself answered with an error: no snapshot will come of it. Never raises."""
    try:
        with Rest(connection) as rest:
            found = find(rest, intent)
            if found is not None:
                remove(rest, ctx.ledger, intent, found.name)
                return
    except NotFound:
        pass
    except OpsError as exc:
        ctx.log.warning("cannot see whether a snapshot was left on %s: %s", connection.where, exc.message)
        return
    ctx.ledger.close(intent.key)


def reap(connection: QdrantConnection, ctx: Context, *, patience_s: float) -> list[str]:
    """Remove what killed runs left on this server. Raises what :class:`Rest` raises; the ledger then keeps the rest."""
    entries = [e for e in ctx.ledger.entries(KIND) if e.facts.get("url") == _server(connection)]
    if not entries:
        return []
    done = []
    with Rest(connection, cancel=ctx.cancel) as rest:
        for entry in entries:
            line = _reap_one(rest, ctx, entry, patience_s)
            if line:
                done.append(line)
    return done


def _reap_one(rest: Rest, ctx: Context, entry: Entry, patience_s: float) -> str:
    intent = Intent.of(entry)
    what = f"of collection {intent.collection!r} on {rest.where}, left by a run of {entry.at:%Y-%m-%d %H:%M:%S} UTC"
    try:
        name = intent.name
        if name is None:
            found = wait_for(rest, intent, patience_s, ctx.cancel)
            name = found.name if found else None
        if name is not None:
            remove(rest, ctx.ledger, intent, name)
            return f"removed snapshot {name} {what}"
    except NotFound:  # the collection is gone, and its snapshots can no longer be reached
        ctx.ledger.close(intent.key)
        return ""
    if _at_work(rest, intent.collection) is False or datetime.now(UTC) - entry.at > _GIVE_UP:
        ctx.ledger.close(intent.key)
    else:
        ctx.log.warning("a snapshot %s may still be in the making; it will be looked for again", what)
    return ""


def _at_work(rest: Rest, collection: str) -> bool | None:
    """Whether the server is making a snapshot of ``collection`` now; None if it does not tell (older than 1.16)."""
    if not rest.at_least(1, 16):
        return None
    told = rest.get("/telemetry", details_level="2").get("collections", {}).get("snapshots")
    if told is None:
        return None
    return any(one.get("id") == collection and one.get("running_snapshots") for one in told)


def _server(connection: QdrantConnection) -> str:
    return connection.url.rstrip("/")
