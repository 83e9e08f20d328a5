"""Runs that Dagster's real daemon starts on real stores, while another process holds the estate lock.

The backup that succeeds comes last: retention follows it by itself, and whatever is started then queues behind that.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
import pytest

from scholaria_ops.catalogue.audit import AuditLog
from scholaria_ops.catalogue.lock import current_holder
from scholaria_ops.catalogue.sets import Catalogue
from scholaria_ops.operations.backup import STARTED_BY_SENSOR, BackupRequest, reserve
from scholaria_ops.operations.services import make_services
from scholaria_ops.pipeline.notifications import facts_of
from scholaria_ops.pipeline.runner import open_instance
from scholaria_ops.pipeline.waits import WAITED
from scholaria_ops.process import Daemon, run
from scholaria_ops.sandbox.sample import SampleStack
from scholaria_ops.sandbox.tools import Tools
from scholaria_ops.settings import load_settings
from scholaria_ops_tests.catalogue.holder import WHAT, holder_process
from scholaria_ops_tests.cli.conftest import COMMAND
from scholaria_ops_tests.notify.receivers import Receiver, receiver
from scholaria_ops_tests.operations.support import environment
from scholaria_ops_tests.pipeline.daemon import served, until

pytestmark = [pytest.mark.slow(60), pytest.mark.timeout(400)]


@dataclass(frozen=True)
class Site:
    """An installation at work."""

    home: Path
    env_file: Path
    catalogue: Catalogue
    web: Receiver

    def set(self, name: str, value: str) -> None:
        """Change a setting; runs that start later obey it."""
        with self.env_file.open("a") as out:
            out.write(f"{name}={value}\n")

    def request(self) -> str:
        """Have the daemon's sensor start a backup; returns its id."""
        services = make_services(load_settings({}, env_file=self.env_file))
        return reserve(services, BackupRequest(requested_by=STARTED_BY_SENSOR["job"]))

    def run_of(self, instance: dg.DagsterInstance, set_id: str, reached: Callable[[dg.DagsterRun], bool]) -> dg.DagsterRun:
        """The backup run of that id, once it has come that far."""
        found: list[dg.DagsterRun] = []

        def there() -> bool:
            found[:] = instance.get_runs(dg.RunsFilter(job_name="backup", tags={"dagster/partition": set_id}))
            return bool(found) and reached(found[0])

        until(there)
        return found[0]


@pytest.fixture(scope="module")
def site(sample_stack: SampleStack, tools: Tools, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    root = tmp_path_factory.mktemp("site")
    with receiver() as web:
        named = environment(sample_stack, tools, root / "backups", BACKUP_NOTIFY_WEBHOOK=f"{web.url}/hook")
        path = root / "ops.env"
        path.write_text("".join(f"{k}={v}\n" for k, v in named.items()))
        with served(root / "home", path):
            yield Site(root / "home", path, Catalogue(root / "backups"), web)


@pytest.fixture
def instance(site: Site) -> Iterator[dg.DagsterInstance]:
    with open_instance(site.home) as opened:
        yield opened


@pytest.fixture
def holder(site: Site) -> Iterator[Daemon]:
    """A restore at somebody's terminal."""
    daemon = holder_process(site.catalogue.layout.lock)
    yield daemon
    daemon.stop(grace_s=0)


def said(instance: dg.DagsterInstance, run_id: str) -> str:
    return "\n".join(r.event_log_entry.user_message for r in instance.get_records_for_run(run_id).records)


def waits(instance: dg.DagsterInstance) -> Callable[[dg.DagsterRun], bool]:
    return lambda run: "waiting for the lock" in said(instance, run.run_id)


def test_a_run_that_is_terminated_while_it_waits_is_cancelled_and_leaves_nothing(
    site: Site, instance: dg.DagsterInstance, holder: Daemon
) -> None:
    set_id = site.request()
    waiting = site.run_of(instance, set_id, waits(instance))
    instance.report_run_canceling(waiting)
    began = time.monotonic()
    assert instance.run_launcher.terminate(waiting.run_id)
    ended = site.run_of(instance, set_id, lambda r: r.is_finished)
    assert time.monotonic() - began < 60
    assert ended.status is dg.DagsterRunStatus.CANCELED
    assert [r.event for r in site.catalogue.records.of(set_id)] == ["reserved"]
    assert set_id not in {e.set for e in AuditLog(site.catalogue.layout.audit).entries()}
    layout = site.catalogue.layout
    for directory in (layout.staging, layout.trash, load_settings({}, env_file=site.env_file).scratch_root):
        assert not directory.exists() or list(directory.iterdir()) == []
    still = current_holder(layout.lock)
    assert still
    assert still.pid == holder.pid


def test_a_wait_that_runs_out_is_told_with_the_holders_name(site: Site, instance: dg.DagsterInstance, holder: Daemon) -> None:
    site.set("BACKUP_UNATTENDED_LOCK_WAIT_S", "2")
    set_id = site.request()
    ended = site.run_of(instance, set_id, lambda r: r.is_finished)
    assert ended.is_failure
    busy = f"another run holds the backup directory: {WHAT} (pid {holder.pid}, "
    facts = facts_of(instance, ended.run_id)
    assert facts
    assert facts.code == "busy"
    assert busy in facts.message
    until(lambda: any(set_id in str(s.body["title"]) for s in site.web.seen))
    (alert,) = (s.body for s in site.web.seen if set_id in s.body["title"])
    assert alert["title"].startswith(f"[WARNING] Backup of manual set {set_id} refused: another run holds the backup directory")
    assert busy in alert["message"]
    assert "; it was waited for 2" in alert["message"]
    assert "It waited for the lock for: 2" in alert["message"]


def test_a_run_that_waits_goes_on_when_the_command_ends_while_a_command_is_told_at_once(
    site: Site, instance: dg.DagsterInstance, holder: Daemon
) -> None:
    site.set("BACKUP_UNATTENDED_LOCK_WAIT_S", "600")
    set_id = site.request()
    waiting = site.run_of(instance, set_id, waits(instance))
    line = next(line for line in said(instance, waiting.run_id).splitlines() if "waiting for the lock" in line)
    assert f"held by {WHAT} (pid {holder.pid}, " in line
    env = {"DAGSTER_HOME": str(site.home)}
    command = run([str(COMMAND), "--env-file", str(site.env_file), "backup"], env=env, cwd=site.home, check=False)
    assert command.returncode == 5
    assert f"{WHAT} (pid {holder.pid}, " in command.stderr_tail
    holder.stop(grace_s=0)
    freed = time.time()
    ended = site.run_of(instance, set_id, lambda r: r.is_finished)
    assert ended.is_success, said(instance, ended.run_id)
    record = instance.get_run_record_by_id(ended.run_id)
    assert record
    assert record.start_time
    assert record.end_time
    waited = float(ended.tags[WAITED])
    assert waited == pytest.approx(freed - record.start_time, abs=10)
    made = site.catalogue.find(set_id)
    assert made.set
    assert made.set.manifest.started_at.timestamp() >= freed - 1, "the wait is no part of what the backup took"
    assert made.verified_at
    assert ended.tags["scholaria/tier"] == "manual"
