"""The last report of health, kept below ``BACKUP_DIR/.state`` for whoever shows or tells it elsewhere."""

from __future__ import annotations

import json
import os
from datetime import datetime
from pathlib import Path
from typing import Any

from scholaria_ops.catalogue.layout import Layout
from scholaria_ops.files import rename_durably, write_private
from scholaria_ops.operations.health.findings import HealthReport
from scholaria_ops.operations.services import Services


def kept_path(layout: Layout) -> Path:
    """Where the last report is: JSON in the form of :func:`report_json`."""
    return layout.state / "health.json"


def keep_report(services: Services, report: HealthReport) -> bool:
    """Replace the kept report; False where that cannot be done (which the report then says itself: check ``directory``)."""
    path = kept_path(services.catalogue.layout)
    fresh = path.with_suffix(f".{os.getpid()}.new")
    try:
        # Only below a BACKUP_DIR that stands: looking at health never makes one.
        path.parent.mkdir(mode=0o700, exist_ok=True)
        fresh.unlink(missing_ok=True)
        write_private(fresh, json.dumps(report_json(report), default=str, ensure_ascii=False, indent=1).encode())
        rename_durably(fresh, path)
    except OSError as exc:
        services.log.warning("the report of health cannot be kept in %s: %s", path, exc.strerror)
        return False
    return True


def report_json(report: HealthReport) -> dict[str, Any]:
    """Stable form of a report, also of the command's ``--json``."""

    def instant(value: datetime | None) -> str | None:
        return value.isoformat() if value else None

    return {
        "at": instant(report.at),
        "level": report.level,
        "healthy": report.level != "critical",
        "seconds": round(report.seconds, 3),
        "findings": [
            {
                "check": f.check,
                "level": f.level,
                "what": f.what,
                "since": instant(f.since),
                "next_step": f.next_step,
                "numbers": dict(f.numbers),
            }
            for f in report.findings
        ],
    }
