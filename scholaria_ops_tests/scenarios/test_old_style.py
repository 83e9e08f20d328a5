"""An old-style set is brought back into live stores by one command, and the application has everything again."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
import redis

from scholaria_ops_tests.operations import old_style
from scholaria_ops_tests.operations.old_style import OLD_ID, OLD_NAME
from scholaria_ops_tests.scenarios.conftest import Install, Installation

pytestmark = [pytest.mark.slow(30), pytest.mark.timeout(900)]

#: Every table's content, whatever the order of its rows.
_TABLES = ("auth_user", "rag_topic", "rag_context", "rag_topic_contexts", "rag_contextitem", "rag_questionhistory", "alembic_version")


def rows(site: Installation) -> dict[str, Any]:
    return {t: site.sql(f"SELECT count(*), sum(hashtextextended(t::text, 0)) FROM {t} t") for t in _TABLES}


def lasting_keys(client: Any) -> dict[bytes, bytes]:
    """Everything that comes back by default, and does not expire while the test runs."""
    return {k: client.dump(k) for k in client.scan_iter("embedding_cache:*", count=1000)}


def points(site: Installation, name: str) -> list[Any]:
    with httpx.Client(base_url=site.stack.qdrant.url, timeout=60.0) as qdrant:
        asked = {"limit": 10_000, "with_payload": True, "with_vector": True}
        found: list[Any] = qdrant.post(f"/collections/{name}/points/scroll", json=asked).json()["result"]["points"]
    return found


def test_an_old_style_set_comes_back_by_one_command(install: Install) -> None:
    site = install()
    site.write_settings(BACKUP_FENCE="none")  # nobody writes, so that everything can be compared
    to = site.stack.redis
    client = redis.Redis(host=to.host, port=to.port, password=to.password.get_secret_value() or None)
    collections = (site.stack.collection, site.stack.hybrid_collection, site.stack.alias)
    before = rows(site), lasting_keys(client), {name: points(site, name) for name in collections}
    backups = site.directory / "backups"
    backups.mkdir(mode=0o700)
    old_style.make(backups, site.tools, site.stack.postgres_admin, site.redis, site.stack.qdrant)
    assert before[1]

    site.sql("WITH gone AS (DELETE FROM rag_contextitem WHERE id % 2 = 0 RETURNING 1) SELECT count(*) FROM gone")
    client.flushall()
    with httpx.Client(base_url=site.stack.qdrant.url, timeout=60.0) as qdrant:
        qdrant.post(f"/collections/{site.stack.collection}/points/delete", params={"wait": "true"}, json={"points": [1, 2, 3]})

    dry = site.ops("restore", OLD_ID, "--dry-run")
    assert f"[DRY RUN] Would restore PostgreSQL from: postgres_{OLD_ID}.sql.custom → " in dry.out
    assert f"[DRY RUN] Would restore Redis from: redis_{OLD_ID}.rdb.gz → " in dry.out
    assert "[DRY RUN] Would restore Qdrant from: qdrant_snapshot.tar.gz → " in dry.out
    assert "No live store is touched by that" in dry.err
    assert "nobody can say" in dry.out
    plan = site.json("restore", OLD_ID, "--dry-run")["plan"]
    assert plan["adopted"]["name"] == OLD_NAME
    back = {e["what"]: e["count"] for e in plan["stores"]["postgres"]["effects"] if e["kind"] == "back" and "rag_contextitem" in e["what"]}
    assert 150 in back.values(), plan["stores"]["postgres"]["effects"]
    assert len(site.json("list")["sets"]) == 2, "the second dry run uses what the first one took over"
    assert rows(site) != before[0], "nothing was touched"

    site.ops("restore", OLD_ID, "--force")
    assert rows(site) == before[0]
    assert lasting_keys(client) == before[1]
    assert {name: points(site, name) for name in collections} == before[2]
    assert site.json("audit", "--set", plan["set_id"])["entries"], "who did it stands in the audit log"
