"""What differs between two measurements of a database. Empty means: the same content and the same structure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

from scholaria_ops.catalogue.evidence.base import Difference, compare_mappings
from scholaria_ops.catalogue.evidence.postgres import ObjectEvidence, PostgresEvidence, RoleEvidence, TableEvidence

#: Definitions that the server may print otherwise after reading its own words once more. Their text comes from the
#: archive, whose digest was checked: another wording is worth telling, not a loss.
_REWORDED = ("view ", "materialized view ", "rule ")


def compare(expected: PostgresEvidence, found: PostgresEvidence) -> list[Difference]:
    """See :meth:`scholaria_ops.stores.base.Store.compare`. Positions, sizes, times, names of hosts and databases are not content."""
    same_major = expected.server_version_num // 10000 == found.server_version_num // 10000
    return [
        *_tables(expected.tables, found.tables),
        *compare_mappings("postgres", "sequence", expected.sequences, found.sequences),
        *_large_objects(expected, found),
        *_objects(expected.objects, found.objects, same_major=same_major),
        *compare_mappings("postgres", "grants on", expected.grants, found.grants, absent="as an owner gets by default"),
        *_extensions(expected, found),
        *_roles(expected, found),
        *_database(expected, found),
        *_notes(expected, found, same_major=same_major),
    ]


def _difference(what: str, expected: object, found: object, severity: Literal["loss", "note"] = "loss") -> Difference:
    return Difference(store="postgres", what=what, expected=str(expected), found=str(found), severity=severity)


def _tables(expected: Mapping[str, TableEvidence], found: Mapping[str, TableEvidence]) -> Iterator[Difference]:
    moved = _moved_between_partitions(expected, found)
    for name in sorted(expected.keys() | found.keys()):
        left, right = expected.get(name), found.get(name)
        if left is None or right is None:
            yield _difference(f"table {name}", "present" if left else "absent", "present" if right else "absent")
            continue
        severity: Literal["loss", "note"] = "note" if left.kind == "materialized view" or left.root in moved else "loss"
        if left.rows is not None and left.rows != right.rows:
            yield _difference(f"table {name}: rows", left.rows, "not counted" if right.rows is None else right.rows, severity)
        elif left.fingerprint is not None and left.fingerprint != right.fingerprint:
            yield _difference(f"table {name}: content", f"fingerprint {left.fingerprint}", f"fingerprint {right.fingerprint}", severity)


def _moved_between_partitions(expected: Mapping[str, TableEvidence], found: Mapping[str, TableEvidence]) -> set[str]:
    """Roots whose partitions hold the same rows altogether, but some in another partition: hashing an enum does that."""
    return {
        root
        for root in {t.root for t in expected.values() if t.root}
        if (total := _total(root, expected)) is not None and total == _total(root, found)
    }


def _total(root: str, tables: Mapping[str, TableEvidence]) -> tuple[int, int] | None:
    parts = [t for t in tables.values() if t.root == root]
    if any(t.rows is None or t.fingerprint is None for t in parts):
        return None
    return sum(t.rows or 0 for t in parts), sum(int(t.fingerprint or 0) for t in parts)


def _large_objects(expected: PostgresEvidence, found: PostgresEvidence) -> Iterator[Difference]:
    left, right = expected.large_objects, found.large_objects
    if left.count != right.count:
        yield _difference("large objects", left.count, right.count)
    elif left.fingerprint is not None and left.fingerprint != right.fingerprint:
        yield _difference("large objects: content", f"fingerprint {left.fingerprint}", f"fingerprint {right.fingerprint}")


def _objects(expected: Mapping[str, ObjectEvidence], found: Mapping[str, ObjectEvidence], *, same_major: bool) -> Iterator[Difference]:
    for name in sorted(expected.keys() | found.keys()):
        left, right = expected.get(name), found.get(name)
        if left is None or right is None:
            # Every new database has a schema public, even if the source had dropped its own.
            yield _difference(
                name, "present" if left else "absent", "present" if right else "absent", "note" if name == "schema public" else "loss"
            )
            continue
        if left.owner != right.owner:
            yield _difference(f"{name}: owner", left.owner, right.owner)
        if left.definition != right.definition:
            severity: Literal["loss", "note"] = "note" if name.startswith(_REWORDED) or not same_major else "loss"
            yield _difference(f"{name}: definition", f"digest {left.definition}", f"digest {right.definition}", severity)


def _extensions(expected: PostgresEvidence, found: PostgresEvidence) -> Iterator[Difference]:
    for name in sorted(expected.extensions.keys() | found.extensions.keys()):
        left, right = expected.extensions.get(name), found.extensions.get(name)
        if left is None or right is None:
            yield _difference(f"extension {name}", left.version if left else "absent", right.version if right else "absent")
        elif left.schema_name != right.schema_name:
            yield _difference(f"extension {name}: schema", left.schema_name, right.schema_name)
        elif left.version != right.version:
            # A dump says CREATE EXTENSION without a version: the target's own default comes.
            yield _difference(f"extension {name}: version", left.version, right.version, "note")


def _roles(expected: PostgresEvidence, found: PostgresEvidence) -> Iterator[Difference]:
    for name, left in sorted(expected.roles.items()):
        right = found.roles.get(name)
        if right is None:
            yield _difference(f"role {name}", "present", "absent")
            continue
        for label in ("attributes", "member_of", "settings"):
            before, after = _role_part(left, label), _role_part(right, label)
            if before != after:
                yield _difference(f"role {name}: {label.replace('_', ' ')}", before or "none", after or "none")
    extra = sorted(set(found.roles) - set(expected.roles) - {found.bootstrap_role})
    if extra:
        yield _difference("other roles", "none", ", ".join(extra), "note")


def _role_part(role: RoleEvidence, label: str) -> str:
    if label == "attributes":
        return role.attributes
    if label == "member_of":
        return ", ".join(sorted(role.member_of))
    return ", ".join(f"{name}={value}" for name, value in sorted(role.settings.items()))


def _database(expected: PostgresEvidence, found: PostgresEvidence) -> Iterator[Difference]:
    left, right = expected.database, found.database
    yield from compare_mappings("postgres", "database setting", left.settings, right.settings)
    for label, before, after in (
        ("owner", left.owner, right.owner),
        ("encoding", left.encoding, right.encoding),
        ("connection limit", left.connection_limit, right.connection_limit),
    ):
        if before != after:
            yield _difference(f"database: {label}", before, after)
    locales = [f"{d.locale or d.collate} ({d.provider})" for d in (left, right)]
    if locales[0] != locales[1]:
        yield _difference("database: locale", locales[0], locales[1], "note")
    if left.tablespaces != right.tablespaces:
        yield _difference("tablespaces", ", ".join(left.tablespaces) or "none", ", ".join(right.tablespaces) or "none", "note")


def _notes(expected: PostgresEvidence, found: PostgresEvidence, *, same_major: bool) -> Iterator[Difference]:
    if expected.alembic_revision != found.alembic_revision:
        yield _difference("migration revision", expected.alembic_revision, found.alembic_revision)
    for label in ("slots", "subscriptions"):
        before, after = getattr(expected.replication, label), getattr(found.replication, label)
        if before != after:
            yield _difference(f"logical replication {label}", ", ".join(before) or "none", ", ".join(after) or "none", "note")
    if not same_major:
        yield _difference("server version", expected.server_version, found.server_version, "note")
