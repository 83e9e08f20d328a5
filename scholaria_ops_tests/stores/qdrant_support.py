"""What the Qdrant tests share: collections of every kind, and a proxy that misbehaves on request."""

from __future__ import annotations

import contextlib
import http.client
import json
import random
import threading
import urllib.parse
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from scholaria_ops.connections import QdrantConnection
from scholaria_ops.sandbox.sandbox import Sandbox
from scholaria_ops.sandbox.tools import Tools
from scholaria_ops.stores.base import Context
from scholaria_ops.stores.qdrant import QdrantStore, room
from scholaria_ops.stores.qdrant.leftovers import KIND
from scholaria_ops.stores.qdrant.rest import Rest, at

#: A name that needs quoting in an address, encoding in a path, and is not ASCII.
ODD_NAME = "문서 & 100% #1"
DOCUMENTS = "scholaria_documents"
MIXED = "mixed"
EMPTY = "empty"
ALIASES = {"context_items": DOCUMENTS, "문서": ODD_NAME}
WORDS = ("데이터베이스", "백업", "복구", "검색", "question", "retrieval", "context", "임베딩", "answer")


def vector(source: random.Random, size: int) -> list[float]:
    return [source.uniform(-1, 1) for _ in range(size)]


@contextlib.contextmanager
def fast_sandbox(base: Path, tools: Tools) -> Iterator[Sandbox]:
    """A sandbox whose servers keep their files in memory if there is plenty of it: Qdrant waits for the disk at every step."""
    with Sandbox(base, tools, label="qdrant-tests", data_root=room.in_memory(200 << 20)) as box:
        yield box


def seed(connection: QdrantConnection, *, documents: int = 300, size: int = 24) -> None:
    """Four collections and two aliases: plain, oddly named with UUIDs, named + sparse + multi vectors, and an empty one."""
    source = random.Random(7)
    with Rest(connection) as rest:
        rest.put(at(DOCUMENTS), plain_config(size))
        rest.put(at(DOCUMENTS, "index"), {"field_name": "context_id", "field_schema": "integer"}, wait="true")
        upsert(rest, DOCUMENTS, [document(source, number, size) for number in range(1, documents + 1)])
        rest.put(at(ODD_NAME), {"vectors": {"size": 4, "distance": "Euclid"}, **LEAN})
        upsert(rest, ODD_NAME, [{"id": str(uuid.UUID(int=source.getrandbits(128))), "vector": vector(source, 4)} for _ in range(40)])
        rest.put(at(MIXED), MIXED_CONFIG)
        upsert(rest, MIXED, [mixed(source, number) for number in range(60)])
        rest.put(at(EMPTY), EMPTY_CONFIG)
        actions = [{"create_alias": {"alias_name": alias, "collection_name": name}} for alias, name in ALIASES.items()]
        rest.post("/collections/aliases", {"actions": actions})


#: Keeps snapshots of a few hundred points below a megabyte. Qdrant sets files of 32 MB aside in every segment, and what is held in
#: memory fills them when it is recovered: then a snapshot of a hundred points has 270 MB and takes seconds to make and to recover.
LEAN: Mapping[str, Any] = {"optimizers_config": {"default_segment_number": 1}, "wal_config": {"wal_capacity_mb": 1}}
MIXED_CONFIG: Mapping[str, Any] = {
    "vectors": {
        "title": {"size": 12, "distance": "Dot", "on_disk": True},
        "tokens": {"size": 6, "distance": "Cosine", "multivector_config": {"comparator": "max_sim"}, "on_disk": True},
    },
    "sparse_vectors": {"words": {}},
    "hnsw_config": {"m": 8},
    "quantization_config": {"scalar": {"type": "int8", "always_ram": True}},
    "shard_number": 2,
    **LEAN,
}
#: The other way round: in memory, where that is a matter of the configuration alone.
EMPTY_CONFIG: Mapping[str, Any] = {"vectors": {"size": 8, "distance": "Dot"}, "on_disk_payload": False, **LEAN}


def plain_config(size: int) -> dict[str, Any]:
    """One vector a point, of ``size`` numbers."""
    return {"vectors": {"size": size, "distance": "Cosine", "on_disk": True}, **LEAN}


def document(source: random.Random, number: int, size: int) -> dict[str, Any]:
    return {
        "id": number,
        "vector": vector(source, size),
        "payload": {
            "context_item_id": number,
            "title": f"{source.choice(WORDS)} {number}",
            "content": " ".join(source.choices(WORDS, k=40)),
            "context_id": source.randrange(9),
            "context_type": source.choice(("pdf", "md", "faq")),
        },
    }


def mixed(source: random.Random, number: int) -> dict[str, Any]:
    vectors: dict[str, Any] = {
        "title": vector(source, 12),
        "tokens": [vector(source, 6) for _ in range(1 + number % 3)],
        "words": {"indices": sorted(source.sample(range(500), 5)), "values": [source.random() for _ in range(5)]},
    }
    if number % 5 == 0:
        del vectors["words"]
    payload = {"nested": {"b": [1, 2.5, None, {"한": True}], "a": -number}, "big": 2**63 + number, "float": 1.0, "text": ""}
    return {"id": number, "vector": vectors, "payload": payload if number % 7 else None}


def upsert(rest: Rest, collection: str, points: list[dict[str, Any]]) -> None:
    rest.put(at(collection, "points"), {"points": points}, wait="true")


def drop_everything(connection: QdrantConnection) -> None:
    with Rest(connection) as rest:
        for found in rest.get("/collections")["collections"]:
            for left in rest.get(at(found["name"], "snapshots")):
                rest.delete(at(found["name"], "snapshots", left["name"]))
            rest.delete(at(found["name"]))


def snapshots_left(connection: QdrantConnection) -> list[str]:
    """Every snapshot that stands on a server."""
    with Rest(connection) as rest:
        names = [found["name"] for found in rest.get("/collections")["collections"]]
        return [left["name"] for name in names for left in rest.get(at(name, "snapshots"))]


@dataclass(frozen=True, slots=True)
class Seen:
    """A request as it reached the proxy."""

    method: str
    path: str


class Exchange:
    """One request under way in the proxy; a rule may do with it what it likes."""

    def __init__(self, handler: BaseHTTPRequestHandler, target: urllib.parse.SplitResult) -> None:
        self.method = handler.command
        self.path = handler.path
        self._handler = handler
        self._target = target
        size = int(handler.headers.get("content-length") or 0)
        self._body = handler.rfile.read(size) if size else b""

    def upstream(self) -> tuple[int, dict[str, str], bytes]:
        """Hand the request on and take the whole answer."""
        link = http.client.HTTPConnection(self._target.hostname or "", self._target.port, timeout=60)
        try:
            headers = {k: v for k, v in self._handler.headers.items() if k.lower() not in {"host", "connection", "accept-encoding"}}
            link.request(self.method, self.path, body=self._body or None, headers=headers)
            answer = link.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            link.close()

    def answer(self, status: int, body: bytes, *, announce: int | None = None, headers: Mapping[str, str] | None = None) -> None:
        """Send an answer; ``announce`` is a content length that need not be true."""
        handler = self._handler
        handler.send_response(status)
        for name, value in (headers or {}).items():
            if name.lower() not in {"content-length", "transfer-encoding", "date", "server", "connection"}:
                handler.send_header(name, value)
        handler.send_header("content-length", str(len(body) if announce is None else announce))
        handler.end_headers()
        handler.wfile.write(body)
        handler.wfile.flush()

    def hang_up(self) -> None:
        self._handler.close_connection = True

    def passed_on(self) -> None:
        status, headers, body = self.upstream()
        self.answer(status, body, headers=headers)


#: Returns True when it has dealt with the exchange.
Rule = Callable[[Exchange], bool]


@dataclass
class Proxy:
    """A proxy before a real server."""

    url: str
    rules: list[Rule] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)

    def posts(self) -> list[Seen]:
        return [s for s in self.seen if s.method == "POST" and s.path.partition("?")[0].endswith("/snapshots")]


@contextlib.contextmanager
def proxy(target: str) -> Iterator[Proxy]:
    """Run a proxy before ``target`` on a free port."""
    address = urllib.parse.urlsplit(target)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_one_request(self) -> None:
            with contextlib.suppress(ConnectionError):
                super().handle_one_request()

        def _any(self) -> None:
            exchange = Exchange(self, address)
            made.seen.append(Seen(exchange.method, exchange.path))
            with contextlib.suppress(ConnectionError):
                if not any(rule(exchange) for rule in made.rules):
                    exchange.passed_on()

        do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = _any  # noqa: N815

        def log_message(self, format: str, *args: Any) -> None:
            return

    with serving(Handler) as url:
        made = Proxy(url)
        yield made


@contextlib.contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """An HTTP server on a free loopback port, in a thread."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, name="proxy")
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def envelope(result: Any, status: Any = "ok") -> bytes:
    """A reply as Qdrant frames it."""
    return json.dumps({"result": result, "status": status, "time": 0.001}).encode()


def seed_documents(connection: QdrantConnection, points: int = 120, size: int = 16) -> None:
    """One collection, quickly."""
    source = random.Random(5)
    with Rest(connection) as rest:
        rest.put(at(DOCUMENTS), plain_config(size))
        upsert(rest, DOCUMENTS, [document(source, n, size) for n in range(1, points + 1)])


def store_at(url: str, *, timeout_s: float = 30.0) -> QdrantStore:
    return QdrantStore(QdrantConnection(url=url), timeout_s=timeout_s)


def is_snapshot_post(exchange: Exchange) -> bool:
    return exchange.method == "POST" and exchange.path.partition("?")[0].endswith("/snapshots")


def is_download(exchange: Exchange) -> bool:
    return exchange.method == "GET" and exchange.path.endswith(".snapshot")


def open_entries(ctx: Context) -> int:
    """How many snapshots the ledger believes to stand on servers."""
    return len(ctx.ledger.entries(KIND))
