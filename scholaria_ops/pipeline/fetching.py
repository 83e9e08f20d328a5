"""Offsite → here: the job that brings a set back."""

import dagster as dg

from scholaria_ops.operations.offsite import fetch, offsite_id
from scholaria_ops.pipeline.errors import as_failure
from scholaria_ops.pipeline.metadata import set_metadata
from scholaria_ops.pipeline.resources import ESTATE_POOL, Estate
from scholaria_ops.pipeline.sync import sync_catalogue


class FetchConfig(dg.Config):
    """Which set: an id, or `latest` (the newest verified one offsite)."""

    set_id: str = "latest"


@dg.op(pool=ESTATE_POOL, description="Brings a set back from the offsite place into BACKUP_DIR, every byte checked.")
def fetch_set(context: dg.OpExecutionContext, config: FetchConfig, estate: Estate) -> None:
    with as_failure(), estate.services(context.log) as services:
        entry = fetch(services, offsite_id(services, config.set_id), run_id=context.run.run_id)
        sync_catalogue(services, context.instance)
    if entry.set:
        context.add_output_metadata(set_metadata(entry.set.manifest, str(entry.directory)))


@dg.job(name="fetch", executor_def=dg.in_process_executor, description="Bring a set back from the offsite place.")
def fetch_job() -> None:
    fetch_set()
