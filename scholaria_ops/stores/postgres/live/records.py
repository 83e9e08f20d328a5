"""What one restore of a PostgreSQL database has written into its notebook, with types."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from scholaria_ops.catalogue.evidence.base import Difference
from scholaria_ops.errors import Refused
from scholaria_ops.stores.live import Notebook


class StagedFacts(BaseModel):
    """What was measured of the new database when it was compared with its evidence."""

    model_config = ConfigDict(frozen=True)

    seconds: Mapping[str, float]
    differences: tuple[Difference, ...]
    counts: Mapping[str, int]
    warnings: tuple[str, ...]
    #: Table → rows: nobody can write to the new database between this count and the moment in which it is served.
    rows: Mapping[str, int]


class Record(BaseModel):
    """Facts of one restore. Object ids (``pg_database.oid``) say which database is which; names say what we called it.

    A database is ours only by the id that we chose and wrote down before it was made. Servers older than 15 choose the
    id themselves: there, between making it and writing its id down, the name stands for it.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    #: System identifier of the server.
    identity: str
    #: The live database's name.
    dbname: str
    #: The database that was served before; None if there was none. ``old_open``: whether it took connections.
    old_oid: int | None
    old_open: bool = True
    #: The database that is loaded, and its name until it is served.
    new_oid: int | None = None
    new_name: str
    #: Names for the one that is set aside: by the switch, by an undo.
    before_name: str
    after_name: str
    #: Roles that this restore creates → their object id, written down before they are there for others.
    roles: Mapping[str, int] = {}
    staged: StagedFacts | None = None
    #: A transaction id from right before the new database was served: rows of later ones were written since.
    mark: int | None = None
    #: What was written into the new database while it was served, once it is known, and the restore was taken back: it is
    #: under ``after_name`` then, and is not dropped.
    set_aside: str = ""
    #: Sequence → the largest id that it knew by then: written down before it is dropped. None: it was never served.
    given_out: Mapping[str, int] | None = None
    #: Seconds since the epoch of the last fence, and the lock-out that followed; None until it ended.
    fenced_at: float | None = None
    lockout_s: float | None = None


def read(notebook: Notebook) -> Record | None:
    """What is known; None if nothing was begun.

    Raises:
        Refused: the notebook cannot be understood. Guessing could drop the wrong database.
    """
    facts: Mapping[str, Any] = notebook.read()
    if not facts:
        return None
    try:
        return Record.model_validate(facts)
    except ValidationError as exc:
        wrong = ", ".join(sorted({str(error["loc"][0]) for error in exc.errors(include_input=False) if error["loc"]}))
        raise Refused(
            f"what restore {notebook.restore_id} wrote down about PostgreSQL cannot be understood ({wrong})",
            hint="It was edited or is of another version. Look at the server's databases by hand; nothing was touched.",
            store="postgres",
        ) from None


def require(notebook: Notebook) -> Record:
    """What is known; raises :class:`Refused` if nothing was begun."""
    record = read(notebook)
    if record is None:
        raise Refused(f"restore {notebook.restore_id} has not touched PostgreSQL", hint="There is nothing to go on with.", store="postgres")
    return record


def mark_of(notebook: Notebook, *, identity: str, oid: int) -> int | None:
    """See :class:`.plan.Restored`, of one restore: None unless it put this very database in its place."""
    record = read(notebook)
    return record.mark if record and (record.identity, record.new_oid) == (identity, oid) and record.staged else None
