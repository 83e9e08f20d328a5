"""Numbers for people."""

from __future__ import annotations

from datetime import UTC, datetime


def human_bytes(size: float) -> str:
    """``12.3 MB`` (decimal units, as ``df -H`` and storage bills count)."""
    value = float(size)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def human_age(then: datetime, now: datetime | None = None) -> str:
    """``3 h ago``."""
    seconds = ((now or datetime.now(UTC)) - then).total_seconds()
    for limit, divisor, unit in ((90, 1, "s"), (5400, 60, "min"), (172800, 3600, "h")):
        if seconds < limit:
            return f"{max(seconds, 0) / divisor:.0f} {unit} ago"
    return f"{seconds / 86400:.0f} d ago"


def human_seconds(seconds: float) -> str:
    """``12.5 s``, ``7.5 min``, ``26 h``."""
    for limit, divisor, unit in ((120, 1, "s"), (7200, 60, "min"), (172800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / divisor:.3g} {unit}"
    return f"{seconds / 86400:.3g} d"
