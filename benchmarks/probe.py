"""A small reader and writer of one store, as a process of its own: ``python -m benchmarks.probe CONFIG``.

Each operation writes something small, reads it or its neighbour back, and becomes a line of the log: the instant at which it ended,
``ok`` or ``error``. A failed connection is made again at once. SIGTERM ends it. CONFIG is a private JSON file; ``benchmarks.restores``
writes it.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import psycopg
import redis

#: Between two operations; part of every gap.
PAUSE_S = 0.005
_TIMEOUT_S = 60.0
_READY = 5
_STOP = threading.Event()

Step = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Seen:
    """What one probe saw: instants (seconds since the epoch) at which an operation succeeded, or failed."""

    succeeded: tuple[float, ...]
    failed: tuple[float, ...] = ()
    first_error: str = ""

    def longest_gap(self, begin: float, end: float) -> float:
        """Longest time in seconds between two successes that overlaps ``begin`` … ``end``; what has no end by then counts until ``end``."""
        ends = self.succeeded if self.succeeded and self.succeeded[-1] >= end else (*self.succeeded, end)
        return max((b - a for a, b in pairwise(ends) if b > begin and a < end), default=0.0)

    def longest_gap_outside(self, begin: float, end: float) -> float:
        """The same for all gaps that do not touch ``begin`` … ``end``."""
        return max((b - a for a, b in pairwise(self.succeeded) if b <= begin or a >= end), default=0.0)


def read_log(text: str) -> Seen:
    """What the lines of a log say; a last line that was cut off is passed over."""
    succeeded, failed, first = [], [], ""
    for line in text.splitlines(keepends=True):
        if not line.endswith("\n"):
            break
        at, what, *rest = line.split(maxsplit=2)
        if what == "ok":
            succeeded.append(float(at))
        else:
            failed.append(float(at))
            first = first or " ".join(rest).strip()
    return Seen(tuple(succeeded), tuple(failed), first)


def main() -> None:
    """Work until told to stop."""
    config = json.loads(Path(sys.argv[1]).read_text())
    signal.signal(signal.SIGTERM, lambda *_: _STOP.set())
    make = {"postgres": _postgres, "redis": _redis, "qdrant": _qdrant}[config["store"]]
    step: Step | None = None
    number = 0
    with Path(config["log"]).open("w", buffering=1) as log:
        while not _STOP.is_set():
            number += 1
            try:
                step = step or make(config)
                step(number)
            except Exception as exc:  # noqa: BLE001 - whatever fails is a failure of the store as its application sees it
                log.write(f"{time.time():.6f} error {type(exc).__name__}: {' '.join(str(exc).split())[:120]}\n")
                step = None
            else:
                log.write(f"{time.time():.6f} ok\n")
                if number == _READY:
                    print("ready", flush=True)
            _STOP.wait(PAUSE_S)


def _postgres(config: dict[str, Any]) -> Step:
    session = psycopg.connect(config["conninfo"], autocommit=True, connect_timeout=5)

    def step(number: int) -> None:
        session.execute(
            "INSERT INTO rag_questionhistory (topic_id, session_id, question, answer) VALUES (1, 'probe', %s, '답')", (str(number),)
        )
        if session.execute("SELECT content FROM rag_contextitem WHERE id = %s", (number % config["items"] + 1,)).fetchone() is None:
            raise LookupError("a chunk is not there")

    return step


def _redis(config: dict[str, Any]) -> Step:
    client = redis.Redis(host=config["host"], port=config["port"], password=config["password"] or None, socket_timeout=_TIMEOUT_S)

    def step(number: int) -> None:
        client.set("session:probe", number, ex=3600)
        if client.get("config:answer_model") is None:
            raise LookupError("the configuration is not there")

    return step


def _qdrant(config: dict[str, Any]) -> Step:
    client = httpx.Client(base_url=config["url"], headers={"api-key": config["key"]} if config["key"] else {}, timeout=_TIMEOUT_S)
    points = f"/collections/{config['collection']}/points"

    def step(number: int) -> None:
        one = number % config["items"] + 1
        client.post(f"{points}/payload?wait=true", json={"payload": {"probe": number}, "points": [one]}).raise_for_status()
        found = client.post(points, json={"ids": [one]}).raise_for_status()
        if not found.json()["result"]:
            raise LookupError("a point is not there")

    return step


if __name__ == "__main__":
    main()
