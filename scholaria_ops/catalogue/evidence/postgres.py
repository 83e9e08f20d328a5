"""What is measured of a PostgreSQL database, inside the very snapshot that its dump shows.

How each part is computed (so that somebody else can compute it again):

* **Rows** are counted exactly, per table; a partitioned table is counted in its leaves.
* **Fingerprints** do not depend on the order of rows: ``sum(hashtextextended(record_out(row)::text COLLATE "C", 0))``,
  with the session settings that decide how values are printed pinned (``scholaria_ops.stores.postgres.session``).
  They are sums, so the fingerprints of partitions add up to that of their root.
* **Definitions** are the first 32 hexadecimal digits of a SHA-256 over what the server itself prints, not the text:
  definitions can hold passwords. Expressions are reduced first, see ``scholaria_ops.stores.postgres.inventory``.
* **Archive** is what ``pg_restore`` read back from the file that was written, not what the server said.

Nothing here is secret. Values of custom settings (``app.token``) are digests; those of the server's own are in clear.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from scholaria_ops.catalogue.evidence.base import Model, StoreEvidence

TableKind = Literal["table", "partition", "materialized view"]


class TableEvidence(Model):
    """One relation with rows of its own. Sizes in bytes, on the disk of the server, with indexes and TOAST."""

    kind: TableKind
    #: None when it cannot be known (``unmeasured`` says why), for example an unlogged table on a replica.
    rows: int | None
    #: Decimal, because it may exceed 64 bits. None when it was not computed (``unmeasured`` says why).
    fingerprint: str | None
    size_bytes: int
    unlogged: bool = False
    #: Topmost partitioned table, for a partition.
    root: str | None = None
    unmeasured: str = ""


class SequenceValue(Model):
    """Where a sequence stands. Sequences do not obey snapshots: the value is the one that the dump carries."""

    last_value: int
    is_called: bool


class ObjectEvidence(Model):
    """A schema object: its owner (empty where there is none) and the digest of its definition."""

    owner: str
    definition: str


class ExtensionEvidence(Model):
    version: str
    schema_name: str


class RoleEvidence(Model):
    """A role of the cluster. ``attributes`` in the words of ``ALTER ROLE``; ``settings`` as in the database's."""

    attributes: str
    #: ``role`` or ``role (admin)``; who granted it is not kept.
    member_of: tuple[str, ...] = ()
    settings: Mapping[str, str] = {}


class DatabaseEvidence(Model):
    """Properties of the database itself. ``settings``: name, or ``role/name`` for one role in this database, → value."""

    name: str
    #: ``pg_database.oid``: tells a database from another one that bore its name later.
    oid: int | None = None
    owner: str
    encoding: str
    #: ``libc``, ``icu`` or ``builtin``.
    provider: str
    collate: str
    ctype: str
    #: Locale of the ICU or builtin provider.
    locale: str | None = None
    collation_version: str | None = None
    settings: Mapping[str, str] = {}
    connection_limit: int = -1
    #: Tablespaces other than the default that the database or one of its relations uses.
    tablespaces: tuple[str, ...] = ()
    size_bytes: int


class LargeObjects(Model):
    """``fingerprint`` sums hashes of their pages; None when the role may not read them (``unmeasured`` says why)."""

    count: int
    fingerprint: str | None
    unmeasured: str = ""


class Replication(Model):
    """What a restore elsewhere would not bring along by itself: named, so that nobody is surprised."""

    slots: tuple[str, ...] = ()
    publications: tuple[str, ...] = ()
    subscriptions: tuple[str, ...] = ()


class TableData(Model):
    """One table's data block of an archive: lines and bytes of its COPY text, and the SHA-256 of the COPY statement and them."""

    rows: int
    bytes: int
    sha256: str


class ArchiveInventory(Model):
    """What ``pg_restore`` read from an archive, all of it, without a server."""

    #: Of the file that was read.
    sha256: str
    #: Version of the ``pg_restore`` that read it (``16.15``).
    read_with: str
    tables: Mapping[str, TableData]
    sequences: Mapping[str, SequenceValue]
    large_objects: int
    large_objects_sha256: str
    #: Table of contents without its numbers (``INDEX public rag_context_idx scholaria``), sorted.
    entries: tuple[str, ...]
    #: SHA-256 over all statements that are not data, those about the database itself included, as this ``pg_restore`` writes them.
    schema_sha256: str
    #: Size of the whole archive as SQL, in bytes.
    sql_bytes: int


class PostgresEvidence(StoreEvidence):
    """Everything measured of one database and the roles of its cluster."""

    server_version_num: int
    #: ``pg_control_system()``; None where the role may not ask.
    system_identifier: str | None = None
    #: Write-ahead log position of the cut (on a replica: replayed up to).
    lsn: str
    #: The exported snapshot that the dump and every measurement used.
    snapshot: str = ""
    in_recovery: bool = False
    #: Oldest transaction that was still open at the cut (64 bits): what is now in the same database with an older ``xmin``
    #: was in the cut as it is. Holds on the same ``timeline`` only (None on a replica, which has none of its own).
    oldest_transaction: int | None = None
    timeline: int | None = None
    database: DatabaseEvidence
    tables: Mapping[str, TableEvidence]
    sequences: Mapping[str, SequenceValue]
    #: ``index public.rag_topic_name_idx`` → …, every kind of schema object that is not part of an extension.
    objects: Mapping[str, ObjectEvidence]
    #: Object → privileges, where they are not what an owner gets by default.
    grants: Mapping[str, str]
    extensions: Mapping[str, ExtensionEvidence]
    roles: Mapping[str, RoleEvidence]
    #: The role that ``initdb`` made.
    bootstrap_role: str
    #: Whether the globals artifact carries password hashes.
    password_hashes: bool = False
    large_objects: LargeObjects
    replication: Replication = Replication()
    #: Revision of the application's migrations, where the database keeps it in Alembic's way.
    alembic_revision: str | None = None
    #: What was not measured or will not come back by itself, in sentences.
    notes: tuple[str, ...] = ()
    archive: ArchiveInventory | None = None

    @property
    def rows(self) -> int:
        """Rows that the dump carries: materialized views are not counted, their rows are made anew."""
        return sum(t.rows or 0 for t in self.tables.values() if t.kind != "materialized view")

    def headline(self) -> Mapping[str, int]:
        return {"rows": self.rows, "tables": sum(t.kind != "materialized view" for t in self.tables.values())}
