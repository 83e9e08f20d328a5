"""``python -m scholaria_ops.demo run|ui|stop``, as the Makefile calls it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from scholaria_ops.cli.output import err, out, showing_progress
from scholaria_ops.demo.evidence import print_evidence
from scholaria_ops.demo.stack import Place, running_stack, stop
from scholaria_ops.errors import OpsError
from scholaria_ops.process import end_group, process_start_time, run_in_foreground
from scholaria_ops.sandbox.tools import find_tools
from scholaria_ops.settings import ENV_FILE_VARIABLE

_UI_PORT = 3000


def main() -> int:
    """Run one verb; returns the exit code."""
    verbs = {"run": demo, "ui": ui, "stop": stop_all}
    if len(sys.argv) != 2 or sys.argv[1] not in verbs:
        err.print(f"usage: python -m scholaria_ops.demo {'|'.join(verbs)}")
        return 2

    def interrupted(signum: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt(signal.Signals(signum).name)

    # SIGINT too, which a script's "&" has ignored: Dagster's servers inherit that, and give SIGTERM the action that SIGINT has.
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, interrupted)
    try:
        verbs[sys.argv[1]](Place(project() / ".demo"))
    except KeyboardInterrupt:
        err.print("stopped; no process was left behind")
        return 130
    except OpsError as exc:
        err.print(f"error: {exc.message}", markup=False)
        if exc.hint:
            err.print(f"→ {exc.hint}", markup=False)
        return 1
    return 0


def project() -> Path:
    """The directory of the checkout."""
    return Path(__file__).resolve().parents[2]


@contextlib.contextmanager
def _settings_of(place: Place) -> Iterator[None]:
    old = os.environ.get(ENV_FILE_VARIABLE)
    os.environ[ENV_FILE_VARIABLE] = str(place.env_file)
    try:
        yield
    finally:
        if old is None:
            del os.environ[ENV_FILE_VARIABLE]
        else:
            os.environ[ENV_FILE_VARIABLE] = old


def demo(place: Place) -> None:
    """Backup, verify, offsite, rehearsal from the offsite copy, evidence."""
    from scholaria_ops.cli.common import run, services
    from scholaria_ops.operations.backup import BackupRequest, reserve
    from scholaria_ops.pipeline.partitions import known_partitions
    from scholaria_ops.pipeline.runner import open_instance

    began = time.monotonic()
    with showing_progress() as progress, running_stack(place, progress), _settings_of(place):
        progress.say("backup → verify → offsite, through the Dagster job `backup`")
        with open_instance() as instance:
            request = BackupRequest(note="make demo", requested_by="make demo")
            set_id = reserve(services(), request, taken=known_partitions(instance))
        config = {"take_backup": {"config": {"note": "make demo", "requested_by": "make demo"}}}
        run("backup", partition=set_id, config=config, progress=progress)
        progress.say("rehearsal: the offsite copy restored into servers of its own, compared by content")
        run("rehearsal", partition=set_id, config={"rehearsal__restored": {"config": {"source": "offsite"}}}, progress=progress)
        entry = services().catalogue.find(set_id)
    print_evidence(entry)
    out.print(f"\nAll of it took {time.monotonic() - began:.0f} s. Everything that was started has ended.")
    out.print("Look at it:  [bold]make ui[/]   (Dagster on http://127.0.0.1:3000, the demo's stores up, Ctrl-C ends it)")
    out.print(f"Use it:      .venv/bin/scholaria-ops --env-file {place.env_file.relative_to(project())} list")


def ui(place: Place) -> None:
    """The demo's stores and ``dagster dev`` in the foreground."""
    with showing_progress() as progress, running_stack(place, progress), _settings_of(place):
        port = _free_port(_UI_PORT)
        start_time = process_start_time(os.getpid())
        place.ui_state.write_text(json.dumps({"pid": os.getpid(), "start_time": start_time, "port": port}))
        progress.say(f"Dagster on http://127.0.0.1:{port} in a few seconds; Ctrl-C ends it")
        try:
            run_in_foreground(
                [
                    sys.executable,
                    # Dagster warns that `dagster dev` has a successor; nobody at this prompt can do anything about it.
                    "-W",
                    "ignore:::click.core",
                    "-m",
                    "dagster",
                    "dev",
                    "-h",
                    "127.0.0.1",
                    "-p",
                    str(port),
                    "-w",
                    "workspace.yaml",
                    "--log-level",
                    "warning",
                ],
                env={"DAGSTER_HOME": str(project()), ENV_FILE_VARIABLE: str(place.env_file)},
                cwd=project(),
            )
        finally:
            place.ui_state.unlink(missing_ok=True)


def _free_port(wanted: int) -> int:
    """``wanted`` if it is free, else one that the system gives."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise OpsError("no free port on 127.0.0.1")


def stop_all(place: Place) -> None:
    """End the UI (wherever it was started) and the servers."""
    with contextlib.suppress(FileNotFoundError, ValueError, KeyError):
        state = json.loads(place.ui_state.read_text())
        if process_start_time(state["pid"]) == state["start_time"]:
            os.kill(state["pid"], signal.SIGTERM)
            _wait_for(state["pid"], state["start_time"])
            out.print("ended the Dagster UI")
    stopped = stop(place, find_tools())
    out.print(f"stopped, data kept: {', '.join(stopped)}" if stopped else "nothing was running")


def _wait_for(pid: int, start_time: int) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if process_start_time(pid) != start_time:
            return
        time.sleep(0.1)
    end_group(pid, start_time)


if __name__ == "__main__":
    sys.exit(main())
