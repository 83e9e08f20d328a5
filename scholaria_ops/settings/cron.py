"""When a cron string is due, in a time zone: for limits that follow the schedules, without asking Dagster.

Covers what :func:`~scholaria_ops.settings.sets.check_cron` lets pass. Around a change of the clock an instant may be an hour off:
whatever depends on it must be patient by more than that.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from itertools import pairwise

#: Beyond this many days back or ahead a cron string is taken to be never due (every 29th of February is within it).
_HORIZON_DAYS = 366 * 8 + 1
#: Enough to see a five-year rhythm of months, and the longest weekend of a week.
_TICKS_LOOKED_AT = 60
_RANGES = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 7))


@dataclass(frozen=True, slots=True)
class Cron:
    """A parsed cron string. Where day of month and day of week are both restricted, either is enough, as cron has it."""

    minutes: frozenset[int]
    hours: frozenset[int]
    days: frozenset[int]
    months: frozenset[int]
    #: Monday is 0, as in Python.
    weekdays: frozenset[int]
    any_day: bool
    any_weekday: bool

    @classmethod
    def parse(cls, text: str) -> Cron:
        """From a string that ``check_cron`` accepted."""
        fields = text.split()
        minutes, hours, days, months, weekdays = (_numbers(f, *r) for f, r in zip(fields, _RANGES, strict=True))
        return cls(
            minutes, hours, days, months, frozenset((n - 1) % 7 for n in weekdays), fields[2].startswith("*"), fields[4].startswith("*")
        )

    def last_before(self, instant: datetime, zone: tzinfo) -> datetime | None:
        """The newest tick at or before an instant, in UTC; None if there is none within eight years."""
        return next(self._backward(instant, zone), None)

    def next_after(self, instant: datetime, zone: tzinfo) -> datetime | None:
        """The first tick after an instant, in UTC; None if there is none within eight years."""
        day = instant.astimezone(zone).date()
        for offset in range(_HORIZON_DAYS):
            for tick in self._of_day(day + timedelta(days=offset), zone):
                if tick > instant:
                    return tick
        return None

    def longest_gap(self, since: datetime, zone: tzinfo) -> timedelta | None:
        """The longest stretch between two of the next sixty ticks; None if it ticks less than twice in eight years."""
        ticks: list[datetime] = []
        tick = self.next_after(since, zone)
        while tick is not None and len(ticks) < _TICKS_LOOKED_AT:
            ticks.append(tick)
            tick = self.next_after(tick, zone)
        return max((later - earlier for earlier, later in pairwise(ticks)), default=None)

    def _backward(self, instant: datetime, zone: tzinfo) -> Iterator[datetime]:
        day = instant.astimezone(zone).date()
        for offset in range(_HORIZON_DAYS):
            yield from (t for t in reversed(self._of_day(day - timedelta(days=offset), zone)) if t <= instant)

    def _of_day(self, day: date, zone: tzinfo) -> list[datetime]:
        if not self._falls_on(day):
            return []
        return sorted(datetime.combine(day, time(h, m), zone).astimezone(UTC) for h in self.hours for m in self.minutes)

    def _falls_on(self, day: date) -> bool:
        by_day, by_weekday = day.day in self.days, day.weekday() in self.weekdays
        either = by_day and by_weekday if self.any_day or self.any_weekday else by_day or by_weekday
        return day.month in self.months and either


def _numbers(field: str, low: int, high: int) -> frozenset[int]:
    found: set[int] = set()
    for part in field.split(","):
        span, _, step = part.partition("/")
        first, _, last = span.partition("-")
        start = low if span == "*" else int(first)
        # A step after a single number runs to the end of the field.
        end = high if span == "*" or (step and not last) else int(last or first)
        found.update(range(start, end + 1, int(step or 1)))
    return frozenset(found)
