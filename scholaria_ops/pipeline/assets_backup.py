"""Dump → sealed: one step, because a set is whole or it is none. Its cells report only once the set is sealed."""

from collections.abc import Iterator

import dagster as dg

from scholaria_ops.catalogue.evidence.base import STORE_NAMES, StoreName
from scholaria_ops.catalogue.manifest import Tier
from scholaria_ops.operations.backup import BackupRequest, backup
from scholaria_ops.pipeline.assets_live import OWNERS, live_key
from scholaria_ops.pipeline.errors import as_failure
from scholaria_ops.pipeline.freshness import FRESHNESS
from scholaria_ops.pipeline.metadata import set_metadata, store_metadata
from scholaria_ops.pipeline.partitions import BACKUPS
from scholaria_ops.pipeline.resources import ESTATE_POOL, Estate

SEALED = dg.AssetKey(["backup", "sealed"])
VERIFIED = dg.AssetKey(["backup", "verified"])


def backup_key(store: StoreName) -> dg.AssetKey:
    return dg.AssetKey(["backup", store])


_WHAT: dict[StoreName, tuple[str, set[str]]] = {
    "postgres": ("Custom-format dump and roles, with row counts and fingerprints from the very same snapshot.", {"postgres", "file"}),
    "redis": ("An exact RDB of all databases, with value and expiry of every key fingerprinted.", {"redis", "file"}),
    "qdrant": ("Snapshots of all collections and the aliases, with sampled points and golden searches.", {"qdrant", "file"}),
}


class BackupConfig(dg.Config):
    """What goes into the manifest besides the data."""

    tier: str = "manual"
    note: str = ""
    requested_by: str = "Dagster"


@dg.multi_asset(
    name="take_backup",
    specs=[
        *(
            dg.AssetSpec(
                backup_key(name),
                deps=[live_key(name)],
                group_name="backup",
                kinds=_WHAT[name][1],
                owners=OWNERS,
                description=_WHAT[name][0],
            )
            for name in STORE_NAMES
        ),
        dg.AssetSpec(
            SEALED,
            freshness_policy=FRESHNESS["sealed"],
            deps=[backup_key(name) for name in STORE_NAMES],
            group_name="backup",
            kinds={"file"},
            owners=OWNERS,
            description="The set on disk: artifacts, evidence, manifest and checksums, sealed by one rename. It never changes again.",
        ),
    ],
    partitions_def=BACKUPS,
    can_subset=False,
    pool=ESTATE_POOL,
    description="Dumps PostgreSQL, Redis and Qdrant side by side and seals one set.",
)
def take_backup(context: dg.AssetExecutionContext, config: BackupConfig, estate: Estate) -> Iterator[dg.MaterializeResult[None]]:
    set_id = context.partition_key
    with as_failure(), estate.services(context.log) as services:
        # However it was started: schedules set the tag themselves, the launchpad and the command line do not.
        context.instance.add_run_tags(context.run.run_id, {"scholaria/tier": config.tier})
        request = BackupRequest(tier=check_tier(config.tier), note=config.note, requested_by=config.requested_by, run_id=context.run.run_id)
        done = backup(services, set_id, request)
    for name in STORE_NAMES:
        yield dg.MaterializeResult(asset_key=backup_key(name), metadata=store_metadata(done.manifest, name))
    yield dg.MaterializeResult(
        asset_key=SEALED, metadata=set_metadata(done.manifest, str(done.directory)), tags={"scholaria/tier": done.manifest.tier}
    )


def check_tier(value: str) -> Tier:
    """The tier that run config names; raises ConfigError for anything else."""
    from scholaria_ops.catalogue.manifest import TIERS
    from scholaria_ops.errors import ConfigError

    for tier in TIERS:
        if tier == value:
            return tier
    raise ConfigError(f"tier {value!r} does not exist", hint=f"Use one of: {', '.join(t for t in TIERS if t != 'pre_restore')}.")
