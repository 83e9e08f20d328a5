"""What the figures were measured on."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.awscli import Aws
from benchmarks.stage import Servers
from scholaria_ops import __version__
from scholaria_ops.errors import ToolFailed
from scholaria_ops.process import run, which


@dataclass(frozen=True, slots=True)
class Machine:
    """The host, as far as it matters for a figure."""

    cpu: str
    cores: int
    memory_bytes: int
    kernel: str
    system: str
    file_system: str

    def line(self) -> str:
        memory = f"{self.memory_bytes / 2**30:.0f} GiB"
        return f"{self.cpu}, {self.cores} cores, {memory} memory, {self.file_system}, Linux {self.kernel}, {self.system}"


def this_machine(work: Path) -> Machine:
    """This host; ``work`` is where the files were written."""
    return Machine(
        _cpu(), os.cpu_count() or 1, psutil.virtual_memory().total, platform.release(), _system(), _file_system(work) or "unknown disk"
    )


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _system() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return "unknown distribution"


def _file_system(path: Path) -> str:
    mounts = {Path(p.mountpoint): p.fstype for p in psutil.disk_partitions(all=True)}
    here = path.resolve()
    return next((mounts[p] for p in (here, *here.parents) if p in mounts), "")


def versions(servers: Servers, aws: Aws) -> dict[str, str]:
    """Version of everything that took part."""
    return {
        "scholaria-ops": __version__,
        "Python": platform.python_version(),
        "PostgreSQL": servers.postgres.version,
        "Redis": servers.redis.version,
        "Qdrant": servers.qdrant.version,
        "S3 endpoint": servers.s3.version,
        "aws": aws.version.partition("/")[2],
        "gzip": _first_line("gzip").rpartition(" ")[2],
        "curl": _first_line("curl").split()[1] if which("curl") else "absent: a small Python helper in its place",
    }


def _first_line(program: str) -> str:
    try:
        return run([program, "--version"]).stdout.decode().splitlines()[0]
    except ToolFailed:
        return f"{program} unknown"
