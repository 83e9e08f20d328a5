"""The bridge between Dagster and the operations: settings are read when a run starts, never at import."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from contextvars import ContextVar

import dagster as dg
from dagster._check import CheckError

from scholaria_ops.cancel import CancelToken
from scholaria_ops.operations.auditing import Actor
from scholaria_ops.operations.logs import logged_to_file
from scholaria_ops.operations.services import Services, make_services
from scholaria_ops.pipeline.marks import TAG, ProcessMark
from scholaria_ops.pipeline.waits import RunWaits, not_inherited
from scholaria_ops.progress import Logged, Progress
from scholaria_ops.settings import Settings, load_settings

#: Tag of a run, and how its value begins, that says which user of which host started it at a shell.
STARTED_BY = "scholaria/started_by"
COMMAND_LINE = "command line"
_UI = "Dagster UI (nobody could be named)"
#: Tag of a run that Dagster made of another one, with that one's tags: they say nothing about who asked for this one.
_PARENT = "dagster/parent_run_id"
#: Tag of a job: whose run takes longer than this is given up.
MAX_RUNTIME_S = {"dagster/max_runtime": str(6 * 3600)}
#: Pool of whatever wants the estate lock: in the queue such runs wait for each other instead of failing. The lock in BACKUP_DIR
#: holds for runs outside the queue too.
ESTATE_POOL = "estate"
#: Set by the command line around a run in its own process, so that its bars and its Ctrl-C reach the operation.
_progress: ContextVar[Progress | None] = ContextVar("scholaria_ops_progress", default=None)


@contextlib.contextmanager
def reporting_to(progress: Progress) -> Iterator[None]:
    """Runs executed in this process inside the block report to ``progress`` as well as to Dagster's log."""
    token = _progress.set(progress)
    try:
        yield
    finally:
        _progress.reset(token)


class _Both:
    """Progress to the run's log and to the terminal."""

    def __init__(self, *receivers: Progress) -> None:
        self._receivers = receivers

    def start(self, task: str, *, total: int | None = None, unit: str = "bytes") -> None:
        for receiver in self._receivers:
            receiver.start(task, total=total, unit=unit)

    def advance(self, task: str, amount: int) -> None:
        for receiver in self._receivers:
            receiver.advance(task, amount)

    def finish(self, task: str, note: str = "") -> None:
        for receiver in self._receivers:
            receiver.finish(task, note)

    def say(self, text: str) -> None:
        for receiver in self._receivers:
            receiver.say(text)


class Estate(dg.ConfigurableResource):  # type: ignore[type-arg]  # Dagster's own base is generic in a type nobody names
    """The operators' stores and backup directory, as the settings name them.

    It has no configuration on purpose: what a run is given in the UI may never say where stores or directories are.
    """

    def setup_for_execution(self, context: dg.InitResourceContext) -> None:
        """Write on the run which process works on it. Ticks of schedules and sensors are no runs and bear no mark."""
        if context.run is not None and context.instance is not None:
            anew = not_inherited(context.run.tags) if _PARENT in context.run.tags else {}
            context.instance.add_run_tags(context.run.run_id, {TAG: str(ProcessMark.own()), **anew})

    def settings(self) -> Settings:
        """Read the settings anew: an edited ``.env`` is in force from the next run on."""
        return load_settings()

    @contextlib.contextmanager
    def services(self, log: logging.Logger) -> Iterator[Services]:
        """Services for the length of one step. Leaving the block by an exception cancels whatever still runs."""
        logged: Progress = Logged(log)
        outside = _progress.get()
        cancel = CancelToken()
        progress = _Both(logged, outside) if outside else logged
        settings, run, instance = self.settings(), *self._run()
        actor = Actor("Dagster daemon") if run is None else actor_of(run.tags, run.run_id)
        # A tick must not keep the daemon waiting, and whoever sits at a terminal decides himself: his run works in his command's
        # process, which looks on. Tags prove nothing of the kind: they can be typed.
        unattended = run is not None and outside is None
        services = make_services(
            settings,
            cancel=cancel,
            progress=progress,
            log=log,
            actor=actor,
            lock_wait_s=settings.unattended_lock_wait_s if unattended else None,
            waits=RunWaits(instance, run.run_id) if run and instance else None,
        )
        with logged_to_file(settings, log, _label(run)):
            try:
                yield services
            except BaseException as exc:
                cancel.cancel(f"the run ended by {type(exc).__name__}")
                raise

    def _run(self) -> tuple[dg.DagsterRun | None, dg.DagsterInstance | None]:
        try:
            context = self.get_resource_context()
        except CheckError:  # not handed in by Dagster: a sensor or schedule that is evaluated by hand
            return None, None
        return context.run, context.instance


def _label(run: dg.DagsterRun | None) -> str:
    """What stands in each line of the log in files: job, set and the beginning of the run's id."""
    if run is None:
        return "daemon"
    return " ".join(part for part in (run.job_name, run.tags.get("dagster/partition", ""), run.run_id[:8]) if part)


def actor_of(tags: Mapping[str, str], run_id: str) -> Actor:
    """Who asked for a run, by its tags. What was started in the UI bears no name: the UI knows no users."""
    if _PARENT in tags:
        return Actor(_UI, run_id=run_id)
    started_by = tags.get(STARTED_BY, "")
    if started_by.startswith(f"{COMMAND_LINE}, "):
        return Actor(COMMAND_LINE, started_by.removeprefix(f"{COMMAND_LINE}, "), run_id)
    for tag, kind in (("dagster/schedule_name", "schedule"), ("dagster/sensor_name", "sensor"), ("dagster/backfill", "backfill")):
        if tag in tags:
            return Actor(f"{kind} {tags[tag]}", run_id=run_id)
    return Actor(_UI, run_id=run_id)
