"""The jobs that make a set, look at it and bring it out of the house. Commands run them alone, so little else is loaded here."""

import dagster as dg

from scholaria_ops.catalogue.evidence.base import STORE_NAMES
from scholaria_ops.pipeline.assets_backup import SEALED, VERIFIED, backup_key
from scholaria_ops.pipeline.assets_offsite import OFFSITE
from scholaria_ops.pipeline.resources import MAX_RUNTIME_S

backup_job = dg.define_asset_job(
    "backup",
    selection=dg.AssetSelection.assets(*(backup_key(name) for name in STORE_NAMES), SEALED, VERIFIED, OFFSITE),
    executor_def=dg.in_process_executor,
    tags=MAX_RUNTIME_S,
    description="Take, seal, verify and ship one set. Its partition is the set's id; start `backup_now` to have one minted.",
)

verify_job = dg.define_asset_job(
    "verify",
    selection=dg.AssetSelection.assets(VERIFIED),
    executor_def=dg.in_process_executor,
    tags=MAX_RUNTIME_S,
    description="Verify a sealed set again: every byte, and every artifact opened in its store's own software.",
)


offsite_job = dg.define_asset_job(
    "offsite",
    selection=dg.AssetSelection.assets(OFFSITE),
    executor_def=dg.in_process_executor,
    tags=MAX_RUNTIME_S,
    description="Copy a sealed set offsite and confirm it there; repeating it finishes or re-reads.",
)
