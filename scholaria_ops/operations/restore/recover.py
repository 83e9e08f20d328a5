"""What the next command does about a restore that was cut off: take it back, or carry it to its end."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import replace

from scholaria_ops.cancel import CancelToken, uninterrupted
from scholaria_ops.catalogue.evidence.base import StoreName
from scholaria_ops.errors import Busy, Cancelled, OpsError, Refused, StoreError, StoreUnavailable
from scholaria_ops.operations.restore.fence import FenceFailed, fence_of
from scholaria_ops.operations.restore.ids import ids_given_out, raise_sequences
from scholaria_ops.operations.restore.journal import Journal, Journals
from scholaria_ops.operations.restore.live import LiveStores
from scholaria_ops.operations.services import Services
from scholaria_ops.stores.base import Context
from scholaria_ops.stores.live import RolledBack

_IDS_AGAIN = "postgres: ids may be given out again: {}"
#: What is said to whoever presses Ctrl-C while stores go back.
FINISHED = "the stores are going back to one time: this is brought to its end first"


def dead_end(restore_id: str) -> str:
    """The hint's last sentence, wherever a restore could not be settled."""
    return f"If it can never be: `scholaria-ops restore --give-up {restore_id}` closes it and touches no store."


class NotTakenBack(StoreError):
    """A restore could not be taken back in every store; the journal stays open, so that the next command tries again."""

    code = "not_taken_back"


def recover(services: Services, live: LiveStores, ctx: Context) -> list[str]:
    """Settle every restore that was cut off; returns lines for people. Needs the estate lock. Repeatable.

    Raises:
        NotTakenBack: a store could not be brought back yet (it is down, for example).
    """
    journals = Journals(services.catalogue.layout)
    lines: list[str] = []
    for journal in journals.unfinished():
        with services.audited("recover", journal.set_id, restore=journal.id, found=journal.phase) as audit:
            if journal.phase == "switched":
                told = _carry_to_its_end(services, live, journals, journal, ctx)
            elif journal.phase == "undoing":
                told = _resume_undoing(services, live, journals, journal, ctx)
            else:
                back = take_back(services, live, journals, journal, ctx)
                told = [f"the restore {journal.id} of {journal.set_id} had been cut off; it is taken back", *back.lines, *back.warnings]
            audit.note(lines=told)
        lines += told
    return lines


def recover_now(services: Services, live: LiveStores) -> list[str]:
    """:func:`recover`, for whoever does not hold the lock yet."""
    with services.locked("recovering a restore that was cut off"), services.context("recover") as ctx:
        return recover(services, live, ctx)


def take_back(services: Services, live: LiveStores, journals: Journals, journal: Journal, ctx: Context) -> RolledBack:
    """Every store serves what it served before, and the writers run. All stores are tried, whatever one of them says."""
    lines: list[str] = []
    kept: list[str] = []
    warnings: list[str] = []
    failures: list[str] = []
    given_out: Mapping[str, int] | None = None
    try:
        journal = journals.write(journal.model_copy(update={"phase": "rolling_back"}))
    except Exception as exc:  # noqa: BLE001 - a full disk here is no reason to leave the stores as they are
        failures.append(_told(exc))  # the phase that it has is taken back as well
    for name in reversed(journal.stores):
        try:
            back = live[name].store.roll_back(journals.notebook(journal.id, name), _own(ctx, name))
            lines += back.lines
            kept += back.kept
            warnings += back.warnings
            given_out = given_out if back.given_out is None else back.given_out
        except Exception as exc:  # noqa: BLE001 - one store must not keep the others, nor the writers, from their service
            failures.append(f"{name}: {_told(exc)}")
    try:
        if given_out is not None:
            done, untold = _ids_go_on(services, given_out, ctx)
            lines += done
            warnings += untold
    except OpsError as exc:
        failures.append(_IDS_AGAIN.format(_told(exc)))
    journal = journal.model_copy(update={"warnings": (*journal.warnings, *warnings)})
    try:
        if journal.fenced:
            journal = writers_started(services, journals, journal)
            lines.append("the writers were started again")
    except OpsError as exc:
        failures.append(f"{exc.message} ({exc.hint})")
    if failures:
        raise NotTakenBack(
            "; ".join((*failures, *warnings)), hint=f"Mend the cause, then run `scholaria-ops restore --recover`. {dead_end(journal.id)}"
        )
    if kept:
        lines.append("`scholaria-ops restore --discard-old` removes what is set aside")
    end = {"phase": "aside" if kept else "rolled_back", "kept": tuple(kept), "ended_at": services.now()}
    journals.write(journal.model_copy(update=end))
    journals.forget_files(journal.id)
    return RolledBack(lines, tuple(kept), warnings=tuple(warnings))


def _told(exc: Exception) -> str:
    return str(exc) if isinstance(exc, OpsError) else f"{type(exc).__name__}: {exc}"


def writers_started(services: Services, journals: Journals, journal: Journal) -> Journal:
    """Start the writers that this restore has stopped, as the settings of now say.

    Raises:
        FenceFailed: they did not start, or the settings do not say how.
        ConfigError: a setting that the fence needs is missing.
    """
    fence = fence_of(services.settings)
    if not fence.configured:
        raise FenceFailed(
            f"the restore {journal.id} has stopped the writers, and how they are started is not set any more (BACKUP_FENCE is none)",
            hint="Set BACKUP_FENCE and what belongs to it as they were when the restore began.",
        )
    fence.start()
    return journals.write(journal.model_copy(update={"fenced": False}))


def _own(ctx: Context, name: StoreName) -> Context:
    """A context with a scratch directory that staging has not used."""
    scratch = ctx.scratch / f"{name}-back"
    scratch.mkdir(mode=0o700, exist_ok=True)
    return replace(ctx, scratch=scratch)


def _carry_to_its_end(services: Services, live: LiveStores, journals: Journals, journal: Journal, ctx: Context) -> list[str]:
    lines = [f"the restore {journal.id} of {journal.set_id} had been cut off after the switch; it is finished"]
    with naming_the_way_out(journal.id):
        if journal.fenced:
            journal = writers_started(services, journals, journal)
            lines.append("the writers were started again")
        for name in journal.stores:
            lines += live[name].store.finish(journals.notebook(journal.id, name), _own(ctx, name))
    journals.write(journal.model_copy(update={"phase": "done", "ended_at": services.now()}))
    return lines


@contextlib.contextmanager
def naming_the_way_out(restore_id: str) -> Iterator[None]:
    """Have errors of the block name the command that closes a restore which can never be settled."""
    try:
        yield
    except (Cancelled, Busy):
        raise
    except OpsError as exc:
        exc.hint = f"{exc.hint} {dead_end(restore_id)}".strip()
        raise


def _resume_undoing(services: Services, live: LiveStores, journals: Journals, journal: Journal, ctx: Context) -> list[str]:
    ctx.cancel.check()
    untold: list[str] = []
    if "postgres" in journal.stores and not journal.given_out and not journal.undone:  # cut off before they were noted
        given_out, untold = ids_given_out(services)
        journal = journals.write(journal.model_copy(update={"given_out": given_out, "warnings": (*journal.warnings, *untold)}))
    return untold + carry_on_undoing(services, live, journals, journal, ctx)


def carry_on_undoing(services: Services, live: LiveStores, journals: Journals, journal: Journal, ctx: Context) -> list[str]:
    """Bring the stores that have not gone back yet to where they were before the restore, and start the writers.

    Whoever tells us to stop is told that it goes on: half of the stores in one time and half in another helps nobody.

    Raises:
        NotTakenBack: a store could not go back; the others have, and the journal stays open.
    """
    with uninterrupted(FINISHED), contextlib.ExitStack() as stack:
        with contextlib.suppress(Cancelled):  # told already
            stack.enter_context(ctx.cancel.on_cancel(lambda: services.progress.say(FINISHED)))
        return _all_undone(services, live, journals, journal, replace(ctx, cancel=CancelToken()))


def _all_undone(services: Services, live: LiveStores, journals: Journals, journal: Journal, ctx: Context) -> list[str]:
    lines: list[str] = []
    failures: list[str] = []
    warnings: list[str] = []
    for name in reversed(journal.stores):
        if name in journal.undone:
            continue
        try:
            switched = live[name].store.undo(journals.notebook(journal.id, name), _own(ctx, name))
            journal = journals.write(
                journal.model_copy(update={"undone": (*journal.undone, name), "kept": (*journal.kept, *switched.kept)})
            )
        except Exception as exc:  # noqa: BLE001 - as in take_back
            failures.append(f"{name}: {_told(exc)}")
            continue
        lines.append(f"{name}: serves what it served before the restore {journal.id}; {switched.lockout_s:.2f} s without service")
        warnings += switched.warnings
    try:
        if "postgres" in journal.undone:
            done, untold = _ids_go_on(services, journal.given_out, ctx)
            lines += done
            warnings += untold
    except OpsError as exc:
        failures.append(_IDS_AGAIN.format(_told(exc)))
    try:
        if journal.fenced:
            journal = writers_started(services, journals, journal)
    except OpsError as exc:
        failures.append(f"{exc.message} ({exc.hint})")
    if failures:
        raise NotTakenBack(
            "; ".join((*failures, *warnings)),
            hint="The stores do not belong together now. Mend the cause, then run `scholaria-ops restore --recover`. "
            + dead_end(journal.id),
        )
    end = {"phase": "undone", "warnings": (*journal.warnings, *warnings), "ended_at": services.now()}
    journals.write(journal.model_copy(update=end))
    return lines + warnings


def _ids_go_on(services: Services, given_out: Mapping[str, int], ctx: Context) -> tuple[list[str], list[str]]:
    """Have the database that is served again give out no id that the other one has given out: points and people may know them.

    Returns what was done, and what could not be, a line each.

    Raises:
        StoreUnavailable: it is down; the next command raises them.
    """
    try:
        return raise_sequences(replace(services, cancel=ctx.cancel), given_out)
    except StoreUnavailable:
        raise
    except (StoreError, Refused) as exc:  # waiting for it would leave the writers stopped
        return [], [f"ids that were given out since the restore may be given out again: {exc.message}"]
