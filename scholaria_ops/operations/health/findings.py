"""What health says: findings, each with a level, since when, and the next step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from scholaria_ops.errors import Unhealthy

Level = Literal["ok", "warning", "critical"]
#: From good to bad.
LEVELS: tuple[Level, ...] = ("ok", "warning", "critical")
#: Check → what it promises when it is ok. ``docs/health.md`` tells each of them to operators.
CHECKS: Mapping[str, str] = {
    "directory": "BACKUP_DIR can be read and written, by its owner alone.",
    "space": "The next sets have room.",
    "catalogue": "Every entry of the catalogue could be read, none is damaged.",
    "verified": "Every tier's newest verified set is as young as its schedule promises.",
    "offsite": "The same holds outside the house, and no copy there is known to be damaged.",
    "rehearsed": "A set was restored and compared as lately as the schedule promises.",
    "retention": "The newest set is not suspiciously small, and no set went away by itself.",
    "leftovers": "No killed run left anything behind.",
    "lock": "No run holds the lock of BACKUP_DIR for too long.",
    "clock": "The clock agrees with the stores' clocks and with what was written down.",
    "stores": "All stores answer and would let themselves be backed up.",
    "bucket": "The offsite place can be listed, written and read.",
    "tools": "The programs of the stores are here.",
    "daemon": "Dagster's daemons are alive.",
    "schedules": "Every schedule is on, and its last tick came and did not fail.",
    "runs": "No run was left unfinished by a host or process that is gone.",
    "alerts": "Somebody is told, and the last message arrived.",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was found. ``what`` and ``next_step`` are sentences for people; ``numbers`` are seconds, bytes or counts."""

    check: str
    level: Level
    what: str
    since: datetime | None = None
    next_step: str = ""
    numbers: Mapping[str, float] = field(default_factory=dict)


def ok(check: str, what: str, **numbers: float) -> Finding:
    """Good news, with the numbers that it rests on."""
    return Finding(check, "ok", what, numbers=numbers)


def worst(levels: Iterable[Level]) -> Level:
    """The worst of some levels; ok if there is none."""
    return max(levels, key=LEVELS.index, default="ok")


@dataclass(frozen=True, slots=True)
class HealthReport:
    """All findings of one look, in the order of :data:`CHECKS`."""

    at: datetime
    findings: Sequence[Finding]
    seconds: float

    @property
    def level(self) -> Level:
        return worst(f.level for f in self.findings)

    def of(self, check: str) -> list[Finding]:
        """The findings of one check, worst first."""
        return sorted((f for f in self.findings if f.check == check), key=lambda f: -LEVELS.index(f.level))

    def at_level(self, level: Level) -> list[Finding]:
        return [f for f in self.findings if f.level == level]

    def bad(self) -> Iterator[Finding]:
        """What is not ok, critical findings first."""
        yield from self.at_level("critical")
        yield from self.at_level("warning")

    def raise_if_unhealthy(self, *, strict: bool = False) -> None:
        """Raise :class:`Unhealthy` if anything is critical; with ``strict`` also if there is a warning."""
        bad = self.at_level("critical") + (self.at_level("warning") if strict else [])
        if bad:
            raise Unhealthy(
                f"{len(bad)} thing{'s are' if len(bad) > 1 else ' is'} wrong: " + "; ".join(f"{f.check}: {f.what}" for f in bad),
                hint=bad[0].next_step,
            )
