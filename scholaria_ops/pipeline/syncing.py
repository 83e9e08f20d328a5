"""Disk and bucket → partition grid: the job that makes Dagster show what is there."""

import dagster as dg

from scholaria_ops.pipeline.errors import as_failure
from scholaria_ops.pipeline.resources import Estate
from scholaria_ops.pipeline.sync import sync_catalogue


@dg.op(description="Rebuilds Dagster's partitions and materializations from the sets and records on disk.")
def sync_op(context: dg.OpExecutionContext, estate: Estate) -> None:
    with as_failure(), estate.services(context.log) as services:
        result = sync_catalogue(services, context.instance)
    for line in result.lines():
        context.log.info(line)
    context.add_output_metadata(result.metadata())


@dg.job(
    name="sync",
    executor_def=dg.in_process_executor,
    description="Make the partition grid show what is on disk: after a move, on a new machine.",
)
def sync_job() -> None:
    sync_op()
