"""`scholaria-ops health` as an operator or a monitor calls it."""

from __future__ import annotations

from pathlib import Path

from scholaria_ops_tests.cli.conftest import Command


def test_an_empty_directory_is_unhealthy_with_exit_code_6(ops: Command, tmp_path: Path) -> None:
    (tmp_path / "backups").mkdir(mode=0o700)
    answer = ops("health")
    assert answer.code == 6, answer.err
    assert "there is no verified set at all" in answer.out
    assert "→ verified: Take one: `scholaria-ops backup`." in answer.out
    assert "UNHEALTHY" in answer.out
    assert "things are wrong (above)" in answer.err


def test_the_document_names_every_finding_and_the_exit_code_stays(ops: Command, tmp_path: Path) -> None:
    (tmp_path / "backups").mkdir(mode=0o700)
    answer = ops("health", "--json")
    assert answer.code == 6
    document = answer.json()
    assert (document["schema"], document["level"], document["healthy"]) == ("scholaria-ops/health/1", "critical", False)
    by_check = {f["check"]: f for f in document["findings"]}
    assert by_check["verified"]["level"] == "critical"
    assert by_check["verified"]["next_step"]
    assert by_check["stores"]["level"] == "ok", by_check["stores"]
    assert by_check["daemon"]["what"] == "Dagster's daemon has never run with this DAGSTER_HOME"
    assert {p.name for p in (tmp_path / "backups").iterdir()} <= {".scratch", ".state"}, "it only looks"
