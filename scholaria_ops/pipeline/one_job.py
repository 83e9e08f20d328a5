"""One job as ``definitions.py`` has it, without loading the others: a command runs one, and everything else takes a tenth of a second."""

from __future__ import annotations

import dagster as dg

from scholaria_ops.pipeline.resources import Estate

#: Jobs that make, look at and ship sets; their assets stand together.
_OF_SETS = {"backup", "verify", "offsite"}


def one_job(name: str) -> dg.JobDefinition | None:
    """The job of that name, if it can be had alone. Its snapshot is the one that the web server knows, so the UI shows the run there."""
    if name in _OF_SETS:
        return _of_sets().resolve_job_def(name)
    if name == "fetch":
        from scholaria_ops.pipeline.fetching import fetch_job

        return dg.Definitions(jobs=[fetch_job], resources={"estate": Estate()}).resolve_job_def(name)
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
