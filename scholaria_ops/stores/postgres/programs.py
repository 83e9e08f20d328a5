"""PostgreSQL's own programs: which version they are, and in what surroundings they run."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from scholaria_ops.cancel import CancelToken
from scholaria_ops.connections import PostgresConnection
from scholaria_ops.errors import ToolFailed, ToolMissing
from scholaria_ops.files import BLOCK
from scholaria_ops.process import Pipe, pipe, run
from scholaria_ops.sandbox.identity import may_execute, may_traverse, server_account
from scholaria_ops.sandbox.tools import Tools

_VERSION = re.compile(r"\) (\d+)(?:\.(\d+))?")


@dataclass(frozen=True, slots=True)
class Version:
    """Of a program: ``16.15``."""

    major: int
    minor: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}"


@dataclass(frozen=True)
class Programs:
    """The programs of one installation, as :class:`Tools` found them."""

    tools: Tools
    cancel: CancelToken | None = None

    def version(self, name: str) -> Version:
        """Raises :class:`ToolMissing` when the program is absent or does not run here."""
        return _asked(self.tools.require_pg(name), tuple(sorted(self.tools.pg_env.items())))

    @contextlib.contextmanager
    def with_server(
        self, name: str, options: Sequence[str], connection: PostgresConnection, *, settings: Mapping[str, str] | None = None
    ) -> Iterator[Pipe]:
        """Run a program against a server; its output is a stream. The password goes through the environment only.

        ``settings`` hold for the program's sessions; their values are words without spaces.
        """
        password = connection.password.get_secret_value()
        env = {**connection.libpq_env(), **self.tools.pg_env, "LC_ALL": "C"}
        if settings:
            env["PGOPTIONS"] = " ".join(f"-c {name}={value}" for name, value in settings.items())
        with named(), pipe([str(self.tools.require_pg(name)), *options], env=env, secrets=[password], cancel=self.cancel) as running:
            _enlarge(running.stdout)
            yield running

    @contextlib.contextmanager
    def on_archive(self, options: Sequence[str], archive: Path, *, unprivileged: bool = True) -> Iterator[Pipe]:
        """Run ``pg_restore`` on an archive without any server: nothing secret around it, and unprivileged if we are root.

        The archive is its standard input, so that the other account needs no access to the directory.
        """
        program = self.tools.require_pg("pg_restore")
        account = server_account() if unprivileged else None
        if account is not None and not (may_traverse(program.parent, account) and may_execute(program, account)):
            account = None
        env = {**self.tools.pg_env, "LC_ALL": "C", "HOME": "/"}
        uid, gid = (account.uid, account.gid) if account else (None, None)
        argv = [str(program), *options]
        with (
            archive.open("rb") as source,
            named(),
            pipe(argv, env=env, cancel=self.cancel, stdin=source, cwd=Path("/"), user=uid, group=gid) as running,
        ):
            _enlarge(running.stdout)
            yield running

    def lines_of_archive(self, options: Sequence[str], archive: Path) -> Iterator[bytes]:
        """Lines (without their newline) that ``pg_restore`` writes; ends by raising :class:`ToolFailed` if it failed."""
        with self.on_archive(options, archive) as running:
            yield from lines(running.chunks(BLOCK))
            running.finish()


def lines(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """Cut blocks into lines; for text of moderate size only (an endless line would be kept whole)."""
    rest = b""
    for block in blocks:
        *whole, rest = (rest + block).split(b"\n")
        yield from whole
    if rest:
        yield rest


@contextlib.contextmanager
def named() -> Iterator[None]:
    """Say of a failing program whose it is."""
    try:
        yield
    except ToolFailed as exc:
        exc.store = "postgres"
        raise


def _enlarge(stream: IO[bytes]) -> None:
    """Let a pipe hold 1 MiB instead of 64 KiB: fewer switches between the two processes. A host may forbid it."""
    with contextlib.suppress(OSError):
        fcntl.fcntl(stream, fcntl.F_SETPIPE_SZ, 1 << 20)


@functools.lru_cache(maxsize=32)
def _asked(program: Path, env: tuple[tuple[str, str], ...]) -> Version:
    try:
        answer = run([str(program), "--version"], env={**dict(env), "LC_ALL": "C"}, timeout_s=20.0).stdout.decode("utf-8", "replace")
    except ToolFailed as exc:
        raise ToolMissing(f"{program} does not run here: {exc.stderr_tail or exc.message}", hint="Reinstall it.", store="postgres") from exc
    found = _VERSION.search(answer)
    if not found:
        raise ToolMissing(f"{program} --version says {answer.strip()!r}, which is no version of PostgreSQL", store="postgres")
    return Version(int(found[1]), int(found[2] or 0))
