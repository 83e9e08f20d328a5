"""Rehearsals and the offsite copy at the terminal; and a new machine that has nothing but the settings."""

from __future__ import annotations

from pathlib import Path

import dagster as dg
import pytest

from scholaria_ops.pipeline.runner import open_instance
from scholaria_ops.sandbox.sandbox import Sandbox
from scholaria_ops_tests.cli.conftest import PROJECT, Command


@pytest.fixture
def bucket(sandbox: Sandbox, env_file: Path, request: pytest.FixtureRequest) -> dict[str, str]:
    """A bucket of this test's own, named in the settings file."""
    name = f"cli-{request.node.name.strip('_').replace('_', '-')[:40]}"
    server = sandbox.s3(name=name)
    server.create_bucket("offsite")
    settings = {
        "BACKUP_S3_BUCKET": "offsite",
        "BACKUP_S3_ENDPOINT_URL": server.endpoint_url,
        "AWS_ACCESS_KEY_ID": server.access_key,
        "AWS_SECRET_ACCESS_KEY": server.secret_key,
        "AWS_REGION": server.region,
    }
    with env_file.open("a") as out:
        out.writelines(f"{k}={v}\n" for k, v in settings.items())
    return settings


def test_proven_from_the_bucket_by_a_machine_that_has_only_the_settings(ops: Command, bucket: dict[str, str], tmp_path: Path) -> None:
    made = ops("backup", "--json")
    assert made.code == 0, made.err
    set_id = made.json()["set"]["id"]
    assert made.json()["set"]["offsite_at"]
    again = ops("ship", set_id, "--json")
    assert again.code == 0, again.err
    assert again.json()["shipped"]["detail"]["sent_bytes"] == 0

    fresh = tmp_path / "fresh"
    fresh.mkdir()
    (fresh / "dagster.yaml").write_bytes((PROJECT / "dagster.yaml").read_bytes())
    new = {"DAGSTER_HOME": str(fresh), "BACKUP_DIR": str(tmp_path / "elsewhere"), "DB_PORT": "1", "REDIS_PORT": "1"}
    synced = ops("sync", env=new)
    assert synced.code == 0, synced.err
    assert "1 offsite" in synced.out
    assert f"scholaria-ops fetch {set_id}" in synced.out
    with open_instance(fresh) as instance:
        for key in ("sealed", "verified", "offsite"):
            assert set_id in instance.get_materialized_partitions(dg.AssetKey(["backup", key])), key
    proof = ops("rehearse", "--from", "offsite", env=new)
    assert proof.code == 0, proof.err
    for words in ("[OK] PostgreSQL: ", "[OK] Redis: ", "[OK] Qdrant: ", "[OK] All checks passed in ", "(RPO)"):
        assert words in proof.out
    with open_instance(fresh) as instance:
        record = instance.get_latest_materialization_event(dg.AssetKey(["rehearsal", "restored"]))
        assert record
        assert record.asset_materialization
        assert record.asset_materialization.metadata["verdict"].value == "proven"
        assert isinstance(record.asset_materialization.metadata["rto_s"].value, float)
    fetched = ops("fetch", "--json", env=new)
    assert fetched.code == 0, fetched.err
    assert fetched.json()["set"]["proven_at"]
    assert fetched.json()["set"]["verified_level"] == "hash"


def test_a_partial_set_is_unproven_and_says_what_is_missing(ops: Command) -> None:
    assert ops("backup", env={"QDRANT_URL": "http://127.0.0.1:1"}).code == 1
    set_id = ops("list", "--json").json()["sets"][0]["id"]
    answer = ops("rehearse", set_id)
    assert answer.code == 4, answer.err
    assert "not in the set: qdrant" in answer.err
    assert "Traceback" not in answer.err
    assert "[UNPROVEN]" in answer.out


def test_without_a_bucket_the_setting_is_named(ops: Command) -> None:
    answer = ops("ship")
    assert answer.code == 2
    assert "BACKUP_S3_BUCKET" in answer.err


def test_a_backup_that_cannot_be_shipped_names_the_set_that_stands_here(ops: Command, bucket: dict[str, str]) -> None:
    answer = ops("backup", env={"BACKUP_S3_BUCKET": "no-such-bucket"})
    assert answer.code == 1
    (made,) = ops("list", "--json").json()["sets"]
    assert made["verified_at"]
    assert f"The set {made['id']} stands here, sealed and verified." in answer.err
    assert f"`scholaria-ops ship {made['id']}`" in answer.err


def test_check_looks_at_the_bucket_too(ops: Command, bucket: dict[str, str]) -> None:
    assert ops("check").code == 0
    wrong = ops("check", env={"BACKUP_S3_BUCKET": "no-such-bucket"})
    assert wrong.code != 0
    assert "no-such-bucket" in wrong.out + wrong.err
