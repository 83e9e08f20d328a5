"""Logs in files: ``backup-20261124.log``, one per day, whatever started the run. Redacted, 0600, the oldest removed.

A line is one append, so runs in several processes share a file. A log that cannot be written fails nothing: the run says so in
its own log in Dagster, which holds the same lines.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from scholaria_ops.files import make_private_dir
from scholaria_ops.process import redact
from scholaria_ops.settings import Settings

USUAL = Path("/var/log/scholaria")


def log_directory(settings: Settings) -> Path:
    """Where logs go: ``LOG_DIR``, else the usual place if it is there and can be written, else below BACKUP_DIR."""
    if settings.log_dir is not None:
        return settings.log_dir
    if os.access(USUAL, os.W_OK | os.X_OK):
        return USUAL
    return settings.backup_dir / ".state" / "logs"


class DayFile(logging.Handler):
    """Appends to the file of the day, which is made when something is said. ``label`` stands in every line."""

    def __init__(self, settings: Settings, label: str) -> None:
        super().__init__(logging.INFO)
        self._settings = settings
        self._label = label
        self.directory = log_directory(settings)

    def open(self) -> None:
        """See that the directory can be written. Raises OSError."""
        make_private_dir(self.directory, exist_ok=True)
        if not os.access(self.directory, os.W_OK | os.X_OK):
            raise PermissionError(f"{self.directory} cannot be written")

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._write(record)
        except OSError:
            self.handleError(record)  # standard error: there is nowhere else to say it

    def _write(self, record: logging.LogRecord) -> None:
        now = datetime.fromtimestamp(record.created, self._settings.timezone)
        text = record.getMessage()
        if record.exc_info:
            text += "\n" + logging.Formatter().formatException(record.exc_info)
        begin = f"{now:%Y-%m-%d %H:%M:%S%z} {record.levelname:<7} [{self._label}] "
        lines = [begin + line for line in redact(text, self._settings.secrets).splitlines() or [""]]
        path = self.directory / f"backup-{now:%Y%m%d}.log"
        fresh = not path.exists()
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            os.fchmod(fd, 0o600)
            os.write(fd, ("\n".join(lines) + "\n").encode())
        finally:
            os.close(fd)
        if fresh:
            self._remove_old()

    def _remove_old(self) -> None:
        for path in sorted(self.directory.glob("backup-????????.log"))[: -self._settings.log_keep]:
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def logged_to_file(settings: Settings, log: logging.Logger, label: str) -> Iterator[None]:
    """Whatever is logged inside the block goes to the file of the day too, and so does the error that ends it."""
    handler = DayFile(settings, label)
    try:
        handler.open()
    except OSError as exc:
        log.warning("no log is written: %s; set LOG_DIR to a directory that this user may write", exc)
        yield
        return
    log.addHandler(handler)
    try:
        yield
    except BaseException as exc:
        handler.emit(
            logging.makeLogRecord({"levelno": logging.ERROR, "levelname": "ERROR", "msg": f"ended by {type(exc).__name__}: {exc}"})
        )
        raise
    finally:
        log.removeHandler(handler)
