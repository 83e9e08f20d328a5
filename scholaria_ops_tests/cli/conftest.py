"""The installed command, run as an operator runs it: a process of its own, settings in a file, nothing else in the environment."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from scholaria_ops.process import run
from scholaria_ops.sandbox.sample import SampleStack
from scholaria_ops.sandbox.tools import Tools
from scholaria_ops_tests.operations.support import environment

PROJECT = Path(__file__).parents[2]
COMMAND = Path(sys.executable).parent / "scholaria-ops"


@dataclass(frozen=True)
class Answer:
    """What a command said."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)


Command = Callable[..., Answer]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A DAGSTER_HOME as in production: a directory with the project's dagster.yaml."""
    directory = tmp_path / "home"
    directory.mkdir()
    (directory / "dagster.yaml").write_bytes((PROJECT / "dagster.yaml").read_bytes())
    return directory


@pytest.fixture
def env_file(sample_stack: SampleStack, tools: Tools, tmp_path: Path) -> Path:
    path = tmp_path / "ops.env"
    path.write_text("".join(f"{k}={v}\n" for k, v in environment(sample_stack, tools, tmp_path / "backups").items()))
    return path


@pytest.fixture
def ops(home: Path, env_file: Path) -> Command:
    """Run ``scholaria-ops`` with the given words."""

    def call(*words: str, env: dict[str, str] | None = None) -> Answer:
        finished = run(
            [str(COMMAND), "--env-file", str(env_file), *words], env={"DAGSTER_HOME": str(home), **(env or {})}, cwd=home, check=False
        )
        return Answer(finished.returncode, finished.stdout.decode(), finished.stderr_tail)

    return call
