"""Small plots as inline SVG: no library, no script, colours from the page, a title on every point for pointers and screen readers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, tzinfo
from html import escape

#: Coordinates of a plot; the page scales it to its width, a phone's included, so letters are large against it.
_WIDTH, _HEIGHT = 420, 200
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 10, 10, 26
#: Points that a line keeps; of more, the largest of each stretch of time stays.
MOST_POINTS = 300
Number = Callable[[float], str]
#: Units of an axis, the smallest first: so many of the plain unit, and the name.
Units = Sequence[tuple[float, str]]
SECONDS: Units = ((1, "s"), (60, "min"), (3600, "h"), (86400, "d"))
BYTES: Units = ((1, "B"), (1e3, "kB"), (1e6, "MB"), (1e9, "GB"), (1e12, "TB"))
#: A line with more points than this has small ones.
_MANY = 60


@dataclass(frozen=True, slots=True)
class Series:
    """One line. ``style`` is its number in the page's colours and markers; a point is an instant, a value, and what it belongs to."""

    name: str
    style: int
    points: Sequence[tuple[datetime, float, str]]


def thinned(series: Series) -> Series:
    """The series with at most about :data:`MOST_POINTS` points; what stands out stays."""
    if len(series.points) <= MOST_POINTS:
        return series
    first, last = series.points[0][0], series.points[-1][0]
    width = (last - first) / MOST_POINTS or timedelta(seconds=1)
    kept: dict[int, tuple[datetime, float, str]] = {}
    for point in series.points:
        bucket = int((point[0] - first) / width)
        if bucket not in kept or point[1] > kept[bucket][1]:
            kept[bucket] = point
    return Series(series.name, series.style, [kept[b] for b in sorted(kept)])


def line_plot(title: str, lines: Sequence[Series], units: Units, number: Number, zone: tzinfo) -> str:
    """An SVG element; an empty string if there is nothing to draw."""
    drawn = [thinned(s) for s in lines if s.points]
    if not drawn:
        return ""
    instants = [at for s in drawn for at, _, _ in s.points]
    start, end = min(instants), max(instants)
    if end - start < timedelta(days=1):
        start, end = start - timedelta(hours=12), end + timedelta(hours=12)
    highest = max(v for s in drawn for _, v, _ in s.points)
    unit, unit_name = next((u for u in reversed(units) if highest >= 1.5 * u[0]), units[0])
    top = nice_top(highest / unit) * unit

    def x(at: datetime) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * ((at - start) / (end - start))

    def y(value: float) -> float:
        return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * (value / top)

    parts = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}" class="plot">']
    for step in range(5):
        value = top * step / 4
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{value / unit:.3g} {escape(unit_name)}</text>')
    for step, anchor in ((0, "start"), (1, "middle"), (2, "end")):
        at = start + (end - start) * step / 2
        parts.append(f'<text x="{x(at):.1f}" y="{_HEIGHT - 8}" text-anchor="{anchor}">{at.astimezone(zone):%d %b %Y}</text>')
    for series in drawn:
        parts.append(_line(series, x, y, number, zone))
    return "".join([*parts, "</svg>"])


def _line(series: Series, x: Callable[[datetime], float], y: Callable[[float], float], number: Number, zone: tzinfo) -> str:
    places = [(x(at), y(value), at, value, what) for at, value, what in series.points]
    path = " ".join(f"{px:.1f},{py:.1f}" for px, py, *_ in places)
    small = 0.5 if len(places) > _MANY else 1.0
    marks = []
    for px, py, at, value, what in places:
        title = escape(f"{what}, {at.astimezone(zone):%Y-%m-%d %H:%M}: {number(value)}")
        marks.append(f"<g><title>{title}</title>{_marker(series.style, px, py, small)}</g>")
    return f'<g class="s{series.style}"><polyline points="{path}"/>{"".join(marks)}</g>'


def _marker(style: int, x: float, y: float, scale: float) -> str:
    """Shapes differ as well as colours: not everybody tells these apart."""
    side, high, wide = 5.2 * scale, 3.6 * scale, 3.4 * scale
    if style % 3 == 1:
        return f'<rect x="{x - side / 2:.1f}" y="{y - side / 2:.1f}" width="{side:.1f}" height="{side:.1f}"/>'
    if style % 3 == 2:
        return f'<path d="M{x:.1f} {y - high:.1f}L{x + wide:.1f} {y + high * 0.7:.1f}H{x - wide:.1f}Z"/>'
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{2.7 * scale:.1f}"/>'


def nice_top(value: float) -> float:
    """The end of an axis: a round number at or above ``value`` that four steps divide well."""
    if value <= 0:
        return 1.0
    unit = 10.0 ** math.floor(math.log10(value))
    return next(m * unit for m in (1.0, 1.2, 1.6, 2.0, 3.0, 4.0, 6.0, 8.0, 10.0) if m * unit >= value)


@dataclass(frozen=True, slots=True)
class Day:
    """One day of the calendar: the state (a class of the page), its letter, and what to say."""

    day: date
    state: str
    letter: str
    text: str


_CELL = 19
_SIDE = 30


def calendar(days: Sequence[Day]) -> str:
    """Weeks side by side, Monday at the top, as one SVG; the days are in order and without gaps."""
    if not days:
        return ""
    first = days[0].day - timedelta(days=days[0].day.weekday())
    weeks = (days[-1].day - first).days // 7 + 1
    parts = [f'<svg viewBox="0 0 {_SIDE + weeks * _CELL} {18 + 7 * _CELL}" role="img" aria-label="Calendar of proof" class="calendar">']
    for row, name in ((0, "Mon"), (2, "Wed"), (4, "Fri"), (6, "Sun")):
        parts.append(f'<text x="0" y="{18 + row * _CELL + 13}">{name}</text>')
    month = 0
    for day in days:
        column, row = divmod((day.day - first).days, 7)
        x, y = _SIDE + column * _CELL, 18 + row * _CELL
        if row == 0 and day.day.month != month:
            month = day.day.month
            parts.append(f'<text x="{x}" y="12">{day.day:%b}</text>')
        parts.append(
            f'<g class="{day.state}"><title>{escape(f"{day.day:%a %Y-%m-%d}: {day.text}")}</title>'
            f'<rect x="{x}" y="{y}" width="{_CELL - 2}" height="{_CELL - 2}" rx="3"/>'
            f'<text x="{x + (_CELL - 2) / 2}" y="{y + 12.5}" text-anchor="middle">{day.letter}</text></g>'
        )
    return "".join([*parts, "</svg>"])


def today(now: datetime, zone: tzinfo) -> date:
    """The date in a zone."""
    return now.astimezone(UTC).astimezone(zone).date()
