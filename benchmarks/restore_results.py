"""What a benchmark of restores has found: kept in a file between runs, judged by the promises, and told in the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

from pydantic import BaseModel, ValidationError

from benchmarks.goals import Goal
from benchmarks.probe import PAUSE_S
from scholaria_ops.files import write_private
from scholaria_ops.humane import human_bytes

TITLES = {"postgres": "PostgreSQL", "redis": "Redis", "qdrant": "Qdrant"}
#: How much longer than the bare tools a restore may take, and without service (seconds).
_TIMES_BARE = 1.6
_LOCKOUT_S = {"postgres": 1.0, "redis": 1.0, "qdrant": 0.2}
#: What two measurements of the same differ by on a quiet machine; more than that from the smallest to the largest size is growth.
_GROWTH_S = 0.2

BARE, PLAIN, CALM = "bare restores", "by plain name, undisturbed", "by alias, undisturbed"
ALIAS, SAFE = "by alias, application at work", "by alias, with a safety set"


class Outside(BaseModel):
    """What a probe of one store saw of a restore; seconds."""

    switch_s: float
    elsewhere_s: float
    failures: int
    operations: int


class Restored(BaseModel):
    """One whole ``scholaria-ops restore``: what the process took, what its journal says, what was seen from outside."""

    seconds: float
    parts: dict[str, float]
    lockout_s: dict[str, float] = {}
    outside: dict[str, Outside] = {}
    peak_anon: int = 0
    busy: float = 0.0


class Result(BaseModel):
    """All that was measured at one size. What failed has its reason instead of a figure."""

    factor: float
    at: datetime
    surroundings: tuple[str, ...]
    cases: dict[str, Restored] = {}
    failures: dict[str, str] = {}


class Results:
    """The last result of every size, in a file; a new one replaces that of its size."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> list[Result]:
        """By size. A file that another version wrote counts as none."""
        try:
            found = [Result.model_validate_json(line) for line in self._path.read_text().splitlines()]
        except (FileNotFoundError, ValidationError):
            return []
        return sorted(found, key=lambda r: r.factor)

    def add(self, result: Result) -> list[Result]:
        """Keep a result; returns all."""
        kept = sorted([*(r for r in self.read() if r.factor != result.factor), result], key=lambda r: r.factor)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.unlink(missing_ok=True)
        write_private(self._path, "".join(f"{r.model_dump_json()}\n" for r in kept).encode())
        return kept


def restore_goals(results: Sequence[Result]) -> list[Goal]:
    """The promises about restores, as far as they were measured. The lock-out is the longer of the product's and the outside figure."""
    goals = []
    for r in results:
        for case, how in ((PLAIN, "the first restore of all stores, by plain name,"), (CALM, "a later one, by alias,")):
            if case in r.cases and BARE in r.cases:
                took = r.cases[case].seconds / r.cases[BARE].seconds
                goals.append(Goal(f"factor {r.factor:g}: {how} takes at most 1.6 × the bare tools", took, _TIMES_BARE))
    for r in results:
        for store, limit in _LOCKOUT_S.items():
            if (found := lockout(r, store)) is not None:
                by = " by alias" if store == "qdrant" else ""
                goals.append(Goal(f"factor {r.factor:g}: {TITLES[store]}{by} without service (s)", found, limit))
    return goals + _growth(results)


def _growth(results: Sequence[Result]) -> list[Goal]:
    measured = [r for r in results if ALIAS in r.cases]
    if len(measured) < 2:
        return []
    small, large = measured[0], measured[-1]
    goals = []
    for store in ("postgres", "redis"):
        one, other = lockout(small, store), lockout(large, store)
        if one is not None and other is not None:
            text = f"{TITLES[store]}: longer without service at factor {large.factor:g} than at {small.factor:g} (s)"
            goals.append(Goal(text, max(0.0, other - one), _GROWTH_S))
    return goals


def lockout(result: Result, store: str) -> float | None:
    """Seconds without service of a store, in the case that the promises are about; the longer of both measurements."""
    case = result.cases.get(ALIAS)
    if case is None:
        return None
    inside, outside = case.lockout_s.get(store), case.outside.get(store)
    found = [s for s in (inside, outside.switch_s if outside else None) if s is not None]
    return max(found, default=None)


def restore_table(results: Sequence[Result]) -> tuple[list[str], list[list[str]]]:
    """Heads and rows of all cases, for the terminal and the report."""
    rows = []
    for r in results:
        bare = r.cases.get(BARE)
        for name, case in r.cases.items():
            times = f"{case.seconds / bare.seconds:.2f}" if bare and case is not bare else ""
            peak = human_bytes(case.peak_anon) if case.peak_anon else "–"
            rows.append([f"{r.factor:g}", name, f"{case.seconds:.2f}", times, peak])
        rows += [[f"{r.factor:g}", name, "failed", "", "–"] for name in r.failures]
    return ["factor", "case", "s", "× bare", "peak anonymous memory"], rows


def lockout_table(results: Sequence[Result]) -> tuple[list[str], list[list[str]]]:
    """Heads and rows of what was seen without service."""
    rows = []
    for r in results:
        for name, case in r.cases.items():
            for store, inside in case.lockout_s.items():
                rows.append([f"{r.factor:g}", name, TITLES[store], f"{inside:.3f}", *_seen(case.outside.get(store))])
    return ["factor", "restore", "store", "told, s", "seen, s", "seen elsewhere, s", "failed operations"], rows


def _seen(seen: Outside | None) -> list[str]:
    if seen is None:
        return ["–"] * 3
    return [f"{seen.switch_s:.3f}", f"{seen.elsewhere_s:.3f}", f"{seen.failures:,} of {seen.operations:,}"]


def restore_section(results: Sequence[Result], goals: Sequence[str]) -> str:
    """The measured section about restores, in Markdown. ``goals`` are the lines of their table."""
    heads, rows = restore_table(results)
    lock_heads, lock_rows = lockout_table(results)
    lines = [
        "## Measured: restores",
        "",
        "Whole `scholaria-ops restore` processes of all three stores into live servers, one run each, before which the data were flushed "
        "to disk. The bare tools (`scripts/bare_restore.sh`) load the same set into empty servers, of which PostgreSQL flushes as the live "
        "one does; nothing is compared or kept. The first restore finds plain collection names and makes aliases of them; all later ones "
        "are by alias. After each, what was kept is discarded.",
        "",
        *(line for r in results for line in (f"- Factor {r.factor:g}, {r.at:%Y-%m-%d %H:%M} UTC.", *(f"  {s}" for s in r.surroundings))),
        "",
        *_markdown(heads, rows, right=(2, 3, 4)),
        "",
        *(f"- **failed** at factor {r.factor:g}, {name}: {why}" for r in results for name, why in r.failures.items()),
        "",
        "### Without service",
        "",
        f"*Told* is what the restore itself measured. *Seen* is the longest time between two successful operations of a small application "
        f"beside it, one process per store that writes, reads and pauses for {PAUSE_S * 1000:.0f} ms: around the switches, and "
        "*elsewhere*, while the data are loaded and afterwards.",
        "",
        *_markdown(lock_heads, lock_rows, right=(3, 4, 5)),
        "",
        *goals,
        "",
        "### What dominates a restore",
        "",
        "Seconds. The stores' parts marked ∥ run side by side.",
        "",
        *(_parts(f"factor {r.factor:g}, {name}", case.seconds, case.parts) for r in results for name, case in r.cases.items()),
    ]
    return "\n".join(line for number, line in enumerate(lines) if line or (number and lines[number - 1]))


def _parts(title: str, seconds: float, parts: Mapping[str, float]) -> str:
    return f"- **{title}** ({seconds:.2f}): {', '.join(f'{name} {s:.2f}' for name, s in parts.items())}"


def _markdown(heads: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int]) -> list[str]:
    marks = "".join("--:|" if n in right else "---|" for n in range(len(heads)))
    return [f"| {' | '.join(heads)} |", f"|{marks}", *(f"| {' | '.join(row)} |" for row in rows)]
