"""Which process works on a run, written on the run itself: so that one whose process is gone is told from one that is busy.

Dagster's launcher cannot see a dead host. A run carries the host, the boot of its kernel, the process namespace, and the process
with its start time; only where all of these are ours can the process be looked for, and only then is anybody called dead.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path

from scholaria_ops.process import is_alive, process_start_time

TAG = "scholaria/process"
_BOOT = Path("/proc/sys/kernel/random/boot_id")
_NAMESPACE = Path("/proc/self/ns/pid")


@dataclass(frozen=True, slots=True)
class ProcessMark:
    """One process on one host, as a tag's value."""

    host: str
    boot: str
    namespace: str
    pid: int
    start_time: int

    @classmethod
    def own(cls) -> ProcessMark:
        pid = os.getpid()
        boot = _BOOT.read_text().strip() if _BOOT.exists() else "-"
        namespace = os.readlink(_NAMESPACE).strip("pid:[]") if _NAMESPACE.exists() else "-"  # noqa: PTH115 - not a path
        return cls(socket.gethostname(), boot, namespace, pid, process_start_time(pid) or 0)

    @classmethod
    def parse(cls, text: str) -> ProcessMark | None:
        """From a tag; None if it is not one of ours."""
        parts = text.split(" ")
        if len(parts) != 5 or not all(p.isdigit() for p in parts[3:]):
            return None
        return cls(parts[0], parts[1], parts[2], int(parts[3]), int(parts[4]))

    def __str__(self) -> str:
        return f"{self.host} {self.boot} {self.namespace} {self.pid} {self.start_time}"

    def gone(self, here: ProcessMark) -> str:
        """Why this process is certainly not alive, as seen from ``here``; empty if it is, or cannot be seen from here."""
        if self.host != here.host:
            return ""
        if self.boot != here.boot:
            return f"the host {self.host} was started anew since"
        if self.namespace == here.namespace and not is_alive(self.pid, self.start_time):
            return f"its process {self.pid} on {self.host} is gone"
        return ""
