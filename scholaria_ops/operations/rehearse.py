"""Rehearse a restore: bring a set back in isolated, throw-away servers and compare it with what was measured.

The servers are made here and by nobody else: there is no parameter through which a live store could become a target.
A verdict is ``proven`` only if all three stores were loaded, probed and found equal; what no server here could judge is
``unproven``, never good and never bad.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from scholaria_ops.catalogue.evidence.base import STORE_NAMES, Difference, StoreName
from scholaria_ops.catalogue.evidence.redis import RedisEvidence
from scholaria_ops.catalogue.layout import is_id
from scholaria_ops.catalogue.manifest import Manifest
from scholaria_ops.catalogue.sets import BackupSet, Entry
from scholaria_ops.errors import OpsError, Refused, UsageError, VerificationFailed
from scholaria_ops.files import write_private
from scholaria_ops.operations.isolation import check_isolation
from scholaria_ops.operations.second_opinion import second_opinion
from scholaria_ops.operations.services import Services
from scholaria_ops.operations.verify import hash_check
from scholaria_ops.sandbox.sandbox import Sandbox
from scholaria_ops.sandbox.server import Server
from scholaria_ops.stores.base import Context

Source = Literal["local", "offsite"]
Verdict = Literal["proven", "failed", "unproven"]


@dataclass(frozen=True, slots=True)
class StoreOutcome:
    """What became of one store. ``seconds`` maps phase (``start``, ``load``, ``probe`` …) to its duration."""

    store: StoreName
    verdict: Verdict
    detail: str
    seconds: Mapping[str, float]
    counts: Mapping[str, int] = field(default_factory=dict)
    differences: tuple[Difference, ...] = ()
    server_version: str = ""

    @property
    def rto_s(self) -> float:
        """Seconds from the start of the server to data that were compared."""
        return sum(self.seconds.values())


@dataclass(frozen=True, slots=True)
class RehearsalReport:
    """The proof, or why there is none."""

    set_id: str
    source: Source
    verdict: Verdict
    stores: tuple[StoreOutcome, ...]
    at: datetime
    #: Age of the cut when the rehearsal began: what would have been lost.
    rpo_s: float
    #: From the first byte fetched to all data compared.
    rto_s: float
    fetch_s: float
    #: Private file with the connection lines of servers that were left running, if asked for.
    kept_file: Path | None = None
    kept_until: datetime | None = None

    @property
    def needs(self) -> str:
        """What a verdict ``unproven`` would need."""
        return "; ".join(f"{s.store}: {s.detail}" for s in self.stores if s.verdict == "unproven")


class RehearsalFailed(VerificationFailed):
    """A set did not come back equal: do not rely on it."""

    code = "rehearsal_failed"


class RehearsalUnproven(Refused):
    """Nobody here could judge the set in full."""

    code = "rehearsal_unproven"


def raise_unless_proven(report: RehearsalReport) -> None:
    """Raise :class:`RehearsalFailed` or :class:`RehearsalUnproven` with what stands against the proof."""
    lines = "; ".join(f"{s.store}: {s.detail}" for s in report.stores if s.verdict != "proven")
    absent = [name for name in STORE_NAMES if name not in {s.store for s in report.stores}]
    if absent:
        lines = "; ".join(filter(None, [lines, f"not in the set: {', '.join(absent)}"]))
    if report.verdict == "failed":
        raise RehearsalFailed(
            f"the set {report.set_id} did not come back equal: {lines}",
            hint="Rehearse an older set, and find out what damaged this one.",
        )
    if report.verdict == "unproven":
        raise RehearsalUnproven(
            f"the set {report.set_id} is neither proven nor broken: {lines}", hint="Provide what is missing and rehearse again."
        )


def rehearse(
    services: Services, reference: str, *, source: Source = "local", keep: timedelta | None = None, run_id: str = ""
) -> RehearsalReport:
    """Restore a set into servers of our own and compare it; the outcome is appended to the set's records.

    Args:
        reference: ``latest`` or an id (a path only for ``source="local"``).
        source: take the set from this disk, or only from the offsite copy.
        keep: leave the servers up for that long, for people to look at.

    Raises:
        UsageError: there is no such set.
        Cancelled: told to stop; servers and directories are gone.
    """
    given = reference if is_id(reference) else ""
    with services.audited("rehearse", given, run_id=run_id, reference=reference, source=source) as entry:
        report = _rehearse(services, reference, source, keep)
        entry.set_id = report.set_id
        entry.note(verdict=report.verdict, rto_s=round(report.rto_s, 3), rpo_s=round(report.rpo_s, 3))
        if report.verdict != "proven":
            entry.failed("; ".join(f"{s.store}: {s.verdict}, {s.detail}" for s in report.stores if s.verdict != "proven"))
        _record(services, report, run_id)
    return report


def _rehearse(services: Services, reference: str, source: Source, keep: timedelta | None) -> RehearsalReport:
    began, at = time.monotonic(), services.now()
    with ExitStack() as stack:
        ctx = stack.enter_context(services.context("rehearsal"))
        backup_set, fetch_s = stack.enter_context(_obtained(services, reference, source, ctx))
        box = stack.enter_context(Sandbox(services.settings.scratch_root, services.tools, label="rehearsal", cancel=services.cancel))
        outcomes = _all_stores(services, backup_set, box, ctx)
        rto_s = time.monotonic() - began
        kept_file: Path | None = None
        if keep:
            box.keep(at + keep)
            kept_file = _write_connections(box)
    return RehearsalReport(
        set_id=backup_set.id,
        source=source,
        verdict=_overall(backup_set.manifest, outcomes),
        stores=tuple(outcomes),
        at=at,
        rpo_s=(at - backup_set.manifest.cut_at).total_seconds(),
        rto_s=rto_s,
        fetch_s=fetch_s,
        kept_file=kept_file,
        kept_until=at + keep if keep else None,
    )


@contextmanager
def _obtained(services: Services, reference: str, source: Source, ctx: Context) -> Iterator[tuple[BackupSet, float]]:
    """The set's directory, its bytes checked; for ``offsite`` a copy that was fetched just now."""
    began = time.monotonic()
    if source == "offsite":
        from scholaria_ops.operations.offsite import fetch_into, offsite_id

        directory = fetch_into(services, offsite_id(services, reference), ctx.scratch / "fetched", ctx)
        yield BackupSet.open(directory), time.monotonic() - began
        return
    entry: Entry = services.catalogue.find(reference)
    if entry.set is None:
        raise UsageError(f"{entry.name} cannot be rehearsed: it is {entry.kind}", hint=entry.reason or "Choose a sealed set.")
    # Authenticate before any tool reads a byte: an archive can carry code.
    hash_check(services, entry, ctx)
    yield entry.set, time.monotonic() - began


def _all_stores(services: Services, backup_set: BackupSet, box: Sandbox, ctx: Context) -> list[StoreOutcome]:
    names = [name for name, _ in backup_set.manifest.parts()]
    with ThreadPoolExecutor(max_workers=len(STORE_NAMES), thread_name_prefix="rehearse") as pool:
        futures = {name: pool.submit(_one_store, services, backup_set, name, box, ctx) for name in names}
        try:
            return [futures[name].result() for name in names]
        except BaseException as exc:
            services.cancel.cancel(str(exc) or type(exc).__name__)
            raise


def _one_store(services: Services, backup_set: BackupSet, name: StoreName, box: Sandbox, ctx: Context) -> StoreOutcome:
    store, part = services.stores[name], backup_set.manifest.part(name)
    if part is None:
        raise UsageError(f"the set {backup_set.id} has no {name}")
    artifacts = backup_set.manifest.artifacts_of(name)
    scratch = ctx.scratch / name
    scratch.mkdir(mode=0o700)
    own = replace(ctx, scratch=scratch)
    seconds: dict[str, float] = {}
    try:
        with _timed(seconds, "start"):
            target = _start(box, name, part.evidence)
        with _timed(seconds, "isolation"):
            check_isolation(name, services.settings, target)
        with _timed(seconds, "load"):
            store.load(backup_set.directory, artifacts, part.evidence, target, own)
        with _timed(seconds, "probe"):
            found = store.probe(target, part.evidence, own)
            differences = store.compare(part.evidence, found)
        with _timed(seconds, "count again"):
            differences += second_opinion(target, part.evidence)
    except Refused as exc:
        services.cancel.check()
        return StoreOutcome(name, "unproven", f"needs: {exc.message}", seconds)
    except OpsError as exc:
        services.cancel.check()
        return StoreOutcome(name, "failed", exc.message, seconds)
    losses = [d for d in differences if d.severity == "loss"]
    counts = dict(found.headline())
    detail = f"{len(losses)} differences, first: {losses[0]}" if losses else ", ".join(f"{v:,} {k}" for k, v in counts.items())
    return StoreOutcome(name, "failed" if losses else "proven", detail, seconds, counts, tuple(differences), found.server_version)


@contextmanager
def _timed(seconds: dict[str, float], phase: str) -> Iterator[None]:
    began = time.monotonic()
    try:
        yield
    finally:
        seconds[phase] = time.monotonic() - began


def _start(box: Sandbox, name: StoreName, evidence: Any) -> Server:
    """A server like production's in what matters: Redis with its append-only file on, and enough databases."""
    starters: Mapping[StoreName, Callable[[], Server]] = {
        "postgres": lambda: box.postgres(name="postgres"),
        "redis": lambda: box.redis(name="redis", config={"appendonly": "yes", "databases": str(_databases(evidence))}),
        "qdrant": lambda: box.qdrant(name="qdrant", grpc=True),
    }
    return starters[name]()


def _databases(evidence: Any) -> int:
    """Numbered databases that a Redis target needs: as many as the source has, or at least as its keys use."""
    if not isinstance(evidence, RedisEvidence):
        return 16
    return max(16, evidence.databases or 0, *(db + 1 for db in evidence.per_database()))


def _overall(manifest: Manifest, outcomes: list[StoreOutcome]) -> Verdict:
    verdicts = {o.verdict for o in outcomes}
    if "failed" in verdicts:
        return "failed"
    if "unproven" in verdicts or manifest.partial or len(outcomes) != len(STORE_NAMES):
        return "unproven"
    return "proven"


def _write_connections(box: Sandbox) -> Path:
    """Connection lines hold passwords, if only throw-away ones: they go into a private file, never into a log."""
    # They start side by side, and whichever is up first comes first in the sandbox.
    servers = sorted(box.servers.values(), key=lambda server: STORE_NAMES.index(server.name))
    lines = [connection_line(server) for server in servers]
    return write_private(box.directory / "connect.txt", ("\n".join(lines) + "\n").encode()).path


def connection_line(server: Server) -> str:
    """How a person connects to a kept server. These are throw-away servers on the loopback interface, with throw-away passwords."""
    connection: Any = server.connection  # type: ignore[attr-defined]
    password = getattr(connection, "password", None)
    secret = password.get_secret_value() if password else ""
    if server.name == "postgres":
        return f"PGPASSWORD={secret} psql -h {connection.host} -p {connection.port} -U {connection.user} -l"
    if server.name == "redis":
        return f"REDISCLI_AUTH={secret} redis-cli -h {connection.host} -p {connection.port} info keyspace"
    return f"curl {connection.url}/collections"


def _record(services: Services, report: RehearsalReport, run_id: str) -> None:
    services.catalogue.records.append(
        report.set_id,
        "rehearsed",
        run_id=run_id,
        at=report.at,
        verdict=report.verdict,
        source=report.source,
        rto_s=round(report.rto_s, 3),
        rpo_s=round(report.rpo_s, 3),
        fetch_s=round(report.fetch_s, 3),
        audit=services.audit_log.head().as_detail(),
        kept_until=report.kept_until.isoformat() if report.kept_until else None,
        kept_file=str(report.kept_file) if report.kept_file else None,
        stores={
            o.store: {
                "verdict": o.verdict,
                "detail": o.detail,
                "rto_s": round(o.rto_s, 3),
                "seconds": {k: round(v, 3) for k, v in o.seconds.items()},
                "counts": dict(o.counts),
                "server_version": o.server_version,
                "differences": [str(d) for d in o.differences][:50],
            }
            for o in report.stores
        },
    )
