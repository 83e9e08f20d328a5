"""What keeps watch over the sets: health, rehearsals, re-reading of offsite copies, and the limits that make health red."""

from __future__ import annotations

from pydantic import BaseModel, field_validator

from scholaria_ops.settings.field import named
from scholaria_ops.settings.sets import check_cron


class UpkeepSettings(BaseModel):
    """Health, rehearsals and re-reading."""

    health_cron: str = named("BACKUP_HEALTH_CRON", default="30 */6 * * *", description="When health is looked at (cron)")
    rehearsal_cron: str = named(
        "BACKUP_REHEARSAL_CRON", default="0 5 2 * *", description="When the newest verified set here is restored and compared (cron)"
    )
    offsite_rehearsal_cron: str = named(
        "BACKUP_OFFSITE_REHEARSAL_CRON",
        default="0 5 16 3,9 *",
        description="When a set is restored from its offsite copy and compared (cron)",
    )
    drill_cron: str = named(
        "BACKUP_DRILL_CRON",
        default="0 5 9 1,4,7,10 *",
        description="When all is brought back from nothing but the offsite place (cron)",
    )
    reread_cron: str = named(
        "BACKUP_REREAD_CRON", default="0 6 * * 3", description="When offsite copies are read back in full, those that are due (cron)"
    )
    reread_after_days: int = named(
        "BACKUP_REREAD_AFTER_DAYS", default=30, ge=1, le=3650, description="Days after which an offsite copy is due to be read back again"
    )
    health_grace_h: float = named(
        "BACKUP_HEALTH_GRACE_H", default=6.0, gt=0, description="Hours after a scheduled time until what should have come counts as missing"
    )
    health_daily_max_age_h: float | None = named(
        "BACKUP_HEALTH_DAILY_MAX_AGE_H",
        default=None,
        gt=0,
        description="Hours that the newest verified daily set may be old; without it, the schedule decides",
    )
    health_weekly_max_age_h: float | None = named(
        "BACKUP_HEALTH_WEEKLY_MAX_AGE_H", default=None, gt=0, description="The same of weekly sets"
    )
    health_monthly_max_age_h: float | None = named(
        "BACKUP_HEALTH_MONTHLY_MAX_AGE_H", default=None, gt=0, description="The same of monthly sets"
    )
    health_rehearsed_max_age_h: float | None = named(
        "BACKUP_HEALTH_REHEARSED_MAX_AGE_H", default=None, gt=0, description="Hours since the last proof; without it, the schedule decides"
    )
    health_lock_max_h: float = named(
        "BACKUP_HEALTH_LOCK_MAX_H", default=6.0, gt=0, description="Hours that one run may hold the lock of BACKUP_DIR"
    )
    health_clock_max_skew_s: float = named(
        "BACKUP_HEALTH_CLOCK_MAX_SKEW_S", default=120.0, gt=0, description="Seconds that the stores' clocks may differ from ours"
    )

    @field_validator("health_cron", "rehearsal_cron", "offsite_rehearsal_cron", "drill_cron", "reread_cron")
    @classmethod
    def _upkeep_cron(cls, value: str) -> str:
        return check_cron(value)
