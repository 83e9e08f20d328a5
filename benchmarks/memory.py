"""Peak anonymous memory of every command at several scales: it must be small, and must not grow with the data."""

from __future__ import annotations

from pathlib import Path

from benchmarks.measure import timed
from benchmarks.stage import Stage
from scholaria_ops.progress import Progress

COMMANDS = ("backup", "verify", "rehearse", "ship", "fetch")


def peaks_of(stage: Stage, progress: Progress, program: list[str]) -> dict[str, int]:
    """Command → highest anonymous memory in bytes, of one run each."""
    found: dict[str, int] = {}

    def run(backups: Path, *arguments: str, prefix: str = "") -> None:
        env = stage.product_environment(stage.env_file(backups, prefix=prefix))
        ended = timed([*program, *arguments], env, watch=True)
        found[arguments[0]] = ended.peak_anon or 0
        progress.say(f"{arguments[0]}: {found[arguments[0]] / 1e6:.0f} MB in {ended.seconds:.1f} s")

    run(stage.backups, "backup")
    run(stage.backups, "verify", "latest")
    run(stage.backups, "rehearse", "latest")
    run(stage.backups, "ship", "latest", prefix="memory")
    run(stage.root / "fetched", "fetch", "latest", prefix="memory")
    return found
