"""Go back to the state before the last restore, and remove what that needs once nobody wants to go back any more."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta

from scholaria_ops.cancel import Deferred, uninterrupted
from scholaria_ops.catalogue.evidence.base import StoreName
from scholaria_ops.errors import Cancelled, Refused, UsageError
from scholaria_ops.operations.restore.agreed import Agreed
from scholaria_ops.operations.restore.fence import Fence, fence_of
from scholaria_ops.operations.restore.ids import ids_given_out
from scholaria_ops.operations.restore.journal import Journal, Journals, require_settled
from scholaria_ops.operations.restore.live import LiveStores
from scholaria_ops.operations.restore.recover import FINISHED, carry_on_undoing, naming_the_way_out, recover
from scholaria_ops.operations.services import Services
from scholaria_ops.stores.base import Context
from scholaria_ops.stores.live import Effect, StillKept


class UndoPlan(Agreed):
    """What going back would lose."""

    restore_id: str
    set_id: str
    stores: tuple[StoreName, ...]
    effects: dict[StoreName, tuple[Effect, ...]]
    kept: tuple[str, ...]
    fence: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Discarded:
    """What was removed, a line each, per restore. ``left``: what stays, and why; it is looked at again by the next discard."""

    restore_id: str
    lines: tuple[str, ...]
    left: tuple[str, ...] = ()


def plan_undo(services: Services, live: LiveStores) -> UndoPlan:
    """What would be lost by undoing the newest restore. Changes nothing.

    Raises:
        UsageError: there is no restore that can be undone.
        Refused: a store has lost what was kept or has no room for it, so that the others must not go back either; or another
            restore has not come to its end.
    """
    journals = Journals(services.catalogue.layout)
    require_settled(journals)
    journal = _undoable(services)
    with services.context("undo-plan") as ctx:
        effects = {name: live[name].store.later_writes(journals.notebook(journal.id, name), ctx) for name in journal.stores}
        _require_undoable(live, journals, journal, ctx)
    return UndoPlan(
        restore_id=journal.id,
        set_id=journal.set_id,
        stores=journal.stores,
        effects=effects,
        kept=journal.kept,
        fence=fence_of(services.settings).describe(),
    )


def undo(services: Services, live: LiveStores, plan: UndoPlan) -> list[str]:
    """Carry out an undo that was shown and agreed to; returns lines for people.

    Raises:
        Refused: another restore came in between, or a store cannot go back; nothing was touched.
        NotTakenBack: a store could not go back after all; the message says which.
        Cancelled: told to stop before the first store had begun to go back; nothing was touched. Later nobody is listened to.
    """
    fence = fence_of(services.settings)
    with (
        services.audited("undo", plan.set_id, restore=plan.restore_id, plan=plan.digest) as audit,
        services.locked(f"undo of the restore {plan.restore_id}"),
        services.context("undo") as ctx,
    ):
        lines = recover(services, live, ctx)
        journal = _undoable(services)
        if journal.id != plan.restore_id:
            raise Refused(f"the newest restore is {journal.id} by now, not {plan.restore_id}", hint="Look at the plan again.")
        journals = Journals(services.catalogue.layout)
        _require_undoable(live, journals, journal, ctx)
        with uninterrupted("the writers are started again first") as told:
            # From here on a crash is carried on: half of the stores in one time and half in another helps nobody.
            undoing = journals.write(journal.model_copy(update={"phase": "undoing", "fenced": fence.configured, "kept": ()}))
            try:
                undoing, untold = _stopped(services, journals, undoing, fence, told)
            except BaseException:
                journals.write(journal)
                raise
            told.text = FINISHED
            lines += untold + carry_on_undoing(services, live, journals, undoing, ctx)
        audit.note(lines=lines)
        return lines


def _stopped(services: Services, journals: Journals, journal: Journal, fence: Fence, told: Deferred) -> tuple[Journal, list[str]]:
    """Stop the writers and note which ids they were given; where that fails, or somebody says stop to us, start them again."""
    fence.stop(services.cancel)
    try:
        given_out, untold = ids_given_out(services) if "postgres" in journal.stores else ({}, [])
        if told.asked or services.cancel.cancelled:
            raise Cancelled("stopped before any store had gone back")
        noted = {"given_out": given_out, "warnings": (*journal.warnings, *untold)}
        return journals.write(journal.model_copy(update=noted)), untold
    except BaseException:
        fence.start()
        raise


def _require_undoable(live: LiveStores, journals: Journals, journal: Journal, ctx: Context) -> None:
    """Raise Refused unless every store can go back. Each has a scratch directory of its own."""
    for name in journal.stores:
        scratch = ctx.scratch / f"{name}-check"
        scratch.mkdir(mode=0o700)
        live[name].store.check_undo(journals.notebook(journal.id, name), replace(ctx, scratch=scratch))


def discard(services: Services, live: LiveStores, *, older_than: timedelta | None = None) -> list[Discarded]:
    """Remove what restores have kept; with ``older_than`` only of restores that ended longer ago. Needs no plan: what it
    removes has been replaced, and is named in the result. What somebody seems to want is left standing, and named there too.
    """
    if not Journals(services.catalogue.layout).keeping():
        return []
    with services.locked("discarding what restores kept"), services.context("discard") as ctx:
        recover(services, live, ctx)
        return discard_holding_the_lock(services, live, ctx, older_than=older_than)


def discard_holding_the_lock(services: Services, live: LiveStores, ctx: Context, *, older_than: timedelta | None = None) -> list[Discarded]:
    """:func:`discard`, for whoever holds the lock already."""
    journals = Journals(services.catalogue.layout)
    found = []
    for journal in journals.keeping():
        if older_than is not None and journal.ended_at is not None and services.now() - journal.ended_at < older_than:
            continue
        lines: list[str] = []
        left: list[str] = []
        kept: list[str] = []
        # First, so that a discard that was cut off is not followed by an undo of the stores alone that still can go back.
        if journal.phase != "aside":
            journals.write(journal.model_copy(update={"phase": "discarding"}))
        for name in journal.stores:
            try:
                with naming_the_way_out(journal.id):
                    lines += live[name].store.discard(journals.notebook(journal.id, name), ctx)
            except StillKept as exc:
                lines += exc.removed
                left.append(str(exc))
                kept += exc.kept
            except Refused:
                if name == journal.stores[0]:  # nothing is gone yet, and undoing may be what it advises
                    journals.write(journal)
                raise
        journals.forget_files(journal.id)
        aside = journal.phase == "aside"
        end = ("aside" if aside else "discarding") if left else "rolled_back" if aside else "discarded"
        journals.write(journal.model_copy(update={"phase": end, "kept": tuple(kept)}))
        services.audit("discard", journal.set_id, "refused" if left else "done", restore=journal.id, removed=lines, left=left)
        found.append(Discarded(journal.id, tuple(lines), tuple(left)))
    return found


def _undoable(services: Services) -> Journal:
    journal = Journals(services.catalogue.layout).undoable()
    if journal is None:
        raise UsageError(
            "there is no restore that can be undone", hint="The newest one was undone or discarded already, or there never was one."
        )
    return journal
