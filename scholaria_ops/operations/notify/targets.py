"""Whom to tell, from the settings. A target is named by kind and host; its address is a secret."""

from __future__ import annotations

import urllib.parse
from collections import Counter
from dataclasses import dataclass
from typing import Literal

from pydantic import SecretStr

from scholaria_ops.errors import ConfigError
from scholaria_ops.settings import Settings
from scholaria_ops.settings.notify import split_list, webhook_kind

Kind = Literal["mail", "slack", "discord", "json", "heartbeat"]


@dataclass(frozen=True, slots=True)
class Target:
    """One place that takes messages. ``name`` may be shown and written down; ``address`` may not."""

    kind: Kind
    name: str
    address: SecretStr


def targets_of(settings: Settings) -> tuple[Target, ...]:
    """Every target of messages that the settings name; several on one host are numbered.

    Raises:
        ConfigError: mail addresses are set, and no mail server.
    """
    found: list[tuple[Kind, str, str]] = [("mail", address, address) for address in split_list(settings.notify_email)]
    if found and not settings.smtp_host:
        raise ConfigError("BACKUP_NOTIFY_EMAIL is set, but no mail server", hint="Set BACKUP_SMTP_HOST and what belongs to it.")
    for text in split_list(settings.notify_webhook.get_secret_value()) if settings.notify_webhook else ():
        webhook, url = webhook_kind(text)
        found.append((webhook, host_of(url), url))
    seen: Counter[str] = Counter()
    targets = []
    for kind, where, address in found:
        name = f"{kind} {where}"
        seen[name] += 1
        targets.append(Target(kind, name if seen[name] == 1 else f"{name} ({seen[name]})", SecretStr(address)))
    return tuple(targets)


def heartbeat_of(settings: Settings) -> Target | None:
    """Where heartbeats go, if anywhere."""
    if settings.heartbeat_url is None or not settings.heartbeat_url.get_secret_value():
        return None
    return Target("heartbeat", f"heartbeat {host_of(settings.heartbeat_url.get_secret_value())}", settings.heartbeat_url)


def host_of(url: str) -> str:
    """Host, and port if it is named."""
    parts = urllib.parse.urlsplit(url)
    return f"{parts.hostname}:{parts.port}" if parts.port else str(parts.hostname)
