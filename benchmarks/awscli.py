"""The AWS command line to compare with: the host's, else one installed into a private environment."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from scholaria_ops.errors import ToolFailed
from scholaria_ops.process import run, which
from scholaria_ops.progress import Progress


@dataclass(frozen=True, slots=True)
class Aws:
    """A working ``aws``. ``start_s`` is what its mere start takes, measured with ``--version``."""

    program: Path
    version: str
    start_s: float

    def copy(self, source: str, target: str, endpoint: str) -> list[str]:
        """Copy a directory to or from a bucket."""
        return [str(self.program), "s3", "cp", "--recursive", "--only-show-errors", "--endpoint-url", endpoint, source, target]

    def remove(self, target: str, endpoint: str) -> list[str]:
        """Remove everything below a prefix of a bucket."""
        return [str(self.program), "s3", "rm", "--recursive", "--only-show-errors", "--endpoint-url", endpoint, target]


def find_aws(work: Path, progress: Progress) -> Aws:
    """``aws`` on PATH if it works, else the newest awscli from PyPI in an environment below ``work``."""
    found = which("aws")
    if found and (aws := _asked(found)):
        return aws
    progress.say("no aws on PATH: installing awscli into a private environment")
    home = work / "aws"
    run([sys.executable, "-m", "venv", str(home)])
    run([str(home / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "awscli"], timeout_s=600)
    if aws := _asked(home / "bin" / "aws"):
        return aws
    raise ToolFailed("awscli was installed, but does not run", returncode=-1, hint="Install the AWS command line and run again.")


def _asked(program: Path) -> Aws | None:
    try:
        run([str(program), "--version"])  # once more, because the first start compiles
        asked = run([str(program), "--version"])
    except ToolFailed:
        return None
    return Aws(program, asked.stdout.decode().split()[0], asked.seconds)
