"""The benchmarks run to their end in small, write their report, and leave nothing behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from benchmarks import cases
from benchmarks.measure import AnonymousMemory, Series, rss_anon, steps
from benchmarks.report import write_section
from benchmarks.stage import PROJECT, require_room
from scholaria_ops.errors import DiskFull
from scholaria_ops.process import pipe, run
from scholaria_ops.sandbox.tools import Tools

_COMMENTARY = "## Commentary\n\nWritten by people.\n"


def _bench(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "benchmarks", *arguments]


@pytest.mark.slow(60)
@pytest.mark.timeout(400)  # about half a minute on two idle cores
def test_every_case_runs_and_the_report_keeps_what_people_wrote(tmp_path: Path, tools: Tools) -> None:
    report, work = tmp_path / "benchmarks.md", tmp_path / "work"
    write_section(report, "speed", "the last table")
    report.write_text(report.read_text() + _COMMENTARY)
    finished = run(_bench("--quick", "--dir", str(work), "--report", str(report)), cwd=PROJECT, timeout_s=380)
    text = report.read_text()
    assert text.endswith(_COMMENTARY)
    assert "the last table" not in text
    shown = finished.stdout.decode()
    for name in cases.ALL:
        assert f"| {name} |" in text
        assert name in shown
    for phase in (
        "custom_dump",
        "redis_rdb_fast_gzip",
        "∥ qdrant",
        "verify (readable)",
        "pg_restore",
        "postgres load",
        "sending",
        "transfer and proof",
    ):
        assert phase in text
    assert not work.exists()


@pytest.mark.timeout(400)
def test_a_benchmark_that_is_told_to_stop_leaves_nothing(tmp_path: Path, tools: Tools) -> None:
    work = tmp_path / "work"
    with pipe(_bench("--quick", "--dir", str(work)), cwd=PROJECT) as running:
        deadline = time.monotonic() + 120
        while not (servers := _below(running.child.pid)) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert servers, "no server was started"
        os.kill(running.child.pid, signal.SIGINT)
        assert running.child.wait(120) == 130
    assert not work.exists()
    psutil.wait_procs(servers, timeout=60)
    assert not [p for p in servers if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def _below(pid: int) -> list[psutil.Process]:
    """Its servers, once the third of them is up too."""
    found = [child for child in psutil.Process(pid).children(recursive=True) if _is_server(child)]
    return found if len(found) >= 3 else []


def _is_server(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        command = process.cmdline() or [""]
        return "--version" not in command and Path(command[0].partition(" ")[0]).name in {"postgres", "redis-server", "qdrant"}
    return False


def test_too_little_room_is_refused_with_what_is_needed(tmp_path: Path) -> None:
    with pytest.raises(DiskFull, match=r"needs about 9,?000,?00\d+\.\d GB"):
        require_room(tmp_path, 1_000_000.0)


def test_a_second_section_stands_beside_the_first(tmp_path: Path) -> None:
    report = tmp_path / "docs" / "benchmarks.md"
    write_section(report, "speed", "fast")
    write_section(report, "memory", "small")
    write_section(report, "speed", "faster")
    text = report.read_text()
    assert text.index("faster") < text.index("small") < text.index("## Commentary")
    assert text.count("written by make bench") == 3


def test_steps_of_a_script_are_read_and_other_lines_passed_over() -> None:
    assert steps("hello\nstep dump 1.250\nstep check 0.010\n") == {"dump": 1.25, "check": 0.01}


def test_anonymous_memory_of_this_process_is_seen() -> None:
    before = rss_anon(os.getpid())
    ballast = bytearray(os.urandom(1)) * (32 << 20)
    assert rss_anon(os.getpid()) - before > 24 << 20
    assert len(ballast) == 32 << 20
    assert Series("nothing").peak_anon == 0


def test_memory_that_a_forked_process_shares_counts_once() -> None:
    code = "import os, sys; ballast = bytearray(b'x') * (96 << 20); os.fork(); print(flush=True); sys.stdin.read()"
    assert 96 << 20 < _peak(code) < 150 << 20


def test_a_child_that_has_become_another_program_is_not_counted() -> None:
    """It was seen while it was still a copy of its parent."""
    hungry = 'awk \'BEGIN { s = sprintf("%200000000s", "x"); print length(s) > "/dev/null"; system("sleep 2") }\''
    code = (
        "import os, sys, time\nballast = bytearray(b'x') * (96 << 20)\n"
        f"if os.fork() == 0:\n    time.sleep(0.8)\n    os.execlp('sh', 'sh', '-c', {hungry!r})\n"
        "print(), print(flush=True)\nsys.stdin.read()"
    )
    assert 96 << 20 < _peak(code, seconds=2.0) < 150 << 20


def _peak(code: str, seconds: float = 1.2) -> int:
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        process.stdout.readline()
        process.stdout.readline()
        with AnonymousMemory(process.pid) as memory:
            time.sleep(seconds)
        process.stdin.close()
    return memory.peak
