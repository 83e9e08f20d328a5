"""What follows a switch: the application is asked whether it is well, its migrations are compared, a fresh backup is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest

from scholaria_ops.operations.backup import STARTED_BY_SENSOR
from scholaria_ops.operations.restore import after as after_module
from scholaria_ops.operations.restore.after import After
from scholaria_ops.sandbox.postgres import PostgresServer
from scholaria_ops.sandbox.sample import SampleStack
from scholaria_ops_tests.operations.restore.bench import Bench, BenchFactory
from scholaria_ops_tests.stores.postgres_support import database
from scholaria_ops_tests.stores.qdrant_support import serving

#: As they are before the fixtures of this directory put them aside.
_ITS_OWN = {name: getattr(After, name) for name in ("look", "ask_for_backup")}


@pytest.fixture(autouse=True)
def _with_aftermath(_no_aftermath: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, function in _ITS_OWN.items():
        monkeypatch.setattr(After, name, function)
    monkeypatch.setattr(after_module, "_POLL_S", 0.05)


@contextmanager
def _application(statuses: Sequence[int]) -> Iterator[tuple[str, list[int]]]:
    """Answers with these statuses, the last of them for ever; also what it has answered."""
    answered: list[int] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answered.append(statuses[min(len(answered), len(statuses) - 1)])
            self.send_response(answered[-1])
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            return

    with serving(Handler) as url:
        yield f"{url}/health", answered


def _set(here: Bench, **settings: object) -> None:
    here.services = replace(here.services, settings=here.services.settings.model_copy(update=settings))


def test_an_application_that_needs_a_while_is_polled_until_it_is_well(bench: BenchFactory) -> None:
    here = bench()
    with _application([503, 503, 200]) as (url, answered):
        _set(here, health_url=url, health_timeout_s=60.0)
        report = here.execute()
    assert answered == [503, 503, 200]
    assert report.after.healthy is True
    assert report.journal.warnings == ()


def test_an_application_that_stays_ill_is_a_warning_and_no_failure(bench: BenchFactory) -> None:
    here = bench()
    with _application([503]) as (url, answered):
        _set(here, health_url=url, health_timeout_s=0.5)
        report = here.execute()
    assert len(answered) > 1
    assert report.after.healthy is False
    (warning,) = report.journal.warnings
    assert f"{url} did not answer 200" in warning
    assert "(status 503)" in warning
    assert "`scholaria-ops restore --undo` goes back" in warning
    assert here.journals.unfinished() == []
    assert here.served == [here.set_id] * 3


def test_a_fresh_backup_is_asked_for_once_the_restore_is_done(bench: BenchFactory) -> None:
    here = bench()
    report = here.execute()
    asked = report.journal.fresh_backup
    assert asked
    record = here.services.catalogue.records.last(asked, "reserved")
    assert record is not None
    assert record.detail["requested_by"] == STARTED_BY_SENSOR["restore"], "by which the sensor knows that it is to start it"
    assert record.detail["note"] == f"after restoring {here.set_id}"


def test_a_database_at_another_migration_than_the_sets_is_told(
    bench: BenchFactory, pg_server: PostgresServer, sample_stack: SampleStack
) -> None:
    here = bench()
    other = ("CREATE TABLE alembic_version (version_num varchar(32) PRIMARY KEY)", "INSERT INTO alembic_version VALUES ('0043_later')")
    with database(pg_server, "at_another_migration", *other) as live:
        _set(here, db_host=live.host, db_port=live.port, db_name=live.dbname, db_user=live.user, db_password=live.password)
        report = here.execute()
    told = f"the database is at migration 0043_later; the set was taken at {sample_stack.alembic_revision}"
    assert told in report.journal.warnings
    assert report.after.revision == "0043_later"
