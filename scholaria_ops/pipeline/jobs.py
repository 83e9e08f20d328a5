"""Jobs: what an operator can start from the UI, by schedule or by the command line."""

import dagster as dg
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

from scholaria_ops.operations.backup import BackupRequest, reserve
from scholaria_ops.pipeline.assets_backup import check_tier
from scholaria_ops.pipeline.assets_health import health_job
from scholaria_ops.pipeline.assets_rehearsal import rehearsal_job
from scholaria_ops.pipeline.errors import as_failure
from scholaria_ops.pipeline.fetching import fetch_job
from scholaria_ops.pipeline.partitions import add_partition, known_partitions
from scholaria_ops.pipeline.proof import drill_job, reread_job
from scholaria_ops.pipeline.resources import Estate
from scholaria_ops.pipeline.restore import restore_job
from scholaria_ops.pipeline.retention import retention_job
from scholaria_ops.pipeline.set_jobs import backup_job, offsite_job, verify_job
from scholaria_ops.pipeline.syncing import sync_job


class BackupNowConfig(dg.Config):
    """What to take. ``tier`` is one of daily, weekly, monthly, manual."""

    tier: str = "manual"
    note: str = ""


@dg.op(description="Mints the id of a new set; the backup run of that id follows within seconds.")
def mint_backup_id(context: dg.OpExecutionContext, config: BackupNowConfig, estate: Estate) -> None:
    with as_failure(), estate.services(context.log) as services:
        request = BackupRequest(
            tier=check_tier(config.tier), note=config.note, requested_by="backup_now in Dagster", run_id=context.run.run_id
        )
        set_id = reserve(services, request, taken=known_partitions(context.instance))
    add_partition(context.instance, set_id)
    context.log.info("Set %s is requested; its run of the job `backup` starts within seconds.", set_id)
    context.add_output_metadata({"set": set_id, "tier": config.tier, "note": config.note or "–"})


@dg.job(name="backup_now", executor_def=dg.in_process_executor, description="One button: take a backup now, and verify it.")
def backup_now() -> None:
    mint_backup_id()


JOBS: list[dg.JobDefinition | UnresolvedAssetJobDefinition] = [
    backup_job,
    backup_now,
    verify_job,
    offsite_job,
    fetch_job,
    rehearsal_job,
    sync_job,
    retention_job,
    restore_job,
    drill_job,
    reread_job,
    health_job,
]
