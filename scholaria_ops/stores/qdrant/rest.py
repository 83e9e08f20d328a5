"""Plain REST to a Qdrant server of any version since 1.7: one connection, mapped errors, no retries.

Snapshot routes are not taken from a client library, because current ones no longer speak to the old servers that
production runs. What differs between versions is decided here, by the server's own version.
"""

from __future__ import annotations

import contextlib
import email.utils
import json
import socket
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Self

from scholaria_ops.cancel import CancelToken
from scholaria_ops.connections import QdrantConnection
from scholaria_ops.errors import AuthenticationFailed, ConfigError, DiskFull, StoreError, StoreUnavailable
from scholaria_ops.process import redact
from scholaria_ops.stores.qdrant.names import quoted, version_tuple

if TYPE_CHECKING:
    import ssl

    import httpx

#: Seconds to connect, and to wait for an ordinary answer.
CONNECT_S = 5.0
ANSWER_S = 30.0
#: Servers wrap errors in errors: the first words name the request, the last ones the cause.
_SHOWN = 500

_NO_SPACE = ("no space left", "out of disk", "disk is full", "not enough space", "insufficient storage", "disk quota", "file too large")


class NotFound(StoreError):
    """The server knows no such collection or snapshot."""


class BadRequest(StoreError):
    """The server understood and declined (400, 409, 422): the same request will not do better later."""


class NoAnswer(StoreUnavailable):
    """The server (or a gateway before it) did not answer in time: what was asked for may still be under way."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A result, and the server's clock when it answered (None if it did not tell)."""

    result: Any
    server_time: datetime | None


class Rest:
    """One server. A context manager; cancelling the token breaks off a request that is under way.

    Raises (all methods):
        AuthenticationFailed: 401, or 403; never tried again.
        NotFound, BadRequest: as they say.
        DiskFull: the *server's* disk.
        StoreUnavailable: not reached, broken off, too slow, or a gateway's error.
        StoreError: any other error that the server reports.
        Cancelled: by the token.
    """

    def __init__(self, connection: QdrantConnection, *, cancel: CancelToken | None = None, answer_s: float = ANSWER_S) -> None:
        self.connection = connection
        self.where = connection.where
        self._cancel = cancel
        self._answer_s = answer_s
        self._key = connection.api_key.get_secret_value()
        self._sockets: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._exit = contextlib.ExitStack()
        self._client: httpx.Client | None = None
        self._version: str | None = None

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self._client = stack.enter_context(_client(self.connection, self.credentials))
            if self._cancel is not None:
                stack.enter_context(self._cancel.on_cancel(self._break_off))
            self._exit = stack.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._exit.close()

    @property
    def cancel(self) -> CancelToken | None:
        return self._cancel

    # -- requests ---------------------------------------------------------------------------------------------------

    def get(self, path: str, **params: str) -> Any:
        return self.call("GET", path, params=params).result

    def post(self, path: str, body: Any = None, *, timeout_s: float | None = None, **params: str) -> Any:
        return self.call("POST", path, body=body, params=params, timeout_s=timeout_s).result

    def put(self, path: str, body: Any = None, *, timeout_s: float | None = None, **params: str) -> Any:
        return self.call("PUT", path, body=body, params=params, timeout_s=timeout_s).result

    def delete(self, path: str, *, timeout_s: float | None = None, **params: str) -> Any:
        return self.call("DELETE", path, params=params, timeout_s=timeout_s).result

    def call(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        content: Iterable[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
        params: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> Reply:
        """Send one request and return the ``result`` of its JSON answer."""
        import httpx

        payload: bytes | Iterable[bytes] | None = content
        sent = dict(headers or {})
        if body is not None:
            payload, sent["content-type"] = json.dumps(body, ensure_ascii=False).encode(), "application/json"
        with self._errors(f"{method} {path}"):
            response = self._http.request(
                method,
                path,
                content=payload,
                headers=sent,
                params=dict(params or {}),
                timeout=self._timeout(timeout_s),
                extensions={"trace": self._traced},
            )
            # A response that was read and its stream hold each other: a page of points would stay until the collector finds it.
            response.stream = httpx.ByteStream(b"")
            self.check(response.status_code, response.content, f"{method} {path}")
            return Reply(self._result(response, method, path), _date(response))

    def status(self, path: str) -> int:
        """Only the HTTP status of a route whose answer is plain text (``/readyz``)."""
        with self._errors(f"GET {path}"):
            return self._http.get(path, timeout=self._timeout(None), extensions={"trace": self._traced}).status_code

    @property
    def credentials(self) -> dict[str, str]:
        """The headers that prove who we are."""
        return {"api-key": self._key} if self._key else {}

    def check(self, code: int, body: bytes, what: str) -> None:
        """Raise the error that an answer of this status stands for; below 300 there is none."""
        if code < 300:
            return
        text = _error_text(body)
        said = self._clean(text)
        what = f"{what} on {self.where} answered {code}" + (f": {said}" if said else "")
        if any(sign in text.lower() for sign in _NO_SPACE) or code == 507:
            raise DiskFull(
                f"Qdrant's own disk is full: {what}",
                hint="Free space on the Qdrant server (a snapshot needs about the size of its collection there), then run again.",
                store="qdrant",
            )
        if code == 401 or (code == 403 and "locked" not in said.lower()):
            raise AuthenticationFailed(
                f"Qdrant refused the API key: {what}",
                hint="Check QDRANT_API_KEY; making snapshots needs a key that may write, not a read-only one.",
                store="qdrant",
            )
        if code == 404:
            raise NotFound(what, store="qdrant")
        if code in {408, 504}:
            raise NoAnswer(what, hint="Look at the server's load, and at the time limit of a gateway before it.", store="qdrant")
        if code in {429, 502, 503}:
            raise StoreUnavailable(what, hint="The server or a gateway before it is overloaded or starting; try again.", store="qdrant")
        if 300 <= code < 400:
            raise ConfigError(f"{what}: it redirects elsewhere", hint="Set QDRANT_URL to the final address.", store="qdrant")
        if code in {400, 409, 422}:
            raise BadRequest(what, store="qdrant")
        raise StoreError(what, hint="Look at the server's log.", store="qdrant")

    # -- what differs between versions ------------------------------------------------------------------------------

    @property
    def version(self) -> str:
        """The server's version (``1.16.3``), asked once. ``GET /`` needs no key: do not take it for a proof of access."""
        if self._version is None:
            with self._errors("GET /"):
                response = self._http.get("/", timeout=self._timeout(None), extensions={"trace": self._traced})
                self.check(response.status_code, response.content, "GET /")
                found = _json(response.content)
            version = found.get("version") if isinstance(found, dict) else None
            if not isinstance(version, str):
                raise StoreError(
                    f"{self.where} does not answer like a Qdrant server",
                    hint="Check QDRANT_URL: it must be the REST endpoint (port 6333 by default).",
                    store="qdrant",
                )
            self._version = version
        return self._version

    def at_least(self, major: int, minor: int) -> bool:
        return version_tuple(self.version)[:2] >= (major, minor)

    @property
    def takes_checksum(self) -> bool:
        """Whether an upload is compared with a SHA-256 that we send (since 1.8)."""
        return self.at_least(1, 8)

    # -- inside -----------------------------------------------------------------------------------------------------

    @property
    def _http(self) -> httpx.Client:
        if self._client is None:
            raise RuntimeError("use Rest as a context manager")
        return self._client

    def _timeout(self, seconds: float | None) -> httpx.Timeout:
        import httpx

        return httpx.Timeout(seconds or self._answer_s, connect=CONNECT_S)

    def _traced(self, event: str, info: Mapping[str, Any]) -> None:
        """Remember each connection's socket, so that cancellation can break off a read that blocks."""
        if event in {"connection.connect_tcp.complete", "connection.start_tls.complete"}:
            found = info["return_value"].get_extra_info("socket")
            if found is not None:
                with self._lock:
                    self._sockets.add(found)
            if self._cancel is not None and self._cancel.cancelled:
                self._break_off()

    def _break_off(self) -> None:
        with self._lock:
            sockets = list(self._sockets)
        for found in sockets:
            with contextlib.suppress(OSError, ValueError):
                socket.socket.shutdown(found, socket.SHUT_RDWR)  # past the TLS layer, which the reading thread is using

    @contextlib.contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        import httpx

        if self._cancel is not None:
            self._cancel.check()
        try:
            yield
        except httpx.TimeoutException as exc:
            self._cancelled()
            raise NoAnswer(
                f"{what} on {self.where}: no answer in time ({type(exc).__name__})",
                hint="Look at the server's load and log; raise the time limit if its collections are very large.",
                store="qdrant",
            ) from exc
        except httpx.TransportError as exc:
            self._cancelled()
            raise StoreUnavailable(
                f"{what} on {self.where}: {self._clean(str(exc) or type(exc).__name__)}",
                hint="Check that Qdrant runs there and that QDRANT_URL and the TLS settings are right.",
                store="qdrant",
            ) from exc
        except httpx.HTTPError as exc:
            raise StoreError(f"{what} on {self.where}: {self._clean(str(exc))}", store="qdrant") from exc

    def _cancelled(self) -> None:
        if self._cancel is not None:
            self._cancel.check()

    def _clean(self, text: str) -> str:
        said = redact(" ".join(text.split()), [self._key])
        return said if len(said) <= _SHOWN else f"{said[: _SHOWN // 2]} … {said[-_SHOWN // 2 :]}"

    def _result(self, response: httpx.Response, method: str, path: str) -> Any:
        found = _json(response.content)
        if not isinstance(found, dict) or "result" not in found:
            raise StoreError(f"{method} {path} on {self.where}: the answer is not one of a Qdrant server", store="qdrant")
        return found["result"]


def at(collection: str, *rest: str) -> str:
    """The path of a collection's route: ``at("my docs", "snapshots")``; every part is one quoted segment."""
    return "/".join(["/collections", quoted(collection), *map(quoted, rest)])


def tls_context(connection: QdrantConnection) -> ssl.SSLContext | None:
    """How a server's certificate is verified; None for plain HTTP. Raises ConfigError for an unreadable CA file."""
    if not connection.url.startswith("https"):
        return None
    import ssl

    try:
        context = ssl.create_default_context(cafile=str(connection.ca_file) if connection.ca_file else None)
    except OSError as exc:
        raise ConfigError(f"cannot read the CA file {connection.ca_file}: {exc}", store="qdrant") from exc
    if not connection.verify_tls:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def _client(connection: QdrantConnection, headers: Mapping[str, str]) -> httpx.Client:
    import httpx

    try:
        return httpx.Client(
            base_url=connection.url.rstrip("/"),
            # Servers compress when they may, which on a fast network costs both sides more than it saves (twice the time for points).
            headers={"accept-encoding": "identity", **headers},
            verify=tls_context(connection) or False,
            # Proxies of the environment are not for a store of ours, and settings are read in one place only.
            trust_env=False,
        )
    except httpx.InvalidURL as exc:
        raise ConfigError(f"QDRANT_URL is not an address: {exc}", store="qdrant") from exc


def _json(body: bytes) -> Any:
    from pydantic_core import from_json

    try:
        return from_json(body)
    except ValueError:
        return None


def _error_text(body: bytes) -> str:
    """The error of an answer: JSON ``{"status": {"error": …}}``, or plain text (as for a wrong key)."""
    found = _json(body)
    if isinstance(found, dict):
        status = found.get("status")
        if isinstance(status, dict) and isinstance(status.get("error"), str):
            return str(status["error"])
        if isinstance(found.get("error"), str):
            return str(found["error"])
    return body[:2000].decode("utf-8", "replace")


def _date(response: httpx.Response) -> datetime | None:
    try:
        return email.utils.parsedate_to_datetime(response.headers["date"])
    except (KeyError, ValueError):
        return None
