"""Recovery scenarios 1 to 4: break it, bring it back with the documented commands, see that the application has everything again."""

from __future__ import annotations

import json
import shutil
import time
from typing import Any

import httpx
import pytest
import redis

from scholaria_ops_tests.scenarios.conftest import STORES, Install, Installation

pytestmark = [pytest.mark.slow(20), pytest.mark.timeout(600)]


def served(qdrant: Any) -> dict[str, Any]:
    """What each name of the application leads to: exact count and fingerprint of ids, payloads and vectors."""
    names = ("scholaria_documents", "scholaria_hybrid", "scholaria_current")
    found = {name: qdrant["collections"][qdrant["aliases"].get(name, name)] for name in names}
    return {name: (c["points"], c["fingerprint"]) for name, c in found.items()}


def set_of(site: Installation) -> Any:
    return site.json("show", "latest")["set"]


def broken_and_back(site: Installation, since: float, store: str) -> None:
    """Say how long the application was without ``store`` since it was broken, and what of its writes is gone."""
    site.application.wait_for(store, 20, time.time())
    now = time.time()
    for name in STORES:
        gap = site.application.gap(name, since, now)
        site.tell(f"{name}: longest time without service {gap.seconds:.2f} s, {gap.errors} errors of the application")


def without_service(answer: Any) -> str:
    return json.dumps({k: v for k, v in answer.items() if k.endswith("_s")})


def test_postgres_is_corrupted_on_disk_and_comes_back(install: Install) -> None:
    site = install()
    chunks = site.sql("SELECT count(*), sum(hashtextextended(c::text, 0)) FROM rag_contextitem c")
    site.application.start()
    site.application.wait_for("postgres", 20, 0)
    site.ops("backup")
    cut = time.time()
    site.application.wait_for("postgres", 20, cut)
    ((path,),) = site.sql("SELECT pg_relation_filepath('rag_contextitem')")
    site.postgres.stop()
    broken_at = time.time()
    file = next(site.postgres.directory.rglob(path.rpartition("/")[2]))
    data = bytearray(file.read_bytes())
    data[:8192] = b"\xff" * 8192
    file.write_bytes(bytes(data))
    site.postgres.start()
    site.application.wait_for_an_error("postgres", broken_at)

    dry = site.ops("restore", "latest", "--component", "postgres", "--dry-run")
    assert "[DRY RUN] Would restore PostgreSQL from: postgres_" in dry.out
    began = time.time()
    site.ops("restore", "latest", "--component", "postgres", "--force")
    site.tell(f"restored in {time.time() - began:.1f} s, the safety set of the damaged database included")
    back = time.time()
    site.application.wait_for("postgres", 20, back)
    assert site.sql("SELECT count(*), sum(hashtextextended(c::text, 0)) FROM rag_contextitem c") == chunks
    lost = len(site.application.acknowledged("postgres", cut, began))
    site.tell(f"lost: {lost} rows that were written after the cut")
    broken_and_back(site, broken_at, "postgres")
    assert site.application.gap("redis", began, time.time()).errors == 0


def test_redis_loses_everything_and_comes_back(install: Install) -> None:
    site = install()
    client = redis.Redis(
        host=site.stack.redis.host, port=site.stack.redis.port, password=site.stack.redis.password.get_secret_value() or None
    )
    embeddings = {k: client.get(k) for k in client.keys("embedding_cache:*")}
    site.application.start()
    site.application.wait_for("redis", 20, 0)
    site.ops("backup")
    site.application.wait_for("redis", 20, time.time())
    site.redis.kill()
    broken_at = time.time()
    for directory in site.redis.directory.rglob("appendonlydir"):
        shutil.rmtree(directory)
    for file in site.redis.directory.rglob("dump.rdb"):
        file.unlink()
    site.redis.start()
    assert client.get("config:answer_model") is None, "everything is gone"

    dry = site.ops("restore", "latest", "--component", "redis", "--dry-run")
    assert "[DRY RUN] Would restore Redis from: redis_" in dry.out
    began = time.time()
    site.ops("restore", "latest", "--component", "redis", "--force")
    site.tell(f"restored in {time.time() - began:.1f} s")
    site.application.wait_for("redis", 20, time.time())
    assert {k: client.get(k) for k in embeddings} == embeddings
    assert client.keys("rag_query:*") == []
    assert client.llen("celery") == 0, "old tasks do not run again"
    site.redis.kill()
    site.redis.start()
    assert {k: client.get(k) for k in embeddings} == embeddings, "a restart serves what was restored"
    broken_and_back(site, broken_at, "redis")


@pytest.mark.parametrize("collection", ["scholaria_current", "scholaria_documents"], ids=["by alias", "by its own name"])
def test_qdrant_loses_its_index_and_comes_back(install: Install, collection: str) -> None:
    site = install(collection=collection)
    url = site.stack.qdrant.url
    site.application.start()
    site.application.wait_for("qdrant", 20, 0)
    site.ops("backup")
    httpx.delete(f"{url}/collections/scholaria_documents").raise_for_status()
    broken_at = time.time()
    site.application.wait_for_an_error("qdrant", broken_at)

    dry = site.ops("restore", "latest", "--component", "qdrant", "--dry-run")
    assert "[DRY RUN] Would restore Qdrant from: " in dry.out
    began = time.time()
    site.ops("restore", "latest", "--component", "qdrant", "--force")
    site.tell(f"restored in {time.time() - began:.1f} s")
    site.application.wait_for("qdrant", 20, time.time())
    for name in ("scholaria_documents", "scholaria_current"):
        ids = list(range(1, site.stack.scale.points + 1))
        found = httpx.post(f"{url}/collections/{name}/points", json={"ids": ids}).raise_for_status().json()["result"]
        assert len(found) == len(ids), name
    broken_and_back(site, broken_at, "qdrant")


def test_the_whole_server_is_lost_and_a_new_one_needs_the_bucket_alone(install: Install) -> None:
    old = install()
    fingerprints = {
        table: old.sql(f"SELECT count(*), sum(hashtextextended(t::text, 0)) FROM {table} t")
        for table in ("rag_contextitem", "rag_topic", "rag_context", "auth_user")
    }
    old.application.start()
    old.application.wait_for("postgres", 20, 0)
    old.ops("backup")
    set_id = set_of(old)["id"]
    old.application.stop()
    for server in (old.postgres, old.redis, old.qdrant):
        server.kill()
    shutil.rmtree(old.directory / "backups")
    lost_at = time.time()

    new = install(empty=True)
    new.ops("sync")
    answer = new.ops("restore", "latest", "--from", "offsite", "--force")
    new.tell(f"from empty servers to everything served in {time.time() - lost_at:.1f} s, the servers' own start included")
    assert set_id in answer.out
    for table, expected in fingerprints.items():
        assert new.sql(f"SELECT count(*), sum(hashtextextended(t::text, 0)) FROM {table} t") == expected, table
    client = redis.Redis(
        host=new.settings["REDIS_HOST"], port=int(new.settings["REDIS_PORT"]), password=new.settings["REDIS_PASSWORD"] or None
    )
    assert client.get("config:answer_model") == b"gpt-4o-mini"
    count = httpx.post(f"{new.settings['QDRANT_URL']}/collections/scholaria_current/points/count", json={"exact": True}).json()
    assert count["result"]["count"] >= old.stack.scale.points
    # The application's own role came with the globals, password included.
    ((owner,),) = new.sql("SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = 'scholaria'")
    assert owner == "scholaria"


def test_a_restore_of_everything_while_the_application_writes_and_back_again(install: Install) -> None:
    site = install()
    site.application.start()
    site.application.wait_for("postgres", 30, 0)
    site.ops("backup")
    cut = time.time()
    for store in STORES:
        site.application.wait_for(store, 30, cut)
    before = len(site.application.acknowledged("postgres"))
    began = time.time()
    answer = site.json("restore", "latest", "--force")
    assert answer["executed"]
    assert site.application.running, "the writers run again"
    for store in STORES:
        site.application.wait_for(store, 20, time.time())
        gap = site.application.gap(store, began, time.time())
        site.tell(f"{store}: {gap.seconds:.2f} s without service while everything was replaced, {gap.errors} errors")
    verbs = [line.split()[1] for line in (site.application.directory / "docker.log").read_text().splitlines()]
    assert verbs[:3] == ["start", "stop", "start"]
    since_the_cut = set(site.application.acknowledged("postgres", cut, began))
    assert len(since_the_cut) >= 30
    served_again = {int(number) for (number,) in site.sql("SELECT question FROM rag_questionhistory WHERE session_id = 'app'")}
    assert not since_the_cut & served_again, "the table is that of the cut, and what was written after the restore"
    ((reusable,),) = site.sql("SELECT last_value FROM rag_contextitem_id_seq")
    assert reusable > 1_000_000, "ids that Qdrant knows are not given out again"

    site.ops("backup")
    names = json.loads((site.directory / "backups" / f"scholaria_backup_{set_of(site)['id']}" / "backup_manifest.json").read_text())
    assert not [c for c in names["qdrant"]["evidence"]["collections"] if "__before_" in c], "what is kept is no part of a backup"

    site.sql("SELECT setval('rag_topic_id_seq', 7000000)")
    shown = site.ops("restore", "--undo", "--dry-run").out
    assert "would be undone in PostgreSQL, Redis, Qdrant" in shown
    site.ops("restore", "--undo", "--force")
    ((undone,),) = site.sql("SELECT count(*) FROM rag_questionhistory WHERE session_id = 'app'")
    assert undone >= before, "every row from before the restore is there again"
    assert site.sql("SELECT last_value, is_called FROM rag_topic_id_seq") == [(7000000, True)], (
        "ids given out since are not given out again"
    )
    site.ops("restore", "--discard-old", "--force")
    assert site.sql("SELECT datname FROM pg_database WHERE datname LIKE 'scholaria\\_%'") == []
    site.ops("restore", "--undo", "--force", code=2)


def test_a_restore_that_fails_leaves_the_three_stores_as_they_were(install: Install) -> None:
    site = install()
    # The stand-in for docker would start the application, which would write.
    site.write_settings(BACKUP_FENCE="none")
    site.ops("backup")
    first = set_of(site)["id"]
    site.write_settings(BACKUP_FENCE="none", BACKUP_RESTORE_HOOK="sh -c 'echo no such revision >&2; exit 1'")
    failed = site.ops("restore", "latest", "--force", code=1)
    assert "was taken back" in failed.err
    assert "no such revision" in failed.err
    site.write_settings(BACKUP_FENCE="none")
    site.ops("backup")
    second = set_of(site)["id"]
    manifests = [
        json.loads((site.directory / "backups" / f"scholaria_backup_{i}" / "backup_manifest.json").read_text()) for i in (first, second)
    ]
    for path in (("postgres", "tables"), ("redis", "functions")):
        one, other = (m[path[0]]["evidence"][path[1]] for m in manifests)
        assert one == other, path
    # A plain name that was switched and taken back leads to the exact copy that was made as the way back.
    one, other = (served(m["qdrant"]["evidence"]) for m in manifests)
    assert one == other
    keys = [sum(k["keys"] for k in m["redis"]["evidence"]["keys"]) for m in manifests]
    assert keys[0] == keys[1]


def test_what_the_application_writes_into_a_restore_that_was_killed_and_is_taken_back_is_not_lost(install: Install) -> None:
    site = install()
    site.write_settings(BACKUP_FENCE="none")
    site.application.start()
    site.application.wait_for("postgres", 20, 0)
    site.ops("backup")
    # After every switch and before the restore counts as done: nobody is stopped meanwhile.
    site.write_settings(BACKUP_FENCE="none", BACKUP_RESTORE_HOOK="sh -c 'kill -9 $PPID'")
    site.ops("restore", "latest", "--force", code=-9)
    killed_at = time.time()
    for store in STORES:
        site.application.wait_for(store, 20, killed_at)
    recovered = site.ops("restore", "--recover").out
    taken_back_at = time.time()
    site.tell(recovered)
    assert "because it was written to while it was served: table public.rag_questionhistory " in recovered
    assert "Redis at" in recovered
    assert "what was written to it since the switch is lost" in recovered
    assert "points new" in recovered
    ((aside, served),) = site.sql(
        "SELECT datname, datallowconn FROM pg_database WHERE datname LIKE 'scholaria\\_after\\_%' OR datname LIKE 'scholaria\\_before\\_%'"
    )
    assert not served
    for store in STORES:
        site.application.wait_for(store, 20, taken_back_at)
    site.application.stop()
    with site.postgres.connect("postgres") as session:
        session.execute(f'ALTER DATABASE "{aside}" WITH ALLOW_CONNECTIONS true'.encode())
    query = b"SELECT question FROM rag_questionhistory WHERE session_id = 'app'"
    with site.postgres.connect(str(aside)) as session:
        kept = {int(number) for (number,) in session.execute(query).fetchall()}
    now = {int(number) for (number,) in site.sql(query.decode())}
    missing = set(site.application.acknowledged("postgres")) - now - kept
    assert not missing, "whatever was acknowledged is in the one database or in the other"
    assert kept - now, "and some of it only in the one that is set aside"
    assert site.ops("restore", "--undo", "--force", code=2).err.count("no restore that can be undone") == 1
    shown = site.ops("restore", "--discard-old", "--force").out
    assert f"database {aside}, " in shown
    assert site.sql("SELECT datname FROM pg_database WHERE datname LIKE 'scholaria\\_%'") == []
    site.application.start()
    site.application.wait_for("postgres", 20, time.time())
    site.ops("restore", "--recover")
