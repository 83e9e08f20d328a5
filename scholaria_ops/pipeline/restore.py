"""Restoring live stores from Dagster: the plan is the first step of every run, execution takes nothing but a plan's digest."""

from collections.abc import Iterable

import dagster as dg
from pydantic import Field

from scholaria_ops.catalogue.evidence.base import STORE_NAMES, StoreName
from scholaria_ops.errors import Refused, UsageError
from scholaria_ops.humane import human_bytes
from scholaria_ops.operations.offsite import push_records
from scholaria_ops.operations.restore.live import live_stores
from scholaria_ops.operations.restore.options import RestoreOptions
from scholaria_ops.operations.restore.plan import Plans, RestorePlan, plan_restore
from scholaria_ops.operations.restore.report import TITLES, steps_of
from scholaria_ops.operations.restore.saga import RestoreReport, execute
from scholaria_ops.operations.services import Services
from scholaria_ops.pipeline.errors import as_failure
from scholaria_ops.pipeline.metadata import Metadata, table
from scholaria_ops.pipeline.origin import asked_at_a_shell, who_confirms
from scholaria_ops.pipeline.resources import ESTATE_POOL, Estate

_FROM_UI = "Use `scholaria-ops restore` at a terminal, or set BACKUP_RESTORE_FROM_UI."


class RestoreConfig(dg.Config):
    """Without a digest the plan is made and shown. With ``dry_run: false`` and the digest of a plan that was shown, it is executed."""

    set_id: str = "latest"
    components: list[str] = Field(default_factory=list)
    dry_run: bool = True
    digest: str = ""
    safety: bool = True
    qdrant_in_place: bool = False
    accept_replication: bool = False


@dg.op(
    out={
        "plan": dg.Out(str, description="Digest of the plan, with its tables."),
        "confirmed": dg.Out(str, is_required=False, description="The same, if the plan is to be executed."),
    },
    description="Says what restoring a set would do to the live stores, row by row, key by key, point by point. Changes nothing.",
)
def plan_of_restore(context: dg.OpExecutionContext, config: RestoreConfig, estate: Estate) -> Iterable[dg.Output[str]]:
    with as_failure(), estate.services(context.log) as services:
        plan = _plan(services, config)
    yield dg.Output(plan.digest, output_name="plan", metadata=plan_metadata(plan))
    if config.dry_run:
        context.log.info(
            "Nothing was touched. To carry it out before %s UTC: dry_run: false, digest: %s", f"{plan.valid_until:%H:%M}", plan.digest
        )
        return
    yield dg.Output(plan.digest, output_name="confirmed")


def _plan(services: Services, config: RestoreConfig) -> RestorePlan:
    plans = Plans(services.catalogue)
    if config.digest:
        return plans.shown(config.digest, services.now())
    if not config.dry_run:
        raise UsageError("a restore is executed by the digest of a plan that was shown", hint="Run once with dry_run, read the plan.")
    if not set(config.components) <= set(STORE_NAMES):
        raise UsageError(f"components {config.components} are not among {', '.join(STORE_NAMES)}")
    options = RestoreOptions(
        components=tuple(_names(config.components)),
        safety=config.safety,
        qdrant_in_place=config.qdrant_in_place,
        accept_replication=config.accept_replication,
    )
    reference = "latest" if config.set_id == "latest" else _as_id(config.set_id)
    plan = plan_restore(services, live_stores(services, options), reference, options)
    plans.show(plan)
    return plan


def _as_id(text: str) -> str:
    """Run config may name a set by its id only, never by a path."""
    from scholaria_ops.catalogue.layout import check_id

    return check_id(text)


def _names(components: Iterable[str]) -> Iterable[StoreName]:
    return (name for name in STORE_NAMES if name in components)


@dg.op(
    pool=ESTATE_POOL,
    description="Carries out the plan: stages beside, compares, stops the writers, switches, starts them; on failure takes all of it back.",
)
def execute_restore(context: dg.OpExecutionContext, confirmed: str, estate: Estate) -> None:
    with as_failure(), estate.services(context.log) as services:
        if not asked_at_a_shell() and not services.settings.restore_from_ui:
            raise Refused("restores are not executed from the UI here", hint=_FROM_UI)
        plan = Plans(services.catalogue).shown(confirmed, services.now())
        report = execute(services, live_stores(services, plan.options), plan, run_id=context.run.run_id, confirm=who_confirms())
        push_records(services, plan.set_id)
    for warning in report.journal.warnings:
        context.log.warning(warning)
    context.add_output_metadata(report_metadata(report))


@dg.job(
    name="restore",
    executor_def=dg.in_process_executor,
    # The digest goes from one step to the next in memory: nothing about a restore is pickled to disk.
    resource_defs={"io_manager": dg.mem_io_manager, "estate": Estate()},
    tags={"dagster/max_runtime": str(12 * 3600)},
    description="Shows what restoring a set into the live stores would do; executes a plan by its digest, where a setting allows it.",
)
def restore_job() -> None:
    _, confirmed = plan_of_restore()
    execute_restore(confirmed)


def plan_metadata(plan: RestorePlan) -> Metadata:
    """The plan, in the order in which it is weighed: what speaks against it, what it costs, what would be done."""
    # Few and wide columns: Dagster breaks words in narrow ones.
    against = [
        {"why": f"{_title(who)}: {o.message}", "next": o.hint + (f" ({o.option})" if o.option else "")} for who, o in plan.all_objections
    ]
    effects = [(name, e) for name, p in plan.store_plans().items() for e in p.effects] + [("all", e) for e in plan.effects]
    consequences = [
        {
            "consequence": f"{_title(who)}: {e.kind}" + ("" if e.count is None else f" {e.count:,}"),
            "of": e.what,
            "detail": e.detail,
        }
        for who, e in effects
    ]
    needs = [
        {
            "needed": f"{human_bytes(n.needed_bytes)} of "
            + (human_bytes(n.free_bytes) + " free" if n.free_bytes is not None else "what is free, not known from here"),
            "for": f"{_title(name)}: {n.what}",
        }
        for name, p in plan.store_plans().items()
        for n in p.needs
    ]
    warnings = [f"* {_title(name)}: {w}" for name, p in plan.store_plans().items() for w in p.warnings]
    return {
        "digest": plan.digest,
        "set": plan.set_id,
        **({"adopted_from": f"{plan.adopted.name}: {', '.join(f.name for f in plan.adopted.files)}"} if plan.adopted else {}),
        "cut_at": dg.MetadataValue.timestamp(plan.cut_at),
        "valid_until": dg.MetadataValue.timestamp(plan.valid_until),
        "expected_s": round(plan.expected_s, 1),
        "expected_lockout_s": round(plan.expected_lockout_s, 2),
        **({"objections": table(against)} if against else {}),
        **({"consequences": table(consequences)} if consequences else {}),
        **({"warnings": dg.MetadataValue.md("\n".join(warnings))} if warnings else {}),
        "steps": dg.MetadataValue.md("\n".join(f"{n}. {text}" for n, text in enumerate(steps_of(plan), 1))),
        **({"needs": table(needs)} if needs else {}),
    }


def _title(who: str) -> str:
    return TITLES.get(who, who)


def report_metadata(report: RestoreReport) -> Metadata:
    """What was done, in numbers."""
    done = report.journal
    return {
        "restore": done.id,
        "set": done.set_id,
        "safety_set": done.safety_set or "–",
        **{f"{name}_s": seconds for name, seconds in done.seconds.items()},
        "stores": table(
            {
                "store": _title(name),
                "without_service_s": round(switched.lockout_s, 3),
                "phases": ", ".join(f"{k} {v:.2f} s" for k, v in {**report.staged[name].seconds, **switched.seconds}.items()),
                "counts": ", ".join(f"{v:,} {k}" for k, v in report.staged[name].counts.items()),
            }
            for name, switched in report.switched.items()
        ),
        "kept": dg.MetadataValue.md("\n".join(f"* {line}" for line in done.kept) or "–"),
        "correspondence": done.correspondence or "–",
        "migration": report.after.revision or "–",
        "fresh_backup": done.fresh_backup or "–",
        **({"warnings": dg.MetadataValue.md("\n".join(f"* {w}" for w in done.warnings))} if done.warnings else {}),
    }
