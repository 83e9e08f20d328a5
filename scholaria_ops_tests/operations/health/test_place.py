"""Health of the place where sets live: each check is ok on a good one, and fails on what it is there for."""

from __future__ import annotations

import fcntl
import os
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from scholaria_ops.catalogue.lock import estate_lock
from scholaria_ops.catalogue.retention import Line, Rule
from scholaria_ops.files import make_private_dir
from scholaria_ops.operations.forecast import HEADROOM_BYTES, DiskForecast
from scholaria_ops.operations.health import place
from scholaria_ops.operations.health.findings import Finding
from scholaria_ops.operations.prune_state import Journal, PruneState
from scholaria_ops.operations.restore.journal import Journal as RestoreJournal
from scholaria_ops.operations.restore.journal import Journals
from scholaria_ops.operations.scratch import scratch_directory
from scholaria_ops.operations.services import Services, make_services
from scholaria_ops.process import start_daemon
from scholaria_ops.settings import load_settings

LONG_AGO = timedelta(hours=8)


@pytest.fixture
def services(tmp_path: Path) -> Services:
    made = make_services(load_settings({"BACKUP_DIR": str(tmp_path / "backups")}))
    made.check_directory()
    return made


def only(found: list[Finding], level: str) -> Finding:
    (one,) = found
    assert one.level == level, one
    assert one.level == "ok" or one.next_step
    return one


def age(path: Path, by: timedelta = LONG_AGO) -> Path:
    then = (datetime.now(UTC) - by).timestamp()
    os.utime(path, (then, then))
    return path


def test_a_directory_of_our_own_is_ok(services: Services) -> None:
    only(list(place.directory(services)), "ok")


def test_an_absent_directory_is_critical_and_is_not_made(services: Services, tmp_path: Path) -> None:
    bare = make_services(load_settings({"BACKUP_DIR": str(tmp_path / "absent")}))
    assert "cannot be used" in only(list(place.directory(bare)), "critical").what
    assert not (tmp_path / "absent").exists()


def test_what_is_no_directory_is_critical(services: Services, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    only(list(place.directory(make_services(load_settings({"BACKUP_DIR": str(tmp_path / "file")})))), "critical")


def test_a_directory_that_cannot_be_written_is_critical(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("tempfile.TemporaryFile", read_only)
    assert "Read-only file system" in only(list(place.directory(services)), "critical").what


def test_a_directory_that_others_may_read_is_a_warning(services: Services) -> None:
    services.catalogue.layout.root.chmod(0o755)
    assert "mode 0755" in only(list(place.directory(services)), "warning").what


@pytest.mark.parametrize(
    ("free", "level"),
    [(10 * 10**9, "ok"), (2 * 10**9 + HEADROOM_BYTES, "warning"), (10**9 + HEADROOM_BYTES - 1, "critical"), (0, "critical")],
)
def test_room_is_measured_against_the_next_set(free: int, level: str) -> None:
    found = only(list(place.space(DiskForecast(free, 10**12, 10**9, 7))), level)
    assert "the next set is expected to need 1.0 GB" in found.what
    assert found.numbers["free_bytes"] == free


def test_unknown_room_is_critical_and_an_unknown_need_is_not() -> None:
    assert "stale file handle" in only(list(place.space(DiskForecast(None, None, 10**9, 7, "stale file handle"))), "critical").what
    only(list(place.space(DiskForecast(5, 10, None, 0))), "ok")


def test_nothing_left_behind_is_ok(services: Services) -> None:
    only(list(place.leftovers(services, datetime.now(UTC))), "ok")


@pytest.mark.parametrize("parent", ["staging", "trash"])
def test_what_a_killed_run_left_in_staging_or_trash_is_named(services: Services, parent: str) -> None:
    left: Path = getattr(services.catalogue.layout, parent) / "20260101_020000"
    left.mkdir(parents=True)
    found = only(list(place.leftovers(services, datetime.now(UTC))), "warning")
    assert f".{parent}/20260101_020000" in found.what
    assert found.since


def test_what_a_run_at_work_has_in_staging_is_its_own(services: Services) -> None:
    (services.catalogue.layout.staging / "20260101_020000").mkdir(parents=True)
    with estate_lock(services.catalogue.layout.lock, "backup 20260101_020000"):
        only(list(place.leftovers(services, datetime.now(UTC))), "ok")
        age(services.catalogue.layout.staging / "20260101_020000")
        only(list(place.leftovers(services, datetime.now(UTC))), "warning")


def test_a_scratch_directory_without_a_living_owner_is_named(services: Services) -> None:
    root = services.settings.scratch_root
    with scratch_directory(root, "backup-x") as mine:
        age(mine)
        only(list(place.leftovers(services, datetime.now(UTC))), "ok")
    (root / "verify-dead").mkdir()
    (root / "verify-dead" / ".owner").touch()
    age(root / "verify-dead")
    assert "verify-dead" in only(list(place.leftovers(services, datetime.now(UTC))), "warning").what


@pytest.mark.parametrize("step", ["make_private_dir", "fcntl.flock"])
def test_f83_interrupted_while_a_scratch_directory_is_made_nothing_is_left(
    services: Services, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    root = services.settings.scratch_root
    root.mkdir()
    real = make_private_dir if step == "make_private_dir" else fcntl.flock

    def interrupted(*given: Any, **options: Any) -> None:
        real(*given, **options)
        if given[0] != root:
            raise KeyboardInterrupt

    monkeypatch.setattr(f"scholaria_ops.operations.scratch.{step}", interrupted)
    with pytest.raises(KeyboardInterrupt), scratch_directory(root, "backup-x"):
        pass
    assert list(root.iterdir()) == []


def test_the_scratch_of_a_killed_process_is_named(services: Services, tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path\n"
        "from scholaria_ops.operations.scratch import scratch_directory\n"
        f"with scratch_directory(Path({str(services.settings.scratch_root)!r}), 'rehearsal') as d:\n"
        f"    Path({str(tmp_path / 'ready')!r}).write_text(str(d)); time.sleep(600)\n"
    )
    child = start_daemon([sys.executable, "-c", program], log=tmp_path / "log", cwd=tmp_path)
    try:
        wait_for(tmp_path / "ready")
        left = age(Path((tmp_path / "ready").read_text()))
        only(list(place.leftovers(services, datetime.now(UTC))), "ok")
    finally:
        os.kill(child.pid, 9)
        os.waitpid(child.pid, 0)
    assert left.name in only(list(place.leftovers(services, datetime.now(UTC))), "warning").what


def wait_for(path: Path) -> None:
    import time

    deadline = time.monotonic() + 120
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_f75_the_journal_of_a_prune_that_was_killed_is_named(services: Services) -> None:
    line = Line(place="here", name="scholaria_backup_20260101_020000", id="20260101_020000", remove=True, rule=Rule.EXPIRED, reason="old")
    begun = datetime(2026, 2, 1, tzinfo=UTC)
    PruneState(services.catalogue.layout).begin(Journal(plan="x", begun_at=begun, by="ops@host", where={}, removals=(line,)))
    found = only(list(place.leftovers(services, datetime.now(UTC))), "warning")
    assert "a prune by ops@host did not finish" in found.what
    assert found.since == begun
    with estate_lock(services.catalogue.layout.lock, "prune"):
        only(list(place.leftovers(services, datetime.now(UTC))), "ok")


def test_a_journal_that_nobody_understands_is_critical(services: Services) -> None:
    (services.catalogue.layout.state / "retention-journal.json").write_text("{")
    assert "cannot be understood" in only(list(place.leftovers(services, datetime.now(UTC))), "critical").what


def test_a_restore_that_was_cut_off_is_critical(services: Services) -> None:
    Journals(services.catalogue.layout).write(
        RestoreJournal(
            id="20261124_020000",
            set_id="20261123_020000",
            stores=("redis",),
            plan_digest="0" * 64,
            begun_at=datetime(2026, 11, 24, 2, tzinfo=UTC),
            by="a test",
            phase="switching",
        )
    )
    found = only(list(place.leftovers(services, datetime.now(UTC))), "critical")
    assert found.next_step.startswith("`scholaria-ops restore --recover` takes it back or finishes it.")
    assert "restore --give-up 20261124_020000" in found.next_step
    assert "20261124_020000" in found.what


def test_a_lock_that_is_held_too_long_is_critical(services: Services) -> None:
    now = datetime.now(UTC)
    only(list(place.lock(services, now)), "ok")
    with estate_lock(services.catalogue.layout.lock, "backup 20260101_020000"):
        assert "held by backup 20260101_020000" in only(list(place.lock(services, now)), "ok").what
        late = only(list(place.lock(services, now + timedelta(hours=6, minutes=5))), "critical")
        assert "backup 20260101_020000" in late.what
        assert late.numbers["held_s"] > 6 * 3600
