"""All commands; importing this module registers them. One file per subject."""

from __future__ import annotations

from scholaria_ops.cli import (
    audit,
    backup,
    catalogue,
    configure,
    health,
    metrics,
    notify,
    offsite,
    prune,
    rehearse,
    restore,
    status,
    verify,
)

__all__ = [
    "audit",
    "backup",
    "catalogue",
    "configure",
    "health",
    "metrics",
    "notify",
    "offsite",
    "prune",
    "rehearse",
    "restore",
    "status",
    "verify",
]
