"""What the end of a run is worth telling: a pure decision from a few facts about it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from scholaria_ops.catalogue.sets import BackupSet
from scholaria_ops.humane import human_bytes, human_seconds
from scholaria_ops.operations.notify.events import Event, cause_of

#: What a person at a shell sees with their own eyes, and nobody else needs to be woken for.
_SEEN_AT_A_SHELL = ("usage", "cancelled", "busy")
#: Jobs whose troubles belong to one set and not to the job as a whole.
_PER_SET = ("verify", "offsite")
_NAMES = {
    "backup": "Backup",
    "verify": "Verification",
    "offsite": "Offsite copy",
    "rehearsal": "Rehearsal",
    "retention": "Retention",
    "fetch": "Fetching",
    "health": "Health check",
    "restore": "Restore",
    "disaster_drill": "Disaster drill",
    "reread_offsite": "Re-reading of offsite copies",
}


@dataclass(frozen=True, slots=True)
class RunFacts:
    """One run that has ended."""

    run_id: str
    job: str
    ended: Literal["success", "failure", "cancelled"]
    at: datetime
    started_at: datetime | None = None
    #: Seconds of its time in which it only waited for the estate lock.
    waited_s: float = 0.0
    #: From the actor: ``command line``, ``schedule …``.
    how: str = ""
    set_id: str = ""
    tier: str = ""
    #: Of the error, if it was one of ours.
    code: str = ""
    message: str = ""
    next_step: str = ""
    #: Step that failed: ``take_backup``, ``backup__verified``, ``ship_offsite``.
    step: str = ""
    #: What the run itself thought worth a warning.
    warnings: tuple[str, ...] = field(default_factory=tuple)


def events_of(run: RunFacts, made: BackupSet | None, newest_verified: str) -> list[Event]:
    """What to tell of a run.

    Args:
        made: the set of a backup that succeeded.
        newest_verified: the newest set that can be relied on, for people: what stands between a failure and a loss.
    """
    if run.ended == "success":
        return list(_success(run, made))
    if run.how == "command line" and (run.code in _SEEN_AT_A_SHELL or run.ended == "cancelled"):
        return []
    return [_trouble(run, newest_verified)]


def key_of(run: RunFacts) -> str:
    """What the troubles of a run are kept apart by."""
    return f"{run.job} {run.set_id}".strip() if run.job in _PER_SET else run.job


def _name(run: RunFacts) -> str:
    tier = f" of {run.tier} set" if run.tier and run.set_id else ""
    return f"{_NAMES.get(run.job, run.job)}{tier}{f' {run.set_id}' if run.set_id else ''}"


def _trouble(run: RunFacts, newest_verified: str) -> Event:
    numbers = {"Newest verified set": newest_verified, **_time(run, "It ran for")}
    if run.ended == "cancelled":
        return Event(
            key=key_of(run),
            level="warning",
            cause="cancelled",
            subject=f"{_name(run)} was cancelled",
            what="Somebody, or a limit on its time, stopped this run. What it had begun was taken back.",
            at=run.at,
            numbers=numbers,
            next_step="Start it again, unless it was stopped on purpose.",
            run_id=run.run_id,
            how=run.how,
        )
    what = run.message or "The process that ran it is gone: it was killed, or its host went down. It left no other word."
    if run.job == "backup" and run.step == "ship_offsite":
        became = "stands here and verified, but not offsite"
    else:
        became = "refused" if _only_a_warning(run) else "failed"
    return Event(
        key=key_of(run),
        level="warning" if _only_a_warning(run) else "failure",
        cause=cause_of(run.code or "killed", what),
        subject=f"{_name(run)} {became}: {what.splitlines()[0].rstrip(':')}",
        what=what,
        at=run.at,
        numbers=numbers,
        next_step=run.next_step or "Look at the run; start it again once the cause is mended.",
        run_id=run.run_id,
        how=run.how,
    )


def _time(run: RunFacts, title: str) -> dict[str, str]:
    """The time that a run worked, and that it waited to."""
    if run.started_at is None:
        return {}
    worked = (run.at - run.started_at).total_seconds() - run.waited_s
    waited = {"It waited for the lock for": human_seconds(run.waited_s)} if run.waited_s else {}
    return {title: f"{max(worked, 0.0):.0f} s", **waited}


def _only_a_warning(run: RunFacts) -> bool:
    """A refusal to remove sets harms nothing; somebody should look before the disk is full. Neither does an unproven set yet."""
    return (run.job == "retention" and run.code == "refused") or run.code in {"rehearsal_unproven", "busy"}


def _success(run: RunFacts, made: BackupSet | None) -> Iterator[Event]:
    numbers = {**(_numbers(made) if made else {}), **_time(run, "Took")}
    told = run.job in _NAMES
    yield Event(
        key=key_of(run),
        level="success",
        subject=f"{_name(run)} is well" if told else "",
        what="It went well.",
        at=run.at,
        numbers=numbers,
        run_id=run.run_id,
        how=run.how,
    )
    warnings = (*_warnings(made), *run.warnings)
    if run.job in {"backup", "health"}:
        yield _about_warnings(run, warnings, numbers)


def _about_warnings(run: RunFacts, warnings: Sequence[str], numbers: dict[str, str]) -> Event:
    key = f"warnings of {run.job}"
    if not warnings:
        return Event(
            key=key, level="success", subject="", what=f"{_NAMES[run.job]} goes without warnings again.", at=run.at, run_id=run.run_id
        )
    return Event(
        key=key,
        level="warning",
        cause="; ".join(sorted({cause_of("warning", w) for w in warnings})),
        subject=f"{_name(run)} went well, with {len(warnings)} warning{'s' if len(warnings) > 1 else ''}: {warnings[0]}",
        what="\n".join(f"* {w}" for w in warnings),
        at=run.at,
        numbers=numbers,
        next_step=f"`scholaria-ops {f'show {run.set_id}' if run.job == 'backup' else 'health'}` tells more.",
        run_id=run.run_id,
        how=run.how,
    )


def _warnings(made: BackupSet | None) -> list[str]:
    return [f"{name}: {warning}" for name, part in made.manifest.parts() for warning in part.warnings] if made else []


def _numbers(made: BackupSet) -> dict[str, str]:
    manifest = made.manifest
    counts = ", ".join(f"{value:,} {name}" for name, value in manifest.counts().items())
    return {"Size": human_bytes(manifest.size_bytes), "Holds": counts, "Cut": f"{manifest.cut_at:%Y-%m-%d %H:%M:%S} UTC"}


def heartbeat_event(run: RunFacts) -> Event | None:
    """What the heartbeat says of a run: only backups have one, and a cancelled one says nothing."""
    if run.job != "backup" or run.ended == "cancelled":
        return None
    well = run.ended == "success"
    return Event(
        key=f"heartbeat {hashlib.sha256(run.run_id.encode()).hexdigest()[:8]}",
        level="success" if well else "failure",
        subject=f"{_name(run)} {'is well' if well else 'failed'}",
        what=run.message or ("Verified." if well else "It failed."),
        at=run.at,
        run_id=run.run_id,
    )
