"""Who asked for a run. The open-source UI knows no users; a shell is at least somebody who may write BACKUP_DIR."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar

_command_line: ContextVar[bool] = ContextVar("scholaria_ops_command_line", default=False)
_confirm: ContextVar[Callable[[str], bool] | None] = ContextVar("scholaria_ops_confirm", default=None)


@contextlib.contextmanager
def from_command_line(confirm: Callable[[str], bool] | None = None) -> Iterator[None]:
    """Runs executed in this process inside the block were asked for at a shell, by somebody who may write BACKUP_DIR anyway.

    ``confirm`` shows that person a text and says whether the answer was yes; None where nobody is to be asked.
    """
    token, asking = _command_line.set(True), _confirm.set(confirm)
    try:
        yield
    finally:
        _command_line.reset(token)
        _confirm.reset(asking)


def asked_at_a_shell() -> bool:
    """Whether this run was."""
    return _command_line.get()


def who_confirms() -> Callable[[str], bool] | None:
    """How the person at the shell is asked; None if nobody is there, or none is to be asked."""
    return _confirm.get()
