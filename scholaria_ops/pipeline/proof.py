"""Jobs of proof that no single set's cell can start: the disaster drill, and the re-reading of offsite copies."""

import dagster as dg

from scholaria_ops.operations.drill import drill
from scholaria_ops.operations.rehearse import raise_unless_proven
from scholaria_ops.operations.reread import RereadReport, reread
from scholaria_ops.pipeline.assets_rehearsal import RESTORED, report_metadata
from scholaria_ops.pipeline.errors import as_failure
from scholaria_ops.pipeline.metadata import Metadata, table
from scholaria_ops.pipeline.partitions import add_partition
from scholaria_ops.pipeline.resources import Estate

_MAX_RUNTIME = {"dagster/max_runtime": str(6 * 3600)}


@dg.op(description="Brings the newest verified set back from nothing but the bucket, into an empty environment, and compares it.")
def drill_op(context: dg.OpExecutionContext, estate: Estate) -> None:
    with as_failure(), estate.services(context.log) as services:
        done = drill(services, run_id=context.run.run_id)
    shown = {**report_metadata(done.rehearsal), "sets_in_the_bucket": done.found, "drill": True}
    with as_failure(shown):
        raise_unless_proven(done.rehearsal)
        done.raise_if_unreadable()
    add_partition(context.instance, done.rehearsal.set_id)
    context.log_event(dg.AssetMaterialization(asset_key=RESTORED, partition=done.rehearsal.set_id, metadata=shown))
    context.add_output_metadata({"set": done.rehearsal.set_id, **shown})


@dg.job(
    name="disaster_drill",
    executor_def=dg.in_process_executor,
    tags=_MAX_RUNTIME,
    description="As if this house were gone: listing, records, manifests and the newest verified set come from the bucket alone.",
)
def drill_job() -> None:
    drill_op()


@dg.op(description="Reads back in full every offsite copy that was not read for long, and mends what has rotted.")
def reread_op(context: dg.OpExecutionContext, estate: Estate) -> None:
    with as_failure(), estate.services(context.log) as services:
        report = reread(services, run_id=context.run.run_id)
    with as_failure(reread_metadata(report)):
        report.raise_if_damaged()
    for copy in report.copies:
        if copy.mended:
            context.log.warning("%s: files of the offsite copy had rotted and were replaced from the set here.", copy.set_id)
    context.add_output_metadata(reread_metadata(report))


def reread_metadata(report: RereadReport) -> Metadata:
    """Which copies were read, and what became of each."""
    words = {(False, True): "rotten files replaced", (False, False): "sound"}
    rows: list[dict[str, str | int | float | bool]] = [
        {"set": c.set_id, "bytes": c.size_bytes, "outcome": c.damage or words[bool(c.damage), c.mended], "sound": not c.damage}
        for c in report.copies
    ]
    return {
        "read": len(report.copies),
        "not_due": report.not_due,
        "damaged": len(report.damaged),
        "mended": sum(c.mended for c in report.copies),
        "size_bytes": report.size_bytes,
        **({"copies": table(rows)} if rows else {}),
    }


@dg.job(
    name="reread_offsite",
    executor_def=dg.in_process_executor,
    tags=_MAX_RUNTIME,
    description="Read old offsite copies back in full: rot is found while another copy still stands.",
)
def reread_job() -> None:
    reread_op()
