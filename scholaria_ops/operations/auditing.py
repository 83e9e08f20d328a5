"""Writing the audit log from operations: who asks, and the begin and end of each piece of work.

Whoever builds an operation wraps it once::

    with services.audited("restore", set_id, run_id=run_id, plan=plan.digest) as entry:
        ...
        entry.note(switched=["postgres", "qdrant"])

An entry ``begun`` is written before the block runs (it is refused if it cannot be written: nothing is done that nobody could
trace), and one with the outcome after it, also when the block fails or is cancelled. Work that is over in an instant, such as a
hold, takes one :meth:`Services.audit` instead.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from scholaria_ops.catalogue.audit import Outcome
from scholaria_ops.catalogue.records import whoami
from scholaria_ops.errors import Busy, Cancelled, OpsError, Refused, UsageError
from scholaria_ops.process import redact

#: Longest text of a detail: an error's first lines tell enough, the run has the rest.
_LONGEST = 1000


@dataclass(frozen=True, slots=True)
class Actor:
    """Who asked for what this process does. ``how`` names a schedule, a sensor, the command line, or the UI, which knows no users."""

    how: str = "called directly"
    by: str = field(default_factory=whoami)
    run_id: str = ""


@dataclass
class Audited:
    """What the entry at the end of a piece of work will say."""

    set_id: str
    outcome: Outcome = "done"
    detail: dict[str, Any] = field(default_factory=dict)

    def note(self, **detail: Any) -> None:
        """Add to the detail of the entry that is written at the end. Numbers, texts and lists of them; never a secret."""
        self.detail.update(detail)

    def failed(self, why: str) -> None:
        """The work came to its end, and its result is bad (a set that does not verify)."""
        self.outcome = "failed"
        self.detail["message"] = why


def outcome_of(error: BaseException) -> Outcome:
    """How an entry calls the end of a block that was left by ``error``."""
    if isinstance(error, (Refused, Busy, UsageError)):
        return "refused"
    if isinstance(error, Cancelled) or not isinstance(error, Exception):
        return "cancelled"
    return "failed"


def error_detail(error: BaseException) -> dict[str, Any]:
    """Code and text of an error."""
    if isinstance(error, OpsError):
        return {"code": error.code, "message": error.message}
    return {"code": type(error).__name__, "message": str(error)}


def clean(value: Any, secrets: tuple[str, ...]) -> Any:
    """``value`` as it may be written down: secrets replaced, long texts cut, everything else that JSON does not know as text."""
    if isinstance(value, dict):
        return {str(k): clean(v, secrets) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [clean(v, secrets) for v in value]
    if value is None or isinstance(value, (bool, int, float)):
        return value
    text = redact(str(value), secrets)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}… ({len(text)} characters)"
