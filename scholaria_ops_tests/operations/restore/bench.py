"""A restore on stand-ins: what the tests of the saga, of the journal and of the undo have in common."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scholaria_ops.catalogue.evidence.base import STORE_NAMES, StoreName
from scholaria_ops.files import replace_durably
from scholaria_ops.operations.restore import journal as journal_module
from scholaria_ops.operations.restore.journal import Journals
from scholaria_ops.operations.restore.live import Live, LiveStores
from scholaria_ops.operations.restore.options import RestoreOptions
from scholaria_ops.operations.restore.plan import RestorePlan, plan_restore
from scholaria_ops.operations.restore.saga import RestoreReport, execute
from scholaria_ops.operations.services import Services
from scholaria_ops.stores.live import StorePlan
from scholaria_ops_tests.operations.restore.stand_in import StandIn

FORK = multiprocessing.get_context("fork")


@dataclass
class Bench:
    """A set, three stand-ins, and a fence that keeps a writer's state in a file."""

    services: Services
    root: Path
    set_id: str
    fails: dict[StoreName, dict[str, Exception]]

    @property
    def live(self) -> LiveStores:
        return {n: Live(StandIn(n, self.root / f"{n}.live", self.root / "log", self.fails.get(n, {})), StorePlan) for n in STORE_NAMES}

    def plan(self, **options: Any) -> RestorePlan:
        return plan_restore(self.services, self.live, self.set_id, RestoreOptions(**{"safety": False, **options}))

    def execute(self, **options: Any) -> RestoreReport:
        return execute(self.services, self.live, self.plan(**options))

    @property
    def served(self) -> list[str]:
        return [StandIn(n, self.root / f"{n}.live", self.root / "log", {}).state["served"] for n in STORE_NAMES]

    @property
    def steps(self) -> list[str]:
        return (self.root / "log").read_text().splitlines() if (self.root / "log").exists() else []

    @property
    def writers(self) -> str:
        return (self.root / "writers").read_text().strip()

    @property
    def journals(self) -> Journals:
        return Journals(self.services.catalogue.layout)

    def states(self) -> list[dict[str, Any]]:
        return [StandIn(n, self.root / f"{n}.live", self.root / "log", {}).state for n in STORE_NAMES]


BenchFactory = Callable[..., Bench]


def killed(here: Bench, write: int, action: Callable[[], object]) -> int:
    """Run ``action`` in a child that kills itself at the ``write``-th durable write; returns the child's exit code."""

    def child() -> None:
        count = 0

        def counted(path: Path, data: bytes, *, mode: int = 0o600) -> None:
            nonlocal count
            count += 1
            if count == write:
                os.kill(os.getpid(), signal.SIGKILL)
            replace_durably(path, data, mode=mode)

        setattr(journal_module, "replace_durably", counted)  # noqa: B010 - the module does not export it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
        action()
        os._exit(0)

    process = FORK.Process(target=child)
    process.start()
    process.join(120)
    assert process.exitcode is not None
    return process.exitcode
