"""Who asked for a run. The open-source UI knows no users; a shell is at least somebody who may write BACKUP_DIR."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

_command_line: ContextVar[bool] = ContextVar("scholaria_ops_command_line", default=False)


@contextlib.contextmanager
def from_command_line() -> Iterator[None]:
    """Runs executed in this process inside the block were asked for at a shell, by somebody who may write BACKUP_DIR anyway."""
    token = _command_line.set(True)
    try:
        yield
    finally:
        _command_line.reset(token)


def asked_at_a_shell() -> bool:
    """Whether this run was."""
    return _command_line.get()
