"""`scholaria-ops status` and `scholaria-ops report`."""

from __future__ import annotations

import dataclasses
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from scholaria_ops.cli.common import JsonOption, services
from scholaria_ops.cli.main import app
from scholaria_ops.cli.output import emit_json, out, plain, print_table
from scholaria_ops.errors import Refused
from scholaria_ops.files import replace_durably
from scholaria_ops.humane import human_age, human_bytes
from scholaria_ops.operations.alerts import Summary, alerts_of
from scholaria_ops.operations.standing import Mark, SetStanding, Standing, TierStanding, take_standing
from scholaria_ops.operations.ticks import Tick, next_ticks

#: So many of the newest sets are shown one by one; `list` shows all.
_NEWEST = 8

#: More sets than this are not counted when it is said how many find room.
_COUNTED_SETS = 100


@app.command()
def status(as_json: JsonOption = False) -> None:
    """Where the sets stand: newest of every rank by tier, what went wrong, room for the next, what comes next."""
    here = services()
    standing = take_standing(here)
    ticks = next_ticks(here.settings, standing.now)
    try:
        alerts = alerts_of(here.catalogue.layout).summary()
    except OSError as exc:
        raise Refused(f"the record of alerts cannot be read: {exc.strerror}", hint="Check BACKUP_DIR and its permissions.") from exc
    if as_json:
        emit_json("status", status_json(standing, ticks, alerts))
        return
    print_table(
        ["tier", "sets", "size", "newest", "verified", "offsite", "proven", "failures"],
        [
            *(_tier(t, name, standing) for name, t in standing.tiers.items() if t.sets or _matters(t)),
            _tier(standing.overall, "all", standing),
        ],
        right=["sets", "size"],
    )
    _newest(standing)
    _wrong(standing)
    out.print("")
    out.print(_disk(standing), markup=False)
    rehearsal = standing.overall.last_rehearsal
    if rehearsal:
        times = f"RTO {rehearsal.rto_s:.1f} s" if rehearsal.rto_s is not None else "no RTO"
        out.print(f"rehearsed {human_age(rehearsal.at, standing.now)}: {rehearsal.id} {rehearsal.verdict}, {times}", markup=False)
    else:
        out.print("[yellow]never rehearsed[/]: `scholaria-ops rehearse` proves a set")
    zone = here.settings.timezone
    coming = (f"{t.what} {f'{t.at.astimezone(zone):%a %Y-%m-%d %H:%M}' if t.at else 'never'}" for t in ticks)
    out.print(f"next      {'; '.join(coming)} ({here.settings.backup_timezone})", markup=False)
    out.print(_alerts(alerts, standing.now), markup=False)


def _matters(tier: TierStanding) -> bool:
    return bool(tier.failures) or tier.offsite is not None or tier.tier in {"daily", "weekly", "monthly"}


def _tier(tier: TierStanding, name: str, standing: Standing) -> list[str]:
    def age(mark: Mark | None) -> str:
        if mark is not None:
            return human_age(mark.cut_at, standing.now)
        return "[red]none[/]" if tier.sets and standing.complete else "[yellow]?[/]" if not standing.complete else "–"

    failures = f"[bold red]{len(tier.failures)}[/]" if tier.failures else "–"
    return [
        name,
        str(tier.sets),
        human_bytes(tier.size_bytes),
        age(tier.sealed),
        age(tier.verified),
        age(tier.offsite),
        age(tier.proven),
        failures,
    ]


def _newest(standing: Standing) -> None:
    shown = [s for s in standing.sets if s.place != "gone"][-_NEWEST:]
    if not shown:
        out.print(f"{standing.directory} holds no sets yet. Take one with `scholaria-ops backup`.")
        return
    out.print("")
    rows = [_set(s, standing.now) for s in reversed(shown)]
    print_table(["newest sets", "tier", "age", "size", "verified", "offsite", "proven", "remark"], rows, right=["size"])


def _set(one: SetStanding, now: datetime) -> list[str]:
    def mark(good: datetime | None, bad: datetime | None = None) -> str:
        return "[green]✓[/]" if good else "[bold red]FAILED[/]" if bad else "–"

    remark = "; ".join(filter(None, ["partial" if one.place == "partial" else "", f"held: {one.held}" if one.held else ""]))
    return [
        one.id,
        one.tier or "–",
        human_age(one.cut_at, now) if one.cut_at else "–",
        human_bytes(one.size_bytes) if one.size_bytes is not None else "–",
        mark(one.verified_at, one.broken_at),
        mark(one.offsite_at),
        mark(one.proven_at, one.refuted_at),
        plain(remark),
    ]


def _wrong(standing: Standing) -> None:
    lines = [f"[bold red]could not be read[/] {plain(name)}: {plain(why)}" for name, why in standing.unread.items()]
    lines += [f"[bold red]damaged[/] {plain(name)}: {plain(why)}" for name, why in standing.damaged.items()]
    lines += [f"[bold red]not to be relied upon[/] {s.id}: its last check failed" for s in standing.broken]
    lines += [f"[yellow]its cut is ahead of the clock[/] {s.id}" for s in standing.ahead_of_clock]
    lines += [
        f"[red]{f.what} failed[/] {f.at:%Y-%m-%d %H:%M} UTC {f.id}: {plain(f.code)}{f', {plain(f.message)}' if f.message else ''}"
        for f in standing.overall.failures
    ]
    if lines:
        out.print("")
        for line in lines[-20:]:
            out.print(line)
        if len(lines) > 20:
            out.print(f"… and {len(lines) - 20} more; --json has all")


def _disk(standing: Standing) -> str:
    disk = standing.disk
    if disk.free_bytes is None:
        return f"disk      free space could not be read: {disk.trouble}"
    text = f"disk      {human_bytes(disk.free_bytes)} free"
    if disk.predicted_next_bytes is None:
        return f"{text}; no set yet to predict the next one from"
    return f"{text}; the next set will need about {human_bytes(disk.predicted_next_bytes)}: {_room(disk.sets_that_fit, fits=disk.fits)}"


def _room(sets: int | None, *, fits: bool | None) -> str:
    """Beyond a hundred sets the number is no forecast any more: sets grow, and others write to that disk."""
    if not fits:
        return "NO ROOM FOR IT"
    many = sets is not None and sets > _COUNTED_SETS
    return "ample room" if many else f"room for {sets} of that size" if sets != 1 else "room for that one only"


def _alerts(alerts: Summary, now: datetime) -> str:
    if alerts.last is None:
        return "alerts    none on record"
    text = f"alerts    last {human_age(alerts.last.at, now)}: {alerts.last.subject}"
    failing = "; ".join(f"{target} does not take them: {a.error}" for target, a in alerts.failing.items())
    return f"{text}; {failing}" if failing else text


def status_json(standing: Standing, ticks: list[Tick], alerts: Summary) -> dict[str, Any]:
    """The whole standing, without the history that `report` plots."""
    disk = standing.disk
    here = [s for s in standing.sets if s.place != "gone"]
    return {
        "at": standing.now,
        "directory": str(standing.directory),
        "complete": standing.complete,
        "tiers": {name: _tier_json(tier) for name, tier in standing.tiers.items()},
        "all": _tier_json(standing.overall),
        "sets": [{k: v for k, v in dataclasses.asdict(s).items() if k != "rehearsals"} for s in here],
        "disk": {
            **dataclasses.asdict(disk),
            "needed_bytes": disk.needed_bytes,
            "fits": disk.fits,
            "sets_that_fit": disk.sets_that_fit,
        },
        "unread": dict(standing.unread),
        "damaged": dict(standing.damaged),
        "broken": [s.id for s in standing.broken],
        "held": dict(standing.held),
        "next": [dataclasses.asdict(t) for t in ticks],
        "alerts": {
            "last": alerts.last.model_dump(mode="json") if alerts.last else None,
            "failing": {target: a.model_dump(mode="json") for target, a in alerts.failing.items()},
        },
    }


def _tier_json(tier: TierStanding) -> dict[str, Any]:
    return dataclasses.asdict(tier)


@app.command()
def report(
    output: Annotated[Path, typer.Option("--output", metavar="FILE", help="Where the page is written")] = Path("scholaria-report.html"),
    as_json: JsonOption = False,
) -> None:
    """One HTML page with plots of sizes, times, RTO and RPO, and the calendar of proof. Needs nothing but a browser."""
    from scholaria_ops.operations.report import report_page

    here = services()
    standing = take_standing(here)
    page = report_page(standing, here.settings.timezone, next_ticks(here.settings, standing.now)).encode()
    try:
        replace_durably(output.absolute(), page)
    except OSError as exc:
        raise Refused(f"cannot write {output}: {exc.strerror}", hint="Name a file in a directory that you may write.") from exc
    if as_json:
        emit_json("report", {"file": str(output.absolute()), "bytes": len(page), "sets": len(standing.sets), "at": standing.now})
        return
    out.print(f"{output.absolute()} ({human_bytes(len(page))}): open it in a browser", markup=False)
