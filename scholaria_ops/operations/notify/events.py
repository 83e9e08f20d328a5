"""What happened, as something to tell: pure data, and the messages made of it."""

from __future__ import annotations

import hashlib
import re
from datetime import datetime, tzinfo
from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from scholaria_ops.operations.alerts import Level

_MARKS: dict[Level, str] = {
    "failure": "FAILED",
    "warning": "WARNING",
    "success": "OK",
    "recovery": "RECOVERED",
    "test": "TEST",
    "heartbeat": "heartbeat",
}
_VARIES = re.compile(r"\b[0-9a-f]{6,}\b|\d+")
#: Discord takes 2,000 characters, subject included; Slack and mail take more.
_LONGEST_BODY = 1700
_LONGEST_SUBJECT = 140


class Event(BaseModel):
    """Something that happened to one subject (``key``), for one reason (``cause``)."""

    model_config = ConfigDict(frozen=True)

    #: What troubles are kept apart by: ``backup``, ``retention``, ``verify 20260301_020000``.
    key: str
    level: Literal["failure", "warning", "success"]
    #: The same one again is the same trouble going on.
    cause: str = ""
    subject: str
    what: str
    at: AwareDatetime
    numbers: dict[str, str] = Field(default_factory=dict)
    next_step: str = ""
    run_id: str = ""
    #: Who or what started it.
    how: str = ""


class Message(BaseModel):
    """What is sent."""

    model_config = ConfigDict(frozen=True)

    level: Level
    subject: str
    body: str
    at: AwareDatetime
    run_id: str = ""
    key: str = ""


def cause_of(code: str, text: str) -> str:
    """A name for a reason: the same text with other numbers, ids and digests is the same reason."""
    shape = _VARIES.sub("#", " ".join(text.split()))[:300]
    return f"{code} {hashlib.sha256(shape.encode()).hexdigest()[:12]}"


def compose(
    event: Event,
    *,
    level: Level,
    ui_url: str,
    place: str,
    since: datetime | None = None,
    count: int = 1,
    zone: tzinfo,
) -> Message:
    """The message of an event: what, since when, the numbers, the next step, and where to look."""
    lines = [event.what]
    if since is not None and (count > 1 or level == "recovery"):
        times = f", {count} times" if count > 1 else ""
        lines.append(f"Since: {_when(since, zone)}{times}" if level != "recovery" else f"It lasted since {_when(since, zone)}{times}")
    lines.append(f"At: {_when(event.at, zone)}")
    lines += [f"{name}: {value}" for name, value in event.numbers.items()]
    if event.next_step:
        lines.append(f"Next: {event.next_step}")
    if event.run_id:
        lines.append(f"Run: {ui_url.rstrip('/')}/runs/{event.run_id}" + (f" ({event.how})" if event.how else ""))
    lines.append(f"From: {place}")
    subject = shortened(f"[{_MARKS[level]}] {event.subject}", _LONGEST_SUBJECT)
    return Message(
        level=level, subject=subject, body=shortened("\n".join(lines), _LONGEST_BODY), at=event.at, run_id=event.run_id, key=event.key
    )


def shortened(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def _when(instant: datetime, zone: tzinfo) -> str:
    local = instant.astimezone(zone)
    return f"{local:%Y-%m-%d %H:%M:%S %Z}"
