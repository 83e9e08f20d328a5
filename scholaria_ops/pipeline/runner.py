"""Run the pipeline's jobs in this process, against the same Dagster instance as the UI: every run, however started, is there."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import yaml
from dagster._core.errors import DagsterExecutionInterruptedError
from dagster._core.instance import InstanceRef

from scholaria_ops.catalogue.records import whoami
from scholaria_ops.errors import Cancelled, ConfigError, OpsError
from scholaria_ops.pipeline.partitions import add_partition
from scholaria_ops.pipeline.resources import COMMAND_LINE, STARTED_BY, reporting_to
from scholaria_ops.progress import Progress
from scholaria_ops.startup import importing

_CONFIG_NAME = "dagster.yaml"
#: How commands write the history that dagster.yaml keeps in SQLite files: module and class.
_HISTORY = ("scholaria_ops.pipeline.history", "History")
#: What the web server calls our repository; with it on a run, the job's page in the UI lists the run.
_REPOSITORY_TAG = {".dagster/repository": "__repository__@scholaria_ops"}


def dagster_home() -> Path:
    """Directory of the ``dagster.yaml`` in force: ``DAGSTER_HOME``, else the nearest one above the working directory, else the project's.

    Raises:
        ConfigError: there is none.
    """
    named = os.environ.get("DAGSTER_HOME")
    if named:
        home = Path(named)
        if not home.is_dir():
            raise ConfigError(f"DAGSTER_HOME {named} is no directory", hint=f"Point it at the directory of {_CONFIG_NAME}.")
        return home
    here = Path.cwd()
    project = Path(__file__).resolve().parents[2]
    for candidate in (here, *here.parents, project):
        if (candidate / _CONFIG_NAME).is_file():
            return candidate
    raise ConfigError(f"no {_CONFIG_NAME} here or above", hint="Set DAGSTER_HOME to the directory of the installation's dagster.yaml.")


@contextlib.contextmanager
def open_instance(home: Path | None = None) -> Iterator[dg.DagsterInstance]:
    """The Dagster instance that the UI of ``home`` shows. Relative paths in its configuration are relative to ``home``."""
    home = home or dagster_home()
    overrides = _absolute_paths(home)
    with importing():  # Dagster loads its database layer only now
        opened = dg.DagsterInstance.from_ref(InstanceRef.from_dir(str(home), overrides=overrides))
    with opened as instance:
        yield instance


def _absolute_paths(home: Path) -> dict[str, Any]:
    """Parts of dagster.yaml that hold a relative ``base_dir``, with it made absolute (Dagster takes the working directory)."""
    path = home / _CONFIG_NAME
    try:
        content = yaml.safe_load(path.read_text()) if path.is_file() else {}
    except yaml.YAMLError as exc:
        raise ConfigError(f"{path} is no valid YAML: {exc}", hint="Correct it; the web server reads it too.") from None
    fixed = _fix(content or {}, home)
    found = {key: fixed[key] for key in ("storage", "local_artifact_storage", "compute_logs") if key in fixed}
    if isinstance(found.get("storage"), dict) and "sqlite" in found["storage"]:
        found["storage"] = {"custom": {"module": _HISTORY[0], "class": _HISTORY[1], "config": found["storage"]["sqlite"]}}
    return found


def _fix(node: Any, home: Path) -> Any:
    if isinstance(node, dict):
        return {
            k: str(home / v) if k == "base_dir" and isinstance(v, str) and not Path(v).is_absolute() else _fix(v, home)
            for k, v in node.items()
        }
    return node


def run_job(
    job: dg.JobDefinition,
    instance: dg.DagsterInstance,
    *,
    progress: Progress,
    partition: str | None = None,
    config: Mapping[str, Any] | None = None,
    tags: Mapping[str, str] | None = None,
    run_id: str | None = None,
) -> str:
    """Run one job to its end in this process and return its run id (``run_id``, if one is given).

    Raises:
        OpsError: the very error that the operation raised inside the run.
        KeyboardInterrupt: as it was.
    """
    if partition:
        add_partition(instance, partition)
    run_config = {"ops": dict(config or {}), "loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
    try:
        with reporting_to(progress):
            result = job.execute_in_process(
                instance=instance,
                partition_key=partition,
                run_id=run_id,
                run_config=run_config,
                tags={**_REPOSITORY_TAG, STARTED_BY: f"{COMMAND_LINE}, {whoami()}", **(tags or {})},
            )
    except DagsterExecutionInterruptedError:
        raise Cancelled("stopped by a signal; nothing half done was left behind") from None
    except dg.Failure as exc:
        if isinstance(exc.__cause__, OpsError):
            raise exc.__cause__ from None
        raise
    return result.run_id
