"""Hold a set, so that retention never removes it, and release it again. Both are records with a reason; the set does not change."""

from __future__ import annotations

from scholaria_ops.catalogue.layout import SET_PREFIX, check_id
from scholaria_ops.catalogue.records import Record
from scholaria_ops.catalogue.sets import Kind, held_because
from scholaria_ops.errors import OpsError, Refused, UsageError
from scholaria_ops.operations.offsite import push_records
from scholaria_ops.operations.services import Services


def hold(services: Services, reference: str, why: str, *, run_id: str = "") -> Record:
    """Keep a set from being pruned, here and offsite, until it is released. Needs no lock: a prune looks once more before each removal.

    Args:
        reference: ``latest``, or an id of a set that stands here or offsite.

    Raises:
        UsageError: no such set, no reason, or not a set that retention would ever touch.
        Refused: the set went away at the same moment.
    """
    set_id = _known(services, reference)
    reason = _reason(why)
    record = services.catalogue.records.append(set_id, "held", run_id=run_id, why=reason)
    services.audit("hold", set_id, "done", run_id=run_id, why=reason)
    _push(services, set_id)
    try:
        _known(services, set_id)
    except UsageError as exc:
        raise Refused(f"the set {set_id} was removed just before it was held", hint="`scholaria-ops list` shows what there is.") from exc
    return record


def release(services: Services, reference: str, why: str, *, run_id: str = "") -> Record:
    """Let retention decide about a held set again.

    Raises:
        UsageError: no such set, no reason, or it is not held.
    """
    set_id = _known(services, reference)
    if not held_because(services.catalogue.records.of(set_id)):
        raise UsageError(f"the set {set_id} is not held", hint="`scholaria-ops prune` shows which rule keeps it.")
    reason = _reason(why)
    services.audit("release", set_id, "done", run_id=run_id, why=reason)
    record = services.catalogue.records.append(set_id, "released", run_id=run_id, why=reason)
    _push(services, set_id)
    return record


def _reason(why: str) -> str:
    text = " ".join(why.split())
    if not text:
        raise UsageError("no reason given", hint="Whoever reads this in a year wants to know why: --why 'audit of 2026'.")
    return text


def _known(services: Services, reference: str) -> str:
    """The id of a set that stands here or offsite, with all its records here."""
    layout = services.catalogue.layout
    try:
        entry = services.catalogue.find(reference)
    except UsageError:
        if services.offsite is None or reference == "latest":
            raise
        set_id = check_id(reference)
        name = f"{SET_PREFIX}{set_id}"
        if not any(s.name == name and s.complete for s in services.offsite.list_sets(cancel=services.cancel)):
            raise
    else:
        if entry.id is None or entry.kind not in {Kind.SEALED, Kind.PARTIAL}:
            raise UsageError(f"{entry.name} is {entry.kind}; retention never touches it", hint="There is nothing to hold.")
        if entry.directory.parent.resolve() != layout.root.resolve():
            raise UsageError(f"{entry.directory} is not below {layout.root}", hint="Name a set of this catalogue by its id.")
        set_id = entry.id
    known_here = any(r.event in {"reserved", "sealed"} for r in services.catalogue.records.of(set_id))
    if services.offsite is not None and not known_here:
        # Pushing replaces what lies offsite, so all of it must be here first.
        services.catalogue.records.merge(set_id, services.offsite.get_records(cancel=services.cancel).get(set_id, b""))
    return set_id


def _push(services: Services, set_id: str) -> None:
    try:
        push_records(services, set_id)
    except OpsError as exc:
        services.progress.say(f"{set_id}: written down here, but not offsite: {exc}")
