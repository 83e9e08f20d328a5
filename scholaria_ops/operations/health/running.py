"""Whether what should run by itself does: Dagster's daemons, schedules and runs, as told through a small protocol.

This package knows no Dagster. Whoever does implements :class:`Dispatcher`; here its answers are judged.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal, Protocol

from scholaria_ops.operations.health.findings import Finding, Level, ok
from scholaria_ops.settings import Settings
from scholaria_ops.settings.cron import Cron

#: A tick this late has not come. Dagster looks every few seconds; a busy host may take its time.
_TICK_GRACE = timedelta(hours=1)
#: A run that waits this long to begin waits for something that does not come.
_WAITING = timedelta(hours=1)
#: A run that works and says nothing for this long is worth a look.
_SILENT = timedelta(hours=2)


@dataclass(frozen=True, slots=True)
class DaemonState:
    """One of Dagster's daemons. ``last_beat`` is None if it has never run."""

    name: str
    alive: bool
    last_beat: datetime | None = None
    errors: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class ScheduleState:
    """One schedule of ours. ``vital``: sets stop coming when it stops. ``known_since`` is None if no daemon has ever looked at it."""

    name: str
    cron: str
    #: Cron string that the daemon goes by; may be older than the settings.
    cron_in_force: str
    vital: bool
    on: bool
    known_since: datetime | None
    last_tick: datetime | None
    outcome: Literal["none", "started", "skipped", "failed"] = "none"
    detail: str = ""


@dataclass(frozen=True, slots=True)
class RunState:
    """One unfinished run. ``gone`` says why its process cannot be at work any more; empty if it may be."""

    run_id: str
    job: str
    #: ``queued`` and ``starting`` runs do not work yet.
    phase: Literal["queued", "starting", "started"]
    since: datetime
    last_word: datetime
    max_runtime: timedelta
    gone: str = ""


class Dispatcher(Protocol):
    """What health asks of Dagster. Every method may raise OpsError; a failed read is never an empty answer."""

    def daemons(self) -> Sequence[DaemonState]:
        """All daemons that the installation's configuration wants."""

    def schedules(self) -> Sequence[ScheduleState]:
        """All schedules of the code location."""

    def unfinished_runs(self) -> Sequence[RunState]:
        """Every run that is not at its end."""


def daemon(states: Sequence[DaemonState]) -> Iterator[Finding]:
    """Whether the daemons beat."""
    dead = [d for d in states if not d.alive]
    step = "Start it: `dagster-daemon run` (or `dagster dev`), with the same DAGSTER_HOME. Without it nothing runs by itself."
    if states and len(dead) == len(states):
        beats = [d.last_beat for d in dead if d.last_beat]
        said = "Dagster's daemon is not running" if beats else "Dagster's daemon has never run with this DAGSTER_HOME"
        yield Finding("daemon", "critical", said, max(beats, default=None), step)
        return
    for one in dead:
        yield Finding("daemon", "critical", f"Dagster's daemon {one.name} does not beat", one.last_beat, step)
    for one in states:
        if one.alive and one.errors:
            yield Finding(
                "daemon", "warning", f"Dagster's daemon {one.name} reports: {one.errors[0]}", one.last_beat, "Read the daemon's own log."
            )
    if not dead and not any(d.errors for d in states):
        yield ok("daemon", f"{len(states)} daemons beat", daemons=len(states))


def schedules(states: Sequence[ScheduleState], settings: Settings, now: datetime) -> Iterator[Finding]:
    """Whether every schedule is on and has ticked when it was due."""
    if states and all(one.on and one.known_since is None for one in states):
        step = "Start Dagster's daemon and load the code location."
        yield Finding("schedules", "critical", f"none of the {len(states)} schedules has ever been looked at by a daemon", next_step=step)
        return
    good = 0
    for one in states:
        finding = _schedule(one, settings, now)
        if finding is None:
            good += 1
        else:
            yield finding
    if good:
        yield ok("schedules", f"{good} of {len(states)} schedules are on and have ticked when they were due", on=good)


def _schedule(one: ScheduleState, settings: Settings, now: datetime) -> Finding | None:
    level: Level = "critical" if one.vital else "warning"
    if not one.on:
        return Finding("schedules", level, f"{one.name} is switched off", one.last_tick, "Switch it on in the UI, under Automation.")
    if one.known_since is None:
        step = "Start Dagster's daemon and load the code location."
        return Finding("schedules", level, f"{one.name} has never been looked at by a daemon", next_step=step)
    if due := _missed(one, one.known_since, settings, now):
        last = f"ticked last at {one.last_tick:%Y-%m-%d %H:%M} UTC" if one.last_tick else "has never ticked"
        step = "See whether the daemon runs (the check `daemon` here) and what the schedule's page in the UI says."
        return Finding("schedules", level, f"{one.name} {last}, and was due at {due:%Y-%m-%d %H:%M} UTC", due, step)
    return _last_tick(one, level)


def _missed(one: ScheduleState, known_since: datetime, settings: Settings, now: datetime) -> datetime | None:
    """When it was due and did not tick; None if it did."""
    due = Cron.parse(one.cron_in_force).last_before(now - _TICK_GRACE, settings.timezone)
    # An hour of patience: clocks are changed by one.
    if due is None or due <= known_since or (one.last_tick and one.last_tick >= due - _TICK_GRACE):
        return None
    return due


def _last_tick(one: ScheduleState, level: Level) -> Finding | None:
    if one.outcome == "failed":
        step = "Mend that; the next tick comes by itself."
        return Finding("schedules", level, f"the last tick of {one.name} failed: {one.detail}", one.last_tick, step)
    if one.outcome == "skipped" and one.vital:
        return Finding("schedules", "warning", f"the last tick of {one.name} was skipped: {one.detail}", one.last_tick)
    if one.cron != one.cron_in_force:
        said = f"{one.name} still runs at {one.cron_in_force}; the settings say {one.cron}"
        return Finding("schedules", "warning", said, next_step="Reload the code location in the UI, under Deployment.")
    return None


def runs(states: Sequence[RunState], now: datetime) -> Iterator[Finding]:
    """Whether every unfinished run can still end by itself."""
    bad = False
    for one in states:
        if finding := _run(one, now):
            bad = True
            yield finding
    if not bad:
        yield ok("runs", f"{len(states)} at work" if states else "none at work", unfinished=len(states))


def _run(one: RunState, now: datetime) -> Finding | None:
    name = f"run {one.run_id[:8]} of the job {one.job}"
    end = "Mark it as ended in the UI (Runs, Terminate, force): its set counts as in flight until then, and is never pruned."
    if one.gone:
        return Finding("runs", "critical", f"{name} was left unfinished: {one.gone}", one.since, end)
    if one.phase == "started" and now - one.since > one.max_runtime:
        return Finding(
            "runs",
            "critical",
            f"{name} is at work for {_hours(now - one.since)}, longer than any may be ({_hours(one.max_runtime)})",
            one.since,
            end,
        )
    if one.phase != "started" and now - one.since > _WAITING:
        return Finding(
            "runs",
            "warning",
            f"{name} waits to begin for {_hours(now - one.since)}",
            one.since,
            "See what holds the queue (another run of the pool `estate`), and whether the daemon runs.",
        )
    if one.phase == "started" and now - one.last_word > _SILENT:
        return Finding(
            "runs", "warning", f"{name} has said nothing for {_hours(now - one.last_word)}", one.last_word, "Look at its log in the UI."
        )
    return None


def _hours(period: timedelta) -> str:
    return f"{period / timedelta(hours=1):.1f} h"
