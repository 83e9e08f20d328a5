"""Restores of live servers: how long they take beside the bare tools, and for how long the application is without each store."""

from __future__ import annotations

import contextlib
import json
import platform
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from benchmarks.cases import product
from benchmarks.machine import this_machine
from benchmarks.measure import Ended, settle, steps, timed
from benchmarks.probe import Seen, read_log
from benchmarks.restore_results import ALIAS, BARE, CALM, PLAIN, SAFE, Outside, Restored, Result
from benchmarks.stage import HERE, PROJECT, Stage
from scholaria_ops import __version__
from scholaria_ops.catalogue.sets import BackupSet
from scholaria_ops.errors import OpsError, ToolFailed
from scholaria_ops.files import write_private
from scholaria_ops.operations.restore.journal import Journal
from scholaria_ops.process import Pipe, pipe
from scholaria_ops.progress import Progress
from scholaria_ops.sandbox.sandbox import Sandbox

#: Live servers, a second copy while a restore is staged and kept, a set, and a safety set.
GB_PER_FACTOR = 6.5
#: Around the switches, for what an application notices a moment later.
_AROUND_S = 0.5
_STOP_S = 15.0


@dataclass
class Restores:
    """The cases, in order. A case that fails has its reason kept, and the others go on."""

    stage: Stage
    factor: float
    progress: Progress
    patience_s: float
    cases: dict[str, Restored] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    def measure(self) -> Result:
        """Everything at this size, once.

        Raises:
            OpsError: no backup could be taken, so nothing can be restored.
        """
        began = datetime.now(UTC)
        timed([*product(self.stage), "backup"], self._environment())
        taken = BackupSet.open(max(self.stage.backups.glob("scholaria_backup_*")))
        self._case(BARE, lambda: self._bare(taken))
        self._case(PLAIN, lambda: self._restore(taken.id, "--no-safety"))
        if PLAIN in self.cases:  # or the plain names are no aliases yet
            self._case(CALM, lambda: self._restore(taken.id, "--no-safety"))
            self._case(ALIAS, lambda: self._with_application(taken.id))
            self._case(SAFE, lambda: self._restore(taken.id))
        return Result(factor=self.factor, at=began, surroundings=self._surroundings(), cases=self.cases, failures=self.failures)

    def _case(self, name: str, run: Callable[[], Restored]) -> None:
        busy = settle(self.patience_s, say=self.progress.say)
        try:
            self.cases[name] = run().model_copy(update={"busy": busy})
        except OpsError as exc:
            self.failures[name] = " ".join(exc.message.split())[:500]
            self.progress.say(f"{name} failed: {exc.message}")
        else:
            self.progress.say(f"{name}: {self.cases[name].seconds:.2f} s")

    def _bare(self, taken: BackupSet) -> Restored:
        """The bare tools into empty servers whose start is not counted."""
        with Sandbox(self.stage.sandboxes, self.stage.tools, label="bare") as box:
            postgres, redis, qdrant = box.postgres(fsync=True), box.redis(), box.qdrant()
            env = self.stage.script_environment(postgres, redis, qdrant, dbname=self.stage.servers.stack.postgres.dbname)
            ended = timed(["bash", str(HERE / "scripts" / "bare_restore.sh")], {**env, "SET": str(taken.directory)})
            return Restored(seconds=ended.seconds, parts=steps(ended.output))

    def _restore(self, set_id: str, *options: str, watched: bool = False) -> Restored:
        """One whole restore; what it keeps is discarded, whether it went well or not."""
        try:
            ended = timed(
                [*product(self.stage), "restore", set_id, "--force", "--json", *options], self._environment(), watch=True, timeout_s=7200
            )
            journal = Journal.model_validate(json.loads(ended.output)["restore"])
        finally:
            timed([*product(self.stage), "restore", "--discard-old", "--force"], self._environment())
        return Restored(
            seconds=ended.seconds,
            parts=phases(journal, ended),
            lockout_s={str(store): s for store, s in journal.lockout_s.items()},
            outside=self._seen(journal) if watched else {},
            peak_anon=ended.peak_anon or 0,
        )

    # -- the application -----------------------------------------------------------------------------------------------

    def _with_application(self, set_id: str) -> Restored:
        self._probes().mkdir(mode=0o700, exist_ok=True)
        with contextlib.ExitStack() as stack:
            for config in self._probe_configs():
                stack.enter_context(probing(self.stage.python, self._probes(), config))
            return self._restore(set_id, "--no-safety", watched=True)

    def _probes(self) -> Path:
        return self.stage.root / "probes"

    def _seen(self, journal: Journal) -> dict[str, Outside]:
        """What the probes have seen by now."""
        begin, end = switching(journal)
        logs = {store: self._probes() / f"{store}.log" for store in journal.lockout_s}
        return {store: outside(read_log(log.read_text()), begin, end) for store, log in logs.items()}

    def _probe_configs(self) -> list[dict[str, Any]]:
        stack = self.stage.servers.stack
        keys, points = stack.redis, stack.qdrant
        pg = stack.postgres
        conninfo = f"host={pg.host} port={pg.port} dbname={pg.dbname} user={pg.user} password={pg.password.get_secret_value()}"
        return [
            {"store": "postgres", "conninfo": conninfo, "items": stack.scale.chunks},
            {"store": "redis", "host": keys.host, "port": keys.port, "password": keys.password.get_secret_value()},
            {
                "store": "qdrant",
                "url": points.url,
                "key": points.api_key.get_secret_value(),
                "collection": stack.collection,
                "items": stack.scale.points,
            },
        ]

    # -- the rest ------------------------------------------------------------------------------------------------------

    def _environment(self) -> dict[str, str]:
        return self.stage.product_environment(self.stage.env_file(self.stage.backups))

    def _surroundings(self) -> tuple[str, ...]:
        servers, scale = self.stage.servers, self.stage.servers.stack.scale
        busiest = max((c.busy for c in self.cases.values()), default=0.0)
        return (
            f"{scale.chunks:,} chunks, {sum(servers.stack.keys.values()):,} keys, {scale.points:,} × {scale.dim} points "
            f"{'with their' if scale.index_vectors else 'without'} vector index;",
            f"with scholaria-ops {__version__}, Python {platform.python_version()}, PostgreSQL {servers.postgres.version}, "
            f"Redis {servers.redis.version}, Qdrant {servers.qdrant.version};",
            f"{this_machine(self.stage.root).line()}; before a run others used at most {busiest:.0%} of the processors.",
        )


@contextlib.contextmanager
def probing(python: Path, directory: Path, config: dict[str, Any]) -> Iterator[Pipe]:
    """A probe at work beside the block, its first operations done; it is ended with the block.

    Raises:
        ToolFailed: it does not get to work, or did not last.
    """
    store = config["store"]
    path = directory / f"{store}.json"
    path.unlink(missing_ok=True)
    write_private(path, json.dumps({**config, "log": str(directory / f"{store}.log")}).encode())
    with pipe([str(python), "-m", "benchmarks.probe", str(path)], cwd=PROJECT) as running:
        if not running.stdout.readline():
            raise ToolFailed(f"the probe of {store} ended before its work began: {running.stderr_tail}", returncode=-1)
        yield running
        if running.child.poll() is not None:
            raise ToolFailed(f"the probe of {store} ended early: {running.stderr_tail}", returncode=-1)
        running.child.send_signal(signal.SIGTERM)
        running.finish(timeout_s=_STOP_S)


def switching(journal: Journal) -> tuple[float, float]:
    """From when to when the stores were switched (seconds since the epoch), and a little around it."""
    if journal.switched_at is None:
        raise AssertionError(f"the restore {journal.id} has not switched")
    end = journal.switched_at.timestamp()
    return end - (journal.seconds["restore"] - journal.seconds["stage"]) - _AROUND_S, end + _AROUND_S


def outside(seen: Seen, begin: float, end: float) -> Outside:
    """A probe's account of the time around the switches, and of the rest."""
    return Outside(
        switch_s=seen.longest_gap(begin, end),
        elsewhere_s=seen.longest_gap_outside(begin, end),
        failures=len(seen.failed),
        operations=len(seen.succeeded) + len(seen.failed),
    )


def phases(journal: Journal, ended: Ended) -> dict[str, float]:
    """Where a restore spent its time; the three stores are staged side by side."""
    seconds = journal.seconds
    safety = seconds["safety"]
    staging_at = journal.begun_at
    start = (staging_at - ended.started_at).total_seconds() - safety
    switched_at = staging_at + timedelta(seconds=seconds["restore"])
    return {
        "start, plan, Dagster": start,
        **({"safety set": safety} if safety else {}),
        **{f"∥ {store} {phase}": s for store, one in journal.stage_s.items() for phase, s in one.items() if s >= 0.05},
        "all staged": seconds["stage"],
        "switch": seconds["restore"] - seconds["stage"],
        "finish, look, Dagster, end": (ended.ended_at - switched_at).total_seconds(),
    }
