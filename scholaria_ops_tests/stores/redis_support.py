"""What the tests of the Redis store share: servers, datasets, edited artifacts, a server that follows a script."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scholaria_ops.catalogue.artifacts import Artifact
from scholaria_ops.catalogue.evidence.redis import RedisEvidence
from scholaria_ops.connections import RedisConnection
from scholaria_ops.sandbox.redis import RedisServer
from scholaria_ops.stores.base import Check, Context, Dump
from scholaria_ops.stores.redis import RedisStore
from scholaria_ops.stores.redis.info import version_tuple
from scholaria_ops.stores.redis.wire import Wire, connect

LIBRARY = "#!lua name=lib\nredis.register_function('f', function(keys, args) return 1 end)"
DAY_MS = 86_400_000


def commands(server: RedisServer | RedisConnection, *lines: Sequence[bytes | str | int]) -> list[Any]:
    """Run commands on one connection; any error reply fails the test."""
    with connect(server if isinstance(server, RedisConnection) else server.connection) as wire:
        return [wire.call(*line) for line in lines]


def now_ms() -> int:
    return int(time.time() * 1000)


def fields_expire(server: RedisServer) -> bool:
    """Fields of hashes have expiries of their own since 7.4."""
    return version_tuple(server.version) >= (7, 4)


def fill(server: RedisServer, *, small: int = 300) -> None:
    """A dataset with every type, two databases, expiries near and far, a function, odd names."""
    now = now_ms()
    with connect(server.connection) as wire:
        for i in range(small):
            wire.call("SET", f"rag_query:{i}", f"answer {i}", "PXAT", now + 600_000 + i)
        for i in range(20):
            wire.call("SET", f"embedding_cache:ns:{i}", f"[{i}.25, " + "0.125, " * 700 + "1]", "PXAT", now + 30 * DAY_MS + i)
        for line in _TYPES:
            wire.call(*line)
        wire.call("PEXPIREAT", "session:1", now + DAY_MS)
        wire.call("SET", b"\xff\x00binary:\r\nkey", b"\x00\xff\r\n$5\r\n")
        if fields_expire(server):
            wire.call("HPEXPIREAT", "profile:1", now + 10 * DAY_MS, "FIELDS", 1, "b")
        wire.call("FUNCTION", "LOAD", LIBRARY)
        wire.call("SELECT", 3)
        wire.call("SET", "plain", "value")
        wire.call("XADD", "events", "1-1", "kind", "a")
        wire.call("XADD", "events", "2-1", "kind", "b")
        wire.call("XGROUP", "CREATE", "events", "workers", "0")
        wire.call("XREADGROUP", "GROUP", "workers", "w1", "COUNT", 2, "STREAMS", "events", ">")


_TYPES: tuple[tuple[bytes | str | int, ...], ...] = (
    ("RPUSH", "celery", *(f"task {i}" for i in range(200))),
    ("HSET", "session:1", "user", "1", "seen", "yesterday"),
    ("HSET", "profile:1", "a", "1", "b", "2"),
    ("SADD", "topics", *(f"topic {i}" for i in range(150))),
    ("ZADD", "scores", "1.5", "a", "0.1", "b", "-inf", "c"),
    ("SET", "celery-task-meta-3f2b8c1e-0000-4000-8000-123456789abc", "{}"),
    ("SET", "counter", "42"),
)


@dataclass
class Backup:
    """A dump on disk with its evidence, and ways to spoil it."""

    directory: Path
    dump: Dump[RedisEvidence]
    store: RedisStore

    @property
    def artifact(self) -> Artifact:
        return self.dump.artifacts[0]

    @property
    def evidence(self) -> RedisEvidence:
        return self.dump.evidence

    @property
    def rdb(self) -> bytes:
        return gzip.decompress((self.directory / self.artifact.path).read_bytes())

    def check(self, ctx: Context) -> list[Check]:
        return self.store.inspect(self.directory, self.dump.artifacts, self.evidence, ctx)

    def spoil(self, rdb: bytes, *, honest: bool = True) -> None:
        """Replace the RDB; with ``honest`` all digests are recomputed, as a forger or a broken pipeline would."""
        path = self.directory / self.artifact.path
        path.write_bytes(gzip.compress(rdb, 1))
        if honest:
            data = path.read_bytes()
            fresh = self.artifact.model_copy(
                update={
                    "size_bytes": len(data),
                    "sha256": hashlib.sha256(data).hexdigest(),
                    "raw_size_bytes": len(rdb),
                    "raw_sha256": hashlib.sha256(rdb).hexdigest(),
                }
            )
            self.dump = Dump((fresh,), self.evidence, self.dump.started_at, self.dump.finished_at, {})


def take(server: RedisServer | RedisConnection, ctx: Context, into: Path, **options: Any) -> Backup:
    """Dump a server into a fresh directory."""
    into.mkdir(mode=0o700, parents=True)
    connection = server if isinstance(server, RedisConnection) else server.connection
    store = RedisStore(connection, **options)
    return Backup(into, store.dump(into, "20260102_030405", ctx), store)


def failed(checks: list[Check]) -> list[str]:
    return [check.name for check in checks if check.passed is False]


@dataclass
class Script:
    """What the scripted server sends after SYNC: pieces, each a packet; then it is silent for a while and hangs up."""

    pieces: list[bytes]
    linger_s: float = 0.0
    auth: bytes = b"+OK\r\n"
    #: Reply to a SYNC that follows a PING in one packet (the preflight's question); None: the stream begins.
    sync: bytes | None = None
    info: str = "redis_version:7.4.1\r\nrole:master\r\nrun_id:0\r\nused_memory:1000\r\n"
    seen: list[bytes] = field(default_factory=list)


@contextlib.contextmanager
def scripted(script: Script) -> Iterator[RedisConnection]:
    """A tiny server on a loopback port that answers a handshake and replays a recorded replication stream."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        stop = threading.Event()
        threads: list[threading.Thread] = []

        def accept() -> None:
            while not stop.is_set():
                with contextlib.suppress(OSError):
                    link, _ = listener.accept()
                    thread = threading.Thread(target=_serve, args=(link, script), daemon=True)
                    thread.start()
                    threads.append(thread)

        accepting = threading.Thread(target=accept, daemon=True)
        accepting.start()
        try:
            yield RedisConnection(host="127.0.0.1", port=listener.getsockname()[1])
        finally:
            stop.set()
            listener.shutdown(socket.SHUT_RDWR)
            accepting.join(5)
            for thread in threads:
                thread.join(5)


def _serve(link: socket.socket, script: Script) -> None:
    import hiredis

    reader = hiredis.Reader()
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with link, contextlib.suppress(OSError):
        while data := link.recv(65536):
            reader.feed(data)
            while (command := reader.gets()) is not False:
                script.seen.append(command[0])
                if command[0] == b"SYNC" and script.sync is None:
                    for piece in script.pieces:
                        link.sendall(piece)
                        time.sleep(0.0005)
                    link.settimeout(script.linger_s or None)
                    with contextlib.suppress(TimeoutError):
                        if script.linger_s:
                            link.recv(1)
                    return
                link.sendall(_answer(command, script))


def _answer(command: list[bytes], script: Script) -> bytes:
    if command[0] == b"INFO":
        return b"$%d\r\n%s\r\n" % (len(script.info), script.info.encode())
    if command[0] == b"AUTH":
        return script.auth
    if command[0] == b"SYNC":
        return script.sync or b""
    if command[0] in {b"CONFIG", b"ACL"}:
        return b"-NOPERM no permission\r\n"
    return b"+PONG\r\n" if command[0] == b"PING" else b"+OK\r\n"


@contextlib.contextmanager
def cutting_proxy(target: RedisServer, *, after: int) -> Iterator[RedisConnection]:
    """Passes bytes on, but ends every connection once ``after`` bytes have come back over it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threads: list[threading.Thread] = []

        def forward(source: socket.socket, sink: socket.socket, limit: int | None) -> None:
            passed = 0
            with contextlib.suppress(OSError):
                while data := source.recv(4096):
                    sink.sendall(data)
                    passed += len(data)
                    if limit is not None and passed > limit:
                        break
            for side in (source, sink):
                with contextlib.suppress(OSError):
                    side.shutdown(socket.SHUT_RDWR)

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    near, _ = listener.accept()
                    far = socket.create_connection(("127.0.0.1", target.port))
                    for pair in ((near, far, None), (far, near, after)):
                        thread = threading.Thread(target=forward, args=pair, daemon=True)
                        thread.start()
                        threads.append(thread)

        accepting = threading.Thread(target=accept, daemon=True)
        accepting.start()
        try:
            yield target.connection.model_copy(update={"port": listener.getsockname()[1]})
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            accepting.join(5)
            for thread in threads:
                thread.join(5)


def wait_until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)


__all__ = [
    "Backup",
    "Script",
    "Wire",
    "commands",
    "cutting_proxy",
    "failed",
    "fields_expire",
    "fill",
    "now_ms",
    "scripted",
    "take",
    "wait_until",
]
