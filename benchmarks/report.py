"""The report: tables at the terminal, and the measured sections of ``docs/benchmarks.md`` (the rest of that file is people's)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from benchmarks import cases
from benchmarks.awscli import Aws
from benchmarks.goals import Goal
from benchmarks.machine import Machine
from benchmarks.measure import QUIET, Series
from scholaria_ops.cli.output import out, print_table
from scholaria_ops.humane import human_bytes
from scholaria_ops.sandbox.sample import SampleStack

_CASES = {case.name: case for case in cases.CASES}
_TEMPLATE = """# Benchmarks

What this product costs in time and memory beside doing the same work by hand and by the bare tools.
`make bench` measures and rewrites the measured sections below; the commentary is written by people and kept.

{speed}

{memory}

{restores}

## Commentary
"""


@dataclass(frozen=True)
class Context:
    """What a figure must be read with."""

    machine: Machine
    versions: Mapping[str, str]
    stack: SampleStack
    factor: float
    at: datetime
    aws: Aws
    sizes: Mapping[str, int]


def print_speed(series: Mapping[str, Series], goals: Sequence[Goal]) -> None:
    """The table and the verdicts at the terminal."""
    print_table(
        ["", "case", "median s", "from", "to", "peak anon", "gives"], [_row(s) for s in _ran(series)], right=("median s", "from", "to")
    )
    print_goals(goals)


def print_goals(goals: Sequence[Goal]) -> None:
    """One line per goal."""
    out.print("")
    for goal in goals:
        mark = "[green]reached[/]" if goal.reached else "[bold red]missed[/] "
        out.print(f"{mark} {goal.text}: {goal.found:.2f}, wanted {'≥' if goal.at_least else '≤'} {goal.limit:g}")


def _ran(series: Mapping[str, Series]) -> list[Series]:
    return [s for s in series.values() if s.runs]


def _row(s: Series) -> list[str]:
    peak = human_bytes(s.peak_anon) if s.peak_anon else "–"
    case = _CASES[s.name]
    return [case.letter, s.name, f"{s.median:.2f}", f"{s.fastest:.2f}", f"{s.slowest:.2f}", peak, case.gives]


def speed_section(series: Mapping[str, Series], goals: Sequence[Goal], context: Context) -> str:
    """The measured section about time, in Markdown."""
    runs = max(len(s.runs) for s in series.values())
    busiest = max(s.busiest for s in series.values())
    lines = [
        "## Measured: time",
        "",
        f"{context.at:%Y-%m-%d %H:%M} UTC, medians of {runs} runs in rounds (every case once per round), whole processes from before "
        "their start until after their exit, file caches warm, data flushed to disk before each run.",
        "",
        *_surroundings(context),
        f"- Before a run others used at most {busiest:.0%} of the processors"
        + ("." if busiest <= QUIET else f"; above {QUIET:.0%} figures are too long, ours as much as theirs."),
        "",
        "| | case | median s | fastest | slowest | peak anonymous memory | what one has then |",
        "|---|---|--:|--:|--:|--:|---|",
        *(f"| {' | '.join(_row(s))} |" for s in _ran(series)),
        "",
        *goal_table(goals),
        "",
        "### What dominates",
        "",
        "Medians of the phases in seconds. Phases marked ∥, and all of the bare tools', run side by side.",
        "",
        *(_parts_line(s) for s in _ran(series) if s.runs[0].parts),
        "",
        f"Of each `aws` run {context.aws.start_s:.2f} s are its start (`aws --version`).",
    ]
    return "\n".join(lines)


def memory_section(peaks: Mapping[float, Mapping[str, int]], goals: Sequence[Goal], context: Context) -> str:
    """The measured section about memory, in Markdown. ``peaks`` maps factor → command → peak anonymous bytes."""
    factors = sorted(peaks)
    lines = [
        "## Measured: memory",
        "",
        f"{context.at:%Y-%m-%d %H:%M} UTC. Highest anonymous memory (`RssAnon`, sampled every 20 ms) of our own Python processes "
        "during one whole command; the stores' own tools and servers are not ours. Qdrant has no vector index here.",
        "",
        *_surroundings(context),
        "",
        f"| command | {' | '.join(f'factor {factor:g}' for factor in factors)} |",
        f"|---|{'--:|' * len(factors)}",
        *(f"| {command} | {' | '.join(human_bytes(peaks[f][command]) for f in factors)} |" for command in peaks[factors[0]]),
        "",
        *goal_table(goals),
    ]
    return "\n".join(lines)


def _surroundings(context: Context) -> list[str]:
    scale, sizes = context.stack.scale, context.sizes
    index = "with its vector index built" if scale.index_vectors else "without vector index"
    written = ", ".join(f"{name} {human_bytes(size)}" for name, size in sizes.items())
    return [
        f"- Machine: {context.machine.line()}.",
        f"- Versions: {', '.join(f'{name} {version}' for name, version in context.versions.items())}.",
        f"- Data (factor {context.factor:g}): {scale.chunks:,} chunks in PostgreSQL, {sum(context.stack.keys.values()):,} keys in Redis "
        f"({scale.cached_embeddings:,} of them cached embeddings), {scale.points:,} × {scale.dim} points in Qdrant {index}.",
        *([f"- Written: {written}."] if written else []),
    ]


def goal_table(goals: Sequence[Goal]) -> list[str]:
    """The promises and what was found, as lines of Markdown."""
    rows = [
        f"| {g.text} | {'≥' if g.at_least else '≤'} {g.limit:g} | {g.found:.2f} | {'reached' if g.reached else '**missed**'} |"
        for g in goals
    ]
    return ["| goal | wanted | found | |", "|---|--:|--:|---|", *rows]


def _parts_line(series: Series) -> str:
    parts = ", ".join(f"{name} {seconds:.2f}" for name, seconds in series.parts().items())
    return f"- **{series.name}** ({series.median:.2f}): {parts}"


def write_section(path: Path, name: str, body: str) -> None:
    """Replace one measured section of the report, keeping everything else as it is."""
    text = path.read_text() if path.exists() else _TEMPLATE.format(**{one: _wrapped(one, "") for one in ("speed", "memory", "restores")})
    begin, end = _marks(name)
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        before, after = text.rstrip("\n") + "\n\n", "\n"
    path.parent.mkdir(exist_ok=True)
    path.write_text(before + _wrapped(name, body) + after)


def _marks(name: str) -> tuple[str, str]:
    return f"<!-- measured {name}: written by make bench, edits here are lost -->", f"<!-- end of measured {name} -->"


def _wrapped(name: str, body: str) -> str:
    begin, end = _marks(name)
    return f"{begin}\n{body}\n{end}"
