"""The standing as Prometheus metrics, computed when they are asked for. What is not known has no sample: there are no stale zeroes.

``docs/monitoring.md`` tells them to operators; ``deploy/prometheus`` and ``deploy/grafana`` build on their names.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector, CollectorRegistry

from scholaria_ops import __version__
from scholaria_ops.errors import OpsError
from scholaria_ops.operations.standing import KINDS, Mark, Rehearsal, Standing, TierStanding

#: What a mark is called in the label ``rank``.
RANKS = ("sealed", "verified", "offsite", "rehearsed")


class StandingCollector(Collector):
    """Asks for the standing at every scrape. A failed look gives ``scholaria_up 0`` and counts; it never gives old numbers."""

    def __init__(self, look: Callable[[], Standing]) -> None:
        self._look = look
        self._lock = threading.Lock()
        self._errors: dict[str, int] = {}
        #: What went wrong at the last scrape; None if nothing did.
        self.error: OpsError | OSError | None = None

    def describe(self) -> Iterable[Metric]:
        """Nothing: registering must not read the disk."""
        return ()

    def collect(self) -> Iterable[Metric]:
        with self._lock:
            began = time.monotonic()
            found: list[Metric] = []
            try:
                found += families(self._look())
                self.error = None
            except (OpsError, OSError) as exc:
                self.error = exc
                reason = exc.code if isinstance(exc, OpsError) else "disk"
                self._errors[reason] = self._errors.get(reason, 0) + 1
            yield InfoMetricFamily("scholaria_build", "The version that answers", {"version": __version__})
            yield _one("scholaria_up", "Whether the catalogue could be read; at 0 nothing else is told", float(self.error is None))
            errors = CounterMetricFamily("scholaria_scrape_errors", "Looks at the catalogue that failed in this process", labels=["reason"])
            for reason, count in sorted(self._errors.items()) or [("none", 0)]:
                errors.add_metric([reason], count)
            yield errors
            yield _one("scholaria_scrape_duration_seconds", "Time that this look took", time.monotonic() - began)
            yield from found


def registry_of(look: Callable[[], Standing]) -> tuple[CollectorRegistry, StandingCollector]:
    """A registry with nothing but our metrics in it."""
    registry, collector = CollectorRegistry(auto_describe=False), StandingCollector(look)
    registry.register(collector)
    return registry, collector


def families(standing: Standing) -> Iterator[Metric]:
    """All metrics of one standing."""
    yield from _marks(standing)
    yield from _newest_sets(standing)
    yield from _rehearsals(standing)
    yield from _failures(standing)
    yield from _disk(standing)
    yield from _oddities(standing)


def _one(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _ranks(tier: TierStanding) -> Iterator[tuple[str, Mark]]:
    for rank, mark in zip(RANKS, (tier.sealed, tier.verified, tier.offsite, tier.proven), strict=True):
        if mark is not None:
            yield rank, mark


def _marks(standing: Standing) -> Iterator[Metric]:
    labels = ["tier", "rank"]
    cut = GaugeMetricFamily(
        "scholaria_newest_set_cut_timestamp_seconds", "Cut of the newest set of that rank; no sample if there is none", labels=labels
    )
    age = GaugeMetricFamily("scholaria_newest_set_age_seconds", "Time since that cut, at the scrape", labels=labels)
    reached = GaugeMetricFamily("scholaria_newest_set_rank_timestamp_seconds", "When that set came to its rank", labels=labels)
    for name, tier in standing.tiers.items():
        for rank, mark in _ranks(tier):
            cut.add_metric([name, rank], mark.cut_at.timestamp())
            age.add_metric([name, rank], mark.age_s)
            reached.add_metric([name, rank], mark.at.timestamp())
    yield from (cut, age, reached)


def _newest_sets(standing: Standing) -> Iterator[Metric]:
    sets = GaugeMetricFamily("scholaria_sets", "Whole sets on this disk", labels=["tier"])
    total = GaugeMetricFamily("scholaria_sets_bytes", "Their size together", labels=["tier"])
    size = GaugeMetricFamily("scholaria_newest_set_size_bytes", "Size of the newest whole set", labels=["tier"])
    took = GaugeMetricFamily("scholaria_newest_set_duration_seconds", "Time that taking the newest whole set took", labels=["tier"])
    items = GaugeMetricFamily(
        "scholaria_newest_set_items", "What the newest whole set holds: rows, keys, points …", labels=["tier", "what"]
    )
    drift = GaugeMetricFamily(
        "scholaria_newest_set_drift_items", "PostgreSQL and Qdrant apart when the newest whole set was taken", labels=["tier", "what"]
    )
    by_id = {s.id: s for s in standing.sets}
    for name, tier in standing.tiers.items():
        sets.add_metric([name], tier.sets)
        total.add_metric([name], tier.size_bytes)
        newest = by_id.get(tier.sealed.id) if tier.sealed else None
        if newest is not None:
            _add(size, [name], newest.size_bytes)
            _add(took, [name], newest.duration_s)
            for what, count in newest.counts.items():
                items.add_metric([name, what], count)
            for what, count in (newest.drift or {}).items():
                drift.add_metric([name, what], count)
    yield from (sets, total, size, took, items)
    if drift.samples:
        yield drift


def _rehearsals(standing: Standing) -> Iterator[Metric]:
    rto = GaugeMetricFamily("scholaria_rehearsal_rto_seconds", "From nothing to compared data in the last rehearsal", labels=["source"])
    store = GaugeMetricFamily("scholaria_rehearsal_store_rto_seconds", "The same of each store", labels=["source", "store"])
    rpo = GaugeMetricFamily("scholaria_rehearsal_rpo_seconds", "Age of the cut when the last rehearsal began", labels=["source"])
    when = GaugeMetricFamily("scholaria_rehearsal_timestamp_seconds", "When the last rehearsal took place", labels=["source"])
    proven = GaugeMetricFamily("scholaria_rehearsal_proven", "Whether it proved its set", labels=["source"])
    last: dict[str, Rehearsal] = {r.source: r for r in standing.rehearsals}
    for source, rehearsal in sorted(last.items()):
        _add(rto, [source], rehearsal.rto_s)
        _add(rpo, [source], rehearsal.rpo_s)
        when.add_metric([source], rehearsal.at.timestamp())
        proven.add_metric([source], float(rehearsal.verdict == "proven"))
        for name, seconds in rehearsal.stores.items():
            store.add_metric([source, name], seconds)
    yield from (rto, store, rpo, when, proven)


def _failures(standing: Standing) -> Iterator[Metric]:
    total = CounterMetricFamily("scholaria_failures", "Failures on record, in all", labels=["tier", "what"])
    standing_now = GaugeMetricFamily(
        "scholaria_unanswered_failures", "Failures since the last success of the kind", labels=["tier", "what"]
    )
    for name, tier in standing.tiers.items():
        for what in KINDS:
            total.add_metric([name, what], tier.failures_total[what])
            standing_now.add_metric([name, what], sum(f.what == what for f in tier.failures))
    for what in KINDS:
        # Of ids whose tier is not on record; a run may fail before it is.
        if rest := standing.overall.failures_total[what] - sum(t.failures_total[what] for t in standing.tiers.values()):
            total.add_metric(["unknown", what], rest)
            standing_now.add_metric(["unknown", what], sum(f.tier is None and f.what == what for f in standing.overall.failures))
    yield from (total, standing_now)


def _disk(standing: Standing) -> Iterator[Metric]:
    disk = standing.disk
    for name, text, value in (
        ("scholaria_disk_free_bytes", "Free space under BACKUP_DIR", disk.free_bytes),
        ("scholaria_disk_size_bytes", "Size of that file system", disk.total_bytes),
        ("scholaria_predicted_next_set_bytes", "Size to expect of the next set", disk.predicted_next_bytes),
        ("scholaria_next_set_needed_bytes", "Free space that the next set wants, with headroom", disk.needed_bytes),
    ):
        if value is not None:
            yield _one(name, text, value)


def _oddities(standing: Standing) -> Iterator[Metric]:
    for name, text, value in (
        (
            "scholaria_unread_entries",
            "Sets or records that could not be read; while above 0 the other numbers are not whole",
            standing.unread,
        ),
        ("scholaria_damaged_sets", "Directories that claim to be a set and are damaged", standing.damaged),
        ("scholaria_broken_sets", "Sets whose newest verification or rehearsal failed", standing.broken),
        ("scholaria_partial_sets", "Sets that lack a store", standing.partial),
        ("scholaria_held_sets", "Sets that are kept from being pruned", standing.held),
        ("scholaria_future_sets", "Sets whose cut lies ahead of the clock", standing.ahead_of_clock),
    ):
        yield _one(name, text, len(value))


def _add(family: GaugeMetricFamily, labels: list[str], value: float | None) -> None:
    if value is not None:
        family.add_metric(labels, value)


__all__ = ["RANKS", "StandingCollector", "families", "registry_of"]
