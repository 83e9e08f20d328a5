"""What became of every alert: ``BACKUP_DIR/.state/alerts.jsonl``, one line per attempt to deliver one, append-only.

For readers (health, status)::

    seen = alerts_of(services.catalogue.layout).summary()
    seen.last_delivered    # newest attempt that arrived, or None
    seen.failing           # target → its newest attempt, for targets whose newest attempt did not arrive

A target is named by kind and host, never by its address: the address of a webhook is its password.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from scholaria_ops.catalogue.layout import Layout
from scholaria_ops.files import append_durably, make_private_dir

#: ``recovery`` ends a ``failure`` or ``warning`` that was announced; ``test`` is what `notify test` sends; ``heartbeat`` is a ping.
Level = Literal["failure", "warning", "success", "recovery", "test", "heartbeat"]
#: So much of the end of the file is read, in bytes: some thousand attempts.
_READ_BACK = 1 << 20


class Attempt(BaseModel):
    """One attempt to bring one alert to one target."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    at: AwareDatetime
    #: Kind and host of the target: ``slack hooks.slack.com``, ``mail ops@example.org``.
    target: str
    level: Level
    subject: str
    delivered: bool
    #: Why it did not arrive; empty if it did.
    error: str = ""
    #: Which attempt it was for this alert and target, from 1.
    attempt: int = 1
    #: It is not tried again.
    given_up: bool = False
    #: Names the alert: attempts of the same one share it.
    alert: str = ""
    run_id: str = ""


@dataclass(frozen=True, slots=True)
class Summary:
    """What health and status say about the alert channel."""

    last: Attempt | None
    last_delivered: Attempt | None
    #: Target → its newest attempt, for targets whose newest attempt did not arrive.
    failing: Mapping[str, Attempt]


class Alerts:
    """The attempts recorded below one ``BACKUP_DIR``. Safe for several threads and processes (single appends)."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def record(self, attempt: Attempt) -> None:
        """Write one attempt down, durably."""
        make_private_dir(self.path.parent, exist_ok=True)
        append_durably(self.path, json.dumps(attempt.model_dump(mode="json"), ensure_ascii=False).encode())

    def attempts(self, *, since: datetime | None = None) -> list[Attempt]:
        """The newest attempts, oldest first. A line torn by a crash is passed over. Raises OSError if the file cannot be read."""
        if not self.path.exists():
            return []
        with self.path.open("rb") as source:
            size = source.seek(0, 2)
            source.seek(max(0, size - _READ_BACK))
            lines = source.read().split(b"\n")
        found = _parsed(lines if size <= _READ_BACK else lines[1:])
        return [a for a in found if since is None or a.at >= since]

    def summary(self) -> Summary:
        """The newest attempt, the newest that arrived, and which targets do not take alerts at present."""
        newest: dict[str, Attempt] = {}
        delivered: Attempt | None = None
        for attempt in self.attempts():
            newest[attempt.target] = attempt
            if attempt.delivered:
                delivered = attempt
        last = max(newest.values(), key=lambda a: a.at) if newest else None
        return Summary(last, delivered, {t: a for t, a in newest.items() if not a.delivered})


def alerts_of(layout: Layout) -> Alerts:
    """The alerts of a ``BACKUP_DIR``."""
    return Alerts(layout.state / "alerts.jsonl")


def _parsed(lines: Iterable[bytes]) -> list[Attempt]:
    found = []
    for line in lines:
        try:
            found.append(Attempt.model_validate_json(line))
        except ValidationError:
            continue  # torn by a crash while it was written, or the empty end
    return found
