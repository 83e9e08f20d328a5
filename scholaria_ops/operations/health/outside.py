"""What a backup needs from elsewhere: stores, their programs, the bucket; and whether everybody's clock agrees."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import TypeVar

from scholaria_ops.catalogue.evidence.base import StoreName
from scholaria_ops.errors import OpsError, ToolFailed, ToolMissing
from scholaria_ops.offsite.base import TargetFacts
from scholaria_ops.operations.health.findings import Finding, Level, ok
from scholaria_ops.operations.scratch import scratch_directory
from scholaria_ops.operations.services import Services
from scholaria_ops.operations.standing import Look, Standing
from scholaria_ops.stores.base import Context, Facts
from scholaria_ops.stores.qdrant.scratch import program_version
from scholaria_ops.stores.redis.info import local_version

#: A clock that differs by more is not merely badly kept.
_WRONG = timedelta(hours=1)
#: What was written down may lie so far ahead: the records of a host whose clock is a little fast.
_TOLERANCE = timedelta(minutes=10)

A = TypeVar("A")


@dataclass(frozen=True, slots=True)
class Answers:
    """What stores and bucket said when they were asked side by side. An error is an answer too."""

    stores: Mapping[StoreName, Facts | OpsError] = field(default_factory=dict)
    bucket: TargetFacts | OpsError | None = None


def ask(services: Services) -> Answers:
    """Ask every store for its preflight and the bucket for its own, all at once. Changes nothing in the stores."""
    with contextlib.ExitStack() as stack:
        scratch = stack.enter_context(_scratch(services))
        ctx = Context(scratch=scratch, ledger=services.ledger, tools=services.tools, cancel=services.cancel, log=services.log)
        pool = stack.enter_context(ThreadPoolExecutor(max_workers=len(services.stores) + 1, thread_name_prefix="health"))
        stores = {name: pool.submit(_answer, lambda s=store: s.preflight(ctx)) for name, store in services.stores.items()}
        target = services.offsite
        bucket = pool.submit(_answer, lambda: target.preflight(cancel=services.cancel)) if target else None
        return Answers({name: f.result() for name, f in stores.items()}, bucket.result() if bucket else None)


def _answer(question: Callable[[], A]) -> A | OpsError:
    try:
        return question()
    except OpsError as exc:
        return exc


@contextlib.contextmanager
def _scratch(services: Services) -> Iterator[Path]:
    """A scratch directory, if BACKUP_DIR stands: looking at health must not make it."""
    root = services.settings.scratch_root
    if root.is_dir() or services.catalogue.layout.root.is_dir():
        with scratch_directory(root, "health") as made:
            yield made
    else:
        yield services.catalogue.layout.root


def stores(answers: Answers) -> Iterator[Finding]:
    """Whether every store would let itself be backed up."""
    for name, answer in answers.stores.items():
        if isinstance(answer, OpsError):
            yield Finding("stores", "critical", f"{name}: {answer.message}", next_step=answer.hint or "`scholaria-ops check` asks again.")
        else:
            yield ok("stores", f"{name} {answer.server_version} answers and can be backed up", expected_bytes=answer.expected_bytes)


def bucket(services: Services, answers: Answers) -> Iterator[Finding]:
    """Whether the offsite place can be used now."""
    if services.offsite is None:
        yield ok("bucket", "none is set")
    elif isinstance(answers.bucket, OpsError):
        yield Finding("bucket", "critical", answers.bucket.message, next_step=answers.bucket.hint or "`scholaria-ops check` asks again.")
    else:
        yield ok("bucket", f"{services.offsite.where} can be listed, written and read")


def tools(services: Services) -> Iterator[Finding]:
    """The programs that dump, and those that a rehearsal starts."""
    found = services.tools
    dumping: tuple[Callable[[], object], ...] = (lambda: found.require_pg("pg_dump"), lambda: found.require_pg("pg_restore"))
    proving: tuple[Callable[[], object], ...] = (
        lambda: found.require_pg("postgres"),
        lambda: found.require_pg("initdb"),
        found.require_redis,
        found.require_qdrant,
    )
    bad = False
    levels: tuple[tuple[tuple[Callable[[], object], ...], Level, str], ...] = (
        (dumping, "critical", "no backup can be taken"),
        (proving, "warning", "no set can be opened and proven here"),
    )
    for needed, level, consequence in levels:
        for require in needed:
            try:
                require()
            except ToolMissing as exc:
                bad = True
                yield Finding("tools", level, f"{exc.message}: {consequence}", next_step=exc.hint)
    if not bad:
        yield from _versions(services)


def _versions(services: Services) -> Iterator[Finding]:
    found = services.tools
    try:
        redis, qdrant = local_version(found.require_redis()), program_version(found)
    except ToolFailed as exc:
        yield Finding("tools", "critical", exc.message, next_step="Install it anew; it does not even tell its version.")
        return
    yield ok("tools", f"PostgreSQL {found.pg_version}, Redis {redis}, Qdrant {qdrant}")


def clock(services: Services, answers: Answers, newest: datetime | None, now: datetime) -> Iterator[Finding]:
    """Our clock against the stores' clocks, and against what was written down last (``newest``)."""
    limit = timedelta(seconds=services.settings.health_clock_max_skew_s)
    step = "Let every host keep its time (NTP, chrony). Ids, retention and expiry of keys follow the clock."
    bad = False
    told = {n: a.clock_ahead_s for n, a in answers.stores.items() if isinstance(a, Facts) and a.clock_ahead_s is not None}
    for name, ahead in told.items():
        if abs(ahead) > limit.total_seconds():
            bad = True
            level: Level = "critical" if abs(ahead) > _WRONG.total_seconds() else "warning"
            yield Finding(
                "clock",
                level,
                f"the clock of {name} is {abs(ahead):,.0f} s {'ahead of' if ahead > 0 else 'behind'} ours",
                next_step=step,
                numbers={"ahead_s": round(ahead, 3)},
            )
    if newest is not None and newest - now > _TOLERANCE:
        bad = True
        yield Finding(
            "clock",
            "critical",
            f"something was written down at {newest:%Y-%m-%d %H:%M:%S} UTC, {(newest - now).total_seconds():,.0f} s ahead of the clock: "
            "it was wrong then, or is wrong now",
            next_step=step,
        )
    if not bad:
        widest = max((abs(a) for a in told.values()), default=0.0)
        said = f"agrees with {', '.join(told)} within {max(widest, 1):.0f} s" if told else "no store told its time"
        yield ok("clock", said, widest_skew_s=round(widest, 3))


def newest_word(found: Look, standing: Standing) -> datetime | None:
    """The latest instant that a cut or a record of this disk names."""
    instants = [s.cut_at for s in standing.sets if s.cut_at]
    instants += [e.records[-1].at for e in found.entries if e.records]
    instants += [history[-1].at for history in found.histories.values() if history]
    return max(instants, default=None)
