"""A live store of one file, for what is the saga's own: the order of its steps, and what a crash between two of them leaves.

What each real store does within a step is tested on real servers. This one keeps its state on disk, so that a process that
was killed leaves what a killed restore leaves: ``served`` and ``beside`` are the contents, ``kept`` what was replaced.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scholaria_ops.catalogue.evidence.base import StoreName
from scholaria_ops.errors import StoreError
from scholaria_ops.stores.base import Context
from scholaria_ops.stores.live import Effect, Notebook, RolledBack, Source, Staged, Standing, StorePlan, Switched


@dataclass
class StandIn:
    """``fails`` maps a method to the error that it raises, after it did half of its work.

    ``written`` among them raises nothing: somebody has written to what is taken back, which is set aside therefore.
    """

    name: StoreName
    file: Path
    log: Path
    fails: Mapping[str, Exception]

    @property
    def state(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads(self.file.read_text()) if self.file.exists() else {"served": "old"}
        return content

    def _put(self, **state: Any) -> None:
        fresh = self.file.with_suffix(".new")
        fresh.write_text(json.dumps({k: v for k, v in state.items() if v is not None}))
        fresh.rename(self.file)

    def _say(self, step: str) -> None:
        with self.log.open("a") as log:
            log.write(f"{self.name} {step}\n")

    def _maybe_fail(self, step: str) -> None:
        if step in self.fails:
            raise self.fails[step]

    def plan(self, source: Source[Any], ctx: Context) -> StorePlan:
        return StorePlan(
            store=self.name,
            artifacts=tuple(a.path for a in source.artifacts),
            target=str(self.file.name),
            identity="",
            steps=(f"put {source.set_id} in place of {self.state['served']}",),
            effects=(Effect(kind="lost", what="old things", count=3),),
            expected_s=1.0,
            expected_lockout_s=0.1,
        )

    def stage(self, plan: StorePlan, source: Source[Any], notebook: Notebook, ctx: Context) -> Staged:
        self._say("stage")
        notebook.write(staging=True)
        self._put(**{**self.state, "beside": source.set_id})
        if "stage" in self.fails:
            self._put(**{**self.state, "beside": None})
        self._maybe_fail("stage")
        notebook.write(staged=True)
        return Staged(seconds={"load": 0.1}, counts={"things": 1})

    def ready(self, plan: StorePlan, notebook: Notebook, ctx: Context) -> None:
        self._say("ready")
        self._maybe_fail("ready")

    def switch(self, plan: StorePlan, notebook: Notebook, ctx: Context) -> Switched:
        self._say("switch")
        notebook.write(switching=True)
        self._maybe_fail("switch")
        state = self.state
        self._put(served=state["beside"], kept=state["served"])
        self._maybe_fail("switch late")
        notebook.write(switched=True)
        return Switched(lockout_s=0.01, seconds={"switch": 0.01}, kept=(f"{state['served']} of {self.name}",))

    def roll_back(self, notebook: Notebook, ctx: Context) -> RolledBack:
        self._say("roll_back")
        self._maybe_fail("roll_back")
        state = self.state
        aside = state.get("aside") or (state["served"] if "written" in self.fails and "kept" in state else None)
        self._put(served=state.get("kept", state["served"]), aside=aside)
        return RolledBack([f"{self.name} is back"], (f"{aside} of {self.name}",) if aside else ())

    def finish(self, notebook: Notebook, ctx: Context) -> list[str]:
        self._say("finish")
        self._maybe_fail("finish")
        return []

    def later_writes(self, notebook: Notebook, ctx: Context) -> tuple[Effect, ...]:
        return ()

    def check_undo(self, notebook: Notebook, ctx: Context) -> None:
        self._maybe_fail("check_undo")

    def undo(self, notebook: Notebook, ctx: Context) -> Switched:
        self._say("undo")
        notebook.write(undoing=True)
        self._maybe_fail("undo")
        state = self.state
        if "kept" in state:
            self._put(served=state["kept"], was=state["served"])
        return Switched(lockout_s=0.01, seconds={})

    def discard(self, notebook: Notebook, ctx: Context) -> list[str]:
        self._say("discard")
        self._maybe_fail("discard")
        self._put(served=self.state["served"])
        return [f"removed what {self.name} had kept"]

    def standing(self, notebook: Notebook, ctx: Context) -> Standing:
        self._maybe_fail("standing")
        state = self.state
        left = tuple(f"{state[word]}, {word}" for word in ("beside", "kept", "aside") if word in state)
        return Standing(served=(f"{state['served']} of {self.name}",), left=left, by_hand=tuple(f"remove {line}" for line in left))


def unavailable(text: str) -> StoreError:
    return StoreError(text, hint="It is a test.")
