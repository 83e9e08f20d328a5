"""Close a restore whose journal cannot be understood. No store is touched; the file is kept under another name."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from scholaria_ops.catalogue.evidence.base import STORE_NAMES, StoreName
from scholaria_ops.catalogue.layout import is_id, label_instant
from scholaria_ops.errors import Cancelled, OpsError, Refused
from scholaria_ops.operations.restore.agreed import Agreed
from scholaria_ops.operations.restore.fence import fence_of
from scholaria_ops.operations.restore.journal import FileNotebook, Journal, Journals, NotUnderstood
from scholaria_ops.operations.restore.live import Live, LiveStores
from scholaria_ops.operations.services import Services
from scholaria_ops.stores.base import Context

#: Fields that are worth knowing, if they can still be found in what is left of a journal.
_WORTH = ("set_id", "phase", "safety_set", "fenced", "by", "run_id")


class AsidePlan(Agreed):
    """What can be told of a restore without its journal, and what stands that looks like its own."""

    restore_id: str
    file: str
    #: What is wrong with the file; a clause that goes on from its name.
    why: str
    #: Field → what is left of it in the file. Nothing is decided by that.
    left: dict[str, str]
    #: What each store says of itself, a line each.
    standing: dict[StoreName, tuple[str, ...]]
    #: Files of the restore on this host, which stay.
    files: tuple[str, ...]
    #: What becomes of the writers.
    writers: str

    @property
    def lines(self) -> tuple[str, ...]:
        """The plan for people, a line each."""
        return (
            f"the restore {self.restore_id}: {self.file} {self.why}",
            "what can still be read there: " + (", ".join(f"{k} {v}" for k, v in self.left.items()) or "nothing"),
            *(f"{name}: {line}" for name, lines in self.standing.items() for line in lines),
            *(f"file: {line}" for line in self.files),
            f"writers: {self.writers}",
            f"{self.file} is renamed to one that says it was not understood; a journal that says `given_up` takes its place",
        )


def plan_close(services: Services, live: LiveStores, found: NotUnderstood) -> AsidePlan:
    """What closing a restore would leave behind whose journal is not understood. Changes nothing."""
    restore_id = found.path.parent.name
    journals = Journals(services.catalogue.layout)
    standing: dict[StoreName, tuple[str, ...]] = {}
    with services.context("give-up") as ctx:
        for name in STORE_NAMES:
            try:
                standing[name] = tuple(_standing(live[name], journals.notebook(restore_id, name), ctx))
            except Cancelled:
                raise
            except OpsError as exc:
                standing[name] = (f"cannot be asked: {exc.message}",)
    start = fence_of(services.settings).start_argv
    return AsidePlan(
        restore_id=restore_id,
        file=str(found.path),
        why=found.why,
        left=_left(found.path),
        standing=standing,
        files=journals.files_for_people(restore_id),
        writers="whether this restore holds them stopped is not known: look, and start them by hand if it does"
        + (f": {shlex.join(start)}" if start else ""),
    )


def close(services: Services, plan: AsidePlan) -> list[str]:
    """Put a journal that says ``given_up`` in the place of the one that is not understood; returns lines for people.

    Raises:
        Refused: the file is not what it was when this was planned, or its directory cannot be written.
    """
    with (
        services.audited("give_up", plan.left.get("set_id", ""), restore=plan.restore_id, plan=plan.digest, found=plan.why) as audit,
        services.locked(f"giving up the restore {plan.restore_id}"),
    ):
        journals = Journals(services.catalogue.layout)
        if (now := _why(journals, plan.restore_id)) != plan.why:
            raise Refused(f"{plan.file} {now or 'can be understood'} by now", hint="Look at the plan again.")
        kept = tuple(f"{name}: {line}" for name, lines in plan.standing.items() for line in lines)
        aside = journals.replace(
            Journal(
                id=plan.restore_id,
                set_id=plan.left.get("set_id", ""),
                stores=STORE_NAMES,
                plan_digest="",
                begun_at=label_instant(plan.restore_id, services.settings.timezone),
                by=plan.left.get("by", ""),
                phase="given_up",
                safety_set=plan.left.get("safety_set", ""),
                kept=kept,
                warnings=(f"{plan.file} {plan.why}",),
                ended_at=services.now(),
            )
        )
        audit.note(kept_file=str(aside or ""), kept=list(kept))
    lines = [f"{plan.file} is kept as {aside.name}"] if aside else []
    return [*lines, f"writers: {plan.writers}", f"the restore {plan.restore_id} is given up; its files stay in {Path(plan.file).parent}"]


def _why(journals: Journals, restore_id: str) -> str:
    try:
        journals.read(restore_id)
    except NotUnderstood as exc:
        return exc.why
    return ""


def _left(path: Path) -> dict[str, str]:
    """What stands in a file that may be cut anywhere; what is no word of ours is passed over."""
    try:
        text = path.read_text("utf-8", errors="replace")
    except OSError:
        return {}
    found = {name: match[1] for name in _WORTH if (match := re.search(rf'"{name}":\s*"?([\w.@:+-]+)"?\s*[,}}\n]', text))}
    return {name: value for name, value in found.items() if name not in {"set_id", "safety_set"} or is_id(value)}


def _standing(live: Live, notebook: FileNotebook, ctx: Context) -> Iterator[str]:
    """What a store's notebook says, where there is one, and then what bears the restore's id beside it."""
    store = live.store
    scratch = ctx.scratch / store.name
    scratch.mkdir(mode=0o700)
    ctx = replace(ctx, scratch=scratch)
    told: list[str] = []
    try:
        if notebook.read():
            standing = store.standing(notebook, ctx)
            told += [f"serves: {line}" for line in standing.served]
            told += [f"holds: {line}" for line in standing.left]
            told += [f"by hand: {line}" for line in standing.by_hand]
        else:
            told.append("this restore has left no notebook: it did not touch the store, or the notebook is lost")
    except Refused as exc:
        told.append(exc.message)
    yield from told
    known = "\n".join(told)
    for what, detail in live.traces(notebook.restore_id, ctx):
        if f": {what}," not in known and f": {what}:" not in known and f": {what} " not in known:
            yield "has: " + ", ".join(filter(None, (what, detail)))
