"""Health: every check once, side by side where they wait for others."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime

from scholaria_ops.errors import OpsError
from scholaria_ops.operations.health import outside, place, running, sets, telling
from scholaria_ops.operations.health.findings import CHECKS, Finding, HealthReport
from scholaria_ops.operations.health.running import Dispatcher
from scholaria_ops.operations.inventory import missing_here
from scholaria_ops.operations.services import Services
from scholaria_ops.operations.standing import Look, Standing, look, standing_of

#: Checks that rest upon the catalogue, and cannot say anything when it cannot be read.
_OF_SETS = ("space", "catalogue", "verified", "offsite", "rehearsed", "retention")
_OF_DAGSTER = ("daemon", "schedules", "runs")


def check_health(services: Services, dispatcher: Dispatcher | OpsError) -> HealthReport:
    """Look at everything and judge it. Changes nothing; what cannot be looked at is a finding, never an exception.

    Args:
        dispatcher: how Dagster is asked, or why it cannot be.
    """
    began, now = time.monotonic(), services.now()
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="health") as pool:
        asked = pool.submit(outside.ask, services)
        findings: list[Finding] = []
        findings += _safely("directory", lambda: place.directory(services))
        findings += _safely("leftovers", lambda: place.leftovers(services, now))
        findings += _safely("lock", lambda: place.lock(services, now))
        findings += _safely("tools", lambda: outside.tools(services))
        findings += _safely("alerts", lambda: telling.alerts(services))
        newest, of_sets = _sets(services, now)
        findings += of_sets
        findings += _dagster(services, dispatcher, now)
        answers = asked.result()
    findings += outside.stores(answers)
    findings += outside.bucket(services, answers)
    findings += outside.clock(services, answers, newest, now)
    order = list(CHECKS)
    return HealthReport(now, tuple(sorted(findings, key=lambda f: order.index(f.check))), time.monotonic() - began)


def _safely(check: str, look_at: Callable[[], Iterable[Finding]]) -> list[Finding]:
    """The findings of one check; if it could not be made, that is the finding."""
    try:
        return list(look_at())
    except OpsError as exc:
        return [Finding(check, "critical", f"could not be looked at: {exc.message}", next_step=exc.hint)]
    except OSError as exc:
        named = f"{exc.filename}: " if exc.filename else ""
        return [Finding(check, "critical", f"could not be looked at: {named}{exc.strerror or type(exc).__name__}")]


def _sets(services: Services, now: datetime) -> tuple[datetime | None, list[Finding]]:
    """Every check that rests upon the catalogue, and the latest instant that it names."""
    try:
        found = look(services)
        standing = standing_of(found, now)
    except (OpsError, OSError) as exc:
        message, hint = (exc.message, exc.hint) if isinstance(exc, OpsError) else (str(exc), "")
        others = [Finding(c, "critical", "cannot be judged while the catalogue cannot be read") for c in _OF_SETS if c != "catalogue"]
        return None, [Finding("catalogue", "critical", f"cannot be read: {message}", next_step=hint), *others]
    findings: list[Finding] = []
    for check, judge in _judges(services, found, standing).items():
        findings += _safely(check, judge)
    return outside.newest_word(found, standing), findings


def _judges(services: Services, found: Look, standing: Standing) -> Mapping[str, Callable[[], Iterable[Finding]]]:
    settings = services.settings

    def offsite() -> Iterator[Finding]:
        yield from sets.fresh(standing, settings, "offsite")
        yield from sets.rotten(found)

    return {
        "space": lambda: place.space(standing.disk),
        "catalogue": lambda: sets.catalogue(standing),
        "verified": lambda: sets.fresh(standing, settings, "verified"),
        "offsite": offsite,
        "rehearsed": lambda: sets.rehearsed(standing, settings),
        "retention": lambda: sets.retention(standing, settings, missing_here(services, found.entries)),
    }


def _dagster(services: Services, dispatcher: Dispatcher | OpsError, now: datetime) -> list[Finding]:
    if isinstance(dispatcher, OpsError):
        return [Finding(c, "critical", f"Dagster cannot be asked: {dispatcher.message}", next_step=dispatcher.hint) for c in _OF_DAGSTER]
    return [
        *_safely("daemon", lambda: running.daemon(dispatcher.daemons())),
        *_safely("schedules", lambda: running.schedules(dispatcher.schedules(), services.settings, now)),
        *_safely("runs", lambda: running.runs(dispatcher.unfinished_runs(), now)),
    ]
