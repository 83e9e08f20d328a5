"""Where sets live, how they are dumped, and when they come and go."""

from __future__ import annotations

import difflib
import re
import zoneinfo
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, field_validator

from scholaria_ops.settings.field import named

#: Lowest and highest number in each field of a cron string: minute, hour, day of month, month, day of week.
_CRON_RANGES = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 7))
_CRON_PART = re.compile(r"(?:\*|(\d{1,2})(?:-(\d{1,2}))?)(?:/([1-9]\d?))?")


class PlaceSettings(BaseModel):
    """Where sets live."""

    backup_dir: Path = named("BACKUP_DIR", default=Path("/var/backups/scholaria"), description="Directory of the backup sets")
    backup_timezone: str = named("BACKUP_TIMEZONE", default="UTC", description="Time zone of set ids and schedules (IANA name)")
    scratch_dir: Path | None = named(
        "BACKUP_SCRATCH_DIR", default=None, description="Directory for scratch servers and rehearsals; default: BACKUP_DIR/.scratch"
    )
    lock_wait_s: float = named(
        "BACKUP_LOCK_WAIT_S", default=0.0, ge=0, description="Seconds that a command waits for another run's lock before giving up"
    )
    unattended_lock_wait_s: float = named(
        "BACKUP_UNATTENDED_LOCK_WAIT_S",
        default=7200.0,
        ge=0,
        # A set's id, minted when it was asked for, is good for six hours.
        le=18000,
        description="The same of what nobody sits in front of: runs that a schedule, a sensor or the Dagster UI starts",
    )

    @field_validator("backup_timezone")
    @classmethod
    def _known_zone(cls, value: str) -> str:
        try:
            zoneinfo.ZoneInfo(value)
        except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
            near = difflib.get_close_matches(value, zoneinfo.available_timezones(), n=1)
            raise ValueError(f"{value!r} is no IANA time zone" + (f"; did you mean {near[0]}?" if near else "")) from None
        return value

    @field_validator("backup_dir", "scratch_dir")
    @classmethod
    def _absolute(cls, value: Path | None) -> Path | None:
        # The command line, the web server and the daemon run in different working directories and must mean the same place.
        if value is not None and not value.is_absolute():
            raise ValueError(f"must be an absolute path, for example {Path.cwd() / value}")
        return value

    @property
    def timezone(self) -> zoneinfo.ZoneInfo:
        return zoneinfo.ZoneInfo(self.backup_timezone)

    @property
    def scratch_root(self) -> Path:
        return self.scratch_dir or self.backup_dir / ".scratch"


class DumpSettings(BaseModel):
    """Dumping."""

    pg_compression: str = named(
        "BACKUP_PG_COMPRESSION",
        default="zstd:1",
        pattern=r"^(none|gzip|lz4|zstd)(:\d{1,2})?$",
        description="pg_dump --compress (method:level)",
    )
    pg_lock_timeout_s: float = named("BACKUP_PG_LOCK_TIMEOUT_S", default=30.0, gt=0, description="Seconds pg_dump waits for a table lock")
    pg_restore_jobs: int = named("BACKUP_PG_RESTORE_JOBS", default=2, ge=1, le=64, description="Parallel jobs of pg_restore")
    fingerprint_max_bytes: int | None = named(
        "BACKUP_FINGERPRINT_MAX_BYTES",
        default=None,
        ge=0,
        description="Tables larger than this (bytes) get a row count but no content fingerprint",
    )
    redis_sync: Literal["auto", "socket", "disk"] = named(
        "BACKUP_REDIS_SYNC",
        default="auto",
        description="How the RDB is asked for: from the server's disk at once, or over the socket after its delay",
    )
    qdrant_fingerprint_max_points: int | None = named(
        "BACKUP_QDRANT_FINGERPRINT_MAX_POINTS", default=None, ge=0, description="Collections with more points get no payload fingerprint"
    )


class ScheduleSettings(BaseModel):
    """Schedules."""

    daily_cron: str = named("BACKUP_DAILY_CRON", default="0 2 * * *", description="When the daily set is taken (cron, in BACKUP_TIMEZONE)")
    weekly_cron: str = named("BACKUP_WEEKLY_CRON", default="0 3 * * 0", description="When the weekly set is taken (cron)")
    monthly_cron: str = named("BACKUP_MONTHLY_CRON", default="0 4 1 * *", description="When the monthly set is taken (cron)")

    @field_validator("daily_cron", "weekly_cron", "monthly_cron")
    @classmethod
    def _cron(cls, value: str) -> str:
        return check_cron(value)


class RetentionSettings(BaseModel):
    """Retention."""

    daily_retention: int = named(
        "BACKUP_DAILY_RETENTION", "DAILY_RETENTION", default=7, ge=1, le=36500, description="Days that daily sets stay"
    )
    weekly_retention: int = named(
        "BACKUP_WEEKLY_RETENTION", "WEEKLY_RETENTION", default=30, ge=1, le=36500, description="Days that weekly sets stay"
    )
    monthly_retention: int = named(
        "BACKUP_MONTHLY_RETENTION", "MONTHLY_RETENTION", default=365, ge=1, le=36500, description="Days that monthly sets stay"
    )
    manual_retention: int = named(
        "BACKUP_MANUAL_RETENTION", "RETENTION_DAYS", default=30, ge=1, le=36500, description="Days that sets taken by hand stay"
    )
    pre_restore_retention: int = named(
        "BACKUP_PRE_RESTORE_RETENTION", default=30, ge=1, le=36500, description="Days that safety sets taken before a restore stay"
    )
    partial_retention: int = named(
        "BACKUP_PARTIAL_RETENTION", default=7, ge=1, le=36500, description="Days that partial sets stay once a later whole one is verified"
    )
    daily_minimum: int = named(
        "BACKUP_DAILY_MINIMUM", default=3, ge=1, description="So many of the newest verified daily sets stay whatever their age"
    )
    weekly_minimum: int = named("BACKUP_WEEKLY_MINIMUM", default=2, ge=1, description="The same of weekly sets")
    monthly_minimum: int = named("BACKUP_MONTHLY_MINIMUM", default=2, ge=1, description="The same of monthly sets")
    manual_minimum: int = named("BACKUP_MANUAL_MINIMUM", default=1, ge=1, description="The same of sets taken by hand")
    retention_apply_from_ui: bool = named(
        "BACKUP_RETENTION_APPLY_FROM_UI",
        default=False,
        description="Whether a plan may be applied from the Dagster UI, by its digest; the UI knows no users",
    )


def check_cron(value: str) -> str:
    """Return a cron string of five fields of numbers, ``*``, ranges, lists and steps; raises ValueError naming the wrong field."""
    fields = value.split()
    if len(fields) != len(_CRON_RANGES):
        raise ValueError(f"{value!r} has {len(fields)} fields; a cron string has five, for example 0 2 * * *")
    for text, (low, high) in zip(fields, _CRON_RANGES, strict=True):
        for part in text.split(","):
            match = _CRON_PART.fullmatch(part)
            numbers = [int(n) for n in match.groups()[:2] if n] if match else []
            step = int(match[3] or 1) if match else 0
            if match is None or numbers != sorted(numbers) or any(not low <= n <= high for n in (*numbers, max(step, low))):
                raise ValueError(f"{part!r} in {value!r} is no number, range or step from {low} to {high}")
    return " ".join(fields)
