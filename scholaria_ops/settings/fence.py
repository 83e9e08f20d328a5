"""Who is stopped while a restore switches, and what follows it."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, field_validator

from scholaria_ops.settings.field import named


class FenceSettings(BaseModel):
    """Around a restore."""

    fence: Literal["none", "compose", "command"] = named(
        "BACKUP_FENCE", default="none", description="How writers are stopped while a restore switches: Docker Compose, commands, or not"
    )
    fence_compose_file: Path | None = named(
        "BACKUP_FENCE_COMPOSE_FILE", default=None, description="The application's Compose file, for the Compose fence"
    )
    fence_services: str = named(
        "BACKUP_FENCE_SERVICES", default="backend celery-worker", description="Services that are stopped and started, separated by blanks"
    )
    fence_docker: str = named("BACKUP_FENCE_DOCKER", default="docker", description="The docker command of the Compose fence")
    fence_stop: str = named("BACKUP_FENCE_STOP", default="", description="Command that stops the writers, for the command fence")
    fence_start: str = named("BACKUP_FENCE_START", default="", description="Command that starts them again")
    fence_timeout_s: float = named(
        "BACKUP_FENCE_TIMEOUT_S", default=120.0, gt=0, description="Seconds that each of these commands may take"
    )
    restore_hook: str = named(
        "BACKUP_RESTORE_HOOK",
        default="",
        description="Command that runs after the switch and before the writers start, for example alembic upgrade head",
    )
    restore_hook_timeout_s: float = named(
        "BACKUP_RESTORE_HOOK_TIMEOUT_S",
        default=1800.0,
        gt=0,
        description="Longest time (seconds) of BACKUP_RESTORE_HOOK; one that takes longer is ended, and the restore taken back",
    )
    health_url: str = named(
        "BACKUP_HEALTH_URL", default="", description="URL that answers 200 when the application is well; polled after a restore"
    )
    health_timeout_s: float = named("BACKUP_HEALTH_TIMEOUT_S", default=120.0, gt=0, description="Seconds to wait for that answer")
    restore_from_ui: bool = named(
        "BACKUP_RESTORE_FROM_UI",
        default=False,
        description="Whether a restore plan may be executed from the Dagster UI, by its digest; the UI knows no users",
    )
    restore_plan_valid_s: float = named(
        "BACKUP_RESTORE_PLAN_VALID_S", default=1800.0, gt=0, description="Seconds for which a restore plan that was shown can be executed"
    )
    restore_keep_days: int = named(
        "BACKUP_RESTORE_KEEP_DAYS", default=7, ge=1, description="Days that what a restore replaced is kept for --undo"
    )

    @field_validator("fence_stop", "fence_start", "restore_hook")
    @classmethod
    def _splits(cls, value: str) -> str:
        shlex.split(value)  # an unbalanced quote is found here, not at three in the morning
        return value

    @field_validator("health_url")
    @classmethod
    def _url(cls, value: str) -> str:
        if value and not value.startswith(("http://", "https://")):
            raise ValueError("must begin with http:// or https://")
        return value
