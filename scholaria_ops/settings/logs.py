"""Where logs go, and how many are kept."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, field_validator

from scholaria_ops.settings.field import named


class LogSettings(BaseModel):
    """Logs."""

    log_dir: Path | None = named(
        "LOG_DIR",
        default=None,
        description="Directory of the logs `backup-DATE.log`; default: /var/log/scholaria if it is there and can be written, "
        "else BACKUP_DIR/.state/logs",
    )
    log_keep: int = named("BACKUP_LOG_KEEP", default=30, ge=1, le=3650, description="So many of the newest logs stay, one per day")

    @field_validator("log_dir")
    @classmethod
    def _absolute_log_dir(cls, value: Path | None) -> Path | None:
        if value is not None and not value.is_absolute():
            raise ValueError(f"must be an absolute path, for example {Path.cwd() / value}")
        return value
