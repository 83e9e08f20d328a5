"""One job as ``definitions.py`` has it, without loading the others: a command runs one, and everything else takes a tenth of a second."""

from __future__ import annotations

from importlib import import_module

import dagster as dg

from scholaria_ops.pipeline.resources import Estate

#: Jobs that make, look at and ship sets; their assets stand together.
_OF_SETS = {"backup", "verify", "offsite"}
#: Jobs made of ops: module and name.
_OF_OPS = {
    "fetch": ("fetching", "fetch_job"),
    "restore": ("restore", "restore_job"),
    "retention": ("retention", "retention_job"),
    "sync": ("syncing", "sync_job"),
}


def one_job(name: str) -> dg.JobDefinition | None:
    """The job of that name, if it can be had alone. Its snapshot is the one that the web server knows, so the UI shows the run there."""
    if name in _OF_SETS:
        return _of_sets().resolve_job_def(name)
    if name == "rehearsal":
        return _of_rehearsals().resolve_job_def(name)
    if name in _OF_OPS:
        module, job = _OF_OPS[name]
        found = getattr(import_module(f"scholaria_ops.pipeline.{module}"), job)
        return dg.Definitions(jobs=[found], resources={"estate": Estate()}).resolve_job_def(name)
    return None


def _of_sets() -> dg.Definitions:
    from scholaria_ops.pipeline.assets_backup import take_backup
    from scholaria_ops.pipeline.assets_live import LIVE
    from scholaria_ops.pipeline.assets_offsite import ship_offsite
    from scholaria_ops.pipeline.assets_verified import verified
    from scholaria_ops.pipeline.set_jobs import backup_job, offsite_job, verify_job

    return dg.Definitions(
        assets=[*LIVE, take_backup, verified, ship_offsite],
        jobs=[backup_job, verify_job, offsite_job],
        resources={"estate": Estate()},
    )


def _of_rehearsals() -> dg.Definitions:
    from scholaria_ops.pipeline.assets_rehearsal import rehearsal_job, restored

    return dg.Definitions(assets=[restored], jobs=[rehearsal_job], resources={"estate": Estate()})
