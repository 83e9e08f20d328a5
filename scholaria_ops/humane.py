"""Numbers for people."""

from __future__ import annotations


def human_bytes(size: float) -> str:
    """``12.3 MB`` (decimal units, as ``df -H`` and storage bills count)."""
    value = float(size)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"
