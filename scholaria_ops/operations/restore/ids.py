"""Ids that are never given out twice: queued tasks, points and people may know those that a replaced database has given out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

from scholaria_ops.errors import OpsError
from scholaria_ops.operations.correspondence import largest_point
from scholaria_ops.operations.restore.tasks import Reference
from scholaria_ops.operations.services import Services
from scholaria_ops.profiles.scholaria import CHUNK_ID, CHUNK_TABLE, RowKind
from scholaria_ops.stores.postgres.sequences import given_out, largest_possible, raise_all, raise_sequence


def ids_given_out(services: Services) -> tuple[dict[str, int], list[str]]:
    """Sequence → the largest id that the served database has given out; and lines for people where that cannot be read."""
    try:
        return given_out(services.settings.postgres_restore, cancel=services.cancel)
    except OpsError as exc:
        services.cancel.check()
        # Damaged or gone: that may be why it is replaced. What Qdrant knows is looked at all the same.
        return {}, [f"the ids that the former database gave out could not be read, and may be given out again: {exc.message}"]


def raise_sequences(services: Services, at_least: Mapping[str, int], queued: Iterable[Reference] = ()) -> tuple[list[str], list[str]]:
    """Have the served database go on above these ids, above those that queued tasks speak of, and above those that Qdrant knows;
    returns what was done and what could not be learnt, a line each.

    Raises:
        StoreError, Refused: PostgreSQL cannot be asked, or a sequence could not be raised.
    """
    settings = services.settings
    raised = raise_all(settings.postgres_restore, at_least, cancel=services.cancel)
    done = [f"{raised} sequence(s) go on above the ids that were given out by the database that was replaced"] if raised else []
    in_queue, absurd = _above_queued(services, queued)
    done += in_queue
    # A point whose id no row can have is no reason to use up all ids.
    most = largest_possible(settings.postgres_restore, CHUNK_TABLE, CHUNK_ID, cancel=services.cancel)
    try:
        highest = largest_point(settings.qdrant, below=most, cancel=services.cancel) if most else 0
    except OpsError as exc:
        services.cancel.check()  # else it is down: no reason to do without PostgreSQL as well
        return done, [*absurd, f"the ids that Qdrant knows could not be read, and may be given out again: {exc.message}"]
    line = raise_sequence(settings.postgres_restore, CHUNK_TABLE, CHUNK_ID, highest, cancel=services.cancel)
    return [*done, *([line] if line else [])], absurd


def _above_queued(services: Services, queued: Iterable[Reference]) -> tuple[list[str], list[str]]:
    """Raise sequences above the ids that tasks speak of. What would use up half of all ids is no id that was ever given out."""
    connection = services.settings.postgres_restore
    wanted: defaultdict[RowKind, set[int]] = defaultdict(set)
    for reference in queued:
        wanted[reference.kind].add(reference.id)
    done, absurd = [], []
    for kind, ids in wanted.items():
        most = largest_possible(connection, kind.table, kind.key, cancel=services.cancel) // 2
        if strange := sorted(found for found in ids if found > most) if most else []:
            absurd.append(f"a queued task speaks of {kind.noun} {strange[-1]}, which can be no id: {kind.sequence} is not raised above it")
        if line := raise_sequence(connection, kind.table, kind.key, max(ids - set(strange), default=0), cancel=services.cancel):
            done.append(line)
    return done, absurd
