"""Time that a run waits for the estate lock, written on the run: it is no part of the time that the run took, nor of what it may take.

Dagster's monitoring ends a run by the clock, from its start. So a run that waits is given the time of its wait on top.
"""

from __future__ import annotations

from collections.abc import Mapping

import dagster as dg

from scholaria_ops.catalogue.lock import Holder

#: Tag of a run: seconds that it waited for the estate lock.
WAITED = "scholaria/lock_wait_s"
#: Tag of a run that has waited: seconds that it might take without that.
_OWN_LIMIT = "scholaria/own_max_runtime"


class RunWaits:
    """A :class:`~scholaria_ops.catalogue.lock.Listener` for one run. Its waits add up."""

    def __init__(self, instance: dg.DagsterInstance, run_id: str) -> None:
        self._instance = instance
        self._run_id = run_id
        self._before: float | None = None

    def waiting(self, holder: Holder | None, left_s: float) -> None:
        if self._before is None:  # else the same wait goes on, and so does its end
            self._before = waited_s(self._tags())
            self._allow(self._before + left_s)

    def waited(self, seconds: float, *, got: bool) -> None:
        spent = (self._before or 0.0) + seconds
        self._before = None
        self._allow(spent, **{WAITED: f"{spent:.1f}"})

    def _tags(self) -> Mapping[str, str]:
        run = self._instance.get_run_by_id(self._run_id)
        return run.tags if run else {}

    def _allow(self, seconds: float, **tags: str) -> None:
        """Let the run take ``seconds`` more than it may by itself."""
        known = self._tags()
        own = known.get(_OWN_LIMIT) or known.get(dg.MAX_RUNTIME_SECONDS_TAG) or str(self._instance.run_monitoring_max_runtime_seconds)
        if limit := _number(own):
            tags |= {_OWN_LIMIT: own, dg.MAX_RUNTIME_SECONDS_TAG: f"{limit + seconds:.0f}"}
        if tags:
            self._instance.add_run_tags(self._run_id, tags)


def waited_s(tags: Mapping[str, str]) -> float:
    """Seconds that a run has waited for the estate lock, by its tags."""
    return _number(tags.get(WAITED, ""))


def not_inherited(tags: Mapping[str, str]) -> dict[str, str]:
    """Tags that a run executed anew must have instead of those that it was given of the run before it."""
    fresh = {WAITED: "0"} if WAITED in tags else {}
    return {**fresh, dg.MAX_RUNTIME_SECONDS_TAG: tags[_OWN_LIMIT]} if _OWN_LIMIT in tags else fresh


def _number(text: str) -> float:
    """Zero for what is no number: tags can be edited by people."""
    try:
        return float(text)
    except ValueError:
        return 0.0
