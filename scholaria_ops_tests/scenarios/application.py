"""A small application that writes to and reads from the three stores all the time, as a process of its own.

``python -m scholaria_ops_tests.scenarios.application CONFIG``. Every acknowledged write and every failure becomes a line of
``<store>.log`` in the directory of CONFIG: instant, ``ok`` or ``error``, and the id or the error. SIGTERM ends it; what was acknowledged
stands in the logs then.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_PAUSE_S = 0.02
_STOP = threading.Event()

Step = Callable[[int], None]


def main() -> None:
    config = json.loads(Path(sys.argv[1]).read_text())
    directory = Path(sys.argv[1]).parent
    signal.signal(signal.SIGTERM, lambda *_: _STOP.set())
    makers: dict[str, Callable[[dict[str, Any]], Step]] = {"postgres": _postgres, "redis": _redis, "qdrant": _qdrant}
    threads = [threading.Thread(target=_loop, args=(make, config, directory / f"{name}.log")) for name, make in makers.items()]
    for thread in threads:
        thread.start()
    (directory / "ready").touch()
    for thread in threads:
        thread.join()


def _loop(make: Callable[[dict[str, Any]], Step], config: dict[str, Any], log: Path) -> None:
    step: Step | None = None
    # Numbers beyond those of earlier lives of this application.
    number = sum(1 for line in log.read_text().splitlines() if " ok " in line) if log.exists() else 0
    with log.open("a", buffering=1) as out:
        while not _STOP.is_set():
            try:
                step = step or make(config)
                step(number + 1)
            except Exception as exc:  # noqa: BLE001 - an application under test: whatever fails is written down and tried again
                out.write(f"{time.time():.6f} error {type(exc).__name__}: {' '.join(str(exc).split())[:120]}\n")
                step = None
            else:
                number += 1
                out.write(f"{time.time():.6f} ok {number}\n")
            _STOP.wait(_PAUSE_S)


def _postgres(config: dict[str, Any]) -> Step:
    import psycopg

    session = psycopg.connect(config["postgres"], autocommit=True, connect_timeout=60)

    def step(number: int) -> None:
        session.execute(
            "INSERT INTO rag_questionhistory (topic_id, session_id, question, answer) VALUES (1, 'app', %s, '답')", (str(number),)
        )
        # Reads what its users read: chunks of the knowledge base.
        found = session.execute("SELECT content FROM rag_contextitem WHERE id = %s", (number % config["items"] + 1,)).fetchone()
        if found is None:
            raise LookupError(f"chunk {number % config['items'] + 1} is not there")

    return step


def _redis(config: dict[str, Any]) -> Step:
    import redis

    client = redis.Redis(
        host=config["redis"]["host"], port=config["redis"]["port"], password=config["redis"]["password"] or None, socket_timeout=60
    )

    def step(number: int) -> None:
        client.set(f"session:app{number}", number, ex=3600)
        if client.get("config:answer_model") is None:
            raise LookupError("the configuration is not there")

    return step


def _qdrant(config: dict[str, Any]) -> Step:
    import httpx

    client = httpx.Client(base_url=config["qdrant"]["url"], timeout=60)
    vector = [0.1] * config["dim"]
    name = config["qdrant"]["collection"]

    def step(number: int) -> None:
        point = {"id": 1_000_000 + number, "vector": vector, "payload": {"context_id": 1, "content": "app"}}
        client.put(f"/collections/{name}/points?wait=true", json={"points": [point]}).raise_for_status()
        found = client.post(f"/collections/{name}/points/search", json={"vector": vector, "limit": 1, "filter": {"must_not": []}})
        found.raise_for_status()
        one = client.post(f"/collections/{name}/points", json={"ids": [number % config["items"] + 1]})
        one.raise_for_status()
        if not one.json()["result"]:
            raise LookupError("the point is not there")

    return step


if __name__ == "__main__":
    main()
