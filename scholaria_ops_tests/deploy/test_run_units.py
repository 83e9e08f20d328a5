"""The systemd units' own command lines, run as processes: they come up, take a backup, heed edited settings, and end when told to."""

from __future__ import annotations

import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from scholaria_ops.catalogue.lock import current_holder
from scholaria_ops.catalogue.sets import Catalogue
from scholaria_ops.process import run
from scholaria_ops_tests.deploy.support import ROOT, UNITS, VENV, Dagster, Services, commands_of, environment_of, read_unit, service_manager

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


def _limit_s(name: str) -> float:
    return float(read_unit(UNITS / f"scholaria-ops-{name}@.service")["Service"]["TimeoutStopSec"][0])


@pytest.fixture
def run_directory() -> Iterator[Path]:
    """In the place of /run. A socket's path has 107 bytes at most, and pytest's own directories are long."""
    with tempfile.TemporaryDirectory(prefix="so-") as name:
        yield Path(name)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_units_command_lines_come_up_take_a_backup_and_end_in_time(tmp_path: Path, run_directory: Path, settings_file: Path) -> None:
    host = Host(tmp_path, run_directory, settings_file)
    web, readonly = free_port(), free_port()
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

        _backup(services, ui, {})
        (first,) = Catalogue(tmp_path / "backups").entries()
        # An edit of the settings file is in force in the next run, with no restart.
        moved = tmp_path / "elsewhere"
        settings_file.write_text(settings_file.read_text() + f"BACKUP_DIR={moved}\n")
        _backup(services, ui, {"ops": {"mint_backup_id": {"config": {"tier": "weekly"}}}})
        (second,) = Catalogue(moved).entries()
        assert [entry.set and entry.set.manifest.tier for entry in (first, second)] == ["manual", "weekly"]

        looking = Dagster(f"http://127.0.0.1:{readonly}")
        services.wait("the read-only web server answers", looking.up)
        services.wait("it has the code location", looking.location_loaded)
        assert len(looking.runs("backup")) == 2
        with pytest.raises(AssertionError, match="UnauthorizedError"):
            looking.launch("backup_now")

        # Stopped with a run at work: the run takes back what it had begun, and the other services find the new server.
        ui.launch("backup_now")
        services.wait("a run is at work", lambda: current_holder(moved / ".state" / "estate.lock"))
        services.stop("code", whole_group=True, limit_s=_limit_s("code"))
        assert [p for d in (".staging", ".scratch") if (moved / d).exists() for p in (moved / d).iterdir()] == []
        assert current_holder(moved / ".state" / "estate.lock") is None
        assert len(Catalogue(moved).entries()) == 1
        host.start(services, "code")
        services.wait("the code location is there again", ui.location_loaded)
        (stopped, status), *_ = ui.runs("backup")
        assert status in {"FAILURE", "CANCELED"}, f"{stopped}: {status}"

        for name in ("web-readonly", "web", "daemon", "code"):
            services.stop(name, whole_group=True, limit_s=_limit_s(name))


def _backup(services: Services, ui: Dagster, config: dict[str, object]) -> None:
    """Ask for a backup as people do in the UI, and wait until its own run, which a sensor starts, has succeeded."""
    before = len(ui.runs("backup"))
    asked = ui.launch("backup_now", config)
    services.wait("backup_now succeeded", lambda: _ended(ui, "backup_now", asked))
    run_id = services.wait("its backup run began", lambda: ui.runs("backup")[0][0] if len(ui.runs("backup")) > before else None)
    services.wait("the backup succeeded", lambda: _ended(ui, "backup", run_id))


def _ended(ui: Dagster, job: str, run_id: str) -> bool:
    status = ui.status(job, run_id)
    assert status not in {"FAILURE", "CANCELED"}, f"{job} {run_id}: {status}"
    return status == "SUCCESS"
