"""When the schedules are due next, by the settings. Pure; whether a daemon is alive to see it is health's question."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from scholaria_ops.settings import Settings
from scholaria_ops.settings.cron import Cron


@dataclass(frozen=True, slots=True)
class Tick:
    """``at`` is in UTC; None if the cron string is never due."""

    what: str
    cron: str
    at: datetime | None


def next_ticks(settings: Settings, now: datetime) -> list[Tick]:
    """The next tick of every schedule that does something with these settings, the earliest first."""
    crons = {
        "daily set": settings.daily_cron,
        "weekly set": settings.weekly_cron,
        "monthly set": settings.monthly_cron,
        "health": settings.health_cron,
        "rehearsal": settings.rehearsal_cron,
    }
    if settings.s3_bucket:
        crons |= {
            "rehearsal from offsite": settings.offsite_rehearsal_cron,
            "disaster drill": settings.drill_cron,
            "re-reading of offsite copies": settings.reread_cron,
        }
    ticks = [Tick(what, cron, Cron.parse(cron).next_after(now, settings.timezone)) for what, cron in crons.items()]
    return sorted(ticks, key=lambda t: (t.at is None, t.at or now))
