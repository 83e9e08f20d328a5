"""Stop whoever writes to the stores while they are switched, and start them again, whatever happened in between."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from scholaria_ops.cancel import CancelToken
from scholaria_ops.errors import ConfigError, OpsError, StoreError, ToolFailed, ToolNotStarted
from scholaria_ops.process import run, which
from scholaria_ops.settings import Settings

MISSING_PROGRAM = (
    "Put it where it was looked for, or correct BACKUP_FENCE_DOCKER, BACKUP_FENCE_COMPOSE_FILE, BACKUP_FENCE_STOP or BACKUP_FENCE_START."
)


class FenceFailed(StoreError):
    """The writers could not be stopped, or could not be started again. The message says which, and what ran."""

    code = "fence"


class NobodyStopped(FenceFailed):
    """The command that stops the writers could not be run at all: nobody was stopped, and nobody has to be started."""


@dataclass(frozen=True, slots=True)
class Fence:
    """Two commands. Empty ones mean that nobody is stopped: writes in the moment of the switch may fail or be lost."""

    stop_argv: tuple[str, ...] = ()
    start_argv: tuple[str, ...] = ()
    timeout_s: float = 120.0
    secrets: tuple[str, ...] = ()
    #: What the commands read.
    compose_file: Path | None = None

    @property
    def configured(self) -> bool:
        return bool(self.stop_argv)

    def describe(self) -> tuple[str, ...]:
        """What will happen, a line per command, for the plan."""
        if not self.configured:
            return (
                "nobody is stopped (BACKUP_FENCE is none): what the application writes in the moment of the switch stays in the old data",
            )
        return (f"before the switch: {shlex.join(self.stop_argv)}", f"after it, whatever happened: {shlex.join(self.start_argv)}")

    @property
    def trouble(self) -> str:
        """Why the commands cannot be run on this host; empty if their programs, and the Compose file, are there."""
        if self.compose_file and not self.compose_file.is_file():
            return f"the application's Compose file {self.compose_file}, by which the writers are stopped and started, is not there"
        absent = dict.fromkeys(argv[0] for argv in (self.stop_argv, self.start_argv) if argv and which(argv[0]) is None)
        return f"{' and '.join(absent)}, which stops and starts the writers, cannot be run on this host" if absent else ""

    def require_runnable(self) -> None:
        """Raise NobodyStopped if the commands cannot be run at all."""
        if self.trouble:
            raise NobodyStopped(self.trouble, hint=MISSING_PROGRAM)

    def stop(self, cancel: CancelToken) -> None:
        """Stop the writers. When that fails they are started again before the error is raised.

        Raises:
            NobodyStopped: the command could not be run.
            FenceFailed: naming the command and its last lines.
        """
        if not self.configured:
            return
        self.require_runnable()
        try:
            self._run(self.stop_argv, "stop", cancel)
        except NobodyStopped:
            raise
        except OpsError as exc:
            # A command that stops two services may have stopped one: nobody may stay down because of us.
            try:
                self.start()
            except FenceFailed as second:
                raise FenceFailed(f"{exc.message}; then {second.message}", hint=second.hint) from exc
            raise

    def start(self) -> None:
        """Start the writers again. Not cancellable: whoever was stopped is started, also on the way out.

        Raises:
            FenceFailed: naming the command that has to be run by hand.
        """
        if self.configured:
            self._run(self.start_argv, "start", None)

    def _run(self, argv: Sequence[str], verb: str, cancel: CancelToken | None) -> None:
        try:
            run(argv, cancel=cancel, timeout_s=self.timeout_s, secrets=self.secrets)
        except ToolFailed as exc:
            if verb == "stop" and isinstance(exc, ToolNotStarted):
                raise NobodyStopped(f"the writers could not be stopped, and nobody was: {exc.message}", hint=MISSING_PROGRAM) from exc
            hint = (
                "Nothing was changed. Run the command by hand to see what it says."
                if verb == "stop"
                else f"The application is down until somebody runs `{shlex.join(argv)}`."
            )
            raise FenceFailed(
                f"the writers could not be {'stopped' if verb == 'stop' else 'started again'}: {exc.message}", hint=hint
            ) from exc


def fence_of(settings: Settings) -> Fence:
    """The fence that the settings describe.

    Raises:
        ConfigError: a setting that the chosen fence needs is missing.
    """
    common = {"timeout_s": settings.fence_timeout_s, "secrets": settings.secrets}
    if settings.fence == "none":
        return Fence()
    if settings.fence == "compose":
        file, services = settings.fence_compose_file, settings.fence_services.split()
        if file is None or not file.is_file() or not services:
            raise ConfigError(
                f"the Compose fence needs the application's Compose file and services; BACKUP_FENCE_COMPOSE_FILE is {file or 'not set'}",
                hint="Set BACKUP_FENCE_COMPOSE_FILE (and BACKUP_FENCE_SERVICES), or BACKUP_FENCE=none.",
            )
        docker = [*shlex.split(settings.fence_docker), "compose", "-f", str(file)]
        return Fence((*docker, "stop", *services), (*docker, "start", *services), compose_file=file, **common)  # type: ignore[arg-type]
    stop, start = shlex.split(settings.fence_stop), shlex.split(settings.fence_start)
    if not stop or not start:
        raise ConfigError("the command fence needs both commands", hint="Set BACKUP_FENCE_STOP and BACKUP_FENCE_START.")
    return Fence(tuple(stop), tuple(start), **common)  # type: ignore[arg-type]
