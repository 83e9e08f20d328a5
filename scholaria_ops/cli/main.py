"""The application object, its global options, and the mapping of errors to exit codes."""

from __future__ import annotations

import gc
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from scholaria_ops import __version__
from scholaria_ops.cli.output import emit_json, err, json_was_emitted
from scholaria_ops.errors import (
    AuthenticationFailed,
    Busy,
    Cancelled,
    ConfigError,
    OpsError,
    Refused,
    Unhealthy,
    UsageError,
    VerificationFailed,
)
from scholaria_ops.settings import ENV_FILE_VARIABLE
from scholaria_ops.startup import about_to_end, end, frugal_memory, importing

#: As shells report a program that Ctrl-C ended.
_STOPPED = 130
#: Error class → exit code; the first match counts. Documented in docs/commands.md.
EXIT_CODES: tuple[tuple[type[BaseException], int], ...] = (
    (UsageError, 2),
    (ConfigError, 2),
    (VerificationFailed, 3),
    (Refused, 4),
    (AuthenticationFailed, 1),
    (Busy, 5),
    (Unhealthy, 6),
    (Cancelled, _STOPPED),
    (KeyboardInterrupt, _STOPPED),
    (OpsError, 1),
)

app = typer.Typer(
    name="scholaria-ops",
    help="Provable backups of PostgreSQL, Redis and Qdrant.\n\nExit codes: 0 done, 1 failed, 2 usage or settings, "
    "3 verification failed, 4 refused, 5 busy, 6 unhealthy, 130 stopped.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(value: bool) -> None:
    if value:
        sys.stdout.write(f"scholaria-ops {__version__}\n")
        raise typer.Exit


@app.callback()
def common(
    env_file: Annotated[Path | None, typer.Option("--env-file", help="Settings file to read instead of ./.env")] = None,
    _version_flag: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and end")] = False,
) -> None:
    """Options that go before the command."""
    if env_file:
        # Jobs read their settings through the same variable, in this process and in Dagster's.
        os.environ[ENV_FILE_VARIABLE] = str(env_file.resolve())


def exit_code(error: BaseException) -> int:
    """The documented exit code of an error."""
    return next((code for kind, code in EXIT_CODES if isinstance(error, kind)), 1)


def main() -> None:
    """Entry point of the ``scholaria-ops`` command."""

    def stop(signum: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt(signal.Signals(signum).name)

    # Ten thousand sets are a million objects and no cycles: looking for some again and again takes two fifths of a listing's time.
    gc.set_threshold(100_000, 50, 50)
    try:
        signal.signal(signal.SIGTERM, stop)
        frugal_memory()
        with importing():
            from scholaria_ops.cli.commands import register

            register(sys.argv[1:])

        # Outside its standalone mode the framework *returns* the code of an early end, an interruption among them.
        result = app(standalone_mode=False)
        if result == _STOPPED:
            raise KeyboardInterrupt
        end(result if isinstance(result, int) else 0)
    except KeyboardInterrupt:
        err.print("stopped; nothing half done was left behind")
        sys.exit(_STOPPED)
    except OpsError as exc:
        _complain(exc)
        sys.exit(exit_code(exc))
    except OSError as exc:
        if not _output_is_refused():
            raise
        err.print(f"[bold red]error[/] the result cannot be written to standard output: {exc.strerror}")
        err.print("→ Send it to a disk with room, or look at it in the terminal.")
        # What is left in the buffer must not fail once more at the very end, with another exit code.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except typer.Exit as exc:
        sys.exit(exc.exit_code)
    except Exception as exc:
        # click's own usage errors carry their exit code and know how to show themselves
        show = getattr(exc, "show", None)
        if show is None:
            raise
        show()
        sys.exit(getattr(exc, "exit_code", 2))
    finally:
        about_to_end()


def _output_is_refused() -> bool:
    """Whether standard output takes nothing, not even an empty line."""
    try:
        os.write(sys.stdout.fileno(), b"\n")
    except OSError:
        return True
    return False


def _complain(error: OpsError) -> None:
    if "--json" in sys.argv and not json_was_emitted():
        emit_json("error", {"error": {"code": error.code, "message": error.message, "hint": error.hint, "store": error.store}})
        return
    where = f"{error.store}: " if error.store else ""
    err.print(f"[bold red]error[/] {where}", end="", markup=True)
    err.print(error.message, markup=False)
    if error.hint:
        err.print(f"→ {error.hint}", markup=False)
