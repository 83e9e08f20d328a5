"""Composition only: the code location that ``workspace.yaml`` names."""

from __future__ import annotations

import dagster as dg

from scholaria_ops.pipeline.assets_backup import take_backup
from scholaria_ops.pipeline.assets_health import health_report
from scholaria_ops.pipeline.assets_live import LIVE
from scholaria_ops.pipeline.assets_offsite import ship_offsite
from scholaria_ops.pipeline.assets_rehearsal import restored
from scholaria_ops.pipeline.assets_verified import verified
from scholaria_ops.pipeline.jobs import JOBS
from scholaria_ops.pipeline.notifications import NOTIFICATION_SENSORS
from scholaria_ops.pipeline.resources import Estate
from scholaria_ops.pipeline.retention import RETENTION_SENSORS
from scholaria_ops.pipeline.schedules import SCHEDULES
from scholaria_ops.pipeline.sensors import SENSORS
from scholaria_ops.pipeline.upkeep import UPKEEP_SCHEDULES

defs = dg.Definitions(
    assets=[*LIVE, take_backup, verified, ship_offsite, restored, health_report],
    jobs=JOBS,
    schedules=[*SCHEDULES, *UPKEEP_SCHEDULES],
    sensors=[*SENSORS, *RETENTION_SENSORS, *NOTIFICATION_SENSORS],
    resources={"estate": Estate()},
)
