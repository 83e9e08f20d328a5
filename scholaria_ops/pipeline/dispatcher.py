"""What health wants to know of Dagster, asked of the instance: daemons, schedules, unfinished runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Literal

import dagster as dg
from dagster._core.scheduler.instigation import InstigatorState, InstigatorTick, InstigatorType, ScheduleInstigatorData, TickStatus
from dagster._core.storage.dagster_run import RunRecord

from scholaria_ops.operations.health.running import DaemonState, RunState, ScheduleState
from scholaria_ops.pipeline.marks import TAG, ProcessMark
from scholaria_ops.pipeline.schedules import SCHEDULED
from scholaria_ops.pipeline.upkeep import UPKEEP
from scholaria_ops.settings import Settings

#: As in dagster.yaml; a job's own tag goes before it.
_MAX_RUNTIME = timedelta(hours=6)
_PHASES: Mapping[dg.DagsterRunStatus, Literal["queued", "starting", "started"]] = {
    dg.DagsterRunStatus.QUEUED: "queued",
    dg.DagsterRunStatus.NOT_STARTED: "starting",
    dg.DagsterRunStatus.STARTING: "starting",
    dg.DagsterRunStatus.STARTED: "started",
    dg.DagsterRunStatus.CANCELING: "started",
}
_OUTCOMES: Mapping[TickStatus, Literal["started", "skipped", "failed"]] = {
    TickStatus.SUCCESS: "started",
    TickStatus.SKIPPED: "skipped",
    TickStatus.FAILURE: "failed",
}


class DagsterDispatcher:
    """Implements :class:`~scholaria_ops.operations.health.running.Dispatcher` for one instance."""

    def __init__(self, instance: dg.DagsterInstance, settings: Settings) -> None:
        self._instance = instance
        self._settings = settings

    def daemons(self) -> Sequence[DaemonState]:
        found = []
        for name, status in self._instance.get_daemon_statuses().items():
            beat = status.last_heartbeat
            errors = [e.message.strip() for e in beat.errors or ()] if beat else []
            found.append(DaemonState(name.lower(), bool(status.healthy), _instant(beat.timestamp) if beat else None, errors))
        return found

    def schedules(self) -> Sequence[ScheduleState]:
        # Two code locations of that name (an old one, say) leave two states; the one that was looked at last counts.
        known: dict[str, InstigatorState] = {}
        for state in self._instance.all_instigator_state(instigator_type=InstigatorType.SCHEDULE):
            if state.name not in known or _looked_at(state) > _looked_at(known[state.name]):
                known[state.name] = state
        return [self._schedule(name, cron, vital, known.get(name)) for name, cron, vital in self._expected()]

    def _expected(self) -> list[tuple[str, str, bool]]:
        tiers = [(f"{tier}_backup", str(getattr(self._settings, f"{tier}_cron")), True) for tier in SCHEDULED]
        return [*tiers, *((kind.name, str(getattr(self._settings, kind.setting)), False) for kind in UPKEEP)]

    def _schedule(self, name: str, cron: str, vital: bool, state: InstigatorState | None) -> ScheduleState:
        if state is None:
            return ScheduleState(name, cron, cron, vital, on=True, known_since=None, last_tick=None)
        data = state.instigator_data
        in_force, since = (str(data.cron_schedule), data.start_timestamp) if isinstance(data, ScheduleInstigatorData) else (cron, None)
        ticks = self._instance.get_ticks(state.instigator_origin_id, state.selector_id, limit=1)
        tick = ticks[0] if ticks else None
        return ScheduleState(
            name,
            cron,
            in_force,
            vital,
            on=state.is_running,
            known_since=_instant(since) if since else None,
            last_tick=_instant(tick.timestamp) if tick else None,
            outcome=_OUTCOMES.get(tick.status, "none") if tick else "none",
            detail=_detail(tick),
        )

    def unfinished_runs(self) -> Sequence[RunState]:
        here = ProcessMark.own()
        return [self._run(r, here) for r in self._instance.get_run_records(dg.RunsFilter(statuses=list(_PHASES)))]

    def _run(self, record: RunRecord, here: ProcessMark) -> RunState:
        run = record.dagster_run
        mark = ProcessMark.parse(run.tags.get(TAG, ""))
        phase = _PHASES[run.status]
        limit = run.tags.get("dagster/max_runtime", "")
        events = self._instance.get_records_for_run(run.run_id, limit=1, ascending=False).records
        since = _instant(record.start_time) if record.start_time else record.create_timestamp
        return RunState(
            run.run_id,
            run.job_name,
            phase,
            since=since,
            last_word=_instant(events[0].event_log_entry.timestamp) if events else since,
            max_runtime=timedelta(seconds=float(limit)) if limit.replace(".", "", 1).isdigit() else _MAX_RUNTIME,
            gone=mark.gone(here) if mark and phase == "started" else "",
        )


def _instant(timestamp: float) -> datetime:
    return datetime.fromtimestamp(timestamp, UTC)


def _looked_at(state: InstigatorState) -> float:
    data = state.instigator_data
    return (data.last_iteration_timestamp or data.start_timestamp or 0.0) if isinstance(data, ScheduleInstigatorData) else 0.0


def _detail(tick: InstigatorTick | None) -> str:
    if tick is None:
        return ""
    if tick.error is not None:
        cause = tick.error
        while cause.cause is not None:
            cause = cause.cause
        return cause.message.strip()
    return tick.skip_reason or ""
