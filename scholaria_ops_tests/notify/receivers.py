"""Local receivers: an HTTP server that judges bodies as Slack and Discord do, and a real mail server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from email import message_from_bytes
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session


@dataclass
class Seen:
    """One request."""

    path: str
    body: Any
    headers: dict[str, str]


@dataclass
class Receiver:
    """An HTTP server on the loopback interface. ``answer`` is the status of the next requests; ``hang_s`` delays them."""

    port: int = 0
    answer: int = 200
    hang_s: float = 0.0
    headers: dict[str, str] = field(default_factory=dict)
    seen: list[Seen] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


def slack_refuses(body: Any) -> str:
    """Why Slack's incoming webhooks would not take a body; empty if they would."""
    if not isinstance(body, dict):
        return "invalid_payload"
    attachments = body.get("attachments", [])
    texts = [body.get("text"), *(a.get("text") for a in attachments), *body.get("blocks", [])]
    return "" if any(texts) and all(isinstance(a, dict) for a in attachments) else "no_text"


def discord_refuses(body: Any) -> str:
    """Why Discord's webhooks would not take a body; empty if they would."""
    if not isinstance(body, dict) or not (body.get("content") or body.get("embeds")):
        return "Cannot send an empty message"
    return "Must be 2000 or fewer in length." if len(body.get("content", "")) > 2000 else ""


@contextlib.contextmanager
def receiver() -> Iterator[Receiver]:
    """Run one for the length of the block. /services/… behaves as Slack, /api/webhooks/… as Discord, anything else takes all."""
    known = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            try:
                body = json.loads(raw)
            except ValueError:
                body = raw.decode()
            known.seen.append(Seen(self.path, body, dict(self.headers.items())))
            time.sleep(known.hang_s)
            status, text = known.answer, b"ok"
            if self.path.startswith("/services/") and (why := slack_refuses(body)):
                status, text = 400, why.encode()
            if self.path.startswith("/api/webhooks/"):
                why = discord_refuses(body)
                status, text = (400, why.encode()) if why else (204 if status == 200 else status, b"")
            with contextlib.suppress(OSError):
                self.send_response(status)
                for name, value in known.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

        def log_message(self, *_: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    known.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield known
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@dataclass
class MailServer:
    """What a mail server took."""

    port: int = 0
    mails: list[tuple[list[str], str, str]] = field(default_factory=list)
    #: Recipients that are refused with 550.
    unknown: set[str] = field(default_factory=set)


class _Handler:
    def __init__(self, known: MailServer) -> None:
        self._known = known

    async def handle_RCPT(  # noqa: N802 - the server's names
        self, _server: SMTP, _session: Session, envelope: Envelope, address: str, _options: list[str]
    ) -> str:
        await asyncio.sleep(0)
        if address in self._known.unknown:
            return "550 5.1.1 no such user here"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, _server: SMTP, _session: Session, envelope: Envelope) -> str:  # noqa: N802
        await asyncio.sleep(0)
        content = envelope.content if isinstance(envelope.content, bytes) else str(envelope.content).encode()
        mail = message_from_bytes(content)
        part = next(p for p in mail.walk() if p.get_content_type() == "text/plain")
        payload = part.get_payload(decode=True)
        text = payload.decode() if isinstance(payload, bytes) else ""
        self._known.mails.append((list(envelope.rcpt_tos), str(mail["Subject"]), text))
        return "250 OK"


@contextlib.contextmanager
def mail_server(*, password: str = "", tls: Any = None) -> Iterator[MailServer]:
    """A real SMTP server; with ``password`` it wants to be authenticated as ``ops``, with ``tls`` (a context) by STARTTLS first."""
    known = MailServer()

    def check(_server: Any, _session: Any, _envelope: Any, _mechanism: str, given: Any) -> AuthResult:
        ok = isinstance(given, LoginPassword) and given.login == b"ops" and given.password == password.encode()
        return AuthResult(success=ok, handled=ok)

    options: dict[str, Any] = {"tls_context": tls, "require_starttls": True} if tls else {}
    if password:
        options |= {"authenticator": check, "auth_required": True, "auth_require_tls": bool(tls)}
    with socket.create_server(("127.0.0.1", 0)) as free:
        known.port = free.getsockname()[1]
    controller = Controller(_Handler(known), hostname="127.0.0.1", port=known.port, ready_timeout=60, **options)
    controller.start()
    try:
        yield known
    finally:
        controller.stop()
