"""Send one message to one target, through apprise. What a server answered is in the error, and no secret is."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import urllib.parse
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from scholaria_ops.errors import OpsError
from scholaria_ops.operations.notify.events import Message, shortened
from scholaria_ops.operations.notify.targets import Target
from scholaria_ops.process import redact
from scholaria_ops.settings import Settings

if TYPE_CHECKING:
    from apprise import NotifyBase

_APP = "scholaria-ops"
#: Longest error text that is kept.
_LONGEST = 400
_DEFAULT_PORTS = {"starttls": 587, "tls": 465, "none": 25}
#: How apprise calls the same things.
_SECURE_MODES = {"starttls": "starttls", "tls": "ssl", "none": "insecure"}
_TYPES = {"failure": "failure", "warning": "warning", "success": "success", "recovery": "success"}
#: Loggers that write addresses and whole messages out.
_TALKATIVE = ("apprise", "urllib3.connectionpool", "httpx", "httpcore.connection", "httpcore.http11")
#: Lines that say what a server answered.
_TELLING = ("Socket Exception", "Response Details")


class NotDelivered(OpsError):
    """A message did not arrive; the text says what the server answered, or that it did not."""

    code = "notify"


def send(settings: Settings, target: Target, message: Message) -> None:
    """Deliver one message.

    Raises:
        NotDelivered: it did not arrive, as far as the other side said.
    """
    if target.kind == "heartbeat":
        _ping(settings, target, message)
        return
    from apprise import NotifyType

    plugin = _plugin(settings, target, message)
    with _heard() as lines:
        taken = plugin.notify(body=message.body, title=message.subject, notify_type=NotifyType(_TYPES.get(message.level, "info")))
    if not taken:
        raise NotDelivered(_clean("; ".join(lines) or "it was not accepted", settings), hint="`scholaria-ops notify test` tries again.")


def _ping(settings: Settings, target: Target, message: Message) -> None:
    """Call the heartbeat's address, with /fail after a failure; the message is what the service shows."""
    import httpx

    parts = urllib.parse.urlsplit(target.address.get_secret_value())
    failed = "/fail" if message.subject.startswith("[FAILED]") else ""
    url = urllib.parse.urlunsplit(parts._replace(path=parts.path.rstrip("/") + failed))
    try:
        with _heard():
            answer = httpx.post(url, content=message.body.encode(), timeout=settings.notify_timeout_s)
    except httpx.HTTPError as exc:
        raise NotDelivered(_clean(f"{type(exc).__name__}: {exc}", settings)) from None
    if not answer.is_success:
        raise NotDelivered(_clean(f"it answered {answer.status_code}: {answer.text[:200]}", settings))


def _plugin(settings: Settings, target: Target, message: Message) -> NotifyBase:
    from apprise import AppriseAsset

    timeout = settings.notify_timeout_s
    common: dict[str, Any] = {
        "asset": AppriseAsset(app_id=_APP, app_desc=_APP, app_url="", async_mode=False),
        "cto": timeout,
        "rto": timeout,
        "redirect": False,  # the address is a secret: it goes where it was meant to go, or nowhere
    }
    if target.kind == "mail":
        return _mail(settings, target, common)
    url = target.address.get_secret_value()
    if target.kind == "slack":
        return _slack(url, common)
    return _discord(url, common) if target.kind == "discord" else _json(url, message, common)


def _mail(settings: Settings, target: Target, common: dict[str, Any]) -> NotifyBase:
    from apprise.plugins.email import NotifyEmail

    return NotifyEmail(
        smtp_host=settings.smtp_host,
        host=settings.smtp_host,
        port=settings.smtp_port or _DEFAULT_PORTS[settings.smtp_tls],
        secure_mode=_SECURE_MODES[settings.smtp_tls],
        verify=settings.smtp_verify_tls,
        user=settings.smtp_user or None,
        password=settings.smtp_password.get_secret_value() if settings.smtp_password else None,
        from_addr=settings.smtp_from or f"{_APP}@{socket.getfqdn()}",
        targets=[target.address.get_secret_value()],
        format="text",
        **common,
    )


def _slack(url: str, common: dict[str, Any]) -> NotifyBase:
    """Slack's own webhooks get a line and a coloured attachment; anything on another host the plain text that all of them take."""
    from apprise.plugins.slack import NotifySlack, SlackMode

    own = (urllib.parse.urlsplit(url).hostname or "").startswith("hooks.slack")

    class Webhook(NotifySlack):  # type: ignore[misc]  # apprise's classes are not typed
        def _send(self, _url: str, payload: dict[str, Any], **more: Any) -> Any:
            attachments = payload.get("attachments")
            if attachments:
                # A notification on a telephone shows `text`; without it, it shows nothing.
                payload = {**payload, "text": attachments[0].pop("title", "")}
            return super()._send(url, payload, **more)

    tokens = {"token_a": "T00000000", "token_b": "B00000000", "token_c": "x" * 24}  # the address is given above
    quiet = {"include_image": False, "include_footer": False, "include_timestamp": False}
    if own:
        return Webhook(**tokens, **quiet, **common)
    return Webhook(mode=SlackMode.WORKFLOW, workflow_path=["T00000000", "WF000", "1", "x"], **quiet, **common)


def _discord(url: str, common: dict[str, Any]) -> NotifyBase:
    from apprise.plugins.discord import NotifyDiscord

    base, webhook_id, token = url.rstrip("/").rsplit("/", 2)

    class Webhook(NotifyDiscord):  # type: ignore[misc]  # apprise's classes are not typed
        notify_url = base

        def _send(self, payload: dict[str, Any], **more: Any) -> Any:
            # Text that came out of a database must not call everybody.
            return super()._send({**payload, "allowed_mentions": {"parse": []}}, **more)

    return Webhook(webhook_id=webhook_id, webhook_token=token, avatar=False, include_image=False, footer=False, **common)


def _json(url: str, message: Message, common: dict[str, Any]) -> NotifyBase:
    from apprise.plugins.custom_json import NotifyJSON

    parts = urllib.parse.urlsplit(url)
    facts = {"level": message.level, "at": message.at.isoformat(), "key": message.key, "run_id": message.run_id}
    return NotifyJSON(
        host=parts.hostname,
        port=parts.port,
        user=urllib.parse.unquote(parts.username) if parts.username else None,
        password=urllib.parse.unquote(parts.password) if parts.password else None,
        secure=parts.scheme == "https",
        fullpath=parts.path or "/",
        params=dict(urllib.parse.parse_qsl(parts.query)),
        payload=facts,
        **common,
    )


class _Ear(logging.Filter):
    """Takes what is logged in one thread away from everybody else, and keeps what tells why something failed."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self._thread = threading.get_ident()

    def filter(self, record: logging.LogRecord) -> bool:
        if record.thread != self._thread:
            return True
        text = " ".join(record.getMessage().split())
        if record.name == "apprise" and (record.levelno >= logging.WARNING or text.startswith(_TELLING)):
            self.lines.append(text)
        return False


@contextlib.contextmanager
def _heard() -> Iterator[list[str]]:
    """What apprise says in this thread about why it failed. It goes into no log: these libraries write addresses out in full."""
    ear, loggers = _Ear(), [logging.getLogger(name) for name in _TALKATIVE]
    apprise = logging.getLogger("apprise")
    level = apprise.level
    apprise.setLevel(logging.DEBUG)
    for logger in loggers:
        logger.addFilter(ear)
    try:
        yield ear.lines
    finally:
        apprise.setLevel(level)
        for logger in loggers:
            logger.removeFilter(ear)


def _clean(text: str, settings: Settings) -> str:
    return shortened(redact(text, settings.secrets), _LONGEST)
