"""Find and end every process of one sandbox, also those that no list names.

A killed owner may have started a server without living to write its pid down, and PostgreSQL's backends leave their
postmaster's process group. What was started for a sandbox carries its nonce in the environment; PostgreSQL overwrites
that memory in its children, which are known by working below the sandbox's data with one of its recorded programs.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Collection
from pathlib import Path

from scholaria_ops.errors import SandboxError
from scholaria_ops.process import is_alive, process_start_time
from scholaria_ops.sandbox.identity import server_account

#: In the environment of every process that a sandbox starts; the value is ``<nonce>/<server>``.
NONCE_VARIABLE = "SCHOLARIA_SANDBOX"
_PATIENCE_S = 10.0
_IPC_RMID = 0


def belonging(tag: str, directory: Path, programs: Collection[str]) -> list[tuple[int, int]]:
    """(pid, start time) of every live process of a sandbox (``tag`` is its nonce) or of one server (``<nonce>/<server>``).

    ``directory`` is where it works, ``programs`` the resolved paths it was started from. We ourselves are never in it.
    """
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):  # it ended meanwhile, or is another user's
            if _is_ours(entry, tag, directory, programs):
                start = process_start_time(int(entry.name))
                if start is not None:
                    found.append((int(entry.name), start))
    return found


def _is_ours(entry: Path, tag: str, directory: Path, programs: Collection[str]) -> bool:
    environ = b"\0" + (entry / "environ").read_bytes()
    mark = f"\0{NONCE_VARIABLE}={tag}".encode()
    if mark + b"\0" in environ or mark + b"/" in environ:
        return True
    if not _link(entry / "cwd").is_relative_to(directory):
        return False
    return str(_link(entry / "exe")) in programs


def _link(path: Path) -> Path:
    return Path(str(path.readlink()).removesuffix(" (deleted)"))


def end_stragglers(tag: str, directory: Path, programs: Collection[str], *, ended_before: Collection[int] = ()) -> int:
    """Kill what is left of a sandbox, at once, and wait until it is gone; returns how many processes there were.

    System V segments that these processes, or those of ``ended_before``, created go back to the kernel: a killed
    PostgreSQL leaves one.
    """
    deadline = time.monotonic() + _PATIENCE_S
    ended: set[int] = set()
    while left := belonging(tag, directory, programs):
        for pid, start in left:
            ended.add(pid)  # also one that dies just now because we ended its parent
            if is_alive(pid, start):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        _collect(ended)
        if time.monotonic() > deadline:
            raise SandboxError(
                "processes of a sandbox do not end, not even on SIGKILL: " + ", ".join(str(pid) for pid, _ in left),
                hint="They hang in the kernel; look at their state with ps.",
            )
        time.sleep(0.01)
    _release_shared_memory({*ended, *ended_before})
    return len(ended)


def _release_shared_memory(creators: Collection[int]) -> None:
    """Remove the segments that these (ended) processes created and nobody is attached to any more."""
    try:
        rows = [line.split() for line in Path("/proc/sysvipc/shm").read_text().splitlines()[1:]]
    except OSError:
        return
    uids = {os.geteuid(), *((account.uid,) if (account := server_account()) else ())}
    for _key, segment, _mode, _size, creator, _last, attached, uid, *_ in rows:
        if int(creator) in creators and attached == "0" and int(uid) in uids:
            ctypes.CDLL(None, use_errno=True).shmctl(int(segment), _IPC_RMID, None)


def _collect(pids: Collection[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ChildProcessError):  # not our child: its new parent collects it
            os.waitpid(pid, os.WNOHANG)
