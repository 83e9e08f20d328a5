"""What is damaged does not stand in the way of the restore that is to mend it: a live collection, and a set on this disk."""

from __future__ import annotations

import os

import httpx
import pytest

from scholaria_ops_tests.operations.support import flip
from scholaria_ops_tests.scenarios.conftest import Install

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_a_damaged_collection_and_a_damaged_set_are_both_replaced(install: Install) -> None:
    site = install()
    site.write_settings(BACKUP_FENCE="none")
    url = site.stack.qdrant.url
    site.ops("backup")
    # The first restore makes the plain names aliases; from then on the application's names are all aliases.
    site.ops("restore", "latest", "--component", "qdrant", "--force", "--no-safety")
    site.ops("restore", "--discard-old", "--force")
    site.ops("backup")
    set_id = site.json("show", "latest")["set"]["id"]
    served = httpx.get(f"{url}/aliases").json()["result"]["aliases"]
    target = next(a["collection_name"] for a in served if a["alias_name"] == "scholaria_current")
    site.qdrant.stop()
    for path in (site.qdrant.directory / "storage" / "collections" / target).rglob("segment.json"):
        path.write_bytes(os.urandom(path.stat().st_size))
    site.qdrant._config["STORAGE__HANDLE_COLLECTION_LOAD_ERRORS"] = "true"
    site.qdrant.start()
    assert httpx.post(f"{url}/collections/scholaria_current/points/count", json={}).status_code == 500
    here = site.directory / "backups" / f"scholaria_backup_{set_id}"
    flip(next(here.glob("qdrant_*/*.snapshot")))

    refused = site.ops("restore", set_id, "--dry-run", code=3)
    assert "scholaria-ops restore" in refused.err
    plan = site.json("restore", set_id, "--from", "offsite", "--dry-run")["plan"]
    (lost,) = [e for e in plan["stores"]["qdrant"]["effects"] if e["kind"] == "lost"]
    assert lost["count"] is None
    assert "the live collection does not answer: 500" in lost["detail"]
    assert (site.directory / "backups" / f"damaged-{set_id}").is_dir()

    done = site.ops("restore", set_id, "--from", "offsite", "--force")
    assert "qdrant could not be saved before the restore" in done.err, "the safety set says what it lacks"
    assert "qdrant could not be saved before the restore" in done.out, "and so does the report"
    assert f"collection {target}, which does not answer" in done.out, "it is kept"
    counted = httpx.post(f"{url}/collections/scholaria_current/points/count", json={"exact": True}).json()["result"]["count"]
    assert counted == site.stack.scale.points
    assert any(
        "which does not answer" in line for d in site.json("restore", "--discard-old", "--force")["discarded"] for line in d["lines"]
    )


def test_a_new_empty_server_is_told_apart_from_a_misspelt_name(install: Install) -> None:
    site = install()
    empty = install(empty=True)
    told = empty.ops("check", code=4)
    assert "has no database 'scholaria'" in told.out
    assert "On a new, empty server there is nothing to back up yet" in told.out
    assert site.json("check")["ready"]
