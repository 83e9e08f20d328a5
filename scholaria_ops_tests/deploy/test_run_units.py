"""The systemd units' own command lines, run as processes: they come up, take a backup, heed edited settings, and end when told to."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from scholaria_ops.catalogue.lock import current_holder
from scholaria_ops.catalogue.sets import Catalogue
from scholaria_ops.process import run
from scholaria_ops.sandbox.sample import SampleStack
from scholaria_ops_tests.conftest import Ports
from scholaria_ops_tests.deploy.support import (
    ROOT,
    UNITS,
    VENV,
    Dagster,
    Services,
    backup_at_work,
    commands_of,
    environment_of,
    page,
    read_unit,
    service_manager,
    take_backup,
)

_INSTANCE = "scholaria"


class Host:
    """A temporary tree in the place of the directories that units name."""

    def __init__(self, tree: Path, run: Path, settings_file: Path) -> None:
        self.tree = tree
        self.home = tree / "var/lib/scholaria-ops" / _INSTANCE
        self.run = run
        self.home.mkdir(parents=True)
        (self.home / "dagster.yaml").symlink_to(ROOT / "dagster.yaml")
        self._replaced = {
            f"/etc/scholaria-ops/{_INSTANCE}.env": str(settings_file),
            f"/var/lib/scholaria-ops/{_INSTANCE}": str(self.home),
            f"/run/scholaria-ops/{_INSTANCE}": str(self.run),
            "/opt/scholaria-ops/.venv/bin": str(VENV),
            "/opt/scholaria-ops": str(ROOT),
        }

    def resolve(self, text: str) -> str:
        text = text.replace("%i", _INSTANCE)
        for there, here in self._replaced.items():
            text = text.replace(there, here)
        return text

    def start(self, services: Services, name: str, **ports: str) -> None:
        """Start one unit as systemd would: its environment alone, its working directory, its command line."""
        service = {
            k: [self.resolve(v) for v in values] for k, values in read_unit(UNITS / f"scholaria-ops-{name}@.service")["Service"].items()
        }
        env = {**environment_of(service), **ports}
        directory = Path(service["WorkingDirectory"][0])
        for before in commands_of(service, env, "ExecStartPre"):
            run(before, env=env, cwd=directory)
        (command,) = commands_of(service, env)
        services.start(name, command, env, directory)


def _stop(services: Services, name: str) -> None:
    """As ``systemctl stop``: SIGTERM to every process of the unit, within the unit's time, and a status that the unit takes for clean."""
    service = read_unit(UNITS / f"scholaria-ops-{name}@.service")["Service"]
    clean = frozenset(int(word) for line in service["SuccessExitStatus"] for word in line.split())
    services.stop(name, whole_group=True, limit_s=float(service["TimeoutStopSec"][0]), clean=clean)


@contextlib.contextmanager
def _locked_table(stack: SampleStack) -> Iterator[None]:
    """Hold a table of the live database as a migration does: a backup waits for it."""
    to = stack.postgres_admin
    password = to.password.get_secret_value()
    with psycopg.connect(host=to.host, port=to.port, dbname=to.dbname, user=to.user, password=password) as session:
        session.execute("LOCK TABLE alembic_version IN ACCESS EXCLUSIVE MODE")
        yield


@pytest.mark.slow(90)
@pytest.mark.timeout(600)
def test_the_units_command_lines_come_up_take_a_backup_and_end_in_time(
    tmp_path: Path, run_directory: Path, settings_file: Path, sample_stack: SampleStack, hold_port: Ports
) -> None:
    host = Host(tmp_path, run_directory, settings_file)
    web, readonly, metrics = (hold_port() for _ in range(3))
    with service_manager(tmp_path) as services:
        host.start(services, "code")
        host.start(services, "daemon")
        host.start(services, "web", WEB_PORT=str(web))
        host.start(services, "web-readonly", READONLY_PORT=str(readonly))
        ui = Dagster(f"http://127.0.0.1:{web}")
        services.wait("the web server answers", ui.up)
        services.wait("the code location is loaded", ui.location_loaded)
        services.wait("every daemon has a heartbeat", lambda: not ui.unhealthy_daemons())
        assert (host.run / "code.sock").is_socket()

        take_backup(services, ui, {})
        (first,) = Catalogue(tmp_path / "backups").entries()
        # An edit of the settings file is in force in the next run, with no restart.
        moved = tmp_path / "elsewhere"
        settings_file.write_text(settings_file.read_text() + f"BACKUP_DIR={moved}\n")
        take_backup(services, ui, {"ops": {"mint_backup_id": {"config": {"tier": "weekly"}}}})
        (second,) = Catalogue(moved).entries()
        assert [entry.set and entry.set.manifest.tier for entry in (first, second)] == ["manual", "weekly"]

        host.start(services, "metrics", METRICS_PORT=str(metrics))
        assert "\nscholaria_up 1.0\n" in services.wait("metrics are served", lambda: page(f"http://127.0.0.1:{metrics}/metrics"))

        looking = Dagster(f"http://127.0.0.1:{readonly}")
        services.wait("the read-only web server answers", looking.up)
        services.wait("it has the code location", looking.location_loaded)
        assert len(looking.runs("backup")) == 2
        with pytest.raises(AssertionError, match="UnauthorizedError"):
            looking.launch("backup_now")

        # Stopped with a run at work: the run takes back what it had begun, and the other services find the new server.
        with _locked_table(sample_stack):  # so that it is at work however long this test takes to stop it
            ui.launch("backup_now")
            services.wait("a backup is at work", lambda: backup_at_work(moved) and any((moved / ".staging").iterdir()))
            _stop(services, "code")
        assert [p for d in (".staging", ".scratch") if (moved / d).exists() for p in (moved / d).iterdir()] == []
        assert current_holder(moved / ".state" / "estate.lock") is None
        assert len(Catalogue(moved).entries()) == 1
        host.start(services, "code")
        services.wait("the code location is there again", ui.location_loaded)
        (stopped, status), *_ = ui.runs("backup")
        assert status in {"FAILURE", "CANCELED"}, f"{stopped}: {status}"

        for name in ("metrics", "web-readonly", "web", "daemon", "code"):
            _stop(services, name)
