"""What the product promises of its speed, and whether a benchmark found it so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks import cases, phases
from benchmarks.measure import Series

#: Anonymous memory (bytes) that our own processes may take, and how much of it may be added from scale 1 to scale 4.
MEMORY_LIMIT = 250_000_000
FLAT_WITHIN = 1.15


@dataclass(frozen=True, slots=True)
class Goal:
    """One promise. ``found`` and ``limit`` are in the unit that ``text`` names; smaller is better unless ``at_least``."""

    text: str
    found: float
    limit: float
    at_least: bool = False

    @property
    def reached(self) -> bool:
        return self.found >= self.limit if self.at_least else self.found <= self.limit


def speed_goals(series: Mapping[str, Series], aws_start_s: float) -> list[Goal]:
    """The promises about time, judged by medians. ``aws_start_s`` is what the mere start of ``aws`` takes."""
    took = {name: one.median for name, one in series.items()}
    sending_s = series[cases.SEND].parts()[phases.SENDING]
    return [
        Goal(
            "a backup takes at most a sixth of doing it by hand (times faster)", took[cases.BY_HAND] / took[cases.OURS], 6.0, at_least=True
        ),
        Goal("a backup takes at most twice the bare tools in parallel (times as long)", took[cases.OURS] / took[cases.BARE], 2.0),
        Goal("a rehearsal takes at most twice the bare restores (times as long)", took[cases.REHEARSAL] / took[cases.BARE_RESTORE], 2.0),
        Goal(
            "sending a set has at least 0.9 of the throughput of aws s3 cp (transfer against transfer: without read-back and without "
            "the start of either program)",
            (took[cases.AWS_UP] - aws_start_s) / sending_s,
            0.9,
            at_least=True,
        ),
        Goal(
            "shipping, the whole process with every byte read back, has at least 0.9 of the throughput of the whole process aws s3 cp, "
            "which reads nothing back",
            took[cases.AWS_UP] / took[cases.SHIP],
            0.9,
            at_least=True,
        ),
        Goal(
            "shipping takes no longer than aws s3 cp up, down and sha256sum, which give the same certainty (times as long)",
            took[cases.SHIP] / took[cases.AWS_PROVEN],
            1.0,
        ),
    ]


def memory_goals(peaks: Mapping[float, Mapping[str, int]]) -> list[Goal]:
    """The promises about memory. ``peaks`` maps factor → command → peak anonymous bytes."""
    goals = [
        Goal(
            "peak anonymous memory of our own processes (MB)",
            max(p for one in peaks.values() for p in one.values()) / 1e6,
            MEMORY_LIMIT / 1e6,
        )
    ]
    if len(peaks) > 1:
        small, large = min(peaks), max(peaks)
        grown = max(peaks[large][command] / peaks[small][command] for command in peaks[small])
        goals.append(Goal(f"growth of that peak from factor {small:g} to {large:g} (times)", grown, FLAT_WITHIN))
    return goals
