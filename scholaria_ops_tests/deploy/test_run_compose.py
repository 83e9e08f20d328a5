"""The Compose services' own commands, run as processes on a real PostgreSQL for Dagster's history: they come up, work and end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from scholaria_ops.catalogue.sets import Catalogue
from scholaria_ops.process import run
from scholaria_ops.sandbox.postgres import PostgresServer
from scholaria_ops.settings import ENV_FILE_VARIABLE
from scholaria_ops_tests.conftest import Ports
from scholaria_ops_tests.deploy.support import (
    DEPLOY,
    VENV,
    Dagster,
    Services,
    backup_at_work,
    service_manager,
    take_backup,
)
from scholaria_ops_tests.deploy.test_compose import COMPOSE, compose


@pytest.fixture
def history(pg_server: PostgresServer) -> Iterator[dict[str, str]]:
    """A database for Dagster's history, as the variables of the containers name it."""
    connection = pg_server.connection
    name = "dagster_history"
    with pg_server.connect() as admin:
        admin.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        yield {
            "DAGSTER_PG_HOST": connection.host,
            "DAGSTER_PG_PORT": str(connection.port),
            "DAGSTER_PG_DB": name,
            "DAGSTER_PG_USER": connection.user,
            "DAGSTER_PG_PASSWORD": connection.password.get_secret_value(),
        }
        admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


class Containers:
    """Temporary directories in the place of the image's and the volumes'."""

    def __init__(self, tree: Path, run_directory: Path, history: Mapping[str, str], settings_file: Path, port: int) -> None:
        self.state = tree / "state"
        self.state.mkdir()
        image = tree / "dagster.yaml"
        image.write_text((COMPOSE / "dagster.yaml").read_text().replace("/var/lib/scholaria-ops", str(self.state)))
        (self.state / "dagster.yaml").symlink_to(image)
        self._replaced = {
            "/opt/scholaria-ops/workspace.yaml": str(DEPLOY / "workspace.yaml"),
            "/run/scholaria-ops": str(run_directory),
            "0.0.0.0": "127.0.0.1",
            "3000": str(port),
        }
        self.environment = {
            **history,
            "PATH": f"{VENV}:/usr/local/bin:/usr/bin:/bin",
            "DAGSTER_HOME": str(self.state),
            "SCHOLARIA_OPS_SOCKET": str(run_directory / "code.sock"),
            ENV_FILE_VARIABLE: str(settings_file),
        }
        self._services = compose()["services"]

    def _words(self, words: list[str]) -> list[str]:
        for there, here in self._replaced.items():
            words = [w.replace(there, here) for w in words]
        return [str(VENV / words[0]), *words[1:]]

    def start(self, services: Services, name: str) -> None:
        services.start(name, self._words(self._services[name]["command"]), self.environment, self.state)

    def finish(self, name: str) -> None:
        """Run a service that ends by itself."""
        self.run(self._words(self._services[name]["command"]))

    def healthy(self, name: str) -> bool:
        return bool(self.run(self._words(self._services[name]["healthcheck"]["test"][1:]), check=False).returncode == 0)

    def run(self, words: list[str], *, check: bool = True) -> Any:
        return run(words, env=self.environment, cwd=self.state, check=check)


@pytest.mark.slow(90)
@pytest.mark.timeout(600)
def test_the_services_commands_work_on_postgresql_and_a_stopped_one_lets_its_run_end(
    tmp_path: Path, run_directory: Path, history: dict[str, str], settings_file: Path, hold_port: Ports
) -> None:
    port = hold_port()
    containers = Containers(tmp_path, run_directory, history, settings_file, port)
    backups = tmp_path / "backups"
    containers.finish("ops-migrate")
    containers.finish("ops-migrate")  # at every start: there is nothing to do then
    with service_manager(tmp_path) as services:
        assert not containers.healthy("ops-code")
        for name in ("ops-code", "ops-daemon", "ops-web"):
            containers.start(services, name)
        ui = Dagster(f"http://127.0.0.1:{port}")
        services.wait("the web server answers", ui.up)
        services.wait("the code location is loaded", ui.location_loaded)
        services.wait("every daemon has a heartbeat", lambda: not ui.unhealthy_daemons())
        for name in ("ops-code", "ops-daemon", "ops-web"):
            assert containers.healthy(name), name
        take_backup(services, ui, {})

        # As in `docker compose exec ops-code scholaria-ops …`: the same history.
        containers.run([str(VENV / "scholaria-ops"), "backup", "--note", "by hand"])
        assert len(Catalogue(backups).entries()) == 2
        assert [status for _, status in ui.runs("backup")] == ["SUCCESS", "SUCCESS"]

        # As Docker stops a container: SIGTERM to its first process, which waits for the run that is under way.
        ui.launch("backup_now")
        services.wait("a backup is at work", lambda: backup_at_work(backups))
        grace_s = compose()["services"]["ops-code"]["stop_grace_period"]
        assert grace_s == "10m"
        services.stop("ops-code", whole_group=False, limit_s=120)
        assert [status for _, status in ui.runs("backup")] == ["SUCCESS"] * 3
        assert len(Catalogue(backups).entries()) == 3
        assert not containers.healthy("ops-code")

        # Killed, it leaves its socket behind, which must not keep the next one from starting.
        containers.start(services, "ops-code")
        services.wait("the code location is there again", lambda: containers.healthy("ops-code"))
        services.kill("ops-code")
        assert (run_directory / "code.sock").exists()
        containers.start(services, "ops-code")
        services.wait("it is there once more", lambda: containers.healthy("ops-code"))
        services.wait("and the web server has found it", ui.location_loaded)
        for name in ("ops-web", "ops-daemon", "ops-code"):
            services.stop(name, whole_group=False, limit_s=60)
    with psycopg.connect(**_as_conninfo(history)) as connection:
        row = connection.execute("SELECT count(*) FROM runs").fetchone()
    assert row
    assert row[0] >= 5


def _as_conninfo(history: Mapping[str, str]) -> dict[str, Any]:
    names = {"host": "HOST", "port": "PORT", "dbname": "DB", "user": "USER", "password": "PASSWORD"}
    return {key: history[f"DAGSTER_PG_{name}"] for key, name in names.items()}
