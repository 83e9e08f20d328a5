"""Contract with old servers (1.7.4, which production runs). No such server can be had here.

``OldServer`` below is HAND-MADE: its routes, statuses and the shapes of its replies were taken from the API description
and the source of that release (replies validated against its OpenAPI schemas when this was written), not recorded from a running
server. It knows only what that release knew: no ``checksum`` in snapshot replies, no ``/points/query``, no
``/collections/{name}/exists``, 403 with plain text for a wrong key, ``vectors_count`` in a collection's description, and
snapshots whose member names begin with ``./``. Everything else is answered with 404, so that a newer route shows.
"""

from __future__ import annotations

import io
import json
import re
import struct
import tarfile
import time
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from scholaria_ops.catalogue.artifacts import Artifact
from scholaria_ops.connections import QdrantConnection
from scholaria_ops.errors import AuthenticationFailed, Refused
from scholaria_ops.stores.qdrant import QdrantStore, recover_as
from scholaria_ops.stores.qdrant.rest import Rest
from scholaria_ops_tests.conftest import ContextFactory
from scholaria_ops_tests.stores.qdrant_support import Seen, envelope, serving

KEY = "old-key"
NAME = "context_items"
CONFIG: dict[str, Any] = {
    "params": {
        "vectors": {"size": 4, "distance": "Cosine"},
        "shard_number": 1,
        "replication_factor": 1,
        "write_consistency_factor": 1,
        "on_disk_payload": True,
    },
    "hnsw_config": {"m": 16, "ef_construct": 100, "full_scan_threshold": 10000, "max_indexing_threads": 0, "on_disk": False},
    "optimizer_config": {
        "deleted_threshold": 0.2,
        "vacuum_min_vector_number": 1000,
        "default_segment_number": 0,
        "max_segment_size": None,
        "memmap_threshold": None,
        "indexing_threshold": 20000,
        "flush_interval_sec": 5,
        "max_optimization_threads": 1,
    },
    "wal_config": {"wal_capacity_mb": 32, "wal_segments_ahead": 0},
    "quantization_config": None,
}
TELEMETRY: dict[str, Any] = {
    "id": "3b29b4ae-4c0c-4b38-9a4e-3f3b6f0ea12a",
    "app": {"name": "qdrant", "version": "1.7.4", "startup": "2024-02-02T02:02:02"},
    "collections": {"number_of_collections": 1},
    "cluster": {"enabled": False},
    "requests": {"rest": {"responses": {}}, "grpc": {"responses": {}}},
}


def snapshot_bytes() -> bytes:
    """A snapshot as 1.7 lays it out: every name begins with ``./``, segments are inner archives, nothing is sparse."""
    segment = io.BytesIO()
    with tarfile.open(fileobj=segment, mode="w", format=tarfile.GNU_FORMAT) as inner:
        _add(inner, "snapshot/files/segment.json", b"{}")
        _add(inner, "snapshot/files/version.info", b"0.6.0")
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w", format=tarfile.GNU_FORMAT) as outer:
        for directory in (".", "./0", "./0/segments", "./0/wal"):
            entry = tarfile.TarInfo(directory)
            entry.type = tarfile.DIRTYPE
            outer.addfile(entry)
        _add(outer, "./0/segments/0b2e5a36-4ba7-4b14-a2fc-e4e4b8b7a1b9.tar", segment.getvalue())
        _add(outer, "./0/wal/open-1", bytes(2048))
        _add(outer, "./0/shard_config.json", b'{"type":"ReplicaSet"}')
        _add(outer, "./version.info", b"0.4.2")
        _add(outer, "./config.json", json.dumps(CONFIG).encode())
        _add(outer, "./payload_index.json", b'{"schema":{}}')
    return whole.getvalue()


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))


class OldServer:
    """The state behind the hand-made replies: points 1 … 9, one alias, no index."""

    def __init__(self) -> None:
        self.seen: list[Seen] = []
        self.snapshots: dict[str, bytes] = {}
        self.recovered: dict[str, bytes] = {}
        self.points = {
            n: {"vector": [n / 10, 0.5, -0.25, 0.125], "payload": {"context_item_id": n, "title": f"제목 {n}"}} for n in range(1, 10)
        }

    def answer(self, method: str, path: str, query: dict[str, str], body: bytes) -> tuple[int, bytes]:  # noqa: PLR0911 - one line per route
        """Status and body of a reply."""
        found = re.fullmatch(r"/collections/([^/]+)(/.*)?", path)
        if path == "/":
            return 200, b'{"title":"qdrant - vector search engine","version":"1.7.4"}'
        if path == "/readyz":
            return 200, b"all shards are ready"
        if (method, path) == ("GET", "/collections"):
            return 200, envelope({"collections": [{"name": name} for name in (NAME, *self.recovered)]})
        if (method, path) == ("GET", "/cluster"):
            return 200, envelope({"status": "disabled"})
        if (method, path) == ("GET", "/aliases"):
            return 200, envelope({"aliases": [{"alias_name": "documents", "collection_name": NAME}]})
        if (method, path) == ("GET", "/telemetry"):
            return 200, envelope(TELEMETRY)
        if found is None:
            return 404, b""
        return self._collection(method, urllib.parse.unquote(found[1]), found[2] or "", query, body)

    def _collection(self, method: str, name: str, rest: str, query: dict[str, str], body: bytes) -> tuple[int, bytes]:  # noqa: PLR0911
        asked = json.loads(body) if body.startswith(b"{") else {}
        if (method, rest) == ("POST", "/snapshots/upload"):
            self.recovered[name] = body
            self.snapshots[re.search(rb'filename="([^"]+)"', body)[1].decode()] = b""  # type: ignore[index]
            return 200, envelope(True)
        if name != NAME and name not in self.recovered:
            return 404, envelope(None, {"error": f"Not found: Collection `{name}` doesn't exist!"})
        match method, rest:
            case "GET", "":
                return 200, envelope(self._description())
            case "POST", "/points/count":
                assert asked == {"exact": True}
                return 200, envelope({"count": len(self.points)})
            case "POST", "/points/scroll":
                return 200, envelope(self._page(asked))
            case "POST", "/points":
                return 200, envelope([{"id": n, **self.points[n]} for n in asked["ids"]])
            case "POST", "/points/search/batch":
                return 200, envelope([self._nearest(one) for one in asked["searches"]])
            case _:
                return self._snapshot(method, name, rest)

    def _snapshot(self, method: str, name: str, rest: str) -> tuple[int, bytes]:
        if (method, rest) == ("GET", "/snapshots"):
            return 200, envelope([self._described(known) for known in self.snapshots])
        if (method, rest) == ("POST", "/snapshots"):
            made = f"{name}-3766212330831337-{time.strftime('%Y-%m-%d-%H-%M-%S', time.gmtime())}.snapshot"
            self.snapshots[made] = snapshot_bytes()
            return 200, envelope(self._described(made))
        known = rest.removeprefix("/snapshots/")
        if known not in self.snapshots:
            return 404, envelope(None, {"error": f"Not found: Snapshot {known} not found"}) if "/snapshots/" in rest else b""
        if method == "DELETE":
            del self.snapshots[known]
            return 200, envelope(True)
        return 200, self.snapshots[known]

    def _described(self, name: str) -> dict[str, Any]:
        return {"name": name, "creation_time": "2024-02-02T02:02:02", "size": len(self.snapshots[name])}

    def _description(self) -> dict[str, Any]:
        count = len(self.points)
        return {
            "status": "green",
            "optimizer_status": "ok",
            "vectors_count": count,
            "indexed_vectors_count": 0,
            "points_count": count,
            "segments_count": 2,
            "config": CONFIG,
            "payload_schema": {},
        }

    def _page(self, asked: dict[str, Any]) -> dict[str, Any]:
        ids = [n for n in sorted(self.points) if n >= asked.get("offset", 0)]
        page, after = ids[: asked["limit"]], ids[asked["limit"] :]
        wanted = {"payload": asked["with_payload"], "vector": asked["with_vector"]}
        points = [{"id": n, **{key: self.points[n][key] if on else None for key, on in wanted.items()}} for n in page]
        return {"points": points, "next_page_offset": after[0] if after else None}

    def _nearest(self, asked: dict[str, Any]) -> list[dict[str, Any]]:
        assert asked["params"] == {"exact": True}
        scores = {n: sum(a * b for a, b in zip(asked["vector"], p["vector"], strict=True)) for n, p in self.points.items()}
        best = sorted(scores, key=lambda n: -scores[n])[: asked["limit"]]
        return [{"id": n, "version": 0, "score": struct.unpack("f", struct.pack("f", scores[n]))[0]} for n in best]


@pytest.fixture
def old() -> Iterator[tuple[OldServer, QdrantConnection]]:
    server = OldServer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _any(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            address = urllib.parse.urlsplit(self.path)
            server.seen.append(Seen(self.command, self.path))
            open_to_all = address.path in {"/", "/readyz", "/healthz", "/livez"}
            if not open_to_all and self.headers.get("api-key") != KEY:
                status, reply = 403, b"Invalid api-key"
            else:
                status, reply = server.answer(self.command, address.path, dict(urllib.parse.parse_qsl(address.query)), body)
            self.send_response(status)
            self.send_header("content-length", str(len(reply)))
            self.end_headers()
            self.wfile.write(reply)

        do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = _any  # noqa: N815

        def log_message(self, format: str, *args: Any) -> None:
            return

    with serving(Handler) as url:
        yield server, QdrantConnection(url=url, api_key=SecretStr(KEY))


def test_an_old_server_is_dumped_measured_live_and_left_clean(
    old: tuple[OldServer, QdrantConnection], tmp_path: Path, context_factory: ContextFactory
) -> None:
    server, connection = old
    store = QdrantStore(connection)
    facts = store.preflight(context_factory())
    assert facts.server_version == "1.7.4"
    assert any("1.7.4" in w and "1.7 or 1.8" in w and "1.16" in w for w in facts.warnings), "both versions and what is needed"
    taken = store.dump(tmp_path, "20241001_020000", context_factory())
    measured = taken.evidence.collections[NAME]
    assert (measured.points, len(measured.sample), len(measured.golden)) == (9, 9, 5)
    assert measured.snapshot
    assert measured.snapshot.server_sha256 is None
    assert measured.fingerprint.vectors
    assert (taken.evidence.measured_on, taken.evidence.exact) == ("live", True)
    assert taken.evidence.aliases == {"documents": NAME}
    assert not server.snapshots
    (artifact,) = (a for a in taken.artifacts if a.kind == "snapshot")
    assert (tmp_path / artifact.path).read_bytes() == snapshot_bytes()
    asked = " ".join(s.path for s in server.seen)
    assert "/points/query" not in asked
    assert "/exists" not in asked


def test_an_old_snapshot_is_read_offline_and_left_unjudged_where_no_server_fits(
    old: tuple[OldServer, QdrantConnection], tmp_path: Path, context_factory: ContextFactory
) -> None:
    _, connection = old
    store = QdrantStore(connection)
    taken = store.dump(tmp_path, "20241001_020000", context_factory())
    checks = {c.name: c for c in store.inspect(tmp_path, taken.artifacts, taken.evidence, context_factory())}
    assert checks["snapshot_structure"].passed, checks["snapshot_structure"]
    assert checks["aliases"].passed
    for name in ("snapshot_recovery", "points", "payloads", "vectors", "golden_searches"):
        assert checks[name].passed is None
        assert "1.7.4" in checks[name].detail
        assert "1.7 or 1.8" in checks[name].detail
    (artifact,) = (a for a in taken.artifacts if a.kind == "snapshot")
    whole = (tmp_path / artifact.path).read_bytes()
    (tmp_path / artifact.path).write_bytes(whole[: len(whole) // 2])
    assert not store.inspect(tmp_path, taken.artifacts, taken.evidence, context_factory())[0].passed


def test_an_upload_to_an_old_server_sends_no_checksum_and_says_so(
    old: tuple[OldServer, QdrantConnection], tmp_path: Path, context_factory: ContextFactory
) -> None:
    server, connection = old
    content = snapshot_bytes()
    (tmp_path / "x.snapshot").write_bytes(content)
    artifact = Artifact(store="qdrant", kind="snapshot", path="x.snapshot", size_bytes=len(content), sha256="0" * 64, subject="x")
    with Rest(connection) as rest:
        done = recover_as(rest, tmp_path / "x.snapshot", artifact, "x__beside", expected_points=9, ctx=context_factory(), timeout_s=10.0)
    assert done.points == 9
    assert any("1.7.4" in note and "checksum" in note for note in done.notes)
    assert content in server.recovered["x__beside"]
    (upload,) = (s for s in server.seen if "/upload" in s.path)
    assert urllib.parse.parse_qs(urllib.parse.urlsplit(upload.path).query) == {"priority": ["snapshot"], "wait": ["true"]}
    assert not server.snapshots, "the uploaded copy is deleted"


def test_f54_an_old_server_refuses_a_wrong_key_with_403_and_plain_text(
    old: tuple[OldServer, QdrantConnection], context_factory: ContextFactory
) -> None:
    server, connection = old
    wrong = QdrantStore(connection.model_copy(update={"api_key": SecretStr("wrong")}))
    with pytest.raises(AuthenticationFailed, match="Invalid api-key"):
        wrong.preflight(context_factory())
    assert len(server.seen) == 1


def test_a_server_older_than_1_7_is_refused(
    old: tuple[OldServer, QdrantConnection], context_factory: ContextFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, connection = old
    told = server.answer
    monkeypatch.setattr(
        server, "answer", lambda m, p, q, b: (200, b'{"title":"qdrant","version":"1.6.9"}') if p == "/" else told(m, p, q, b)
    )
    with pytest.raises(Refused, match=r"1\.6\.9.*1\.7 is the oldest"):
        QdrantStore(connection).preflight(context_factory())
