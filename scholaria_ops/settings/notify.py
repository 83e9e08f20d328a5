"""Whom to tell, and how. Addresses of webhooks are secrets: whoever has one can write into the channel."""

from __future__ import annotations

import urllib.parse
from typing import Literal

from pydantic import BaseModel, SecretStr, field_validator

from scholaria_ops.settings.field import named

WebhookKind = Literal["slack", "discord", "json"]
NotifyLevel = Literal["failure", "warning", "success"]
_SLACK_HOSTS = ("hooks.slack.com", "hooks.slack-gov.com")
_DISCORD_HOSTS = ("discord.com", "discordapp.com")
_LEVELS = ("failure", "warning", "success")
#: Shorter parts of an address are no secret, and replacing them everywhere would make messages unreadable.
_SHORTEST_SECRET = 6


class NotifySettings(BaseModel):
    """Notifications."""

    notify_email: str = named("BACKUP_NOTIFY_EMAIL", default="", description="Mail addresses to tell, comma separated")
    notify_webhook: SecretStr | None = named(
        "BACKUP_NOTIFY_WEBHOOK",
        default=None,
        description="Webhooks to tell, comma separated; Slack and Discord are known by their hosts, on another host say "
        "`slack+https://…` or `discord+https://…`, anything else gets plain JSON",
    )
    notify_on: str = named(
        "BACKUP_NOTIFY_ON",
        default="failure,warning",
        description="Of what to tell: `failure`, `warning`, `success`, comma separated; the end of a trouble that was told is told too",
    )
    notify_repeat_h: float = named(
        "BACKUP_NOTIFY_REPEAT_H", default=24.0, gt=0, description="Hours until a trouble that goes on for the same reason is told again"
    )
    notify_timeout_s: float = named(
        "BACKUP_NOTIFY_TIMEOUT_S", default=10.0, gt=0, le=60, description="Seconds to wait for a mail server or webhook"
    )
    smtp_host: str = named("BACKUP_SMTP_HOST", default="", description="Mail server; needed for BACKUP_NOTIFY_EMAIL")
    smtp_port: int | None = named(
        "BACKUP_SMTP_PORT", default=None, ge=1, le=65535, description="Its port; default: 587 with starttls, 465 with tls, 25 with none"
    )
    smtp_tls: Literal["starttls", "tls", "none"] = named("BACKUP_SMTP_TLS", default="starttls", description="How the connection is secured")
    smtp_verify_tls: bool = named("BACKUP_SMTP_VERIFY_TLS", default=True, description="Verify the mail server's certificate")
    smtp_user: str = named("BACKUP_SMTP_USER", default="", description="Account on the mail server")
    smtp_password: SecretStr | None = named("BACKUP_SMTP_PASSWORD", default=None, description="Its password")
    smtp_from: str = named("BACKUP_SMTP_FROM", default="", description="Sender; default: scholaria-ops@ and this host's name")
    ui_url: str = named(
        "BACKUP_UI_URL", default="http://127.0.0.1:3000", description="Where people reach the Dagster UI, for links to runs"
    )
    heartbeat_url: SecretStr | None = named(
        "BACKUP_HEARTBEAT_URL",
        default=None,
        description="Called after every backup that is verified and, if a bucket is set, offsite (healthchecks.io style)",
    )
    heartbeat_fail: bool = named(
        "BACKUP_HEARTBEAT_FAIL", default=True, description="Also call BACKUP_HEARTBEAT_URL with /fail after a backup that failed"
    )

    @field_validator("notify_email")
    @classmethod
    def _addresses(cls, value: str) -> str:
        for address in split_list(value):
            if address.count("@") != 1 or address.startswith("@") or address.endswith("@") or " " in address:
                raise ValueError(f"{address!r} is no mail address")
        return value

    @field_validator("notify_webhook", "heartbeat_url")
    @classmethod
    def _urls(cls, value: SecretStr | None) -> SecretStr | None:
        # The text of these errors is shown: it must not hold the address.
        for number, text in enumerate(split_list(value.get_secret_value()) if value else (), 1):
            _, url = webhook_kind(text)
            parts = urllib.parse.urlsplit(url)
            if parts.scheme not in {"http", "https"} or not parts.hostname:
                raise ValueError(f"address {number} does not begin with http:// or https:// and a host")
        return value

    @field_validator("notify_on")
    @classmethod
    def _known_levels(cls, value: str) -> str:
        wrong = [level for level in split_list(value) if level not in _LEVELS]
        if wrong:
            raise ValueError(f"{wrong[0]!r} is none of {', '.join(_LEVELS)}")
        return value

    @property
    def notify_levels(self) -> frozenset[str]:
        return frozenset(split_list(self.notify_on))

    @property
    def notify_secrets(self) -> tuple[str, ...]:
        """Every part of an address by which somebody could write into the channel."""
        found: list[str] = []
        for secret in (self.notify_webhook, self.heartbeat_url):
            for text in split_list(secret.get_secret_value()) if secret else ():
                _, url = webhook_kind(text)
                parts = urllib.parse.urlsplit(url)
                path = parts.path + (f"?{parts.query}" if parts.query else "")
                found += [text, url, path, parts.path, parts.query, parts.password or "", *parts.path.split("/")[2:]]
        return tuple(s for s in found if len(s) >= _SHORTEST_SECRET)


def split_list(text: str) -> tuple[str, ...]:
    """The parts of a comma separated setting."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def webhook_kind(text: str) -> tuple[WebhookKind, str]:
    """What a webhook understands, by its prefix or its host, and its address without the prefix."""
    prefixes: tuple[WebhookKind, ...] = ("slack", "discord", "json")
    for kind in prefixes:
        if text.startswith(f"{kind}+"):
            return kind, text.removeprefix(f"{kind}+")
    host = (urllib.parse.urlsplit(text).hostname or "").lower()
    if host in _SLACK_HOSTS:
        return "slack", text
    if host in _DISCORD_HOSTS or host.endswith(tuple(f".{h}" for h in _DISCORD_HOSTS)):
        return "discord", text
    return "json", text
