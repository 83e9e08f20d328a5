"""Every operation leaves its begin and its end in the audit log, also when it fails, is refused or is cancelled."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from scholaria_ops.catalogue.audit import AuditBroken, Entry
from scholaria_ops.catalogue.sets import BackupSet
from scholaria_ops.errors import Busy, Cancelled, DiskFull, OpsError, Refused, StoreError
from scholaria_ops.operations.audit_witness import verify_audit
from scholaria_ops.operations.auditing import Actor
from scholaria_ops.operations.backup import BackupIncomplete, BackupRequest, backup, reserve
from scholaria_ops.operations.hold import hold, release
from scholaria_ops.operations.prune import execute, plan_prune
from scholaria_ops.operations.rehearse import rehearse
from scholaria_ops.operations.services import Services, make_services
from scholaria_ops.operations.verify import verify
from scholaria_ops.settings import load_settings
from scholaria_ops_tests.catalogue.factory import make_set
from scholaria_ops_tests.operations.conftest import ServicesFactory
from scholaria_ops_tests.operations.support import copied, flip, take

SECRET = "s3cr3t-of-the-test"
DAY = timedelta(days=1)


def now() -> datetime:
    return datetime.now(UTC)


@pytest.fixture
def services(tmp_path: Path) -> Services:
    settings = load_settings({"BACKUP_DIR": str(tmp_path / "backups"), "DB_PASSWORD": SECRET})
    return make_services(settings, actor=Actor("command line", "kim@ops", "run-1"))


def told(services: Services) -> list[tuple[str, str, str]]:
    return [(e.verb, e.set, e.outcome) for e in services.audit_log.entries()]


def newest(services: Services) -> Entry:
    return services.audit_log.entries()[-1]


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (StoreError("no", store="redis"), "failed"),
        (Refused("no"), "refused"),
        (Busy("no"), "refused"),
        (Cancelled("no"), "cancelled"),
        (KeyboardInterrupt("no"), "cancelled"),
        (ZeroDivisionError("no"), "failed"),
    ],
)
def test_an_operation_that_ends_by_an_error_says_which(services: Services, error: BaseException, outcome: str) -> None:
    def restore() -> None:
        with services.audited("restore", "20260301_020000", plan="abc") as entry:
            entry.note(done_so_far=["postgres"])
            raise error

    with pytest.raises(type(error)):
        restore()
    assert told(services) == [("restore", "20260301_020000", "begun"), ("restore", "20260301_020000", outcome)]
    assert newest(services).detail["message"] == "no"
    assert newest(services).detail["done_so_far"] == ["postgres"]
    assert (newest(services).by, newest(services).how, newest(services).run_id) == ("kim@ops", "command line", "run-1")


def test_f23_no_secret_reaches_the_audit_log(services: Services) -> None:
    with pytest.raises(OpsError), services.audited("backup", "", note=f"with {SECRET}", nested={"a": [f"x{SECRET}y"]}):
        raise OpsError(f"connection to postgresql://app:{SECRET}@db failed")
    assert SECRET not in services.audit_log.path.read_text()
    assert services.audit_log.entries()[0].detail == {"note": "with ***", "nested": {"a": ["x***y"]}}


def test_nothing_is_begun_that_cannot_be_written_down(services: Services) -> None:
    services.audit_log.path.mkdir(parents=True)
    ran = []
    with pytest.raises(Refused, match="the audit log"), services.audited("restore", ""):
        ran.append(1)
    assert not ran


def test_the_error_of_the_work_is_told_even_if_the_log_cannot_take_it(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise DiskFull("no space left")

    def work() -> None:
        with services.audited("backup", ""):
            monkeypatch.setattr("scholaria_ops.catalogue.audit.append_durably", full)
            raise StoreError("redis is gone")

    with pytest.raises(StoreError, match="redis is gone") as caught:
        work()
    assert "the audit log could not be written: no space left" in caught.value.__notes__[0]


def test_holds_and_prunes_are_told_with_every_set_that_went(services: Services) -> None:
    old, *_ = [make_set(services.catalogue, now() - 0.99 * n * DAY, tier="daily", verified=True) for n in reversed(range(9))]
    kept = make_set(services.catalogue, now() - 40 * DAY, tier="daily", verified=True)
    hold(services, kept.id, "state before the move")
    execute(services, plan_prune(services, {}), dict)
    release(services, kept.id, "over")
    assert told(services) == [
        ("hold", kept.id, "done"),
        ("prune", "", "begun"),
        ("prune", old.id, "done"),
        ("prune", "", "done"),
        ("release", kept.id, "done"),
    ]
    assert services.audit_log.entries()[1].detail["to_remove"] == [f"here: {old.directory.name}"]
    assert services.audit_log.entries()[3].detail["removed"] == 1


def test_a_backup_a_verification_and_a_rehearsal_are_told(services_factory: ServicesFactory) -> None:
    services = services_factory()
    made = take(services)
    entry = services.catalogue.find(made.id)
    assert verify(services, entry, "hash").passed
    rehearse(services, "latest")
    assert told(services) == [
        ("backup", made.id, "begun"),
        ("backup", made.id, "done"),
        ("verify", made.id, "begun"),
        ("verify", made.id, "done"),
        ("rehearse", "", "begun"),
        ("rehearse", made.id, "done"),
    ]
    assert newest(services).detail["verdict"] == "proven"
    report = verify_audit(services)
    assert (report.entries, report.witnesses) == (6, 1)


def test_bad_ends_are_told_too(services_factory: ServicesFactory, pristine: BackupSet) -> None:
    services = services_factory(QDRANT_URL="http://127.0.0.1:1")
    request = BackupRequest()
    set_id = reserve(services, request)
    with pytest.raises(BackupIncomplete):
        backup(services, set_id, request)
    assert told(services)[-1] == ("backup", set_id, "failed")
    assert "kept as a partial set" in newest(services).detail["message"]
    directory = copied(pristine, services.catalogue.layout.root)
    flip(directory / "RESTORE.txt")
    assert not verify(services, services.catalogue.find(pristine.id), "hash").passed
    assert told(services)[-1] == ("verify", pristine.id, "failed")
    assert "RESTORE.txt" in newest(services).detail["message"]


@pytest.mark.parametrize(
    "forge",
    [
        lambda lines: [*lines[:1], *lines[3:]],
        lambda lines: lines[:-2],
        lambda lines: [line.replace('"by": "', '"by": "somebody else at ') for line in lines],
    ],
)
def test_what_was_done_to_the_log_after_a_set_left_a_witness_is_found(services: Services, forge: Callable[[list[str]], list[str]]) -> None:
    made = make_set(services.catalogue, now(), verified=True)
    services.audit("backup", made.id, "done")
    for n in range(3):
        services.audit("verify", made.id, "done", n=n)
    services.catalogue.records.append(made.id, "shipped", audit=services.audit_log.head().as_detail())
    assert verify_audit(services).witnesses == 1
    forged = forge(services.audit_log.path.read_text().splitlines())
    # A thorough forger makes the digests fit again.
    services.audit_log.path.unlink()
    for line in forged:
        entry = json.loads(line)
        services.audit_log.append(entry["verb"], entry["set"], entry["outcome"], by=entry["by"], how=entry["how"], detail=entry["detail"])
    services.audit_log.verify()
    with pytest.raises(AuditBroken, match=f"'shipped' of {made.id} here"):
        verify_audit(services)
