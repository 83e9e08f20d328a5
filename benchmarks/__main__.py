"""``python -m benchmarks``, as ``make bench`` calls it."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

from benchmarks.awscli import find_aws
from benchmarks.cases import Bench, product
from benchmarks.goals import memory_goals, speed_goals
from benchmarks.machine import this_machine, versions
from benchmarks.memory import peaks_of
from benchmarks.report import Context, goal_table, memory_section, print_goals, print_speed, speed_section, write_section
from benchmarks.restore_results import Result, Results, lockout_table, restore_goals, restore_section, restore_table
from benchmarks.restores import GB_PER_FACTOR as RESTORES_GB
from benchmarks.restores import Restores
from benchmarks.stage import PROJECT, Stage, stage
from scholaria_ops.cli.output import err, print_table, showing_progress
from scholaria_ops.errors import OpsError
from scholaria_ops.humane import human_bytes
from scholaria_ops.progress import Progress
from scholaria_ops.sandbox.fetch import fetch_tools
from scholaria_ops.sandbox.sample import BENCH

_REPORT = PROJECT / "docs" / "benchmarks.md"
_QUICK_FACTOR = 0.01
_MEMORY_FACTORS = (1.0, 4.0)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmarks; returns the exit code (missed goals are told, and are no failure)."""

    def interrupted(signum: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt(signal.Signals(signum).name)

    options = _options(argv)
    signal.signal(signal.SIGTERM, interrupted)
    try:
        with showing_progress() as progress:
            if options.only in {None, "speed"}:
                speed(options, progress)
            if options.only in {None, "memory"}:
                memory(options, progress)
            if options.only in {None, "restores"}:
                restores(options, progress)
    except KeyboardInterrupt:
        err.print("stopped; servers and files of the benchmark are gone")
        return 130
    except OpsError as exc:
        err.print(f"error: {exc.message}", markup=False)
        if exc.hint:
            err.print(f"→ {exc.hint}", markup=False)
        return 1
    return 0


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--factor", type=float, default=1.0, help="size of the data; 1 is about 410 MB in PostgreSQL, 0.4 GB in Qdrant")
    parser.add_argument("--runs", type=int, default=3, help="rounds; medians are taken over them")
    parser.add_argument(
        "--quick", action="store_true", help=f"factor {_QUICK_FACTOR}, one round of speed, no report: does it all still work?"
    )
    parser.add_argument("--only", choices=("speed", "memory", "restores"), help="measure one of the three only")
    parser.add_argument("--factors", type=float, nargs="+", default=list(_MEMORY_FACTORS), help="sizes at which memory is measured")
    parser.add_argument(
        "--restores",
        type=float,
        nargs="+",
        default=[1.0],
        metavar="FACTOR",
        help="sizes at which restores are measured; results of other sizes are kept in the report",
    )
    parser.add_argument("--no-vector-index", action="store_true", help="seed Qdrant without building its index, which takes minutes")
    parser.add_argument(
        "--patience", type=float, default=60.0, help="seconds to wait before a run for others to leave the processors alone"
    )
    parser.add_argument("--dir", type=Path, default=PROJECT / ".bench", help="where servers and copies go; removed in the end")
    parser.add_argument("--report", type=Path, help="Markdown file whose measured section is rewritten (default: docs/benchmarks.md)")
    options = parser.parse_args(argv)
    if options.quick:
        options.factor, options.runs, options.patience, options.no_vector_index = _QUICK_FACTOR, 1, 0.0, True
        options.only, options.restores = options.only or "speed", [_QUICK_FACTOR]
    elif options.report is None:
        options.report = _REPORT
    return options


def speed(options: argparse.Namespace, progress: Progress) -> None:
    """All cases in rounds, the table, the report."""
    tools = fetch_tools(progress, rclone=True)
    scale = BENCH(options.factor, index_vectors=not options.no_vector_index)
    with stage(options.dir, tools, scale, factor=options.factor, progress=progress) as made:
        aws = find_aws(made.root, progress)
        bench = Bench(made, aws, progress, options.patience)
        for number in range(1, options.runs + 1):
            progress.say(f"round {number} of {options.runs}")
            bench.round(number)
        context = _context(made, bench, options.factor)
    goals = speed_goals(bench.series, aws.start_s)
    print_speed(bench.series, goals)
    if options.report:
        write_section(options.report, "speed", speed_section(bench.series, goals, context))


def memory(options: argparse.Namespace, progress: Progress) -> None:
    """Every command once per factor, its peak anonymous memory, the report."""
    tools = fetch_tools(progress, rclone=True)
    peaks: dict[float, dict[str, int]] = {}
    for factor in sorted(options.factors):
        with stage(options.dir, tools, BENCH(factor, index_vectors=False), factor=factor, progress=progress) as made:
            peaks[factor] = peaks_of(made, progress, product(made))
            bench = Bench(made, find_aws(made.root, progress), progress, 0.0)
            context = _context(made, bench, factor)
    goals = memory_goals(peaks)
    print_table(
        ["command", *(f"factor {f:g}" for f in peaks)],
        [[command, *(human_bytes(peaks[f][command]) for f in peaks)] for command in next(iter(peaks.values()))],
    )
    print_goals(goals)
    if options.report:
        write_section(options.report, "memory", memory_section(peaks, goals, context))


def restores(options: argparse.Namespace, progress: Progress) -> None:
    """Restores of live servers at every size, each kept in the report as soon as it is there."""
    tools = fetch_tools(progress, rclone=True)
    kept = Results(options.dir / "restores.jsonl")
    results: list[Result] = []
    for factor in options.restores:
        scale = BENCH(factor, index_vectors=not options.no_vector_index and factor <= 1)
        with stage(options.dir, tools, scale, factor=factor, progress=progress, gb_per_factor=RESTORES_GB) as made:
            results.append(Restores(made, factor, progress, options.patience).measure())
        if options.report:
            results = kept.add(results[-1])
            write_section(options.report, "restores", restore_section(results, goal_table(restore_goals(results))))
    for heads, rows in (restore_table(results), lockout_table(results)):
        print_table(heads, rows)
    print_goals(restore_goals(results))


def _context(made: Stage, bench: Bench, factor: float) -> Context:
    return Context(
        machine=this_machine(made.root),
        versions=versions(made.servers, bench.aws),
        stack=made.servers.stack,
        factor=factor,
        at=datetime.now(UTC),
        aws=bench.aws,
        sizes=bench.sizes,
    )


if __name__ == "__main__":
    sys.exit(main())
