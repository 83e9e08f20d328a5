"""`scholaria-ops notify`, and what a command tells by itself when no daemon does."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from scholaria_ops.catalogue.sets import Catalogue
from scholaria_ops_tests.catalogue.factory import make_set
from scholaria_ops_tests.cli.conftest import Command
from scholaria_ops_tests.notify.receivers import Receiver, receiver


@pytest.fixture
def web() -> Iterator[Receiver]:
    with receiver() as known:
        yield known


@pytest.fixture
def env_file(tmp_path: Path, web: Receiver) -> Path:
    """A site whose stores are never asked, with two webhooks: one that works and one that does not."""
    path = tmp_path / "ops.env"
    hooks = f"slack+{web.url}/services/T0/B0/s3cr3tOfSlack0,http://127.0.0.1:1/s3cr3tOfTheOther"
    path.write_text(f"BACKUP_DIR={tmp_path / 'backups'}\nBACKUP_NOTIFY_WEBHOOK={hooks}\n")
    return path


def test_a_test_message_goes_to_each_target_and_the_exit_code_tells(ops: Command, web: Receiver) -> None:
    good = ops("notify", "test", "--target", "slack")
    assert (good.code, good.out.strip()) == (0, f"delivered slack 127.0.0.1:{web.port}")
    assert web.seen[0].body["text"].startswith("[TEST] scholaria-ops can reach you")
    both = ops("notify", "test")
    assert both.code == 1
    assert "failed json 127.0.0.1:1" in both.out
    assert "Connection refused" in both.out
    assert "1 of 2 did not take it" in both.err
    document = ops("notify", "test", "--json").json()
    assert [(a["target"], a["delivered"]) for a in document["attempts"]] == [
        (f"slack 127.0.0.1:{web.port}", True),
        ("json 127.0.0.1:1", False),
    ]
    listed = ops("notify", "list")
    assert listed.code == 0
    assert "delivered" in listed.out
    shown = ops("notify", "list", "--json")
    assert [t["last"]["delivered"] for t in shown.json()["targets"]] == [True, False]
    for answer in (good, both, listed, shown, ops("config"), ops("config", "--json")):
        assert "s3cr3t" not in answer.out + answer.err


def test_nobody_to_tell_and_unknown_words_are_usage_errors(ops: Command) -> None:
    assert ops("notify", "test", "--target", "pigeon").code == 2
    assert ops("notify", "dance").code == 2


def test_without_a_daemon_a_command_tells_how_its_run_ended(ops: Command, web: Receiver, tmp_path: Path) -> None:
    one = make_set(Catalogue(tmp_path / "backups"), datetime.now(UTC), tier="daily", verified=True)
    (one.directory / "RESTORE.txt").write_text("not what was sealed")
    assert ops("verify", one.id, "--level", "hash").code == 3, "the alert that one target did not take changes nothing"
    (told,) = web.seen
    assert "does not verify" in told.body["text"]
    waiting = ops("notify", "list", "--json").json()["waiting"]
    assert [w["target"] for w in waiting] == ["json 127.0.0.1:1"]
    assert ops("verify", "20200101_000000").code == 2
    assert len(web.seen) == 1, "a mistyped id wakes nobody"
