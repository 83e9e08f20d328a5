"""Reading unit files, and running what they and the Compose file run as processes of our own."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import sys
import time
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scholaria_ops.catalogue.lock import current_holder
from scholaria_ops.process import Daemon, end_group, start_daemon

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
UNITS = DEPLOY / "systemd"
VENV = Path(sys.executable).parent
#: The machine is shared with the rest of the suite.
PATIENCE_S = 120.0

Section = Mapping[str, list[str]]


def read_unit(path: Path) -> dict[str, dict[str, list[str]]]:
    """Sections of a unit file, every key with all its values in order. Raises ValueError at a line that is none."""
    sections: dict[str, dict[str, list[str]]] = {}
    current: dict[str, list[str]] | None = None
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if not line.strip() or line.startswith(("#", ";")):
            continue
        if found := re.fullmatch(r"\[(\w+)\]", line):
            current = sections.setdefault(found[1], defaultdict(list))
        elif current is not None and (found := re.fullmatch(r"([A-Z][A-Za-z0-9]*)=(.*)", line)):
            current[found[1]].append(found[2])
        else:
            raise ValueError(f"{path.name}:{number}: neither a section nor an assignment: {line!r}")
    return sections


def environment_of(service: Section) -> dict[str, str]:
    """What ``Environment=`` lines set."""
    return dict(word.split("=", 1) for line in service.get("Environment", []) for word in shlex.split(line))


def commands_of(service: Section, environment: Mapping[str, str], key: str = "ExecStart") -> list[list[str]]:
    """The words of every ``ExecStart=`` (or another such key), with ``${NAME}`` filled in as systemd does it."""
    return [[re.sub(r"\$\{(\w+)\}", lambda m: environment[m[1]], word) for word in shlex.split(line)] for line in service.get(key, [])]


@dataclass
class Services:
    """Processes that were started as a service manager would, each in a group of its own."""

    logs: Path
    running: dict[str, Daemon] = field(default_factory=dict)

    def start(self, name: str, argv: Sequence[str], env: Mapping[str, str], cwd: Path) -> Daemon:
        self.running[name] = start_daemon(argv, log=self.logs / f"{name}.log", env=env, cwd=cwd)
        return self.running[name]

    def log(self, name: str) -> str:
        return (self.logs / f"{name}.log").read_text()[-4000:]

    def wait(self, what: str, ready: Callable[[], Any], *, limit_s: float = PATIENCE_S) -> Any:
        """The first true answer of ``ready``; fails at once when a service ended."""
        deadline = time.monotonic() + limit_s
        while not (answer := ready()):
            ended = [name for name, daemon in self.running.items() if not daemon.alive]
            assert not ended, f"while waiting until {what}: {ended[0]} ended: {self.log(ended[0])}"
            assert time.monotonic() < deadline, f"it took too long until {what}: " + "".join(self.log(n) for n in self.running)
            time.sleep(0.2)
        return answer

    def stop(self, name: str, *, whole_group: bool, limit_s: float, clean: frozenset[int] = frozenset()) -> None:
        """SIGTERM to the process, or to every one of its group. Fails when that takes too long, or ends in a way that looks like a failure.

        Clean is what systemd takes for clean (status 0, SIGTERM) and the statuses in ``clean``.
        """
        daemon = self.running.pop(name)
        began = time.monotonic()
        (os.killpg if whole_group else os.kill)(daemon.pid, signal.SIGTERM)
        ended, status = 0, 0
        while not ended or (whole_group and group_alive(daemon.pid)):
            assert time.monotonic() - began < limit_s, f"{name} does not end: {self.log(name)}"
            if not ended:
                ended, status = os.waitpid(daemon.pid, os.WNOHANG)
            time.sleep(0.1)
        assert os.waitstatus_to_exitcode(status) in {0, -signal.SIGTERM, *clean}, (
            f"{name}: {os.waitstatus_to_exitcode(status)}: {self.log(name)}"
        )

    def kill(self, name: str) -> None:
        """SIGKILL, as the kernel does where memory runs out."""
        daemon = self.running.pop(name)
        os.killpg(daemon.pid, signal.SIGKILL)
        os.waitpid(daemon.pid, 0)


def group_alive(pgid: int) -> bool:
    """Whether any process of the group runs; zombies hold nothing and do not count."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[2]) == pgid and fields[0] not in {"Z", "X"}:
                return True
    return False


@contextlib.contextmanager
def service_manager(logs: Path) -> Iterator[Services]:
    services = Services(logs)
    try:
        yield services
    finally:
        for daemon in services.running.values():
            end_group(daemon.pid, daemon.start_time)


@dataclass(frozen=True)
class Dagster:
    """A web server, asked as its own pages ask it."""

    url: str

    def up(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/server_info", timeout=5) as answer:  # noqa: S310 — loopback
                return bool(json.load(answer)["dagster_version"])
        except OSError:
            return False

    def ask(self, query: str, **variables: Any) -> Any:
        """The ``data`` of the answer. Raises AssertionError with what the server said when it refuses."""
        body = json.dumps({"query": query, "variables": variables}).encode()
        request = urllib.request.Request(f"{self.url}/graphql", body, {"Content-Type": "application/json"})  # noqa: S310
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
                said = json.load(answer)
        except urllib.error.HTTPError as exc:
            raise AssertionError(exc.read().decode()) from None
        assert "errors" not in said, said["errors"]
        return said["data"]

    def location_loaded(self) -> bool:
        data = self.ask("{workspaceOrError{... on Workspace{locationEntries{name loadStatus locationOrLoadError{__typename}}}}}")
        return [
            (e["name"], e["loadStatus"], e["locationOrLoadError"]["__typename"]) for e in data["workspaceOrError"]["locationEntries"]
        ] == [("scholaria_ops", "LOADED", "RepositoryLocation")]

    def unhealthy_daemons(self) -> list[str]:
        statuses = self.ask("{instance{daemonHealth{allDaemonStatuses{daemonType required healthy}}}}")["instance"]["daemonHealth"]
        return [d["daemonType"] for d in statuses["allDaemonStatuses"] if d["required"] and not d["healthy"]]

    def launch(self, job: str, config: Mapping[str, Any] | None = None) -> str:
        """Start a job as the launchpad does; returns the run id."""
        said = self.ask(
            """mutation L($p: ExecutionParams!){launchPipelineExecution(executionParams: $p){__typename
                 ... on LaunchRunSuccess{run{runId}} ... on PythonError{message} ... on UnauthorizedError{message}}}""",
            p={
                "selector": {
                    "repositoryLocationName": "scholaria_ops",
                    "repositoryName": "__repository__",
                    "pipelineName": job,
                },
                "runConfigData": dict(config or {}),
                "mode": "default",
            },
        )["launchPipelineExecution"]
        assert said["__typename"] == "LaunchRunSuccess", said
        return str(said["run"]["runId"])

    def runs(self, job: str) -> list[tuple[str, str]]:
        """Run id and status of every run of a job, the newest first."""
        data = self.ask("query R($f: RunsFilter){runsOrError(filter: $f){... on Runs{results{runId status}}}}", f={"pipelineName": job})
        return [(r["runId"], r["status"]) for r in data["runsOrError"]["results"]]

    def status(self, job: str, run_id: str) -> str:
        return dict(self.runs(job))[run_id]


def rows(text: str) -> dict[str, str]:
    """NAME=value lines of a file."""
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line and not line.startswith("#"))


def page(url: str) -> str:
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:  # noqa: S310 — loopback
            return str(answer.read().decode())
    except OSError:
        return ""


def take_backup(services: Services, ui: Dagster, config: Mapping[str, Any]) -> None:
    """Ask for a backup as people do in the UI, and wait until its own run, which a sensor starts, has succeeded."""
    before = len(ui.runs("backup"))
    asked = ui.launch("backup_now", config)
    services.wait("backup_now succeeded", lambda: _ended(ui, "backup_now", asked))
    run_id = services.wait("its backup run began", lambda: ui.runs("backup")[0][0] if len(ui.runs("backup")) > before else None)
    services.wait("the backup succeeded", lambda: _ended(ui, "backup", run_id))


def backup_at_work(backups: Path) -> bool:
    """Whether a backup holds the estate lock: a retention run, which follows every backup by itself, is none."""
    holder = current_holder(backups / ".state" / "estate.lock")
    return holder is not None and holder.what.startswith("backup ")


def _ended(ui: Dagster, job: str, run_id: str) -> bool:
    status = ui.status(job, run_id)
    assert status not in {"FAILURE", "CANCELED"}, f"{job} {run_id}: {status}"
    return status == "SUCCESS"
