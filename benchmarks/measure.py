"""Time one whole process, watch its memory, and look at how quiet the machine is."""

from __future__ import annotations

import os
import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from signal import SIGTERM

import psutil

from scholaria_ops.process import Pipe, is_alive, pipe, process_start_time

_SAMPLE_S = 0.02
#: How often the process tree is looked through for further Python processes of ours.
_TREE_S = 0.5
#: A product run that is told to stop removes its scratch servers first: it gets this long.
_STOP_PATIENCE_S = 30.0
#: The machine counts as quiet when less than this share of its processors is busy.
QUIET = 0.10


@dataclass(frozen=True, slots=True)
class Run:
    """One run of one case. ``parts`` are seconds of its phases; ``busy`` is the share of the processors that others used before it."""

    seconds: float
    parts: Mapping[str, float] = field(default_factory=dict)
    peak_anon: int | None = None
    busy: float = 0.0


@dataclass(frozen=True, slots=True)
class Ended:
    """A process that ended well."""

    seconds: float
    started_at: datetime
    ended_at: datetime
    output: str
    peak_anon: int | None


class AnonymousMemory:
    """Samples the anonymous memory (``RssAnon``, bytes) of a Python process and of the Python processes below it.

    What a process that was forked a moment ago still shares with its parent counts once (``Pss_Anon``): until it becomes
    another program, all of its memory is the parent's.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name=f"memory-{pid}", daemon=True)
        self.peak = 0

    def __enter__(self) -> AnonymousMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        children: list[int] = []
        looked = time.monotonic()
        while not self._stop.wait(_SAMPLE_S):
            if time.monotonic() - looked > _TREE_S:
                children, looked = _children(self._pid), time.monotonic()
            # A child may have been a copy of its parent then, and be a server by now.
            ours = [pid for pid in children if _is_python(pid)]
            anonymous = sum(pss_anon(pid) for pid in (self._pid, *ours)) if ours else rss_anon(self._pid)
            self.peak = max(self.peak, anonymous)


def rss_anon(pid: int) -> int:
    """``RssAnon`` of a process in bytes; 0 when it is gone."""
    return _kilobytes(Path(f"/proc/{pid}/status"), "RssAnon:")


def pss_anon(pid: int) -> int:
    """``Pss_Anon`` of a process in bytes: as ``RssAnon``, but of what processes share each has its part; 0 when it is gone."""
    return _kilobytes(Path(f"/proc/{pid}/smaps_rollup"), "Pss_Anon:")


def _kilobytes(path: Path, name: str) -> int:
    try:
        for line in path.read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1]) * 1024
    except (FileNotFoundError, ProcessLookupError):
        pass
    return 0


def _children(pid: int) -> list[int]:
    try:
        return [c.pid for c in psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _is_python(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/exe").readlink().name.startswith("python")
    except OSError:  # it is gone, or somebody else's
        return False


def timed(argv: Sequence[str], env: Mapping[str, str], *, watch: bool = False, cwd: Path | None = None, timeout_s: float = 3600.0) -> Ended:
    """Run a process to its end, from before its start until after its exit.

    Raises:
        ToolFailed: it ended with a status other than 0, or after ``timeout_s`` seconds.
    """
    os.sync()  # what earlier runs left to be written is not charged to this one
    started_at, began = datetime.now(UTC), time.monotonic()
    with pipe(argv, env=env, cwd=cwd) as running:
        timer = threading.Timer(timeout_s, running.kill)
        timer.daemon = True
        timer.start()
        try:
            memory = AnonymousMemory(running.child.pid)
            if watch:
                with memory:
                    output = _output(running)
            else:
                output = _output(running)
        except BaseException:
            _let_go(running)
            raise
        finally:
            timer.cancel()
        seconds, ended_at = time.monotonic() - began, datetime.now(UTC)
    return Ended(seconds, started_at, ended_at, output, memory.peak if watch else None)


def _output(running: Pipe) -> str:
    kept = b"".join(running.chunks())
    running.finish()
    return kept.decode()


def _let_go(running: Pipe) -> None:
    """Ask the process to end in good order, and give it the time to."""
    start_time = process_start_time(running.child.pid)
    if running.child.poll() is not None:
        return
    running.child.send_signal(SIGTERM)
    deadline = time.monotonic() + _STOP_PATIENCE_S
    while is_alive(running.child.pid, start_time) and time.monotonic() < deadline:
        time.sleep(0.05)


def steps(output: str) -> dict[str, float]:
    """The ``step <name> <seconds>`` lines of a script."""
    found = (line.split() for line in output.splitlines() if line.startswith("step "))
    return {name: float(seconds) for _, name, seconds in found}


def settle(patience_s: float, *, say: Callable[[str], None]) -> float:
    """Wait until the machine is quiet, at most ``patience_s`` seconds; returns the share of the processors that is busy."""
    deadline = time.monotonic() + patience_s
    told = False
    interval_s = 1.0 if patience_s else 0.1  # nobody waits for what it shows then
    while (busy := psutil.cpu_percent(interval=interval_s) / 100) > QUIET and time.monotonic() < deadline:
        if not told:
            say(f"others use {busy:.0%} of the processors; waiting up to {patience_s:.0f} s for quiet")
            told = True
    return busy


@dataclass
class Series:
    """All runs of one case."""

    name: str
    runs: list[Run] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(run.seconds for run in self.runs)

    @property
    def fastest(self) -> float:
        return min(run.seconds for run in self.runs)

    @property
    def slowest(self) -> float:
        return max(run.seconds for run in self.runs)

    @property
    def peak_anon(self) -> int:
        return max((run.peak_anon or 0 for run in self.runs), default=0)

    @property
    def busiest(self) -> float:
        return max((run.busy for run in self.runs), default=0.0)

    def parts(self) -> dict[str, float]:
        """Phase → median of its seconds, in the order of the first run."""
        names = self.runs[0].parts if self.runs else {}
        return {name: statistics.median(run.parts.get(name, 0.0) for run in self.runs) for name in names}
