"""Close a restore that can never be settled, so that the next one may begin. No store is touched, no file removed."""

from __future__ import annotations

from pydantic import AwareDatetime

from scholaria_ops.catalogue.evidence.base import StoreName
from scholaria_ops.errors import Cancelled, OpsError, Refused, UsageError
from scholaria_ops.operations.restore.agreed import Agreed
from scholaria_ops.operations.restore.fence import fence_of
from scholaria_ops.operations.restore.journal import KEEPING, OPEN, Journal, Journals, NotUnderstood, Phase
from scholaria_ops.operations.restore.live import LiveStores
from scholaria_ops.operations.restore.not_understood import AsidePlan, close, plan_close
from scholaria_ops.operations.restore.recover import writers_started
from scholaria_ops.operations.services import Services
from scholaria_ops.stores.live import Standing


class GiveUpPlan(Agreed):
    """What is known of a restore that is to be closed, and how its stores stand."""

    restore_id: str
    set_id: str
    phase: Phase
    begun_at: AwareDatetime
    by: str
    stores: tuple[StoreName, ...]
    safety_set: str
    #: Stores that an undo has brought back already.
    undone: tuple[StoreName, ...]
    kept: tuple[str, ...]
    #: What each store says of itself; a store that cannot be asked is in ``silent``, with why.
    standing: dict[StoreName, Standing]
    silent: dict[StoreName, str]
    #: Files of the restore on this host, which stay.
    files: tuple[str, ...]
    #: What becomes of the writers.
    writers: str

    @property
    def lines(self) -> tuple[str, ...]:
        """The plan for people, a line each."""
        found = [f"the restore {self.restore_id} of the set {self.set_id}, begun {self.begun_at:%Y-%m-%d %H:%M:%S} UTC by {self.by}"]
        found.append(f"it stands at: {self.phase.replace('_', ' ')}" + (f"; gone back: {', '.join(self.undone)}" if self.undone else ""))
        found.append(f"safety set: {self.safety_set or 'none was taken'}")
        found += [f"the journal says kept: {line}" for line in self.kept]
        for name in self.stores:
            if name in self.silent:
                found.append(f"{name}: cannot be asked: {self.silent[name]}")
                continue
            standing = self.standing[name]
            found += [f"{name} serves: {line}" for line in standing.served]
            found += [f"{name} holds: {line}" for line in standing.left]
            found += [f"{name}, by hand: {line}" for line in standing.by_hand]
        found += [f"file: {line}" for line in self.files]
        found.append(f"writers: {self.writers}")
        return tuple(found)


def plan_give_up(services: Services, live: LiveStores, restore_id: str) -> GiveUpPlan | AsidePlan:
    """What closing a restore would leave behind, for whoever has to see to it by hand. Changes nothing.

    Raises:
        UsageError: there is no such restore, or nothing of it is left to settle.
    """
    journals = Journals(services.catalogue.layout)
    try:
        journal = _unsettled(journals, restore_id)
    except NotUnderstood as exc:
        return plan_close(services, live, exc)
    standing: dict[StoreName, Standing] = {}
    silent: dict[StoreName, str] = {}
    with services.context("give-up") as ctx:
        for name in journal.stores:
            try:
                standing[name] = live[name].store.standing(journals.notebook(journal.id, name), ctx)
            except Cancelled:
                raise
            except OpsError as exc:  # that may be the very reason to give up
                silent[name] = exc.message
    return GiveUpPlan(
        restore_id=journal.id,
        set_id=journal.set_id,
        phase=journal.phase,
        begun_at=journal.begun_at,
        by=journal.by,
        stores=journal.stores,
        safety_set=journal.safety_set,
        undone=journal.undone,
        kept=journal.kept,
        standing=standing,
        silent=silent,
        files=journals.files_for_people(journal.id),
        writers=_writers(services, journal),
    )


def give_up(services: Services, plan: GiveUpPlan | AsidePlan) -> list[str]:
    """Close the journal of a plan that was shown and agreed to; returns lines for people.

    Raises:
        Refused: the restore does not stand where it stood when this was planned.
        FenceFailed: the journal is closed, and the writers did not start; the hint names the command.
    """
    if isinstance(plan, AsidePlan):
        return close(services, plan)
    lines: list[str] = []
    trouble: OpsError | None = None
    asked = {"restore": plan.restore_id, "plan": plan.digest, "found": plan.phase}
    with services.audited("give_up", plan.set_id, **asked) as audit, services.locked(f"giving up the restore {plan.restore_id}"):
        journals = Journals(services.catalogue.layout)
        journal = _unsettled(journals, plan.restore_id)
        if journal.phase != plan.phase:
            raise Refused(f"the restore {journal.id} is {journal.phase} by now, not {plan.phase}", hint="Look at the plan again.")
        if journal.fenced and fence_of(services.settings).configured:
            try:
                journal = writers_started(services, journals, journal)
                lines.append("the writers were started again")
            except OpsError as exc:
                trouble = exc
        elif journal.fenced:
            lines.append(_writers(services, journal))
        left = tuple(f"{name}: {line}" for name, standing in plan.standing.items() for line in standing.left)
        kept = tuple(dict.fromkeys((*journal.kept, *left)))
        journals.write(journal.model_copy(update={"phase": "given_up", "kept": kept, "ended_at": services.now()}))
        audit.note(kept=list(kept))
        if trouble:
            raise trouble
    lines.append(f"the restore {plan.restore_id} is given up; its files stay in {journals.directory(plan.restore_id)}")
    return lines


def _unsettled(journals: Journals, restore_id: str) -> Journal:
    journal = journals.read(restore_id) if restore_id in journals.ids() else None
    if journal and journal.phase in OPEN | KEEPING:
        return journal
    unsettled = [name for name in journals.ids() if _to_settle(journals, name)]
    hint = f"Those that are not settled: {', '.join(unsettled)}." if unsettled else "Every restore is settled."
    if journal is None:
        raise UsageError(f"there is no restore {restore_id!r}", hint=hint)
    raise UsageError(f"nothing of the restore {restore_id} is left to settle: it is {journal.phase.replace('_', ' ')}", hint=hint)


def _to_settle(journals: Journals, restore_id: str) -> bool:
    try:
        journal = journals.read(restore_id)
    except NotUnderstood:
        return True
    return journal is not None and journal.phase in OPEN | KEEPING


def _writers(services: Services, journal: Journal) -> str:
    if not journal.fenced:
        return "this restore does not hold them stopped"
    if not fence_of(services.settings).configured:
        return "they were stopped, and how they are started is not set any more (BACKUP_FENCE is none): start them by hand"
    return "they were stopped, and are started again"
