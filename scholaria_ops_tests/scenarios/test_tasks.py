"""Queued tasks that refer to rows which a restore does not bring back are named, in the plan where it can know, and in the report."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
import redis

from scholaria_ops_tests.scenarios.conftest import Install, Installation

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

_MISSING = "tasks that refer to rows which will not exist"


def enqueue(site: Installation, name: str, args: list[Any], kwargs: dict[str, Any]) -> None:
    """As Celery's client does."""
    body = base64.b64encode(json.dumps([args, kwargs, {}]).encode()).decode()
    message = {"body": body, "headers": {"task": name, "id": f"id-{args}-{kwargs}"}, "properties": {"body_encoding": "base64"}}
    to = site.stack.redis
    with redis.Redis(host=to.host, port=to.port, password=to.password.get_secret_value() or None) as client:
        client.lpush("celery", json.dumps(message))


def missing(plan: Any) -> str:
    return "; ".join(e["detail"] for e in plan["effects"] if e["what"] == _MISSING)


def test_tasks_without_their_rows_are_named(install: Install) -> None:
    site = install()
    site.write_settings(BACKUP_FENCE="none")
    site.sql("SELECT setval('rag_context_id_seq', 600)")
    enqueue(site, "rag.tasks.process_document", [550], {})  # gone when the set was taken, though its id had been given out
    enqueue(site, "rag.tasks.notify", ["550"], {"user_id": 999_999})
    enqueue(site, "rag.tasks.notify", [551], {"note": 552})  # nobody knows whose ids these are
    site.ops("backup")
    enqueue(site, "rag.tasks.process_document", [812], {"force": False})
    site.sql("INSERT INTO rag_context SELECT (jsonb_populate_record(c, '{\"id\": 812}')).* FROM rag_context c WHERE id = 1 RETURNING id")

    only_redis = site.json("restore", "latest", "--component", "redis", "--dry-run")["plan"]
    told = missing(only_redis)
    assert "rag.tasks.process_document in celery refers to context 550" in told
    assert "rag.tasks.notify in celery refers to user 999999" in told
    assert "parked: it does not run by itself" in told
    assert "812" not in told, "that task is not in the set"
    assert "551" not in told
    assert "552" not in told
    assert "context 1;" not in told, "rows that are there are not named"

    only_postgres = site.json("restore", "latest", "--component", "postgres", "--dry-run")["plan"]
    told = missing(only_postgres)
    assert "rag.tasks.process_document in celery refers to context 812" in told, "the live queue stays, its row does not"
    assert "the live queue stays: it will run" in told
    assert "550" not in told, "a plan cannot look into a database that is not there yet"
    assert any("looked up once the restored database is served" in e["detail"] for e in only_postgres["effects"])

    done = site.json("restore", "latest", "--component", "postgres", "--force")["restore"]
    (line,) = [w for w in done["warnings"] if w.startswith("queued tasks refer to rows that do not exist now")]
    for words in ("refers to context 812", "refers to context 550", "refers to user 999999"):
        assert words in line
    assert site.sql("SELECT id FROM rag_context WHERE id = 812") == []
    site.ops("restore", "--undo", "--force")
    assert site.sql("SELECT id FROM rag_context WHERE id = 812") == [(812,)]
