"""``python -m benchmarks.catalogue``: how long a look at ten thousand sets takes.

The sets are made up, their manifests are as large as real ones, and every file is where a real one would be (with a few bytes in it).
They are written without flushing, so that making them takes a minute and not an hour.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

from scholaria_ops.catalogue.layout import MANIFEST, RESTORE_TEXT, SUMS, label
from scholaria_ops.catalogue.manifest import TIERS
from scholaria_ops.catalogue.sets import Kind
from scholaria_ops.cli.output import print_table
from scholaria_ops.operations.metrics import registry_of
from scholaria_ops.operations.prune import plan_prune
from scholaria_ops.operations.services import make_services
from scholaria_ops.operations.standing import take_standing
from scholaria_ops.process import run
from scholaria_ops.settings import load_settings
from scholaria_ops_tests.catalogue.factory import make_set, records_as_taken

#: A manifest of a set with two collections weighs about this.
MANIFEST_BYTES = 150_000
GOAL_S = 2.0
_COMMANDS = (["list"], ["list", "--json"], ["prune", "--json"], ["metrics"])


def fill(root: Path, count: int, now: datetime, *, manifest_bytes: int = MANIFEST_BYTES) -> None:
    """``count`` sets in all tiers below ``root``, six hours apart, the newest an hour old; one in ten shipped, one in thirty rehearsed."""
    services = make_services(load_settings({"BACKUP_DIR": str(root)}))
    services.check_directory()
    pattern = make_set(services.catalogue, now - timedelta(hours=1), tier="daily", verified=True)
    template = json.loads((pattern.directory / MANIFEST).read_bytes())
    size, each = len(json.dumps(template)), 110  # bytes of one more object
    digests = (hashlib.sha256(str(n).encode()).hexdigest() for n in range((manifest_bytes - size) // each))
    template["postgres"]["evidence"]["objects"] = {f"index public.ix_{d[:8]}": {"owner": "o", "definition": d} for d in digests}
    text = json.dumps(template, ensure_ascii=False, indent=1) + "\n"
    first = pattern.head.cut_at
    for n in range(1, count):
        cut, tier = now - timedelta(hours=1 + 6 * n), TIERS[:4][n % 4]
        new = label(cut, UTC)
        files = {path.replace(pattern.id, new): size for path, size in pattern.head.files.items()}
        copied = text.replace(pattern.id, new).replace('"tier": "daily"', f'"tier": "{tier}"')
        for seconds in (0, 3, 4):
            copied = copied.replace(_written(first + timedelta(seconds=seconds)), _written(cut + timedelta(seconds=seconds)))
        _write(services.catalogue.layout.root, new, copied, files)
        lines = records_as_taken(new, cut, shipped=n % 10 == 0, rehearsed=n % 30 == 0)
        services.catalogue.layout.record(new).write_text("".join(f"{json.dumps(line)}\n" for line in lines))


def _written(instant: datetime) -> str:
    """An instant as manifests write it."""
    return instant.isoformat().replace("+00:00", "Z")


def _write(root: Path, set_id: str, manifest: str, files: Mapping[str, int]) -> None:
    directory = root / f"scholaria_backup_{set_id}"
    directory.mkdir()
    for path, size in files.items():
        (directory / path).parent.mkdir(exist_ok=True)
        (directory / path).write_bytes(bytes(size))
    (directory / RESTORE_TEXT).write_text("")
    (directory / MANIFEST).write_text(manifest)
    (directory / SUMS).write_text("")


def timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def measure(root: Path) -> list[tuple[str, float]]:
    """What was done, and its seconds: the first look, then each again, in this process and as a command."""
    services = make_services(load_settings({"BACKUP_DIR": str(root)}))
    found = [("first look, without an index", timed(services.catalogue.entries))]
    if wrong := [e for e in services.catalogue.entries() if e.kind is not Kind.SEALED]:
        raise AssertionError(f"{len(wrong)} sets are not as they should be: {wrong[0].name}: {wrong[0].reason}")
    found.append(("list", timed(services.catalogue.entries)))
    found.append(("retention plan", timed(lambda: plan_prune(services, {}, offsite=False))))
    found.append(("standing", timed(lambda: take_standing(services))))
    registry, _ = registry_of(lambda: take_standing(services))
    found.append(("metrics", timed(lambda: list(registry.collect()))))
    command = str(Path(sys.executable).parent / "scholaria-ops")
    env = {**os.environ, "BACKUP_DIR": str(root), "DAGSTER_HOME": str(root / ".dagster")}
    (root / ".dagster").mkdir(exist_ok=True)
    for words in _COMMANDS:
        found.append((f"scholaria-ops {' '.join(words)}", timed(lambda w=words: run([command, *w], env=env, check=False))))  # type: ignore[misc]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.catalogue", description=__doc__)
    parser.add_argument("--sets", type=int, default=10_000)
    parser.add_argument("--directory", type=Path, help="keep the sets here, and use those that are here already")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="catalogue-") as scratch:
        root = options.directory or Path(scratch) / "backups"
        if not root.exists():
            print(f"making {options.sets} sets in {root} …", file=sys.stderr)
            fill(root, options.sets, datetime.now(UTC))
        (root / ".state" / "catalogue-index.json").unlink(missing_ok=True)
        rows = measure(root)
    print_table(["look", "seconds", f"goal {GOAL_S:g} s"], [[what, f"{s:.2f}", _verdict(what, s)] for what, s in rows], right=["seconds"])
    return 0


def _verdict(what: str, seconds: float) -> str:
    return "–" if what.startswith("first") else "met" if seconds <= GOAL_S else "missed"


if __name__ == "__main__":
    sys.exit(main())
