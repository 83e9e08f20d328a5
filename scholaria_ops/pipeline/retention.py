"""Retention in Dagster: a job that shows the plan or applies one, and the sensor that asks for it after a verified backup.

From the UI a plan is applied only by its digest, and only if a setting allows it. What the sensor asks for is applied by policy:
it leaves a ticket below BACKUP_DIR first, which nobody can make from the UI.
"""

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta
from pathlib import Path

import dagster as dg

from scholaria_ops.catalogue.layout import check_id
from scholaria_ops.catalogue.records import Record, Records
from scholaria_ops.catalogue.retention import Plan
from scholaria_ops.catalogue.sets import Catalogue
from scholaria_ops.errors import OpsError, Refused, UsageError
from scholaria_ops.files import make_private_dir
from scholaria_ops.humane import human_bytes
from scholaria_ops.operations.inventory import InFlight
from scholaria_ops.operations.prune import Outcome, execute, plan_prune, prune_by_policy
from scholaria_ops.operations.prune_state import PruneState
from scholaria_ops.operations.restore.live import live_stores
from scholaria_ops.operations.restore.options import RestoreOptions
from scholaria_ops.operations.restore.undo import discard
from scholaria_ops.operations.services import Services
from scholaria_ops.pipeline.errors import as_failure
from scholaria_ops.pipeline.metadata import Metadata, table
from scholaria_ops.pipeline.origin import asked_at_a_shell
from scholaria_ops.pipeline.partitions import BACKUPS
from scholaria_ops.pipeline.resources import ESTATE_POOL, Estate

_UNFINISHED = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]
#: How long after its verification a set may still bring about a prune.
FRESH = timedelta(days=1)
#: Rows of the plan that a run's metadata shows; the whole plan stays in BACKUP_DIR.
_SHOWN = 500


def runs_in_flight(instance: dg.DagsterInstance) -> InFlight:
    """Set id → the unfinished run that works on it."""
    found = {}
    for run in instance.get_runs(dg.RunsFilter(statuses=_UNFINISHED)):
        if set_id := run.tags.get("dagster/partition"):
            found[set_id] = f"run {run.run_id[:8]} of the job {run.job_name}"
    return found


class RetentionConfig(dg.Config):
    """Without anything, the plan is shown. ``digest`` applies the plan shown last. ``after`` is the sensor's."""

    digest: str = ""
    after: str = ""


@dg.op(
    pool=ESTATE_POOL,
    description="Shows which sets retention would remove and why, or removes exactly those of a plan.",
)
def retain(context: dg.OpExecutionContext, config: RetentionConfig, estate: Estate) -> None:
    with as_failure(), estate.services(context.log) as services:
        for notice in services.settings.notices:
            context.log.warning(notice)
        plan, outcome = _retain(services, config, lambda: runs_in_flight(context.instance), context.run.run_id)
        if outcome is None:
            context.log.info("Nothing was removed. The digest of this plan is %s.", plan.digest)
            context.add_output_metadata(plan_metadata(plan))
            return
        for set_id in outcome.gone:
            context.instance.delete_dynamic_partition(str(BACKUPS.name), set_id)
        if config.after:
            _ticket(services.catalogue, config.after).unlink(missing_ok=True)
        _discard_old(services, context)
    context.add_output_metadata({**plan_metadata(plan), **outcome_metadata(outcome)})


def _discard_old(services: Services, context: dg.OpExecutionContext) -> None:
    """Remove what restores have kept for longer than the settings say. A store that is down keeps its own until the next time."""
    try:
        for gone in discard(
            services, live_stores(services, RestoreOptions()), older_than=timedelta(days=services.settings.restore_keep_days)
        ):
            if gone.lines:
                context.log.info("What the restore %s kept is removed: %s", gone.restore_id, "; ".join(gone.lines))
            if gone.left:
                context.log.warning("Something that the restore %s kept stays: %s", gone.restore_id, "; ".join(gone.left))
    except OpsError as exc:
        context.log.warning("What an old restore has kept could not be removed: %s", exc)


def _retain(services: Services, config: RetentionConfig, in_flight: Callable[[], InFlight], run_id: str) -> tuple[Plan, Outcome | None]:
    """The plan of this run, and what came of it; None if it was only to be shown."""
    state = PruneState(services.catalogue.layout)
    if config.digest and config.after:
        raise UsageError("digest and after exclude each other", hint="Give the digest of the plan, or nothing.")
    if config.digest:
        if not asked_at_a_shell() and not services.settings.retention_apply_from_ui:
            raise Refused(
                "plans are not applied from the UI here", hint="Use `scholaria-ops prune --apply`, or set BACKUP_RETENTION_APPLY_FROM_UI."
            )
        plan = state.shown(config.digest)
        return plan, execute(services, plan, in_flight, run_id=run_id)
    if not config.after:
        plan = plan_prune(services, in_flight())
        state.show(plan)
        return plan, None
    if not _ticket(services.catalogue, config.after).is_file():
        raise Refused(
            f"nobody asked for retention after {config.after}, or it is done already",
            hint="Leave `after` empty to see the plan; `scholaria-ops prune --apply` applies one.",
        )
    return prune_by_policy(services, in_flight, run_id=run_id)


def plan_metadata(plan: Plan) -> Metadata:
    """The plan as a table, with its digest and numbers."""
    lines = sorted(plan.lines, key=lambda line: not line.remove)
    rows = [
        {
            "set": line.name,
            "place": line.place,
            "tier": line.tier,
            "verdict": "remove" if line.remove else "keep",
            "rule": str(line.rule),
            "reason": line.reason,
            "size": human_bytes(line.size_bytes),
        }
        for line in lines[:_SHOWN]
    ]
    return {
        "digest": plan.digest,
        "to_remove": len(plan.removals),
        "to_free_bytes": plan.freed_bytes,
        "kept": len(plan.lines) - len(plan.removals),
        **({"plan": table(rows)} if rows else {}),
        **({"refused": dg.MetadataValue.md("\n".join(f"* {r.message}" for r in plan.refusals))} if plan.refusals else {}),
    }


def outcome_metadata(outcome: Outcome) -> Metadata:
    """What was done."""
    return {
        "removed": len(outcome.removed),
        "freed_bytes": outcome.freed_bytes,
        "finished_of_an_earlier_run": ", ".join(outcome.finished) or "–",
        "spared": ", ".join(f"{n}: {why}" for n, why in outcome.spared.items()) or "–",
    }


@dg.job(
    name="retention",
    executor_def=dg.in_process_executor,
    tags={"dagster/max_runtime": str(6 * 3600)},
    description="Shows the retention plan; applies one by its digest, where a setting allows it. Follows every verified backup by itself.",
)
def retention_job() -> None:
    retain()


def newly_verified(records: Mapping[str, Iterable[Record]], in_flight: InFlight, done: str, now: datetime) -> str | None:
    """The newest set whose verification passed lately and whose run has ended, unless it is the one that was ``done`` last."""
    found: list[tuple[datetime, str]] = []
    for set_id, history in records.items():
        events = list(history)
        sealed = any(r.event == "sealed" and not r.detail.get("partial") for r in events)
        judged = [r for r in events if r.event == "verified"]
        fresh = bool(judged) and judged[-1].detail.get("passed") is True and abs(now - judged[0].at) <= FRESH
        if sealed and fresh and set_id not in in_flight:
            found.append((judged[0].at, set_id))
    newest = max(found)[1] if found else None
    return None if newest == done else newest


@dg.sensor(
    name="retention_after_backup",
    job_name="retention",
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Asks for retention once a backup is verified and its run has ended.",
)
def retention_after_backup(context: dg.SensorEvaluationContext, estate: Estate) -> dg.SensorResult | dg.SkipReason:
    settings = estate.settings()
    catalogue = Catalogue(settings.backup_dir)
    set_id = newly_verified(
        _recent(catalogue.records), runs_in_flight(context.instance), context.cursor or "", datetime.now(settings.timezone)
    )
    if set_id is None:
        return dg.SkipReason("no set was verified since the last time")
    ticket = _ticket(catalogue, set_id)
    make_private_dir(ticket.parent, exist_ok=True)
    ticket.touch(mode=0o600)
    return dg.SensorResult(
        run_requests=[dg.RunRequest(run_key=f"after-{set_id}", run_config={"ops": {"retain": {"config": {"after": set_id}}}})],
        cursor=set_id,
    )


def _ticket(catalogue: Catalogue, set_id: str) -> Path:
    return catalogue.layout.state / "retention-asked" / check_id(set_id)


def _recent(records: Records) -> dict[str, list[Record]]:
    """Histories of the newest ids only: a set that was verified lately is among the youngest."""
    return {set_id: records.of(set_id) for set_id in sorted(records.ids())[-50:]}


RETENTION_SENSORS = [retention_after_backup]
