"""Health: is everything as it must be for a backup to be taken tonight and to be brought back tomorrow?

Nothing here changes anything. Each check is a function that yields findings; :func:`check_health` runs them all.
"""

from scholaria_ops.errors import Unhealthy
from scholaria_ops.operations.health.findings import CHECKS, LEVELS, Finding, HealthReport, Level
from scholaria_ops.operations.health.look import check_health
from scholaria_ops.operations.health.running import DaemonState, Dispatcher, RunState, ScheduleState

__all__ = [
    "CHECKS",
    "LEVELS",
    "DaemonState",
    "Dispatcher",
    "Finding",
    "HealthReport",
    "Level",
    "RunState",
    "ScheduleState",
    "Unhealthy",
    "check_health",
]
