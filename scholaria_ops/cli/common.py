"""What commands share: options, services, and running a job in the shared Dagster instance."""

from __future__ import annotations

import contextlib
import functools
import importlib
import uuid
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scholaria_ops.catalogue.evidence.base import STORE_NAMES, StoreName
from scholaria_ops.cli.output import showing_progress
from scholaria_ops.errors import UsageError
from scholaria_ops.humane import human_age
from scholaria_ops.operations.auditing import Actor
from scholaria_ops.operations.services import Services, make_services
from scholaria_ops.progress import Progress
from scholaria_ops.settings import load_settings
from scholaria_ops.startup import importing

if TYPE_CHECKING:
    from dagster import DagsterInstance, JobDefinition

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text")]
SetArgument = Annotated[str, typer.Argument(metavar="SET", help="`latest` (newest verified), an id, or the path of a set's directory")]


def component(text: str) -> StoreName:
    """A store's name as it was given to ``--component``.

    Raises:
        UsageError: there is no such store.
    """
    for name in STORE_NAMES:
        if name == text:
            return name
    raise UsageError(f"there is no component {text!r}", hint=f"Use {', '.join(STORE_NAMES)}.")


def services(progress: Progress | None = None) -> Services:
    """Services for the settings in force."""
    return make_services(load_settings(), progress=progress, actor=Actor("command line"))


@functools.cache
def loaded(job: str) -> JobDefinition:
    """A job, once Dagster is imported with all that running one takes (a second of one processor)."""
    with importing():
        importlib.import_module("scholaria_ops.pipeline.history")  # what an instance loads when it is opened
        from scholaria_ops.pipeline.one_job import one_job

        if (definition := one_job(job)) is None:
            from scholaria_ops.definitions import defs

            definition = defs.resolve_job_def(job)
    return definition


def run(
    job: str,
    *,
    partition: str | None = None,
    config: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    instance: DagsterInstance | None = None,
) -> str:
    """Run a job with progress shown; returns its run id. Errors are those of the operation.

    If no daemon is there to tell people how it ended, it is told from here.
    ``instance`` is Dagster's, if the caller has it open already (opening it takes a moment).
    """
    definition = loaded(job)
    from scholaria_ops.pipeline.notifications import tell_without_daemon
    from scholaria_ops.pipeline.runner import open_instance, run_job

    with contextlib.ExitStack() as stack:
        shown = progress or stack.enter_context(showing_progress())
        opened = instance or stack.enter_context(open_instance())
        run_id = str(uuid.uuid4())
        try:
            return run_job(definition, opened, progress=shown, partition=partition, config=config, run_id=run_id)
        finally:
            tell_without_daemon(services(shown), opened, run_id)


def when(instant: Any) -> str:
    """Age for people; a dash for never."""
    return human_age(instant) if instant else "–"
