"""The report: one HTML page that says where the sets stand and how that came about. It loads nothing from anywhere."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta, tzinfo
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from scholaria_ops import __version__
from scholaria_ops.humane import human_age, human_bytes, human_seconds
from scholaria_ops.operations.plots import BYTES, SECONDS, Day, Number, Series, Units, calendar, line_plot, today
from scholaria_ops.operations.standing import Mark, Rehearsal, SetStanding, Standing, TierStanding
from scholaria_ops.operations.ticks import Tick

PER_SECOND: Units = tuple((size, f"{name}/s") for size, name in BYTES)
#: Plots look back so far, the calendar so far.
PLOTTED = timedelta(days=400)
WEEKS = 20
#: Rows of the tables below plots, and of the table of sets.
_ROWS = 60
#: State of a day → its letter and its name, the best one first.
STATES: Mapping[str, tuple[str, str]] = {
    "proven": ("P", "proven by a rehearsal"),
    "offsite": ("O", "verified and offsite"),
    "verified": ("V", "verified"),
    "sealed": ("S", "sealed, not verified"),
    "failed": ("✗", "failed"),
    "none": ("", "no set"),
}


@dataclass(frozen=True, slots=True)
class Figure:
    """A plot with its legend and the same numbers as a table."""

    title: str
    note: str
    svg: Markup
    legend: Sequence[tuple[int, str]]
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def report_page(standing: Standing, zone: tzinfo, ticks: Sequence[Tick]) -> str:
    """The page, for a standing; times are shown in ``zone``."""
    environment = Environment(
        loader=PackageLoader("scholaria_ops.operations"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"bytes": human_bytes, "local": lambda at: f"{at.astimezone(zone):%Y-%m-%d %H:%M}" if at else "never"}
    days = proof_days(standing, zone)
    template = environment.get_template("report.html.j2")
    return template.render(
        standing=standing,
        zone=str(zone),
        version=__version__,
        cards=list(_cards(standing)),
        troubles=list(_troubles(standing)),
        tiers=[_tier(name, tier, standing) for name, tier in standing.tiers.items()],
        calendar=Markup(calendar(days)),  # noqa: S704 - made of numbers and escaped text
        states=STATES,
        days=[d for d in reversed(days) if d.state != "none"],
        figures=[f for f in figures(standing, zone) if f.svg],
        sets=[s for s in reversed(standing.sets) if s.cut_at][:_ROWS],
        ticks=ticks,
        age=lambda at: human_age(at, standing.now),
    )


def _tier(name: str, tier: TierStanding, standing: Standing) -> list[str]:
    ages = (_age(mark, standing) for mark in (tier.sealed, tier.verified, tier.offsite, tier.proven))
    return [name, str(tier.sets), human_bytes(tier.size_bytes), *ages, str(len(tier.failures))]


def _age(mark: Mark | None, standing: Standing) -> str:
    return human_age(mark.cut_at, standing.now) if mark else "none" if standing.complete else "not known"


def _cards(standing: Standing) -> Iterable[tuple[str, str, str]]:
    """Title, headline, small print."""
    overall = standing.overall
    for title, mark in (("newest verified", overall.verified), ("newest offsite", overall.offsite), ("newest proven", overall.proven)):
        yield title, _age(mark, standing), mark.id if mark else ""
    last = overall.last_rehearsal
    if last and last.rto_s is not None:
        yield "last RTO", human_seconds(last.rto_s), f"{last.verdict}, from {last.source}"
    disk = standing.disk
    if disk.predicted_next_bytes is None:
        yield "next set", "not known", "no set to predict it from"
    else:
        room = "free space not known" if disk.free_bytes is None else f"{human_bytes(disk.free_bytes)} free"
        yield "next set", f"≈ {human_bytes(disk.predicted_next_bytes)}", room if disk.fits is not False else f"{room}: no room for it"


def _troubles(standing: Standing) -> Iterable[str]:
    yield from (f"{name} could not be read: {why}" for name, why in standing.unread.items())
    yield from (f"{name} is damaged: {why}" for name, why in standing.damaged.items())
    yield from (f"{s.id} is not to be relied upon: its last check failed" for s in standing.broken)
    yield from (f"{s.id}: its cut lies ahead of the clock" for s in standing.ahead_of_clock)
    for f in standing.overall.failures:
        yield f"{f.what} failed on {f.at:%Y-%m-%d %H:%M} UTC ({f.id}): {f.code}{f', {f.message}' if f.message else ''}"
    if standing.disk.fits is False:
        yield "there is no room for the next set"


def proof_days(standing: Standing, zone: tzinfo) -> list[Day]:
    """Every day of the last :data:`WEEKS` weeks, with the best that a set cut on it came to."""
    by_day: defaultdict[date, list[SetStanding]] = defaultdict(list)
    for one in standing.sets:
        if one.cut_at and one.place != "partial":
            by_day[today(one.cut_at, zone)].append(one)
    failed = {today(f.at, zone) for f in standing.failed}
    failed |= {today(s.broken_at, zone) for s in standing.broken if s.broken_at}
    end = today(standing.now, zone)
    start = end - timedelta(days=7 * (WEEKS - 1) + end.weekday())
    return [_day(start + timedelta(days=n), by_day, failed) for n in range((end - start).days + 1)]


def _day(day: date, by_day: Mapping[date, Sequence[SetStanding]], failed: set[date]) -> Day:
    sets = by_day.get(day, ())
    reached = {_state(s) for s in sets} | ({"failed"} if day in failed else set())
    state = next((s for s in STATES if s in reached), "none")
    letter, name = STATES[state]
    count = "" if not sets else f"{len(sets)} {'set' if len(sets) == 1 else 'sets'}, "
    return Day(day, state, letter, f"{count}{name}")


def _state(one: SetStanding) -> str:
    if one.broken_at or one.refuted_at:
        return "failed"
    if one.proven_at:
        return "proven"
    if one.verified_at:
        return "offsite" if one.offsite_at else "verified"
    return "sealed"


def figures(standing: Standing, zone: tzinfo) -> list[Figure]:
    """Size, duration and throughput of whole sets by tier; RTO and RPO of rehearsals by source."""
    since = standing.now - PLOTTED
    sets = [s for s in standing.sets if s.cut_at and s.place != "partial" and since <= s.cut_at <= standing.now]
    rehearsals = [r for r in standing.rehearsals if r.at >= since]
    return [
        _of_sets("Size", "artifacts of a set", sets, lambda s: s.size_bytes, BYTES, human_bytes, zone),
        _of_sets(
            "Duration", "from the start to all stores dumped and measured", sets, lambda s: s.duration_s, SECONDS, human_seconds, zone
        ),
        _of_sets("Throughput", "bytes of artifacts by duration", sets, _throughput, PER_SECOND, lambda v: f"{human_bytes(v)}/s", zone),
        _of_rehearsals("RTO", "from nothing to all data compared, in a rehearsal", rehearsals, lambda r: r.rto_s, zone),
        _of_rehearsals("RPO", "age of the cut when the rehearsal began: what would have been lost", rehearsals, lambda r: r.rpo_s, zone),
    ]


def _throughput(one: SetStanding) -> float | None:
    return one.size_bytes / one.duration_s if one.size_bytes is not None and one.duration_s else None


def _of_sets(title: str, note: str, sets: Sequence[SetStanding], value: Any, units: Units, number: Number, zone: tzinfo) -> Figure:
    points = [(s.tier or "unknown", s.cut_at, value(s), s.id) for s in sets if s.cut_at and value(s) is not None]
    return _figure(title, note, points, units, number, zone, "set")


def _of_rehearsals(title: str, note: str, rehearsals: Sequence[Rehearsal], value: Any, zone: tzinfo) -> Figure:
    points = [(r.source or "unknown", r.at, value(r), f"{r.id} {r.verdict}") for r in rehearsals if value(r) is not None]
    return _figure(title, note, points, SECONDS, human_seconds, zone, "rehearsed set")


def _figure(
    title: str, note: str, points: Sequence[tuple[str, datetime, float, str]], units: Units, number: Number, zone: tzinfo, what: str
) -> Figure:
    lines: dict[str, list[tuple[datetime, float, str]]] = {}
    for name, at, value, label in points:
        lines.setdefault(name, []).append((at, float(value), f"{name} {label}"))
    series = [Series(name, style, own) for style, (name, own) in enumerate(sorted(lines.items()))]
    rows = [[f"{at.astimezone(zone):%Y-%m-%d %H:%M}", name, label, number(value)] for name, at, value, label in reversed(points[-_ROWS:])]
    svg = Markup(line_plot(f"{title} over time", series, units, number, zone))  # noqa: S704 - made of numbers and escaped text
    columns = ["when", "source" if what.startswith("rehearsed") else "tier", what, title]
    return Figure(title, note, svg, [(s.style, s.name) for s in series], columns, rows)
