"""How old Dagster may let an asset become before it calls it stale: its own freshness policies, as the schedules and limits say.

Dagster looks at the newest materialization of an asset, whatever its partition, and calls an asset that never had one *unknown*. The
job ``health`` is stricter: it judges every tier by itself, by the cuts of the sets on disk, and an empty catalogue is unhealthy.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import dagster as dg

from scholaria_ops.errors import OpsError
from scholaria_ops.settings import Settings, load_settings
from scholaria_ops.settings.cron import Cron

#: A rehearsal may be caught up for so long (see the schedules of upkeep).
_REHEARSAL_LATE = timedelta(days=7)
#: When a stale asset is called so before it fails.
_WARN_EARLIER = timedelta(hours=4)


def settings_in_force() -> tuple[Settings, str]:
    """The settings as they are now; or the defaults, and why the operators' own could not be read."""
    try:
        return load_settings(), ""
    except (OpsError, OSError) as exc:
        return Settings.model_validate({}), str(exc)


def _policy(cron: str, max_age_h: float | None, grace: timedelta, settings: Settings) -> dg.FreshnessPolicy | None:
    """Fails once a scheduled time and the grace have passed without a materialization; None where the schedule never ticks."""
    gap = Cron.parse(cron).longest_gap(datetime.now(UTC), settings.timezone)
    if max_age_h is not None:
        return dg.FreshnessPolicy.time_window(fail_window=timedelta(hours=max_age_h))
    if gap is None:
        return None
    fail = gap + grace
    return dg.FreshnessPolicy.time_window(fail_window=fail, warn_window=max(fail - _WARN_EARLIER, gap + timedelta(hours=1)))


def freshness_policies(settings: Settings) -> dict[str, dg.FreshnessPolicy | None]:
    """By the last part of the asset's key."""
    grace = timedelta(hours=settings.health_grace_h)
    daily = _policy(settings.daily_cron, settings.health_daily_max_age_h, grace, settings)
    return {
        "sealed": daily,
        "verified": daily,
        "offsite": daily if settings.s3_bucket else None,
        "restored": _policy(settings.rehearsal_cron, settings.health_rehearsed_max_age_h, _REHEARSAL_LATE, settings),
        "report": _policy(settings.health_cron, None, timedelta(hours=2), settings),
    }


FRESHNESS = freshness_policies(settings_in_force()[0])
