"""Who runs the servers, and who made a sandbox.

PostgreSQL refuses to run as root, and no scratch server should read restored (possibly hostile) bytes with root's
rights: as root every scratch server is started under an existing unprivileged account. Nothing is ever created here.
"""

from __future__ import annotations

import os
import pwd
import socket
import stat
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from scholaria_ops.errors import SandboxError
from scholaria_ops.process import is_alive, process_start_time

#: Accounts that own nothing of value, in order of preference. ``postgres`` is left out on purpose: on a host with a
#: real server it owns the real data directory.
_CANDIDATES = ("nobody", "daemon", "bin")


@dataclass(frozen=True, slots=True)
class Account:
    """An unprivileged uid and gid that scratch servers run under."""

    name: str
    uid: int
    gid: int


def server_account() -> Account | None:
    """The account for scratch servers, or None when we are not root (they then run as ourselves)."""
    if os.geteuid() != 0:
        return None
    for name in _CANDIDATES:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        if entry.pw_uid != 0:
            return Account(name, entry.pw_uid, entry.pw_gid)
    raise SandboxError(
        "no unprivileged account to run scratch servers under: none of " + ", ".join(_CANDIDATES) + " exists",
        hint="Run as an ordinary user, or add one of these system accounts.",
    )


def may_traverse(path: Path, account: Account | None) -> bool:
    """Whether ``account`` may reach ``path`` (every existing directory up to it lets it through). By mode bits, not ACLs."""
    if account is None:
        return True
    return all(_allows(parent, account, stat.S_IXOTH) for parent in _existing(path.resolve()))


def may_execute(program: Path, account: Account | None) -> bool:
    """Whether ``account`` may start ``program``."""
    resolved = program.resolve()
    return account is None or (may_traverse(resolved.parent, account) and _allows(resolved, account, stat.S_IXOTH))


def _existing(path: Path) -> Iterable[Path]:
    return (p for p in (path, *path.parents) if p.is_dir())


def _allows(path: Path, account: Account, bit_for_others: int) -> bool:
    info = path.stat()
    if info.st_uid == account.uid:
        return bool(info.st_mode & (bit_for_others << 6))
    if info.st_gid == account.gid:
        return bool(info.st_mode & (bit_for_others << 3))
    return bool(info.st_mode & bit_for_others)


@dataclass(frozen=True, slots=True)
class Owner:
    """A process, told apart from any later one with the same pid, on this boot of this host, in this pid namespace."""

    pid: int
    start_time: int
    host: str
    boot_id: str
    pid_namespace: str

    @classmethod
    def current(cls) -> Owner:
        pid = os.getpid()
        start = process_start_time(pid)
        if start is None:  # pragma: no cover - we are running
            raise SandboxError("cannot read our own start time from /proc", hint="The sandbox needs Linux with /proc mounted.")
        return cls(pid, start, socket.gethostname(), _boot_id(), _pid_namespace())

    def as_dict(self) -> dict[str, str | int]:
        return asdict(self)

    @property
    def same_boot(self) -> bool:
        return self.boot_id == _boot_id()

    @property
    def visible(self) -> bool:
        """Whether the pid can be judged from here at all: same boot, same pid namespace."""
        return self.same_boot and self.pid_namespace == _pid_namespace()

    @property
    def dead(self) -> bool:
        """True only with proof: the pid is gone or reused here, or this very host has booted since."""
        if self.visible:
            return not is_alive(self.pid, self.start_time)
        return not self.same_boot and self.host == socket.gethostname()


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _pid_namespace() -> str:
    return str(Path("/proc/self/ns/pid").readlink())
