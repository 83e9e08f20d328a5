"""The cases: each runs one way of doing the work once, and says how long it took."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import phases
from benchmarks.awscli import Aws
from benchmarks.measure import Run, Series, settle, steps, timed
from benchmarks.stage import BUCKET, HERE, PROJECT, Stage
from scholaria_ops.catalogue.layout import Layout
from scholaria_ops.catalogue.records import Records
from scholaria_ops.catalogue.sets import BackupSet
from scholaria_ops.progress import Progress
from scholaria_ops.sandbox.sandbox import Sandbox

BY_HAND, BARE, OURS = "by hand", "bare tools, parallel", "scholaria-ops backup"
BARE_RESTORE, REHEARSAL = "bare restores, parallel", "scholaria-ops rehearse"
AWS_UP, SHIP, AWS_DOWN, FETCH = "aws s3 cp, up", "scholaria-ops ship", "aws s3 cp, down", "scholaria-ops fetch"
AWS_PROVEN = "aws s3 cp up, down, sha256sum"
SEND = "scholaria-ops, sending alone"


@dataclass(frozen=True, slots=True)
class Case:
    """One way of doing a piece of work. ``letter`` groups what is compared; ``gives`` says what one has afterwards."""

    name: str
    letter: str
    gives: str


#: In the order of the report. A new case is a line here, a step in :data:`STEPS` that adds its runs, and its goals in ``goals.py``.
CASES = (
    Case(BY_HAND, "a", "two PostgreSQL dumps, RDB, snapshots, checksums, readable by gzip"),
    Case(BARE, "b", "three files, nothing checked"),
    Case(OURS, "c", "a sealed set with evidence of all content, every artifact read back and opened"),
    Case(BARE_RESTORE, "d", "servers with data, nothing compared (their start is not counted)"),
    Case(REHEARSAL, "d", "servers started, restored, every row, key and point compared, servers removed"),
    Case(AWS_UP, "e", "files in a bucket"),
    Case(AWS_DOWN, "e", "files on disk"),
    Case(AWS_PROVEN, "e", "files in a bucket, known to be right"),
    Case(SEND, "e", "as ship, with nothing read back (for comparison only: no command does this)"),
    Case(SHIP, "e", "a set in a bucket, every byte read back and compared, committed last"),
    Case(FETCH, "e", "a set on disk, every byte checked, sealed"),
)
ALL = tuple(case.name for case in CASES)


@dataclass
class Bench:
    """Runs the cases in rounds, so that a slow minute of the machine falls on all of them alike."""

    stage: Stage
    aws: Aws
    progress: Progress
    patience_s: float
    series: dict[str, Series] = field(default_factory=lambda: {name: Series(name) for name in ALL})
    #: Bytes of the last set, and of what the other two ways wrote.
    sizes: dict[str, int] = field(default_factory=dict)

    def round(self, number: int) -> None:
        """Every case once. The set that is taken here is the one that is restored, shipped and fetched."""
        with self._directory("hand") as out:
            self.add(BY_HAND, lambda: self._script("by_hand.sh", out))
            self.sizes[BY_HAND] = _size(out)
        with self._directory("bare") as out:
            self.add(BARE, lambda: self._script("bare_dump.sh", out))
            self.sizes[BARE] = _size(out)
        self.add(OURS, self._backup)
        taken = self._newest()
        self.sizes[OURS] = _size(taken.directory)
        for step in STEPS:
            step(self, taken, number)
        shutil.rmtree(taken.directory)

    def add(self, name: str, case: Callable[[], Run]) -> None:
        """Run a case once the machine is quiet, and keep what it took under its name."""
        busy = settle(self.patience_s, say=self.progress.say)
        run = case()
        self.series[name].runs.append(Run(run.seconds, run.parts, run.peak_anon, busy))
        self.progress.say(f"{name}: {run.seconds:.2f} s")

    @contextlib.contextmanager
    def _directory(self, name: str) -> Iterator[Path]:
        path = self.stage.root / name
        try:
            yield path
        finally:
            if path.exists():
                shutil.rmtree(path)

    def _script(self, name: str, out: Path) -> Run:
        live = self.stage.servers
        env = self.stage.script_environment(live.postgres, live.redis, live.qdrant, dbname=live.stack.postgres.dbname)
        ended = timed(["bash", str(HERE / "scripts" / name)], {**env, "OUT": str(out)})
        return Run(ended.seconds, steps(ended.output))

    # -- ours ----------------------------------------------------------------------------------------------------------

    def _records(self, backups: Path | None = None) -> Records:
        return Records(Layout(backups or self.stage.backups))

    def _newest(self) -> BackupSet:
        return BackupSet.open(max(self.stage.backups.glob("scholaria_backup_*")))

    def _product(self, *arguments: str) -> list[str]:
        return [*product(self.stage), *arguments]

    def _backup(self) -> Run:
        env = self.stage.product_environment(self.stage.env_file(self.stage.backups))
        ended = timed(self._product("backup"), env, watch=True)
        return Run(ended.seconds, phases.of_backup(self._newest(), self._records(), ended), ended.peak_anon)

    def _rehearse(self, taken: BackupSet) -> Run:
        env = self.stage.product_environment(self.stage.env_file(self.stage.backups))
        ended = timed(self._product("rehearse", taken.id), env, watch=True)
        return Run(ended.seconds, phases.of_rehearsal(taken.id, self._records(), ended), ended.peak_anon)

    # -- restores ------------------------------------------------------------------------------------------------------

    def restores(self, taken: BackupSet, _number: int) -> None:
        """The set into fresh servers: by the bare tools, and as a rehearsal."""
        self._bare_restore(taken)
        self.add(REHEARSAL, lambda: self._rehearse(taken))

    def _bare_restore(self, taken: BackupSet) -> None:
        stack = self.stage.servers.stack
        with Sandbox(self.stage.sandboxes, self.stage.tools, label="bare") as box:
            postgres, redis, qdrant = box.postgres(), box.redis(), box.qdrant()
            env = self.stage.script_environment(postgres, redis, qdrant, dbname=stack.postgres.dbname)

            def restore() -> Run:
                ended = timed(["bash", str(HERE / "scripts" / "bare_restore.sh")], {**env, "SET": str(taken.directory)})
                return Run(ended.seconds, steps(ended.output))

            self.add(BARE_RESTORE, restore)
            with postgres.connect(stack.postgres.dbname) as connection:
                found = connection.execute("SELECT count(*) FROM rag_contextitem").fetchone()
            if found != (stack.rows["rag_contextitem"],):
                raise AssertionError(f"the bare restore brought back {found} chunks instead of {stack.rows['rag_contextitem']}")

    # -- offsite -------------------------------------------------------------------------------------------------------

    def offsite(self, taken: BackupSet, number: int) -> None:
        """The set to a bucket and back: by ``aws``, and shipped and fetched."""
        prefix = f"round-{number}"
        self._aws(taken, prefix)
        self.add(SEND, lambda: self._send(taken, f"{prefix}-alone"))
        self.add(SHIP, lambda: self._ship(taken, prefix))
        elsewhere = self.stage.root / "fetched"
        self.add(FETCH, lambda: self._fetch(taken, prefix, elsewhere))
        shutil.rmtree(elsewhere)
        self._remove(prefix)

    def _remove(self, prefix: str) -> None:
        timed(self.aws.remove(f"s3://{BUCKET}/{prefix}/", self.stage.servers.s3.endpoint_url), self.stage.aws_environment())

    def _aws(self, taken: BackupSet, prefix: str) -> None:
        """Plain copies; the third figure adds what it takes to know that the copy is right."""
        there, back = f"s3://{BUCKET}/{prefix}/aws/", self.stage.root / "aws-back"
        env = self.stage.aws_environment()

        def copy(source: str, target: str) -> Run:
            ended = timed(self.aws.copy(source, target, self.stage.servers.s3.endpoint_url), env)
            return Run(ended.seconds)

        self.add(AWS_UP, lambda: copy(str(taken.directory), there))
        self.add(AWS_DOWN, lambda: copy(there, str(back)))
        check = timed(["sha256sum", "--check", "--quiet", str(taken.directory / "SHA256SUMS")], {}, cwd=back)
        up, down = self.series[AWS_UP].runs[-1], self.series[AWS_DOWN].runs[-1]
        parts = {"up": up.seconds, "down": down.seconds, "sha256sum": check.seconds}
        self.series[AWS_PROVEN].runs.append(Run(sum(parts.values()), parts, None, max(up.busy, down.busy)))
        shutil.rmtree(back)

    def _send(self, taken: BackupSet, prefix: str) -> Run:
        """What counts is the sending itself, without the start of the process."""
        env = self.stage.product_environment(self.stage.env_file(self.stage.backups, prefix=prefix))
        ended = timed([str(self.stage.python), "-m", "benchmarks.sending", taken.id], env, cwd=PROJECT)
        self._remove(prefix)
        return Run(ended.seconds, steps(ended.output))

    def _ship(self, taken: BackupSet, prefix: str) -> Run:
        env = self.stage.product_environment(self.stage.env_file(self.stage.backups, prefix=prefix))
        ended = timed(self._product("ship", taken.id), env, watch=True)
        return Run(ended.seconds, phases.of_transfer(taken.id, "shipped", self._records(), ended), ended.peak_anon)

    def _fetch(self, taken: BackupSet, prefix: str, into: Path) -> Run:
        env = self.stage.product_environment(self.stage.env_file(into, prefix=prefix))
        ended = timed(self._product("fetch", taken.id), env, watch=True)
        return Run(ended.seconds, phases.of_transfer(taken.id, "fetched", self._records(into), ended), ended.peak_anon)


#: What a round does with the set that it took, one after the other; each adds the runs of its cases.
STEPS: tuple[Callable[[Bench, BackupSet, int], None], ...] = (Bench.restores, Bench.offsite)


def product(stage: Stage) -> list[str]:
    """How the installed command is started."""
    installed = stage.python.parent / "scholaria-ops"
    return [str(installed)] if installed.exists() else [str(stage.python), "-c", "from scholaria_ops.cli import main; main()"]


def _size(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
