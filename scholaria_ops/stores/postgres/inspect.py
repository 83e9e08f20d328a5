"""Read the artifacts of a set in full and compare them with the evidence. No server is asked, least of all the source."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from scholaria_ops.catalogue.artifacts import Artifact
from scholaria_ops.catalogue.evidence.postgres import ArchiveInventory, PostgresEvidence
from scholaria_ops.errors import ToolFailed, ToolMissing, VerificationFailed
from scholaria_ops.files import hash_file
from scholaria_ops.hashed import hash_unless_known
from scholaria_ops.stores.base import Check, Context
from scholaria_ops.stores.postgres.agreement import entry_disagreements, row_disagreements, sequence_disagreements
from scholaria_ops.stores.postgres.archive import read_back
from scholaria_ops.stores.postgres.globals_file import created_roles
from scholaria_ops.stores.postgres.programs import Programs

_SHOWN = 5


def require(artifacts: Sequence[Artifact], kind: str) -> Artifact:
    """The artifact of that kind; raises :class:`VerificationFailed` if the set has none."""
    for artifact in artifacts:
        if artifact.kind == kind:
            return artifact
    raise VerificationFailed(f"the set has no PostgreSQL artifact of kind {kind!r}", store="postgres")


def authenticate(path: Path, artifact: Artifact, *, just_hashed: bool = False) -> None:
    """Raise :class:`VerificationFailed` unless the file is byte for byte the one that was sealed.

    Always done before a PostgreSQL program reads an archive: a crafted one can run code in unpatched versions.
    ``just_hashed``: a file that this process hashed a moment ago, and that nobody has touched since, need not be read again.
    """
    try:
        found = (hash_unless_known if just_hashed else hash_file)(path)
    except OSError as exc:
        raise VerificationFailed(f"{artifact.path} cannot be read: {exc.strerror}", store="postgres") from exc
    if found.sha256 != artifact.sha256:
        raise VerificationFailed(
            f"{artifact.path} is not the file that was sealed (SHA-256 {found.sha256[:12]}… instead of {artifact.sha256[:12]}…)",
            hint="No PostgreSQL program was started on it. Use another copy of the set.",
            store="postgres",
        )


def _require_measured(artifact: Artifact, evidence: PostgresEvidence) -> None:
    """The evidence names the file that was read back when the set was made: whoever swaps the file has to forge that too."""
    if evidence.archive is not None and evidence.archive.sha256 != artifact.sha256:
        raise VerificationFailed(
            f"{artifact.path} is not the archive that the evidence was checked against when the set was made",
            hint="No PostgreSQL program was started on it. Use another copy of the set.",
            store="postgres",
        )


def inspect(directory: Path, artifacts: Sequence[Artifact], evidence: PostgresEvidence, ctx: Context) -> list[Check]:
    """See :meth:`scholaria_ops.stores.base.Store.inspect`."""
    checks = list(_archive_checks(directory, artifacts, evidence, ctx))
    checks.append(_globals_check(directory, artifacts, evidence))
    return checks


def _archive_checks(directory: Path, artifacts: Sequence[Artifact], evidence: PostgresEvidence, ctx: Context) -> Iterator[Check]:
    try:
        artifact = require(artifacts, "dump")
        authenticate(directory / artifact.path, artifact)
        _require_measured(artifact, evidence)
    except VerificationFailed as exc:
        yield Check("archive", False, exc.message)
        return
    path, programs = directory / artifact.path, Programs(ctx.tools, ctx.cancel)
    try:
        inventory = read_back(path, programs, evidence.database.encoding, ctx.progress, sha256=artifact.sha256)
    except ToolMissing as exc:
        yield Check("archive", None, f"needs pg_restore {evidence.server_version.partition('.')[0]} or newer: {exc.message}")
        return
    except (ToolFailed, VerificationFailed) as exc:
        beyond = isinstance(exc, ToolFailed) and _is_beyond(exc, artifact, evidence, programs)
        prefix = "needs another pg_restore: " if beyond else ""
        yield Check("archive", None if beyond else False, prefix + " ".join(exc.message.split()))
        return
    yield from _inventory_checks(evidence, inventory)


def opened(directory: Path, artifacts: Sequence[Artifact], evidence: PostgresEvidence) -> list[Check]:
    """The checks of :func:`inspect` for artifacts that were written, and read back in full, a moment ago: their dump's."""
    if evidence.archive is None or evidence.archive.sha256 != require(artifacts, "dump").sha256:
        return []
    return [*_inventory_checks(evidence, evidence.archive), _globals_check(directory, artifacts, evidence)]


def _inventory_checks(evidence: PostgresEvidence, inventory: ArchiveInventory) -> Iterator[Check]:
    yield Check("archive", True, f"read in full by pg_restore {inventory.read_with}", {"sql_bytes": inventory.sql_bytes})
    yield from _against_evidence(evidence, inventory)


def _is_beyond(exc: ToolFailed, artifact: Artifact, evidence: PostgresEvidence, programs: Programs) -> bool:
    """Whether this ``pg_restore`` is too old for the archive, or built without its compression; else the archive is damaged."""
    if "does not support compression" in exc.stderr_tail:
        return artifact.compression in exc.stderr_tail
    made_for = int(evidence.archive.read_with.partition(".")[0]) if evidence.archive else evidence.server_version_num // 10000
    return "unsupported version" in exc.stderr_tail and programs.version("pg_restore").major < made_for


def _against_evidence(evidence: PostgresEvidence, inventory: ArchiveInventory) -> Iterator[Check]:
    rows = sum(table.rows for table in inventory.tables.values())
    counted = {"rows": rows, "tables": len(inventory.tables)}
    yield _check("rows", row_disagreements(evidence, inventory), f"{rows:,} rows in {len(inventory.tables):,} tables, as counted", counted)
    sequences = len(inventory.sequences)
    yield _check("sequences", sequence_disagreements(evidence, inventory), f"{sequences:,} sequences", {"sequences": sequences})
    yield _check("objects", _object_lines(evidence, inventory), f"{len(inventory.entries):,} entries", {"entries": len(inventory.entries)})
    if evidence.archive is None:
        yield Check("content", None, "needs the record of what was read back when the set was made; this set has none")
        return
    yield _check("content", _content_lines(evidence.archive, inventory), "every row and large object as it was written", counted)
    yield _schema_check(evidence.archive, inventory)


def _object_lines(evidence: PostgresEvidence, inventory: ArchiveInventory) -> Iterator[str]:
    yield from entry_disagreements(evidence, inventory)
    if evidence.archive is not None:
        written, found = set(evidence.archive.entries), set(inventory.entries)
        yield from (f"{entry} is not in the archive any more" for entry in sorted(written - found))
        yield from (f"{entry} was not in the archive when it was written" for entry in sorted(found - written))


def _content_lines(written: ArchiveInventory, found: ArchiveInventory) -> Iterator[str]:
    for name in sorted(written.tables.keys() & found.tables.keys()):
        if written.tables[name].sha256 != found.tables[name].sha256:
            yield f"table {name}: its rows are not those that were written"
    if (written.large_objects, written.large_objects_sha256) != (found.large_objects, found.large_objects_sha256):
        yield f"large objects: {found.large_objects:,} of other content, {written.large_objects:,} were written"


def _schema_check(written: ArchiveInventory, found: ArchiveInventory) -> Check:
    """Another major version of ``pg_restore`` may word the same schema differently: it cannot judge the digest."""
    if written.schema_sha256 == found.schema_sha256:
        return Check("schema", True, "definitions, owners and grants as they were written")
    if written.read_with.partition(".")[0] != found.read_with.partition(".")[0]:
        needed = written.read_with.partition(".")[0]
        return Check("schema", None, f"needs pg_restore {needed}: {found.read_with} words definitions differently")
    return Check("schema", False, "definitions, owners or grants are not those that were written")


def _globals_check(directory: Path, artifacts: Sequence[Artifact], evidence: PostgresEvidence) -> Check:
    try:
        artifact = require(artifacts, "globals")
        authenticate(directory / artifact.path, artifact)
        created = created_roles((directory / artifact.path).read_text("utf-8", "backslashreplace"))
    except VerificationFailed as exc:
        return Check("roles", False, exc.message)
    missing = [f"role {name} is not created there" for name in sorted(set(evidence.roles) - created)]
    return _check("roles", missing, f"{len(created):,} roles are created", {"roles": len(created)})


def _check(name: str, wrong: Iterable[str], good: str, numbers: dict[str, int]) -> Check:
    lines = list(wrong)
    if not lines:
        return Check(name, True, good, numbers)
    more = f" and {len(lines) - _SHOWN:,} more" if len(lines) > _SHOWN else ""
    return Check(name, False, "; ".join(lines[:_SHOWN]) + more, numbers)
