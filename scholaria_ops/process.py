"""The only place that starts processes.

Promises, for every child:

* an argument list, never a shell string;
* a minimal environment (nothing of ours leaks into a tool, least of all secrets it does not need);
* a process group of its own, ended as a whole on error, timeout or cancellation;
* its own exit status, and the last lines of its standard error with secrets replaced.

Processes are identified by pid *and* start time, because pids are reused.
"""

from __future__ import annotations

import collections
import contextlib
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from scholaria_ops.cancel import CancelToken
from scholaria_ops.errors import SandboxError, ToolFailed, ToolNotStarted

#: Names handed on to children; everything else must be passed explicitly.
_INHERITED = ("PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR")
_TAIL_LINES = 40
_GRACE_S = 5.0


def redact(text: str, secrets: Iterable[str]) -> str:
    """Return ``text`` with every non-empty secret replaced by ``***`` (longest first)."""
    for secret in sorted({s for s in secrets if s}, key=len, reverse=True):
        text = text.replace(secret, "***")
    return text


def which(name: str) -> Path | None:
    """The program ``name`` on PATH, or None."""
    found = shutil.which(name)
    return Path(found) if found else None


def process_start_time(pid: int) -> int | None:
    """Start time of a process in clock ticks since boot (``/proc/<pid>/stat`` field 22); None if it is gone.

    A zombie counts as gone: it holds nothing and only waits to be collected.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat.rpartition(")")[2].split()
    if fields[0] in {"Z", "X"}:
        return None
    return int(fields[19])


def is_alive(pid: int, start_time: int | None) -> bool:
    """Whether that very process (not a later one with the same pid) still runs."""
    now = process_start_time(pid)
    return now is not None and (start_time is None or now == start_time)


def _still_there(pid: int, start_time: int | None) -> bool:
    """Whether the process still runs. If it was a child of ours and does not, nothing of it is left, not even its pid.

    Servers look for the pid in the lock files of those before them, and a zombie has it still.
    """
    try:
        collected, _ = os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return is_alive(pid, start_time)
    if collected:
        return False
    now = process_start_time(pid)  # None: it has ended after all, and is collected the next time
    return now is None or start_time in {None, now}


def end_group(pid: int, start_time: int | None, *, grace_s: float = _GRACE_S) -> bool:
    """End the process group led by ``pid``: SIGTERM, then SIGKILL after ``grace_s`` seconds.

    Does nothing (and returns False) when ``pid`` is no longer the process that started at ``start_time``.
    """
    if not is_alive(pid, start_time):
        return False
    for signum, patience in ((signal.SIGTERM, grace_s), (signal.SIGKILL, _GRACE_S)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signum)
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            if not _still_there(pid, start_time):
                return True
            time.sleep(0.02)
    raise SandboxError(f"process {pid} does not end, not even on SIGKILL", hint="It hangs in the kernel; look at its state with ps.")


@dataclass(frozen=True, slots=True)
class Finished:
    """A child that ended with status 0 (or any, with ``check=False``)."""

    argv: tuple[str, ...]
    returncode: int
    stdout: bytes
    stderr_tail: str
    seconds: float


class Pipe:
    """A running child whose standard output is read as a stream. Made by :func:`pipe`."""

    def __init__(self, child: subprocess.Popen[bytes], argv: Sequence[str], secrets: Iterable[str], cancel: CancelToken | None) -> None:
        if child.stdout is None or child.stderr is None:  # pragma: no cover - pipe() always asks for both
            raise RuntimeError("a Pipe needs the child's standard output and error")
        self.child = child
        self.argv = tuple(argv)
        self.stdout: IO[bytes] = child.stdout
        self._secrets = tuple(secrets)
        self._cancel = cancel
        self._tail: collections.deque[str] = collections.deque(maxlen=_TAIL_LINES)
        self._stderr = child.stderr
        self._start_time = process_start_time(child.pid)
        self._reader = threading.Thread(target=self._drain, name=f"stderr-{child.pid}", daemon=True)
        self._reader.start()

    def _drain(self) -> None:
        for raw in self._stderr:
            line = redact(raw.decode("utf-8", "replace").rstrip(), self._secrets)
            if line:
                self._tail.append(line)

    @property
    def stderr_tail(self) -> str:
        return "\n".join(self._tail)

    def chunks(self, size: int = 1 << 20) -> Iterator[bytes]:
        """Yield the child's output in blocks of at most ``size`` bytes, checking for cancellation between them."""
        while block := self.stdout.read(size):
            if self._cancel:
                self._cancel.check()
            yield block

    def kill(self) -> None:
        end_group(self.child.pid, self._start_time, grace_s=1.0)

    def finish(self, *, timeout_s: float = 60.0) -> None:
        """Wait for the end; raise :class:`ToolFailed` unless the status is 0."""
        try:
            returncode = self.child.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise ToolFailed(
                f"{Path(self.argv[0]).name} did not end within {timeout_s:.0f} s", returncode=-1, stderr_tail=self.stderr_tail
            ) from None
        self._reader.join(5.0)
        if self._cancel:
            self._cancel.check()
        if returncode != 0:
            raise _tool_failed(self.argv, returncode, self.stderr_tail)


def _tool_failed(argv: Sequence[str], returncode: int, tail: str) -> ToolFailed:
    how = f"was ended by {signal.Signals(-returncode).name}" if returncode < 0 else f"failed with status {returncode}"
    last = "\n".join(tail.splitlines()[-8:])
    return ToolFailed(f"{Path(argv[0]).name} {how}" + (f":\n{last}" if last else ""), returncode=returncode, stderr_tail=tail)


def child_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment that children get: a few neutral names of ours plus ``extra``."""
    env = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    env.update(extra or {})
    return env


@contextlib.contextmanager
def pipe(
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    secrets: Iterable[str] = (),
    cancel: CancelToken | None = None,
    stdin: IO[bytes] | int | None = None,
    cwd: Path | None = None,
    user: int | None = None,
    group: int | None = None,
) -> Iterator[Pipe]:
    """Start ``argv`` and stream its output. Leaving the block ends the whole process group, whatever happened.

    The caller must call :meth:`Pipe.finish` to learn whether the tool succeeded.
    """
    try:
        child = subprocess.Popen(
            list(argv),
            env=child_environment(env),
            stdin=subprocess.DEVNULL if stdin is None else stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=cwd,
            start_new_session=True,
            user=user,
            group=group,
            extra_groups=[] if user is not None else None,
        )
    except OSError as exc:
        raise ToolNotStarted(f"cannot start {argv[0]}: {exc.strerror}") from exc
    running = Pipe(child, argv, secrets, cancel)
    guard = cancel.on_cancel(running.kill) if cancel else contextlib.nullcontext()
    try:
        with guard:
            yield running
    finally:
        if child.poll() is None:
            running.kill()
        child.wait()
        running._reader.join(5.0)
        running.stdout.close()
        running._stderr.close()


def run(
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    secrets: Iterable[str] = (),
    cancel: CancelToken | None = None,
    timeout_s: float = 600.0,
    stdin: IO[bytes] | int | None = None,
    cwd: Path | None = None,
    user: int | None = None,
    group: int | None = None,
    check: bool = True,
    max_output: int = 16 << 20,
) -> Finished:
    """Run ``argv`` to its end and return its output (at most ``max_output`` bytes are kept).

    Raises:
        ToolNotStarted: it could not be started.
        ToolFailed: it ran longer than ``timeout_s``, or (with ``check``) ended with a status other than 0.
        Cancelled: the token was cancelled; the process group has been ended.
    """
    began = time.monotonic()
    timer_fired = threading.Event()
    with pipe(argv, env=env, secrets=secrets, cancel=cancel, stdin=stdin, cwd=cwd, user=user, group=group) as running:

        def expire() -> None:
            timer_fired.set()
            running.kill()

        timer = threading.Timer(timeout_s, expire)
        timer.daemon = True
        timer.start()
        try:
            kept = bytearray()
            for block in running.chunks():
                kept += block[: max_output - len(kept)]
            returncode = running.child.wait()
        finally:
            timer.cancel()
        running._reader.join(5.0)
        if cancel:
            cancel.check()
        if timer_fired.is_set():
            raise ToolFailed(
                f"{Path(argv[0]).name} took longer than {timeout_s:.0f} s and was ended", returncode=-1, stderr_tail=running.stderr_tail
            )
        if check and returncode != 0:
            raise _tool_failed(argv, returncode, running.stderr_tail)
        return Finished(tuple(argv), returncode, bytes(kept), running.stderr_tail, time.monotonic() - began)


@dataclass(frozen=True, slots=True)
class Daemon:
    """A long-running child, identified beyond the reuse of pids."""

    pid: int
    start_time: int

    @property
    def alive(self) -> bool:
        return _still_there(self.pid, self.start_time)

    def stop(self, *, grace_s: float = _GRACE_S) -> None:
        end_group(self.pid, self.start_time, grace_s=grace_s)


def start_daemon(
    argv: Sequence[str],
    *,
    log: Path,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    user: int | None = None,
    group: int | None = None,
) -> Daemon:
    """Start a server in a process group of its own, its output appended to ``log``. It outlives us unless stopped."""
    with log.open("ab") as out:
        try:
            child = subprocess.Popen(
                list(argv),
                env=child_environment(env),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                cwd=cwd,
                start_new_session=True,
                user=user,
                group=group,
                extra_groups=[] if user is not None else None,
            )
        except OSError as exc:
            raise SandboxError(f"cannot start {argv[0]}: {exc.strerror}") from exc
    start_time = process_start_time(child.pid)
    if start_time is None:
        child.wait()
        raise SandboxError(f"{Path(argv[0]).name} ended at once with status {child.returncode}", hint=f"Its log is {log}.")
    child.returncode = 0  # collected by pid elsewhere; keeps Popen.__del__ from complaining
    return Daemon(child.pid, start_time)


def run_in_foreground(argv: Sequence[str], *, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> int:
    """Run a program on this terminal until it ends or we are told to stop; its whole group ends with us. Returns its status."""
    child = subprocess.Popen(list(argv), env=child_environment(env), stdin=subprocess.DEVNULL, cwd=cwd, start_new_session=True)
    start_time = process_start_time(child.pid)
    try:
        return child.wait()
    finally:
        if child.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(15.0)
            end_group(child.pid, start_time)
        # whoever left the group's leader behind (the group outlives it) ends too
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)
