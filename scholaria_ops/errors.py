"""One tree of errors.

Every error that an operator may meet says *what* went wrong, *where*, and *what to do next* (``hint``).
``code`` is stable and may be relied upon by scripts reading ``--json`` output; the mapping to exit codes
lives in the command line alone. ``retryable`` says whether the same call may succeed later without anyone
changing anything (a network blip), as opposed to a permanent refusal (a wrong password).
"""

from __future__ import annotations

from typing import ClassVar


class OpsError(Exception):
    """Base of all errors that the product raises on purpose.

    Args:
        message: what went wrong and where, without secrets.
        hint: the next step for the operator, a full sentence.
        store: the store concerned (``postgres``, ``redis``, ``qdrant``), if any.
    """

    code: ClassVar[str] = "failed"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, hint: str = "", store: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.store = store

    @property
    def without_hint(self) -> str:
        """What and where, for an error that hands the hint on as its own."""
        where = f"{self.store}: " if self.store and not self.message.startswith(self.store) else ""
        return f"{where}{self.message}"

    def __str__(self) -> str:
        return self.without_hint + (f" ({self.hint})" if self.hint else "")


class ConfigError(OpsError):
    """A setting, option or file that the operator gave is wrong."""

    code = "config"


class UsageError(OpsError):
    """The request itself makes no sense: an unknown set, an impossible combination."""

    code = "usage"


class Refused(OpsError):
    """The product declines to go on because doing so would be unsafe or could not be proven."""

    code = "refused"


class ToolMissing(Refused):
    """A program of the store's own tool set is not installed, or too old."""

    code = "tool_missing"


class Busy(OpsError):
    """Somebody else holds the lock; the message says who, where and since when."""

    code = "busy"
    retryable = True


class VerificationFailed(OpsError):
    """Bytes or contents differ from what was measured when the set was taken."""

    code = "verification"


class DiskFull(OpsError):
    """No space, here or on a server. Permanent until somebody frees some."""

    code = "disk_full"


class StoreError(OpsError):
    """A store answered with an error, or its tool failed. Permanent unless a subclass says otherwise."""

    code = "store"


class StoreUnavailable(StoreError):
    """A store could not be reached, or broke off. Trying again may help."""

    code = "store_unavailable"
    retryable = True


class AuthenticationFailed(StoreError):
    """A store refused our credentials. Never retried: lockouts are worse than a failed run."""

    code = "authentication"


class ToolFailed(OpsError):
    """A child process ended with an error; carries its last (redacted) error lines."""

    code = "tool_failed"

    def __init__(self, message: str, *, returncode: int, stderr_tail: str = "", hint: str = "", store: str | None = None) -> None:
        super().__init__(message, hint=hint, store=store)
        self.returncode = returncode
        self.stderr_tail = stderr_tail


class ToolNotStarted(ToolFailed):
    """A child process could not be started at all: it has done nothing."""

    def __init__(self, message: str) -> None:
        super().__init__(message, returncode=-1)


class OffsiteError(OpsError):
    """The offsite target refused or failed. Permanent unless the subclass says otherwise."""

    code = "offsite"


class OffsiteUnavailable(OffsiteError):
    """The offsite target could not be reached in time."""

    code = "offsite_unavailable"
    retryable = True


class SandboxError(OpsError):
    """A throw-away server could not be made or did not come up; carries the end of its log."""

    code = "sandbox"


class Unhealthy(OpsError):
    """Health found something that must not stay so."""

    code = "unhealthy"


class Cancelled(OpsError):
    """The run was cancelled or told to stop; everything it had begun was taken back."""

    code = "cancelled"
