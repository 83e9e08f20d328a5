"""Whether somebody is told when something goes wrong."""

from __future__ import annotations

from collections.abc import Iterator

from scholaria_ops.operations.alerts import alerts_of
from scholaria_ops.operations.health.findings import Finding, ok
from scholaria_ops.operations.services import Services


def alerts(services: Services) -> Iterator[Finding]:
    """Whether the newest message to every target arrived; raises OSError if what became of them cannot be read."""
    seen = alerts_of(services.catalogue.layout).summary()
    if seen.last is None:
        yield Finding(
            "alerts",
            "warning",
            "nobody was ever told anything: no alert was sent, not even a test",
            next_step="Set BACKUP_NOTIFY_EMAIL or BACKUP_NOTIFY_WEBHOOK and send a test: `scholaria-ops notify test`.",
        )
        return
    for target, attempt in seen.failing.items():
        yield Finding(
            "alerts",
            "critical",
            f"{target} does not take alerts: {attempt.error or 'the newest one did not arrive'} ({attempt.subject})",
            attempt.at,
            "Mend the address or the way there, and send a test: `scholaria-ops notify test`.",
        )
    if not seen.failing and seen.last_delivered is not None:
        arrived = seen.last_delivered
        yield ok("alerts", f"the last one arrived at {arrived.target} on {arrived.at:%Y-%m-%d %H:%M} UTC: {arrived.subject}")
