"""Downloading a large file from a Qdrant server.

Not through the client of the small requests: that one takes a response apart in pieces of 64 KB, which costs 1.6 s of
processor time per gigabyte; reading straight into one buffer costs 0.2 s.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass

from scholaria_ops.cancel import CancelToken
from scholaria_ops.errors import StoreError, StoreUnavailable
from scholaria_ops.files import BLOCK
from scholaria_ops.stores.qdrant.rest import CONNECT_S, NoAnswer, Rest, tls_context

_MAX_ERROR_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Body:
    """A response body. ``length`` is what the server announced, if it did."""

    length: int | None
    _response: http.client.HTTPResponse

    def blocks(self) -> Iterator[memoryview]:
        """The body in blocks of at most 1 MiB; each is valid until the next one is asked for."""
        buffer = memoryview(bytearray(BLOCK))
        received = 0
        while count := self._fill(buffer):
            received += count
            yield buffer[:count]
        if self.length is not None and received < self.length:
            raise http.client.IncompleteRead(b"", self.length - received)

    def _fill(self, buffer: memoryview) -> int:
        filled = 0
        while filled < len(buffer):
            count = self._response.readinto(buffer[filled:])
            if not count:
                break
            filled += count
        return filled


@contextlib.contextmanager
def download(rest: Rest, path: str, *, timeout_s: float, cancel: CancelToken | None = None) -> Iterator[Body]:
    """GET ``path`` as a stream; ``timeout_s`` bounds one silence. Errors, also while reading, are those of :class:`Rest`."""
    what = f"GET {path}"
    address = urllib.parse.urlsplit(rest.connection.url)
    with contextlib.ExitStack() as stack, _errors(rest, what, cancel):
        link = _link(rest, address)
        stack.callback(link.close)
        _connect(rest, link)
        link.sock.settimeout(timeout_s)
        if cancel is not None:
            stack.enter_context(cancel.on_cancel(lambda: _break_off(link)))
        link.request("GET", address.path.rstrip("/") + path, headers=rest.credentials | {"accept-encoding": "identity"})
        response = link.getresponse()
        if response.status != http.client.OK:
            rest.check(response.status, response.read(_MAX_ERROR_BYTES), what)
            raise StoreError(f"{what} on {rest.where} answered {response.status}", store="qdrant")
        yield Body(response.length, response)


def _link(rest: Rest, address: urllib.parse.SplitResult) -> http.client.HTTPConnection:
    context = tls_context(rest.connection)
    host = address.hostname or ""
    if context is None:
        return http.client.HTTPConnection(host, address.port, timeout=CONNECT_S)
    return http.client.HTTPSConnection(host, address.port, timeout=CONNECT_S, context=context)


def _connect(rest: Rest, link: http.client.HTTPConnection) -> None:
    try:
        link.connect()
    except OSError as exc:  # refused, no route, unknown name, certificate not accepted
        raise StoreUnavailable(
            f"cannot connect to {rest.where}: {exc}",
            hint="Check that Qdrant runs there and that QDRANT_URL and the TLS settings are right.",
            store="qdrant",
        ) from exc


def _break_off(link: http.client.HTTPConnection) -> None:
    if link.sock is not None:
        with contextlib.suppress(OSError, ValueError):
            socket.socket.shutdown(link.sock, socket.SHUT_RDWR)


@contextlib.contextmanager
def _errors(rest: Rest, what: str, cancel: CancelToken | None) -> Iterator[None]:
    try:
        yield
    except TimeoutError as exc:
        _cancelled(cancel)
        raise NoAnswer(f"{what} on {rest.where}: no answer in time", hint="Look at the server's load and log.", store="qdrant") from exc
    except http.client.IncompleteRead as exc:
        _cancelled(cancel)
        raise StoreUnavailable(
            f"{what} on {rest.where}: the connection broke off with {exc.expected or 0:,} bytes to come", hint="Run again.", store="qdrant"
        ) from exc
    except (http.client.HTTPException, ConnectionError) as exc:
        _cancelled(cancel)
        raise StoreUnavailable(f"{what} on {rest.where}: {exc or type(exc).__name__}", hint="Run again.", store="qdrant") from exc


def _cancelled(cancel: CancelToken | None) -> None:
    if cancel is not None:
        cancel.check()
