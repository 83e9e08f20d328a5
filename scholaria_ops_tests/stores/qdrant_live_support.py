"""What the tests of live restores share: a notebook on disk, a server's state as an application sees it, an application."""

from __future__ import annotations

import contextlib
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scholaria_ops.catalogue.evidence.qdrant import QdrantEvidence
from scholaria_ops.connections import QdrantConnection
from scholaria_ops.errors import OpsError
from scholaria_ops.sandbox.qdrant import QdrantServer
from scholaria_ops.stores.base import Context
from scholaria_ops.stores.live import Fact, Source
from scholaria_ops.stores.qdrant import QdrantStore
from scholaria_ops.stores.qdrant.live import QdrantLive
from scholaria_ops.stores.qdrant.live.marks import note
from scholaria_ops.stores.qdrant.measure import aliases_of, collections_of
from scholaria_ops.stores.qdrant.rest import Rest, at
from scholaria_ops_tests.stores.qdrant_support import MIXED, MIXED_CONFIG, document, mixed, plain_config, upsert

SET_ID = "20241001_020000"

#: An application says ``context_items`` (an alias) and ``mixed`` (a collection).
ALIASED = "documents_v1"
ALIAS = "context_items"
OTHER_ALIAS = "문서 & 100% #1"
PLAIN = MIXED
SIZE = 16
RESTORE_ID = "20241002_030000"


class FileNotebook:
    """Facts in a JSON file that is whole after a kill."""

    def __init__(self, directory: Path, restore_id: str = RESTORE_ID) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.directory = directory
        self.restore_id = restore_id
        self._path = directory / "facts.json"

    def read(self) -> Mapping[str, Fact]:
        found: dict[str, Fact] = json.loads(self._path.read_text()) if self._path.exists() else {}
        return found

    def write(self, **facts: Fact) -> None:
        fresh = self._path.with_suffix(".new")
        fresh.write_text(json.dumps({**self.read(), **facts}))
        fresh.replace(self._path)


def seed_two(connection: QdrantConnection, *, points: int = 200, seed: int = 11) -> None:
    """Two collections: one behind two aliases, one that is called by its own name."""
    source = random.Random(seed)
    with Rest(connection) as rest:
        rest.put(at(ALIASED), plain_config(SIZE))
        rest.put(at(ALIASED, "index"), {"field_name": "context_id", "field_schema": "integer"}, wait="true")
        upsert(rest, ALIASED, [document(source, n, SIZE) for n in range(1, points + 1)])
        rest.put(at(PLAIN), MIXED_CONFIG)
        upsert(rest, PLAIN, [mixed(source, n) for n in range(points // 2)])
        point(rest, ALIAS, ALIASED)
        point(rest, OTHER_ALIAS, ALIASED)


def point(rest: Rest, alias: str, collection: str) -> None:
    rest.post("/collections/aliases", {"actions": [{"create_alias": {"alias_name": alias, "collection_name": collection}}]})


def change(connection: QdrantConnection, *, new: int = 7, changed: int = 3, gone: int = 2) -> None:
    """What an application did after the set was taken, in both collections."""
    source = random.Random(99)
    documents = [document(source, n, SIZE) for n in [*range(10_000, 10_000 + new), *range(21, 21 + changed)]]
    mixtures = [mixed(source, n) for n in [*range(10_000, 10_000 + new), *range(20, 20 + changed)]]
    with Rest(connection) as rest:
        for name, points, low in ((ALIAS, documents, 41), (PLAIN, mixtures, 40)):
            if points:
                upsert(rest, name, points)
            if gone:
                rest.post(at(name, "points", "delete"), {"points": list(range(low, low + gone))}, wait="true")


def taken(connection: QdrantConnection, into: Path, set_id: str, ctx: Context, **options: Any) -> Source[QdrantEvidence]:
    """A set of a server."""
    into.mkdir(mode=0o700, parents=True, exist_ok=True)
    made = QdrantStore(connection, **options).dump(into, set_id, ctx)
    return Source(set_id, into, made.artifacts, made.evidence)


@dataclass(frozen=True)
class Served:
    """What an application sees: every name it can say → digests of the points behind it."""

    names: Mapping[str, Mapping[bytes, bytes]]

    def of(self, name: str) -> Mapping[bytes, bytes]:
        return self.names[name]


def served(connection: QdrantConnection) -> Served:
    with Rest(connection) as rest:
        aliases = aliases_of(rest)
        contents = {name: dict(note(rest, name, payloads=True, vectors=True).points.items()) for name in collections_of(rest)}
        return Served({**contents, **{alias: contents[target] for alias, target in aliases.items()}})


@dataclass(frozen=True)
class Exactly:
    """The server's own account: collections with their points, aliases, snapshots."""

    collections: Mapping[str, Mapping[bytes, bytes]]
    aliases: Mapping[str, str]


def exactly(connection: QdrantConnection) -> Exactly:
    with Rest(connection) as rest:
        contents = {name: dict(note(rest, name, payloads=True, vectors=True).points.items()) for name in collections_of(rest)}
        return Exactly(contents, aliases_of(rest))


@dataclass
class Application:
    """A thread that reads (and writes, if told to) as an application would, in a tight loop, and notes what fails and when."""

    connection: QdrantConnection
    names: tuple[str, ...]
    writes: bool = False
    done: Counter[str] = field(default_factory=Counter)
    failed: dict[str, list[float]] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)
    acknowledged: dict[str, list[int]] = field(default_factory=dict)

    @contextlib.contextmanager
    def running(self) -> Iterator[Application]:
        stop = threading.Event()
        threads = [threading.Thread(target=self._loop, args=(name, stop), name=f"application {name}") for name in self.names]
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            stop.set()
            for thread in threads:
                thread.join()

    def gap(self, name: str) -> float:
        """Seconds from the first to the last failure."""
        times = self.failed.get(name, [])
        return times[-1] - times[0] if times else 0.0

    def _loop(self, name: str, stop: threading.Event) -> None:
        number = 1_000_000
        with Rest(self.connection) as rest:
            while not stop.is_set():
                began = time.monotonic()
                try:
                    rest.post(at(name, "points", "scroll"), {"limit": 1})
                    if self.writes:
                        number += 1
                        source = random.Random(number)
                        upsert(rest, name, [mixed(source, number) if name == PLAIN else document(source, number, SIZE)])
                        self.acknowledged.setdefault(name, []).append(number)
                    self.done[name] += 1
                except OpsError as exc:
                    self.failed.setdefault(name, []).extend((began, time.monotonic()))
                    self.said.append(str(exc))


def restore(live: QdrantServer, source: Source[QdrantEvidence], notebook: FileNotebook, ctx: Context, **options: object) -> QdrantLive:
    store = QdrantLive(live.connection, **options)  # type: ignore[arg-type]
    plan = store.plan(source, ctx)
    assert plan.objections == ()
    store.stage(plan, source, notebook, ctx)
    store.switch(plan, notebook, ctx)
    store.finish(notebook, ctx)
    return store
