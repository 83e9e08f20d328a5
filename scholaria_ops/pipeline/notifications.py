"""Sensors that tell people: one for each way in which a run can end, and one that brings messages to their targets.

Run-status sensors see every run of the instance, however it was started and however it ended: a worker that was killed, a run of the
command line, a run that a monitor gave up. They only note what is to be told; the sensor ``alerts`` sends it, and tries again.
"""

import logging
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Literal

import dagster as dg

from scholaria_ops.catalogue.sets import BackupSet
from scholaria_ops.errors import OpsError, UsageError
from scholaria_ops.operations.notify.delivery import announce, deliver
from scholaria_ops.operations.notify.runs import RunFacts, events_of, heartbeat_event
from scholaria_ops.operations.services import Services
from scholaria_ops.pipeline.assets_offsite import OFFSITE
from scholaria_ops.pipeline.errors import as_failure
from scholaria_ops.pipeline.resources import Estate, actor_of
from scholaria_ops.pipeline.waits import waited_s

_ENDS: dict[dg.DagsterRunStatus, Literal["success", "failure", "cancelled"]] = {
    dg.DagsterRunStatus.SUCCESS: "success",
    dg.DagsterRunStatus.FAILURE: "failure",
    dg.DagsterRunStatus.CANCELED: "cancelled",
}
#: Jobs whose checks are made in full each time. A verification of bytes alone leaves most checks open, on purpose.
_JUDGED = ("backup", "health")
#: A daemon whose sensors were evaluated this lately, in seconds, tells of runs by itself.
_ALIVE_S = 180.0


def facts_of(instance: dg.DagsterInstance, run_id: str) -> RunFacts | None:
    """The facts of a run that has ended; None if it has not, or is unknown."""
    record = instance.get_run_record_by_id(run_id)
    if record is None or record.dagster_run.status not in _ENDS:
        return None
    run = record.dagster_run
    failure = _failure(instance, run_id)
    return RunFacts(
        run_id=run_id,
        job=run.job_name,
        ended=_ENDS[run.status],
        at=datetime.fromtimestamp(record.end_time, UTC) if record.end_time else datetime.now(UTC),
        started_at=datetime.fromtimestamp(record.start_time, UTC) if record.start_time else None,
        waited_s=waited_s(run.tags),
        how=actor_of(run.tags, run_id).how,
        set_id=run.tags.get("dagster/partition", ""),
        tier=run.tags.get("scholaria/tier", ""),
        warnings=(*_shipping_warnings(instance, run_id), *_checks_that_warn(instance, run_id, run.job_name)),
        **failure,
    )


def _failure(instance: dg.DagsterInstance, run_id: str) -> dict[str, str]:
    """Code, message, next step and step of the failure, if a step told them."""
    for record in instance.get_records_for_run(run_id, of_type=dg.DagsterEventType.STEP_FAILURE).records:
        event = record.event_log_entry.dagster_event
        data = event.step_failure_data if event else None
        if event is None or data is None:
            continue
        ours = data.user_failure_data
        told = {k: str(v.value) for k, v in (ours.metadata if ours else {}).items() if k in {"code", "next step"}}
        message = (ours.description if ours else None) or (data.error.message if data.error else "")
        step = (event.step_key or "").split("[")[0]
        return {"code": told.get("code", "failed"), "message": message.strip(), "next_step": told.get("next step", ""), "step": step}
    return {}


def _shipping_warnings(instance: dg.DagsterInstance, run_id: str) -> tuple[str, ...]:
    for record in instance.get_records_for_run(run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION).records:
        made = record.asset_materialization
        if made and made.asset_key == OFFSITE and "warnings_new" in made.metadata:
            return tuple(str(made.metadata["warnings_new"].value).splitlines())
    return ()


def _checks_that_warn(instance: dg.DagsterInstance, run_id: str, job: str) -> tuple[str, ...]:
    """What the checks of a backup or of health were not content with, though the run went well."""
    if job not in _JUDGED:
        return ()
    found = []
    for record in instance.get_records_for_run(run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION).records:
        event = record.event_log_entry.dagster_event
        check = event.asset_check_evaluation_data if event else None
        # That an alert did not arrive is no reason for another one.
        if check and not check.passed and check.check_name != "alerts":
            found.append(f"{check.check_name}: {check.description or 'not passed'}")
    return tuple(found)


def tell(services: Services, instance: dg.DagsterInstance, run_id: str) -> int:
    """Note what is to be told of a run, once. Returns the number of messages that are on their way now."""
    facts = facts_of(instance, run_id)
    if facts is None:
        return 0
    made = _made(services, facts)
    events = events_of(facts, made, _newest_verified(services) if facts.ended != "success" else "")
    return len(announce(services, run_id, events, heartbeat=heartbeat_event(facts)))


def _made(services: Services, facts: RunFacts) -> BackupSet | None:
    if facts.job != "backup" or facts.ended != "success":
        return None
    return services.catalogue.find(facts.set_id).set


def _newest_verified(services: Services) -> str:
    try:
        newest = services.catalogue.find("latest").set
    except UsageError:
        return "there is none"
    except OpsError as exc:
        # The message about the failure must go out all the same, and say so.
        return f"cannot be told: {exc.message}"
    if newest is None:
        return "there is none"
    hours = (services.now() - newest.manifest.cut_at).total_seconds() / 3600
    return f"{newest.id}, {hours:.0f} h old" if hours >= 1 else f"{newest.id}, {hours * 60:.0f} min old"


def told_by_the_daemon(instance: dg.DagsterInstance) -> bool:
    """Whether a daemon evaluates sensors for this instance at present, so that it tells of every run."""
    beat = instance.get_daemon_heartbeats().get("SENSOR")
    return beat is not None and datetime.now(UTC).timestamp() - beat.timestamp < _ALIVE_S


def tell_without_daemon(services: Services, instance: dg.DagsterInstance, run_id: str) -> None:
    """What the command line does at the end of a run if no daemon would. Never fails: it is about telling, not about the run."""
    try:
        if not told_by_the_daemon(instance):
            tell(services, instance, run_id)
            deliver(services)
    except (OpsError, OSError) as exc:
        services.progress.say(f"the alert about run {run_id[:8]} could not be made: {exc}")


def _on(context: dg.RunStatusSensorContext, estate: Estate) -> None:
    with as_failure(), estate.services(context.log) as services:
        tell(services, context.instance, context.dagster_run.run_id)


_COMMON: dict[str, Any] = {
    "monitor_all_code_locations": True,
    "minimum_interval_seconds": 15,
    "default_status": dg.DefaultSensorStatus.RUNNING,
}


@dg.run_status_sensor(
    run_status=dg.DagsterRunStatus.FAILURE,
    name="tell_of_failures",
    description="Notes every run that failed, also if its process was killed, for `alerts` to tell.",
    **_COMMON,
)
def tell_of_failures(context: dg.RunStatusSensorContext, estate: Estate) -> None:
    _on(context, estate)


@dg.run_status_sensor(
    run_status=dg.DagsterRunStatus.SUCCESS,
    name="tell_of_successes",
    description="Notes the end of troubles, and warnings of runs that went well.",
    **_COMMON,
)
def tell_of_successes(context: dg.RunStatusSensorContext, estate: Estate) -> None:
    _on(context, estate)


@dg.run_status_sensor(
    run_status=dg.DagsterRunStatus.CANCELED,
    name="tell_of_cancellations",
    description="Notes runs that somebody, or a limit, stopped.",
    **_COMMON,
)
def tell_of_cancellations(context: dg.RunStatusSensorContext, estate: Estate) -> None:
    _on(context, estate)


@dg.sensor(
    name="alerts",
    minimum_interval_seconds=15,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Brings what is to be told to mail and webhooks, and tries again what did not arrive.",
)
def alerts(context: dg.SensorEvaluationContext, estate: Estate) -> dg.SkipReason:
    with as_failure(), estate.services(context.log or logging.getLogger("scholaria_ops")) as services:
        done = deliver(services)
    for name, error in done.failed.items():
        context.log.warning("%s: not delivered: %s", name, error)
    if done.busy:
        return dg.SkipReason("somebody else is delivering")
    told = f"delivered to {', '.join(done.delivered)}" if done.delivered else "nothing was due"
    failed = f"; not delivered to {', '.join(done.failed)}, tried again later" if done.failed else ""
    return dg.SkipReason(f"{told}{failed}" + (f"; {done.left} wait" if done.left else ""))


NOTIFICATION_SENSORS: Sequence[dg.SensorDefinition] = [tell_of_failures, tell_of_successes, tell_of_cancellations, alerts]
