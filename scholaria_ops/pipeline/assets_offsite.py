"""Verified → offsite: the same set outside the house, confirmed by reading it back."""

from collections.abc import Iterator

import dagster as dg

from scholaria_ops.operations.offsite import Shipped, ship
from scholaria_ops.pipeline.assets_backup import VERIFIED
from scholaria_ops.pipeline.assets_live import OWNERS
from scholaria_ops.pipeline.errors import as_failure
from scholaria_ops.pipeline.freshness import FRESHNESS
from scholaria_ops.pipeline.metadata import Metadata, table
from scholaria_ops.pipeline.partitions import BACKUPS
from scholaria_ops.pipeline.resources import Estate

OFFSITE = dg.AssetKey(["backup", "offsite"])


class OffsiteConfig(dg.Config):
    """``reread``: read a copy that was confirmed earlier again in full, and replace what has rotted."""

    reread: bool = False


@dg.multi_asset(
    name="ship_offsite",
    specs=[
        dg.AssetSpec(
            OFFSITE,
            freshness_policy=FRESHNESS["offsite"],
            deps=[VERIFIED],
            group_name="backup",
            kinds={"s3"},
            owners=OWNERS,
            skippable=True,
            description="The set in the bucket: payloads first, manifest last, every byte read back and hashed. "
            "Skipped, and never green, while no bucket is set.",
        )
    ],
    partitions_def=BACKUPS,
    description="Copies the verified set to the offsite place and confirms it there.",
)
def ship_offsite(context: dg.AssetExecutionContext, config: OffsiteConfig, estate: Estate) -> Iterator[dg.MaterializeResult[None]]:
    with as_failure(), estate.services(context.log) as services:
        if services.offsite is None:
            context.log.warning("No bucket is set (BACKUP_S3_BUCKET): this set exists in one place only. The step is skipped.")
            return
        entry = services.catalogue.find(context.partition_key)
        shipped = ship(services, entry, reread=config.reread, run_id=context.run.run_id)
    for warning in shipped.warnings:
        context.log.warning(warning)
    yield dg.MaterializeResult(asset_key=OFFSITE, metadata=shipped_metadata(shipped))


def shipped_metadata(shipped: Shipped) -> Metadata:
    """Bytes, seconds, MB/s, and the file table."""
    report = shipped.report
    fresh = {"warnings_new": "\n".join(report.warnings)} if report.warnings else {}
    return {
        **fresh,
        "where": report.where,
        "size_bytes": report.size_bytes,
        "sent_bytes": report.sent_bytes,
        "duration_s": round(report.seconds, 3),
        "throughput_mb_s": round(report.sent_bytes / 1e6 / report.seconds, 3) if report.seconds > 0 else 0.0,
        "already_there": report.already_there,
        "files": table(
            {"file": f.path, "bytes": f.size_bytes, "confirmed by": f.confirmed_by, "sent": not f.skipped, "seconds": round(f.upload_s, 2)}
            for f in report.files
        ),
        **({"warnings": dg.MetadataValue.md("\n".join(f"* {w}" for w in shipped.warnings))} if shipped.warnings else {}),
    }
