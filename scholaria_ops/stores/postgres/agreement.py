"""Whether an archive holds what the evidence says: rows of every table, sequences, and an entry for every object."""

from __future__ import annotations

from collections.abc import Iterator

from scholaria_ops.catalogue.evidence.postgres import ArchiveInventory, PostgresEvidence
from scholaria_ops.stores.postgres.names import raw_parts

#: Kind of object → its name in an archive's table of contents. Check constraints stand inside their table, and
#: functions are listed with their arguments in another spelling; both are covered by the digest of the schema.
_LISTED = {
    "table": "TABLE",
    "foreign table": "FOREIGN TABLE",
    "view": "VIEW",
    "materialized view": "MATERIALIZED VIEW",
    "sequence": "SEQUENCE",
    "trigger": "TRIGGER",
    "policy": "POLICY",
    "index": "INDEX",
}


def expected_rows(evidence: PostgresEvidence, inventory: ArchiveInventory) -> dict[str, int]:
    """Rows per data block. ``pg_dump`` loads some partitions through their root (those hashed by an enum): they add up."""
    rows: dict[str, int] = {}
    for name, table in evidence.tables.items():
        if table.kind == "materialized view" or table.rows is None:
            continue
        through_root = name not in inventory.tables and table.root in inventory.tables
        block = table.root if through_root and table.root else name
        rows[block] = rows.get(block, 0) + table.rows
    return rows


def row_disagreements(evidence: PostgresEvidence, inventory: ArchiveInventory) -> Iterator[str]:
    """One line per table whose data block is missing, strange or of another length."""
    expected = expected_rows(evidence, inventory)
    for name in sorted(expected.keys() | inventory.tables.keys()):
        if name not in inventory.tables:
            yield f"table {name}: no data in the archive, {expected[name]:,} rows expected"
        elif name not in expected:
            yield f"table {name}: {inventory.tables[name].rows:,} rows in the archive, but it was not there at the cut"
        elif expected[name] != inventory.tables[name].rows:
            yield f"table {name}: {inventory.tables[name].rows:,} rows in the archive, {expected[name]:,} expected"


def sequence_disagreements(evidence: PostgresEvidence, inventory: ArchiveInventory) -> Iterator[str]:
    """One line per sequence that is missing, strange or at another value."""
    for name in sorted(evidence.sequences.keys() | inventory.sequences.keys()):
        expected, found = evidence.sequences.get(name), inventory.sequences.get(name)
        if expected != found:
            yield f"sequence {name}: {_position(found)} in the archive, {_position(expected)} expected"


def _position(value: object) -> str:
    return "absent" if value is None else str(value).replace("last_value=", "")


def entry_disagreements(evidence: PostgresEvidence, inventory: ArchiveInventory) -> Iterator[str]:
    """One line per object of the evidence without an entry in the archive's table of contents."""
    entries = {_flat(entry) for entry in inventory.entries}
    beginnings = {entry.rpartition(" ")[0] for entry in entries}  # an entry ends with its owner, which may be empty
    for key in evidence.objects:
        kind = next((k for k in _LISTED if key.startswith(f"{k} ")), None)
        if kind is None:
            continue
        schema, *names = raw_parts(key.removeprefix(f"{kind} "))
        wanted = _flat(" ".join((_LISTED[kind], schema, *names)))
        if (
            wanted not in beginnings
            and not _listed_with_blank_owner(wanted, entries)
            and not _backs_constraint(kind, schema, names, entries)
        ):
            yield f"{key} is not in the archive"


def _flat(text: str) -> str:
    """The table of contents writes a line break in a name as a space."""
    return text.replace("\n", " ").replace("\r", " ")


def _listed_with_blank_owner(wanted: str, entries: set[str]) -> bool:
    """An owner whose name has blanks hides the end of the entry from a simple cut."""
    return any(entry.startswith(f"{wanted} ") for entry in entries)


def _backs_constraint(kind: str, schema: str, names: list[str], entries: set[str]) -> bool:
    """The index of a primary key, unique or exclusion constraint comes with the constraint."""
    if kind != "index":
        return False
    return any(e.startswith(f"CONSTRAINT {schema} ") and f" {_flat(names[-1])} " in f"{e} " for e in entries)


def archive_disagreements(evidence: PostgresEvidence, inventory: ArchiveInventory) -> list[str]:
    """Everything in which the two disagree, for people."""
    return [
        *row_disagreements(evidence, inventory),
        *sequence_disagreements(evidence, inventory),
        *entry_disagreements(evidence, inventory),
    ]
