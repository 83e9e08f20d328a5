"""A small HTTP proxy in front of a real S3 server that can misbehave on purpose.

Rules are asked in order; the first that matches acts. A rule has a number of times; then it is spent.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.client
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit


@dataclass
class Request:
    """What the client asked for."""

    method: str
    target: str
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def path(self) -> str:
        return unquote(urlsplit(self.target).path)

    @property
    def query(self) -> dict[str, list[str]]:
        return parse_qs(urlsplit(self.target).query, keep_blank_values=True)

    @property
    def operation(self) -> str:
        """The S3 operation, as far as the tests need it."""
        query, method = self.query, self.method
        if "uploads" in query:
            return "CreateMultipartUpload" if method == "POST" else "ListMultipartUploads"
        if "uploadId" in query:
            return {"PUT": "UploadPart", "POST": "CompleteMultipartUpload", "DELETE": "AbortMultipartUpload"}.get(method, "ListParts")
        if "list-type" in query:
            return "ListObjectsV2"
        if "versioning" in query:
            return "GetBucketVersioning"
        return {"PUT": "PutObject", "GET": "GetObject", "HEAD": "HeadObject", "DELETE": "DeleteObject"}.get(method, method)


@dataclass
class Answer:
    """What the server said, or what we say in its place."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes


class Exchange:
    """One request on its way; a rule's action decides what becomes of it."""

    def __init__(self, request: Request, handler: _Handler) -> None:
        self.request = request
        self._handler = handler

    def forward(self) -> Answer:
        """Ask the real server."""
        return self._handler.forward(self.request)

    def reply(self, answer: Answer, *, announce: int | None = None) -> None:
        """Answer; ``announce`` is the Content-Length to claim when the body is shorter on purpose."""
        self._handler.write_answer(answer, announce)

    def drop(self) -> None:
        """Break the connection off."""
        self._handler.close_connection = True
        with contextlib.suppress(OSError):
            self._handler.connection.shutdown(socket.SHUT_RDWR)

    def trickle(self, data: bytes = b"") -> None:
        """Send raw bytes now."""
        self._handler.wfile.write(data)
        self._handler.wfile.flush()

    def sleep(self, seconds: float) -> None:
        """Wait, but not beyond the end of the proxy."""
        self._handler.server.closing.wait(seconds)


Action = Callable[[Exchange], None]


@dataclass
class Rule:
    """Applies ``action`` to the next ``times`` requests of that operation whose path matches."""

    operation: str
    action: Action
    path: str = ""
    times: int = 1_000_000
    when: Callable[[Request], bool] = lambda _: True
    used: int = 0

    def takes(self, request: Request) -> bool:
        if self.used >= self.times or request.operation != self.operation:
            return False
        return re.search(self.path, request.path) is not None and self.when(request)


@dataclass
class Log:
    """What passed, in order of arrival."""

    requests: list[Request] = field(default_factory=list)

    def of(self, operation: str, path: str = "") -> list[Request]:
        return [r for r in self.requests if r.operation == operation and re.search(path, r.path)]


class FaultProxy(ThreadingHTTPServer):
    """Listens on a free loopback port; ``url`` is an endpoint like the one behind it."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, upstream: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        parts = urlsplit(upstream)
        self.upstream = (str(parts.hostname), int(parts.port or 80))
        self.rules: list[Rule] = []
        self.log = Log()
        self.lock = threading.Lock()
        self.closing = threading.Event()
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, name="fault-proxy", daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def on(
        self, operation: str, action: Action, *, path: str = "", times: int = 1_000_000, when: Callable[[Request], bool] = lambda _: True
    ) -> Rule:
        rule = Rule(operation, action, path, times, when)
        self.rules.append(rule)
        return rule

    def pick(self, request: Request) -> Rule | None:
        with self.lock:
            self.log.requests.append(request)
            for rule in self.rules:
                if rule.takes(request):
                    rule.used += 1
                    return rule
        return None

    def stop(self) -> None:
        self.closing.set()
        self.shutdown()
        self.server_close()
        self._thread.join()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that breaks off is part of these tests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultProxy

    def setup(self) -> None:
        super().setup()
        self._link: http.client.HTTPConnection | None = None

    def finish(self) -> None:
        if self._link is not None:
            self._link.close()
        with contextlib.suppress(OSError):
            super().finish()

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0) or 0))
        request = Request(self.command, self.path, self.headers, body)  # type: ignore[arg-type]
        rule = self.server.pick(request)
        exchange = Exchange(request, self)
        if rule is None:
            exchange.reply(exchange.forward())
        else:
            rule.action(exchange)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _serve  # noqa: N815 - the names that http.server looks for

    def forward(self, request: Request) -> Answer:
        if self._link is None:
            self._link = http.client.HTTPConnection(*self.server.upstream, timeout=60)
        self._link.putrequest(request.method, request.target, skip_host=True, skip_accept_encoding=True)
        for name, value in request.headers.items():
            if name.lower() not in {"connection", "expect"}:
                self._link.putheader(name, value)
        self._link.endheaders(request.body or None)
        got = self._link.getresponse()
        return Answer(got.status, got.getheaders(), got.read())

    def write_answer(self, answer: Answer, announce: int | None) -> None:
        self.send_response_only(answer.status)
        passed = {"content-length", "connection", "transfer-encoding", "date", "server"}
        length = next((v for k, v in answer.headers if k.lower() == "content-length"), str(len(answer.body)))
        for name, value in answer.headers:
            if name.lower() not in passed:
                self.send_header(name, value)
        shown = length if self.command == "HEAD" else str(len(answer.body) if announce is None else announce)
        self.send_header("Content-Length", shown)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)
        self.wfile.flush()
        if announce is not None:
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


def error(status: int, code: str, message: str = "by the fault proxy") -> Answer:
    body = f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>{message}</Message></Error>'
    return Answer(status, [("Content-Type", "application/xml")], body.encode())


def fail(status: int, code: str, message: str = "by the fault proxy") -> Action:
    """Answer with an S3 error instead of asking the server."""
    return lambda exchange: exchange.reply(error(status, code, message))


def flip(data: bytes, at: int) -> bytes:
    changed = bytearray(data)
    changed[at] ^= 0x10
    return bytes(changed)


def flip_sent(exchange: Exchange) -> None:
    """One bit of what the client sends changes on its way."""
    body = exchange.request.body
    exchange.request.body = flip(body, len(body) // 2)
    exchange.reply(exchange.forward())


def flip_received(exchange: Exchange) -> None:
    """One bit of what the server sends changes on its way."""
    answer = exchange.forward()
    exchange.reply(Answer(answer.status, answer.headers, flip(answer.body, len(answer.body) // 2)))


def cut(exchange: Exchange) -> None:
    """Half of the body, then the end of the connection."""
    answer = exchange.forward()
    exchange.reply(Answer(answer.status, answer.headers, answer.body[: len(answer.body) // 2]), announce=len(answer.body))


def stall(exchange: Exchange) -> None:
    """Half of the body, then nothing for a long time."""
    cut(exchange)
    exchange.sleep(120)


def trickle(exchange: Exchange) -> None:
    """A byte now and then: no read ever times out."""
    answer = exchange.forward()
    exchange.reply(Answer(answer.status, answer.headers, b""), announce=len(answer.body))
    for n in range(600):
        exchange.sleep(0.1)
        exchange.trickle(answer.body[n : n + 1])


def lose_answer(exchange: Exchange) -> None:
    """The server does as asked, and nobody hears of it."""
    exchange.forward()
    exchange.drop()


def verify_checksum(exchange: Exchange) -> None:
    """Do what these local servers do not: compare ``x-amz-checksum-sha256`` with the body."""
    request = exchange.request
    claimed = request.headers.get("x-amz-checksum-sha256", "")
    if claimed and base64.b64encode(hashlib.sha256(request.body).digest()).decode() != claimed:
        exchange.reply(error(400, "BadDigest", "The SHA256 you specified did not match the calculated checksum."))
        return
    exchange.reply(exchange.forward())


def without_conditions(proxy: FaultProxy, how: str) -> None:
    """A service without conditional writes: it ignores the condition (``ignored``) or refuses it."""

    def ignore(exchange: Exchange) -> None:
        del exchange.request.headers["If-None-Match"]
        exchange.reply(exchange.forward())

    action = (
        ignore if how == "ignored" else fail(501, "NotImplemented", "A header you provided implies functionality that is not implemented.")
    )
    proxy.on("PutObject", action, when=lambda r: "If-None-Match" in r.headers)


@contextlib.contextmanager
def running(upstream: str) -> Iterator[FaultProxy]:
    proxy = FaultProxy(upstream)
    try:
        yield proxy
    finally:
        proxy.stop()


def wait_for(condition: Callable[[], bool], *, seconds: float = 60.0) -> None:
    """Poll until it holds; fail the test otherwise."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.02)
