"""Offsite → rehearsal: the set restored into servers of our own and found equal. The proof."""

import logging
import re
from datetime import timedelta

import dagster as dg

from scholaria_ops.errors import ConfigError, OpsError
from scholaria_ops.files import replace_durably
from scholaria_ops.humane import human_seconds
from scholaria_ops.operations.offsite import push_records
from scholaria_ops.operations.rehearse import RehearsalReport, Source, raise_unless_proven, rehearse
from scholaria_ops.operations.report import report_page
from scholaria_ops.operations.services import Services
from scholaria_ops.operations.standing import take_standing
from scholaria_ops.operations.ticks import next_ticks
from scholaria_ops.pipeline.assets_live import OWNERS
from scholaria_ops.pipeline.assets_offsite import OFFSITE
from scholaria_ops.pipeline.errors import as_failure
from scholaria_ops.pipeline.freshness import FRESHNESS
from scholaria_ops.pipeline.metadata import Metadata, table
from scholaria_ops.pipeline.partitions import BACKUPS
from scholaria_ops.pipeline.resources import MAX_RUNTIME_S, Estate

RESTORED = dg.AssetKey(["rehearsal", "restored"])
#: Rehearsals that the newest one shows beside itself.
_RECENT = 12
_PERIOD = re.compile(r"^(\d+)\s*(s|m|h)$")


class RehearsalConfig(dg.Config):
    """Where to take the set from (``local`` or ``offsite``), and how long to keep the servers up (``2h``; empty: not at all)."""

    source: str = "local"
    keep: str = ""


@dg.asset(
    key=RESTORED,
    freshness_policy=FRESHNESS["restored"],
    deps=[OFFSITE],
    partitions_def=BACKUPS,
    group_name="rehearsal",
    kinds={"postgres", "redis", "qdrant"},
    owners=OWNERS,
    description="The set restored into throw-away servers, probed there and compared with what was measured when it was taken.",
)
def restored(context: dg.AssetExecutionContext, config: RehearsalConfig, estate: Estate) -> dg.MaterializeResult[None]:
    with as_failure(), estate.services(context.log) as services:
        report = rehearse(
            services, context.partition_key, source=check_source(config.source), keep=parse_period(config.keep), run_id=context.run.run_id
        )
        push_records(services, report.set_id)
        shown = {**report_metadata(report), **page_metadata(services, context.log)}
    if report.kept_file:
        context.log.info("The servers stay up until %s; how to connect: %s", report.kept_until, report.kept_file)
    with as_failure(shown):
        raise_unless_proven(report)
    return dg.MaterializeResult(asset_key=RESTORED, metadata=shown)


def check_source(value: str) -> Source:
    """The source that run config names; raises ConfigError for anything else."""
    if value == "local":
        return "local"
    if value == "offsite":
        return "offsite"
    raise ConfigError(f"source {value!r} does not exist", hint="Use local or offsite.")


def parse_period(text: str) -> timedelta | None:
    """``90s``, ``30m``, ``2h``; empty for none. At most a day."""
    if not text.strip():
        return None
    match = _PERIOD.match(text.strip())
    period = timedelta(**{{"s": "seconds", "m": "minutes", "h": "hours"}[match[2]]: int(match[1])}) if match else timedelta.max
    if period > timedelta(days=1):
        raise ConfigError(f"{text!r} is no period of at most a day", hint="Write 30m or 2h.")
    return period


def page_metadata(services: Services, log: logging.Logger) -> Metadata:
    """Where the report of this moment lies, and the last rehearsals. A verdict stands without it, so what goes wrong is logged only."""
    path = services.catalogue.layout.state / "report.html"
    try:
        standing = take_standing(services)
        page = report_page(standing, services.settings.timezone, next_ticks(services.settings, standing.now))
        replace_durably(path, page.encode())
    except (OpsError, OSError) as exc:
        log.warning("the report was not written: %s", exc)
        return {}
    rows = (
        {
            "when": f"{r.at.astimezone(services.settings.timezone):%Y-%m-%d %H:%M}",
            "set": r.id,
            "source": r.source,
            "verdict": r.verdict,
            "rto": human_seconds(r.rto_s) if r.rto_s is not None else "–",
            "rpo": human_seconds(r.rpo_s) if r.rpo_s is not None else "–",
        }
        for r in reversed(standing.rehearsals[-_RECENT:])
    )
    return {"report": dg.MetadataValue.path(path), "recent_rehearsals": table(rows)}


def report_metadata(report: RehearsalReport) -> Metadata:
    """RTO, RPO and what was compared."""
    differences = [d for s in report.stores for d in s.differences]
    return {
        "verdict": report.verdict,
        "source": report.source,
        "rto_s": round(report.rto_s, 3),
        "rpo_s": round(report.rpo_s, 3),
        "fetch_s": round(report.fetch_s, 3),
        **{name: int(s.counts[name]) for s in report.stores for name in ("rows", "keys", "points") if name in s.counts},
        "stores": table(
            {
                "store": s.store,
                "verdict": s.verdict,
                "rto_s": round(s.rto_s, 2),
                "phases": ", ".join(f"{k} {v:.2f} s" for k, v in s.seconds.items()),
                "detail": s.detail,
                "server": s.server_version,
            }
            for s in report.stores
        ),
        **(
            {
                "differences": table(
                    {"store": d.store, "what": d.what, "expected": d.expected, "found": d.found, "weight": d.severity} for d in differences
                )
            }
            if differences
            else {}
        ),
    }


rehearsal_job = dg.define_asset_job(
    "rehearsal",
    selection=dg.AssetSelection.assets(RESTORED),
    executor_def=dg.in_process_executor,
    tags=MAX_RUNTIME_S,
    description="Restore a set into throw-away servers, compare it with its evidence, record RTO and RPO. Touches no live store.",
)
