"""Execute a restore plan: stage every store beside what is served, switch them one after the other, or take all of it back.

What may fail does so while nobody is locked out: the data are loaded and compared first, in all stores side by side. Then
the writers are stopped, the stores switched (Qdrant last: a plain collection cannot be switched without a gap), the hooks
run, and the writers started. Until the journal says ``switched`` any failure takes every store back; from then on the rest is
carried to its end, by the next command if need be.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from scholaria_ops.cancel import CancelToken, uninterrupted
from scholaria_ops.catalogue.evidence.base import STORE_NAMES, StoreName
from scholaria_ops.catalogue.layout import SUMS
from scholaria_ops.catalogue.records import whoami
from scholaria_ops.catalogue.sets import BackupSet
from scholaria_ops.errors import Cancelled, OpsError, Refused, StoreError
from scholaria_ops.files import hash_file
from scholaria_ops.operations.backup import BackupIncomplete, BackupRequest, backup_holding_the_lock, reserve
from scholaria_ops.operations.restore.after import After, Aftermath
from scholaria_ops.operations.restore.fence import Fence, FenceFailed, NobodyStopped, fence_of
from scholaria_ops.operations.restore.journal import Journal, Journals
from scholaria_ops.operations.restore.live import LiveStores
from scholaria_ops.operations.restore.plan import (
    RestorePlan,
    choose,
    refuse_objections,
    require_fresh,
    require_same_settings,
    require_unspent,
    source_of,
    typed_plans,
)
from scholaria_ops.operations.restore.recover import FINISHED, NotTakenBack, dead_end, recover, take_back
from scholaria_ops.operations.restore.tasks import waiting
from scholaria_ops.operations.services import Services
from scholaria_ops.stores.base import Context
from scholaria_ops.stores.live import Staged, StorePlan, Switched


@dataclass(frozen=True, slots=True)
class RestoreReport:
    """What was done. The journal holds what was measured; see :class:`Journal`."""

    journal: Journal
    staged: Mapping[StoreName, Staged]
    switched: Mapping[StoreName, Switched]
    after: Aftermath


@dataclass(frozen=True, slots=True)
class Safety:
    """What was saved before anything is replaced. ``set_id`` is empty if nothing was; ``warnings`` say what was wanted and is not."""

    set_id: str = ""
    seconds: float = 0.0
    warnings: tuple[str, ...] = ()


class RestoreFailed(StoreError):
    """A restore did not succeed. ``taken_back``: every store serves what it served before; else the message says which do not."""

    code = "restore_failed"

    def __init__(self, message: str, *, hint: str, taken_back: bool) -> None:
        super().__init__(message, hint=hint)
        self.taken_back = taken_back


@dataclass
class _Run:
    """One execution under way."""

    services: Services
    live: LiveStores
    plan: RestorePlan
    plans: Mapping[StoreName, StorePlan]
    fence: Fence
    journals: Journals
    journal: Journal
    ctx: Context
    staged: dict[StoreName, Staged] = field(default_factory=dict)
    switched: dict[StoreName, Switched] = field(default_factory=dict)
    fenced_s: float = 0.0
    unfenced: FenceFailed | None = None

    def note(self, **fields: object) -> None:
        """Put a new state of the journal down before going on."""
        self.journal = self.journals.write(self.journal.model_copy(update=fields))

    def say(self, text: str) -> None:
        self.services.progress.say(text)


def execute(
    services: Services, live: LiveStores, plan: RestorePlan, *, run_id: str = "", confirm: Callable[[str], bool] | None = None
) -> RestoreReport:
    """Carry out a plan. The caller has shown it and has been told yes.

    ``confirm`` is asked once more where a safety set was wanted and nothing at all could be saved; without it that is a warning.

    Raises:
        Refused: the plan has expired, was made with other settings, or has objections; the set or a target is not what it was.
            Nothing was touched.
        RestoreFailed: something failed midway; the stores serve what they served before, or the message says which do not.
        Busy: another run is at work.
        Cancelled: told to stop; everything begun was taken back.
    """
    require_fresh(plan, services.now())
    require_same_settings(plan, services)
    refuse_objections(plan)
    fence = fence_of(services.settings)
    asked = {"plan": plan.digest, "components": list(plan.components), "safety": plan.options.safety}
    with (
        services.audited("restore", plan.set_id, run_id=run_id, **asked) as audit,
        services.locked(f"restore {plan.set_id}", until=plan.valid_until),
        services.context("restore") as ctx,
    ):
        began = time.monotonic()  # not what was waited for the lock
        require_fresh(plan, services.now())
        for line in recover(services, live, ctx):
            services.progress.say(line)
        journals = Journals(services.catalogue.layout)
        require_unspent(plan, journals)
        entry = choose(services, str(plan.outside or plan.set_id), ctx)
        if entry.set is None or hash_file(entry.directory / SUMS).sha256 != plan.sums_sha256:
            raise Refused(f"the set {plan.set_id} is not the one that was planned with", hint="Make a new plan.")
        safety = _safety_set(services, plan, run_id) if plan.options.safety else Safety()
        if plan.options.safety and not safety.set_id and confirm and not confirm("; ".join(safety.warnings)):
            raise Refused("not confirmed: nothing of what would be replaced can be saved", hint="Nothing was touched.")
        journal = Journal(
            id=journals.fresh_id(services.now(), services.settings.timezone),
            set_id=plan.set_id,
            stores=plan.components,
            plan_digest=plan.digest,
            begun_at=services.now(),
            by=whoami(),
            run_id=run_id,
            safety_set=safety.set_id,
            warnings=safety.warnings,
        )
        after_safety = time.monotonic()
        run = _Run(services, live, plan, typed_plans(plan, live), fence, journals, journals.write(journal), ctx)
        report = _carry_out(run, entry.set, began, safety, after_safety)
        done = report.journal
        audit.note(restore=done.id, safety_set=safety.set_id, seconds=done.seconds, kept=list(done.kept), warnings=list(done.warnings))
        return report


def _carry_out(run: _Run, backup_set: BackupSet, began: float, safety: Safety, after_safety: float) -> RestoreReport:
    after = After(run.services, run.ctx, tasks=lambda: waiting(run.live, run.plans, run.ctx))
    try:
        _stage_all(run, backup_set)
        run.note(phase="staged")
        stage_s = time.monotonic() - after_safety
        _switch_all(run, after, backup_set)
    except BaseException as exc:
        raise _taken_back(run, exc) from exc
    restore_s = time.monotonic() - after_safety
    if run.unfenced is not None:
        text = run.unfenced.message
        try:
            run.note(kept=tuple(_finish_all(run)))
        except OpsError as exc:
            text += f"; and what the switch needed could not be cleared away: {exc.message}"
        raise RestoreFailed(
            f"the set {run.plan.set_id} is served, but {text}",
            hint=f"{run.unfenced.hint} Then `scholaria-ops restore --recover` finishes the rest.",
            taken_back=False,
        )
    with ThreadPoolExecutor(1, "look") as pool:
        looking = pool.submit(after.look, backup_set, run.plan.components)
        try:
            run.note(kept=tuple(_finish_all(run)))
            run.note(phase="done", ended_at=run.services.now())
        except OpsError as exc:
            raise _unfinished(run, exc) from exc
        aftermath = after.ask_for_backup(backup_set, looking.result())
    seconds = {"safety": safety.seconds, "stage": stage_s, "fenced": run.fenced_s, "restore": restore_s, "total": time.monotonic() - began}
    warnings = (
        *safety.warnings,
        *aftermath.warnings,
        *(f"{n}: {w}" for n, staged in run.staged.items() for w in staged.warnings),
        *(f"{n}: {w}" for n, switched in run.switched.items() for w in switched.warnings),
    )
    run.note(
        seconds={k: round(v, 3) for k, v in seconds.items()},
        stage_s={n: {k: round(v, 3) for k, v in staged.seconds.items()} for n, staged in run.staged.items()},
        lockout_s={n: round(switched.lockout_s, 3) for n, switched in run.switched.items()},
        warnings=warnings,
        correspondence=aftermath.correspondence.line() if aftermath.correspondence else "",
        fresh_backup=aftermath.fresh_backup,
    )
    return RestoreReport(run.journal, run.staged, run.switched, aftermath)


def _safety_set(services: Services, plan: RestorePlan, run_id: str) -> Safety:
    """A set of what will be replaced. A store that is dead cannot be saved: that is a warning, and no reason to stop."""
    began = time.monotonic()
    request = BackupRequest(
        tier="pre_restore", note=f"before restoring {plan.set_id}", requested_by="restore", run_id=run_id, only=plan.components
    )
    set_id = reserve(services, request)
    services.progress.say(f"safety set {set_id}: what the live stores hold now")
    warnings: tuple[str, ...] = ()
    try:
        backup_holding_the_lock(services, set_id, request)
    except BackupIncomplete as exc:
        if exc.partial is None and len(exc.failures) < len(plan.components):
            raise
        warnings = tuple(f"{name} could not be saved before the restore: {error.message}" for name, error in exc.failures.items())
        if exc.partial is None:
            set_id = ""
            warnings = ("there is no safety set: nothing of what is replaced could be saved", *warnings)
        for line in warnings:
            services.progress.say(line)
    return Safety(set_id, time.monotonic() - began, warnings)


def _stage_all(run: _Run, backup_set: BackupSet) -> None:
    """Side by side. The first failure stops the others; each has then removed what it made."""
    token = CancelToken()
    with run.services.cancel.on_cancel(lambda: token.cancel(run.services.cancel.reason)), ThreadPoolExecutor(len(STORE_NAMES)) as pool:
        futures = {name: pool.submit(_stage_one, run, backup_set, name, token) for name in run.plan.components}
        failures: list[BaseException] = []
        for name, future in futures.items():
            try:
                run.staged[name] = future.result()
            except BaseException as exc:  # noqa: BLE001 - raised below, when no thread works any more
                failures.append(exc)
                token.cancel(f"{name} failed")
    run.services.cancel.check()
    if failures:
        # What was stopped because of another store's failure is not the reason.
        raise next((f for f in failures if not isinstance(f, Cancelled)), failures[0])


def _stage_one(run: _Run, backup_set: BackupSet, name: StoreName, token: CancelToken) -> Staged:
    scratch = run.ctx.scratch / name
    scratch.mkdir(mode=0o700)
    ctx = replace(run.ctx, scratch=scratch, cancel=token)
    try:
        return run.live[name].store.stage(run.plans[name], source_of(backup_set, name), run.journals.notebook(run.journal.id, name), ctx)
    except BaseException as exc:
        token.cancel(f"{name}: {exc}")
        raise


def _finish_all(run: _Run) -> list[str]:
    """Side by side: each store clears away what is its own. All are tried; the first failure is raised. Returns what is kept."""
    with ThreadPoolExecutor(len(STORE_NAMES), "finish") as pool:
        futures = {name: pool.submit(_finish_one, run, name) for name in run.plan.components}
    kept: list[str] = []
    for name, future in futures.items():
        lines = future.result()
        for line in lines:
            run.say(line)
        # A store that moves its way back while it finishes says where it lies by then.
        kept += [line for line in lines if " kept in " in line] or run.switched[name].kept
    return kept


def _finish_one(run: _Run, name: StoreName) -> list[str]:
    scratch = run.ctx.scratch / f"{name}-finish"
    scratch.mkdir(mode=0o700)
    return run.live[name].store.finish(run.journals.notebook(run.journal.id, name), replace(run.ctx, scratch=scratch))


def _all_ready(run: _Run) -> None:
    """What takes long, or may be refused, is done while every store serves what it served before."""
    for name in run.plan.components:
        run.services.cancel.check()
        run.live[name].store.ready(run.plans[name], run.journals.notebook(run.journal.id, name), run.ctx)


def _switch_all(run: _Run, after: After, backup_set: BackupSet) -> None:
    run.fence.require_runnable()
    _all_ready(run)
    run.note(phase="switching", fenced=run.fence.configured)
    fenced_at = time.monotonic()
    try:
        run.fence.stop(run.services.cancel)
    except NobodyStopped:
        run.note(fenced=False)
        raise
    if run.fence.configured:
        _all_ready(run)  # what the writers have written until they stopped
    after.before_switch(run.plan.components)
    for name in run.plan.components:
        run.services.cancel.check()
        run.switched[name] = run.live[name].store.switch(run.plans[name], run.journals.notebook(run.journal.id, name), run.ctx)
        run.say(f"{name}: serves the set {run.plan.set_id}; {run.switched[name].lockout_s:.2f} s without service")
    after.before_writers(backup_set, run.plan.components)
    kept = tuple(line for switched in run.switched.values() for line in switched.kept)
    run.note(phase="switched", switched_at=run.services.now(), kept=kept)
    try:
        run.fence.start()
    except FenceFailed as exc:
        run.unfenced = exc  # the set is served; this is told at the end, and the journal stays open
    else:
        run.note(fenced=False)
    if run.fence.configured:
        run.fenced_s = time.monotonic() - fenced_at


def _unfinished(run: _Run, cause: BaseException) -> BaseException:
    """What failed after the switch must not read as if the restore had not happened."""
    if not isinstance(cause, OpsError) or isinstance(cause, Cancelled):
        return cause
    return RestoreFailed(
        f"the set {run.plan.set_id} is served, but what follows the switch did not come to its end: {cause.message}",
        hint=f"{cause.hint} Then `scholaria-ops restore --recover` finishes the rest. {dead_end(run.journal.id)}".strip(),
        taken_back=False,
    )


def _taken_back(run: _Run, cause: BaseException) -> BaseException:
    """Take everything back, then say what happened. A failure here is told with the first one, never instead of it."""
    if run.journal.phase == "switched":
        return _unfinished(run, cause)  # past the point of no return: the next command finishes it
    text = cause.message if isinstance(cause, OpsError) else f"{type(cause).__name__}: {cause}"
    # Whoever told us to stop wants it taken back; the token must not stop that too.
    ctx = replace(run.ctx, cancel=CancelToken())
    try:
        with uninterrupted(FINISHED):
            back = take_back(run.services, run.live, run.journals, run.journal, ctx)
    except OpsError as second:
        again = "" if isinstance(second, NotTakenBack) else "`scholaria-ops restore --recover` tries again. "
        return RestoreFailed(
            f"the restore of {run.plan.set_id} failed ({text}), and not everything could be taken back: {second.message}",
            hint=f"The old data are kept. {again}{second.hint}".strip(),
            taken_back=False,
        )
    for line in (*back.lines, *back.warnings):
        run.say(line)
    if not isinstance(cause, OpsError):
        return cause
    if isinstance(cause, Cancelled):
        return cause
    return RestoreFailed(
        f"the restore of {run.plan.set_id} failed and was taken back; the live stores serve what they served before: {cause.without_hint}"
        + "".join(f"; set aside: {line}" for line in back.kept)
        + "".join(f"; {line}" for line in back.warnings),
        hint=cause.hint or "Mend the cause and make a new plan.",
        taken_back=True,
    )
