"""A stand-in for the docker command: ``compose -f FILE stop|start SERVICE …`` really stops and starts the application.

FILE names the application's configuration in its ``x-application`` line; the pid stands beside it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import yaml

_PATIENCE_S = 120.0


def main() -> None:
    compose, dash_f, file, verb, *services = sys.argv[1:]
    content = yaml.safe_load(Path(file).read_text())
    unknown = set(services) - content["services"].keys()
    if (compose, dash_f) != ("compose", "-f") or unknown or not services:
        sys.exit(f"no such service: {', '.join(sorted(unknown))}")
    config = Path(content["x-application"])
    with (config.parent / "docker.log").open("a") as log:
        log.write(f"{time.time():.6f} {verb} {' '.join(services)}\n")
    {"stop": stop, "start": start}[verb](config)


def stop(config: Path) -> None:
    pid_file = config.parent / "pid"
    if not pid_file.exists():
        return
    pid = int(pid_file.read_text())
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + _PATIENCE_S
    while _alive(pid):
        if time.monotonic() > deadline:
            sys.exit("the application does not end")
        time.sleep(0.01)
    pid_file.unlink()


def start(config: Path) -> None:
    if (config.parent / "pid").exists():
        return
    (config.parent / "ready").unlink(missing_ok=True)
    with (config.parent / "application.log").open("ab") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", "scholaria_ops_tests.scenarios.application", str(config)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd=Path(__file__).parents[2],
        )
    (config.parent / "pid").write_text(str(child.pid))
    deadline = time.monotonic() + _PATIENCE_S
    while not (config.parent / "ready").exists():
        if time.monotonic() > deadline or child.poll() is not None:
            sys.exit("the application does not start")
        time.sleep(0.01)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in {"Z", "X"}
    except FileNotFoundError:
        return False


if __name__ == "__main__":
    main()
