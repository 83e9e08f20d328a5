"""Whether the sets themselves are as they should be: read, whole, young enough, offsite, proven, of the usual size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from scholaria_ops.catalogue.manifest import Tier
from scholaria_ops.catalogue.retention import Safety, SetFacts, anomaly
from scholaria_ops.operations.health.findings import Finding, Level, ok
from scholaria_ops.operations.prune import safety_of
from scholaria_ops.operations.standing import Look, Mark, Standing
from scholaria_ops.settings import Settings
from scholaria_ops.settings.cron import Cron

#: A cut this long before its scheduled time still counts for it: clocks differ, and a tick may be evaluated a little early.
_EARLY = timedelta(minutes=10)
_SCHEDULED: tuple[Tier, ...] = ("daily", "weekly", "monthly")
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Limit:
    """From when on the newest thing must be, and since when it is missed if it is not."""

    not_before: datetime
    since: datetime
    said: str


def limit(cron: str, max_age_h: float | None, now: datetime, settings: Settings) -> Limit | None:
    """The limit of one schedule: an age that is set, else the last tick that lies longer back than the grace; None if there was none."""
    if max_age_h is not None:
        oldest = now - timedelta(hours=max_age_h)
        return Limit(oldest, oldest, f"to be at most {max_age_h:g} h old")
    grace = timedelta(hours=settings.health_grace_h)
    due = Cron.parse(cron).last_before(now - grace, settings.timezone)
    return Limit(due - _EARLY, due, f"due at {due.astimezone(settings.timezone):%Y-%m-%d %H:%M %Z}") if due else None


def tier_limit(tier: Tier, now: datetime, settings: Settings) -> Limit | None:
    """The limit of one scheduled tier."""
    wanted: Mapping[Tier, tuple[str, float | None]] = {
        "daily": (settings.daily_cron, settings.health_daily_max_age_h),
        "weekly": (settings.weekly_cron, settings.health_weekly_max_age_h),
        "monthly": (settings.monthly_cron, settings.health_monthly_max_age_h),
    }
    return limit(*wanted[tier], now, settings)


def catalogue(standing: Standing) -> Iterator[Finding]:
    """What could not be read, is damaged, partial, or in the way."""
    bad = False
    for name, why in list(standing.unread.items())[:_SHOWN]:
        bad = True
        yield Finding(
            "catalogue",
            "critical",
            f"{name} could not be read: {why}",
            next_step="Mend the permissions or the disk; it may be the last good copy.",
        )
    if len(standing.unread) > _SHOWN:
        yield Finding("catalogue", "critical", f"{len(standing.unread) - _SHOWN} further entries could not be read")
    for name, why in list(standing.damaged.items())[:_SHOWN]:
        bad = True
        yield Finding(
            "catalogue",
            "critical",
            f"{name} is damaged: {why}",
            next_step="Fetch it again from offsite (`scholaria-ops fetch`, after moving it away), or remove it if it is of no use.",
        )
    for one in standing.broken[-_SHOWN:]:
        bad = True
        how = "verified" if one.broken_at else "rehearsed"
        yield Finding(
            "catalogue",
            "critical",
            f"{one.name} was {how} and is not what was sealed",
            one.broken_at or one.refuted_at,
            f"Do not rely on it: `scholaria-ops show {one.id}` tells what differs. Verify it again, or remove it once another is proven.",
        )
    whole = [s for s in standing.sets if s.whole and s.cut_at]
    newest = max((s.cut_at for s in whole if s.cut_at), default=None)
    for one in standing.partial:
        if one.cut_at and (newest is None or one.cut_at > newest):
            bad = True
            yield Finding(
                "catalogue",
                "warning",
                f"{one.name} lacks a store, and no whole set came after it",
                one.cut_at,
                f"`scholaria-ops show {one.id}` names the store; mend it and take a set.",
            )
    if not bad:
        others = {"partial": len(standing.partial), "old-style": len(standing.legacy), "other": len(standing.stray)}
        more = ", ".join(f"{n} {what}" for what, n in others.items() if n)
        yield ok("catalogue", f"{len(whole)} whole sets, all read" + (f"; besides {more}" if more else ""), sets=len(whole))


def fresh(standing: Standing, settings: Settings, what: Literal["verified", "offsite"]) -> Iterator[Finding]:
    """The newest verified (or shipped) set of every tier against what its schedule promises."""
    if what == "offsite" and settings.s3_bucket is None:
        yield Finding(
            "offsite",
            "warning",
            "no offsite place is set: every copy stands in one house",
            next_step="Set BACKUP_S3_BUCKET (and what belongs to it; see `scholaria-ops config`).",
        )
        return
    overall = _mark(standing, None, what)
    if overall is None:
        yield Finding(
            what,
            "critical",
            "there is no verified set at all" if what == "verified" else "no set stands offsite",
            next_step="Take one: `scholaria-ops backup`." if what == "verified" else "Ship one: `scholaria-ops ship`.",
        )
        return
    first = min(s.cut_at for s in standing.sets if s.cut_at)
    for tier in _SCHEDULED:
        yield _tier(standing, settings, what, tier, first)


def _tier(standing: Standing, settings: Settings, what: Literal["verified", "offsite"], tier: Tier, first: datetime) -> Finding:
    mark, wanted = _mark(standing, tier, what), tier_limit(tier, standing.now, settings)
    doing = "verified" if what == "verified" else "offsite"
    if mark is not None and (wanted is None or mark.cut_at >= wanted.not_before):
        return ok(what, f"{tier}: {mark.id} is {doing}, {_age(mark.age_s)} old", **{f"{tier}_age_s": round(mark.age_s)})
    if wanted is None or (mark is None and first > wanted.not_before):
        # Nothing was ever due since sets are taken here: a new installation.
        return ok(what, f"{tier}: none yet; none was due since the first set of {first:%Y-%m-%d %H:%M} UTC")
    have = f"the newest {doing} one, {mark.id}, is {_age(mark.age_s)} old" if mark else f"none is {doing}"
    failed = [f for f in standing.tiers[tier].failures if f.what in {"backup", "verification"}]
    why = f"; the last attempt failed: {failed[-1].message or failed[-1].code}" if failed else ""
    return Finding(
        what,
        "critical",
        f"{tier}: {have}, and one was {wanted.said}{why}",
        wanted.since,
        "See what became of the runs (the checks `schedules`, `daemon` and `stores` here, and the run in Dagster), then take one: "
        f"`scholaria-ops backup --tier {tier}`."
        if what == "verified"
        else "Ship it: `scholaria-ops ship`, and see why its run did not (the check `bucket` here, and the run in Dagster).",
        {f"{tier}_age_s": round(mark.age_s)} if mark else {},
    )


def _mark(standing: Standing, tier: Tier | None, what: Literal["verified", "offsite"]) -> Mark | None:
    there = standing.tiers[tier] if tier else standing.overall
    return there.verified if what == "verified" else there.offsite


def rotten(found: Look) -> Iterator[Finding]:
    """Offsite copies whose last full read-back found damage that could not be mended."""
    histories = {**found.histories, **{e.id: e.records for e in found.entries if e.id}}
    for set_id, history in histories.items():
        read = [r for r in history if r.event in {"reread", "shipped"} or (r.event == "deleted" and r.detail.get("place") == "offsite")]
        last = next((r for r in reversed(read) if r.event != "shipped" or r.detail.get("confirmed_by") == "readback"), None)
        if last and last.event == "reread" and last.detail.get("passed") is not True:
            yield Finding(
                "offsite",
                "critical",
                f"the offsite copy of {set_id} is damaged: {last.detail.get('damage')}",
                last.at,
                f"Ship it again from where it is whole (`scholaria-ops ship --reread {set_id}`), or rely on another set.",
            )


def rehearsed(standing: Standing, settings: Settings) -> Iterator[Finding]:
    """When a set was last proven, against the schedule of rehearsals; and how the last rehearsal ended."""
    proofs = [r for r in standing.rehearsals if r.verdict == "proven"]
    wanted = limit(settings.rehearsal_cron, settings.health_rehearsed_max_age_h, standing.now, settings)
    sets = [s.cut_at for s in standing.sets if s.cut_at]
    if proofs:
        last = proofs[-1]
        age = (standing.now - last.at).total_seconds()
        if wanted and last.at < wanted.not_before and min(sets, default=standing.now) < wanted.not_before:
            yield Finding(
                "rehearsed",
                "critical",
                f"the last proof, of {last.id}, is {_age(age)} old, and a rehearsal was {wanted.said}",
                wanted.since,
                "Rehearse: `scholaria-ops rehearse`, and see why the schedule did not (the check `schedules` here).",
                {"proof_age_s": round(age)},
            )
        else:
            yield ok("rehearsed", f"{last.id} was proven {_age(age)} ago from {last.source or 'here'}", proof_age_s=round(age))
    else:
        overdue = bool(sets) and wanted is not None and min(sets) < wanted.not_before
        level: Level = "critical" if overdue else "warning"
        yield Finding(
            "rehearsed",
            level,
            "no set was ever proven by a rehearsal" + (f", and one was {wanted.said}" if wanted and overdue else ""),
            next_step="A set is as good as its last restore: `scholaria-ops rehearse`.",
        )
    yield from _last_rehearsal(standing)


def _last_rehearsal(standing: Standing) -> Iterator[Finding]:
    if not standing.rehearsals:
        return
    last = standing.rehearsals[-1]
    if last.verdict == "failed":
        yield Finding(
            "rehearsed",
            "critical",
            f"the last rehearsal, of {last.id}, failed",
            last.at,
            f"`scholaria-ops show {last.id}` tells what differed. Rehearse an older set, and find out what damaged this one.",
        )
    elif last.verdict != "proven":
        yield Finding(
            "rehearsed",
            "warning",
            f"the last rehearsal, of {last.id}, could not judge it",
            last.at,
            f"`scholaria-ops show {last.id}` tells what was missing here; provide it and rehearse again.",
        )


def retention(standing: Standing, settings: Settings, missing: Sequence[str]) -> Iterator[Finding]:
    """What stops retention, and is worth a look for its own sake: a set that shrank, sets that went away by themselves."""
    bad = False
    if found := shrunk(standing, safety_of(settings)):
        bad = True
        yield Finding(
            "retention",
            "warning",
            f"{found}; nothing is pruned meanwhile",
            next_step="See whether data were lost before older sets go. If the change was meant, pruning goes on by itself once most "
            "recent sets agree with it.",
        )
    if missing:
        bad = True
        shown = ", ".join(missing[:_SHOWN]) + (f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else "")
        yield Finding(
            "retention",
            "critical",
            f"{len(missing)} set(s) that stood here are gone, and not by us: {shown}",
            next_step="Find out who removed them. If it was meant: `scholaria-ops prune --accept-missing`.",
        )
    if not bad:
        yield ok("retention", "nothing stops it")


def shrunk(standing: Standing, safety: Safety) -> str:
    """What is anomalously small about the newest whole set here; empty if nothing is."""
    facts = (
        SetFacts(id=s.id, name=s.name, tier=s.tier, cut_at=s.cut_at, size_bytes=s.size_bytes or 0, counts=s.counts)
        for s in standing.sets
        if s.whole and s.cut_at and s.tier
    )
    return anomaly(facts, standing.now, safety)


def _age(seconds: float) -> str:
    hours = seconds / 3600
    return f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.0f} days"
