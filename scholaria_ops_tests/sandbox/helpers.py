"""What the tests of this room share: processes that hold a sandbox of their own, and what is left of one."""

from __future__ import annotations

import json
import os
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

from scholaria_ops.process import Daemon, start_daemon
from scholaria_ops.sandbox.home import MARKER, Marker
from scholaria_ops.sandbox.stragglers import belonging

#: A process that makes a sandbox in argv[1], runs the given lines with ``box``, writes argv[2] and waits for its end.
_OWNER = """
import sys, time
from pathlib import Path
from scholaria_ops.sandbox.sandbox import Sandbox
from scholaria_ops.sandbox.tools import find_tools
with Sandbox(Path(sys.argv[1]), find_tools(), label="owned") as box:
    box.directory
    Path(sys.argv[2] + ".begun").touch()
{body}
    Path(sys.argv[2]).touch()
    time.sleep(120)
"""


def start_owner(base: Path, ready: Path, body: str) -> Daemon:
    """Start a process that owns a sandbox in ``base``; ``ready`` appears once ``body`` has run inside it."""
    script = _OWNER.format(body=textwrap.indent(textwrap.dedent(body).strip() or "pass", "    "))
    cache = {name: os.environ[name] for name in ("XDG_CACHE_HOME",) if name in os.environ}  # where the servers' programs are
    return start_daemon([sys.executable, "-c", script, str(base), str(ready)], log=ready.with_suffix(".log"), env=cache)


def wait_for(condition: Callable[[], bool], *, patience_s: float = 120.0, what: str = "it") -> None:
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {patience_s:.0f} s in vain for {what}"
        time.sleep(0.02)


def the_home(base: Path) -> Path:
    """The only sandbox directory in ``base``."""
    found = [entry for entry in base.iterdir() if (entry / MARKER).exists()]
    assert len(found) == 1, found
    return found[0]


def marker_of(directory: Path) -> Marker:
    marker = Marker.read(directory)
    assert marker is not None
    return marker


def programs_of(directory: Path) -> set[str]:
    servers = directory / "servers.json"
    return {state["program"] for state in json.loads(servers.read_bytes()).values()} if servers.exists() else set()


def processes_of(marker: Marker, programs: set[str]) -> list[tuple[int, int]]:
    return belonging(marker.nonce, marker.data, programs)
