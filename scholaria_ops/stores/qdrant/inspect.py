"""Inspecting artifacts without the server they came from: structure, then content in a scratch server."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scholaria_ops.catalogue.artifacts import Artifact
from scholaria_ops.catalogue.evidence.base import Difference, compare_mappings
from scholaria_ops.catalogue.evidence.qdrant import CollectionEvidence, QdrantEvidence
from scholaria_ops.errors import DiskFull, SandboxError, StoreError, VerificationFailed
from scholaria_ops.stores.base import Check, Context
from scholaria_ops.stores.qdrant.compare import PARTS, Part, compare_by_part, losses
from scholaria_ops.stores.qdrant.load import alias_actions
from scholaria_ops.stores.qdrant.measure import Limits, Look, measure_collection, vector_fields
from scholaria_ops.stores.qdrant.scratch import Scratch, unfit
from scholaria_ops.stores.qdrant.snapshot_file import Structure, read_structure

#: Every check that :func:`inspect` returns, always all of them and in this order.
CHECKS = ("snapshot_structure", "snapshot_recovery", *PARTS)

_ABOUT: Mapping[Part, str] = {
    "points": "exact counts and the set of point ids",
    "payloads": "payloads of all points",
    "vectors": "vectors of all points",
    "configuration": "configuration of every collection",
    "payload_indexes": "payload indexes",
    "sampled_points": "sampled points with payload and vectors",
    "golden_searches": "exact searches with vectors that are not stored points",
    "aliases": "aliases",
}
_MAX_ALIASES_BYTES = 64 << 20


@dataclass(slots=True)
class _Found:
    """What the inspection has found so far."""

    structure: list[Difference] = field(default_factory=list)
    recovery: list[Difference] = field(default_factory=list)
    parts: dict[Part, list[Difference]] = field(default_factory=dict)
    sound: list[tuple[Artifact, CollectionEvidence]] = field(default_factory=list)
    measured: dict[str, CollectionEvidence] = field(default_factory=dict)
    segments: int = 0
    bytes: int = 0


def inspect(directory: Path, artifacts: Sequence[Artifact], evidence: QdrantEvidence, ctx: Context, limits: Limits) -> list[Check]:
    """See :meth:`scholaria_ops.stores.base.Store.inspect`. Returns one check per name in :data:`CHECKS`."""
    found = _Found()
    _read_structures(directory, artifacts, evidence, found, ctx)
    _compare_aliases(directory, artifacts, evidence, found)
    unjudged = unfit(ctx.tools, evidence.server_version)
    judged_by = ""
    if not unjudged:
        try:
            judged_by = _recover_all(directory, evidence, found, ctx, limits)
        except (SandboxError, DiskFull) as exc:
            unjudged = str(exc)
    return _checks(evidence, found, unjudged, judged_by)


def opened(directory: Path, artifacts: Sequence[Artifact], evidence: QdrantEvidence, ctx: Context) -> list[Check]:
    """The checks of :func:`inspect` for snapshots from which ``evidence`` was measured a moment ago: their dump's.

    None if it was measured on the live server instead, because then nothing has opened the files yet.
    """
    if evidence.measured_on != "snapshot":
        return []
    found = _Found()
    _read_structures(directory, artifacts, evidence, found, ctx)
    _compare_aliases(directory, artifacts, evidence, found)
    found.measured = dict(evidence.collections)
    return _checks(evidence, found, "", evidence.measured_by)


def _checks(evidence: QdrantEvidence, found: _Found, unjudged: str, judged_by: str) -> list[Check]:
    checks = [_structure_check(evidence, found), _recovery_check(evidence, found, unjudged, judged_by)]
    checks.extend(_part_check(part, evidence, found, unjudged) for part in PARTS)
    return checks


def _read_structures(directory: Path, artifacts: Sequence[Artifact], evidence: QdrantEvidence, found: _Found, ctx: Context) -> None:
    files = {a.subject: a for a in artifacts if a.kind == "snapshot"}
    for name in sorted(files.keys() | evidence.collections.keys()):
        ctx.cancel.check()
        artifact, expected = files.get(name), evidence.collections.get(name)
        if artifact is None or expected is None:
            found.structure.append(_difference(name, "snapshot", "present" if expected else "absent", "present" if artifact else "absent"))
            continue
        try:
            structure = read_structure(directory / artifact.path, compressed=artifact.compression == "gzip")
        except VerificationFailed as exc:
            found.structure.append(_difference(name, artifact.path, "a whole snapshot", exc.message))
            continue
        except OSError as exc:
            found.structure.append(_difference(name, artifact.path, "a whole snapshot", f"unreadable: {exc.strerror}"))
            continue
        found.segments += structure.segments
        found.bytes += structure.size
        belongs = _belongs(name, structure, expected)
        found.structure.extend(belongs)
        if not belongs:
            found.sound.append((artifact, expected))


def _belongs(name: str, structure: Structure, expected: CollectionEvidence) -> list[Difference]:
    """Whether the configuration in the file is that collection's: catches a file swapped for another one's, without a server."""
    differences = []
    if vector_fields(structure.config) != expected.vectors:
        differences.append(
            _difference(name, "vectors by the snapshot's own configuration", _fields(expected.config), _fields(structure.config))
        )
    shards = int(expected.config.get("params", {}).get("shard_number") or 1)
    if "sharding_method" not in expected.config.get("params", {}) and structure.shards != shards:
        differences.append(_difference(name, "shards in the snapshot", str(shards), str(structure.shards)))
    return differences


def _fields(config: Mapping[str, Any]) -> str:
    return (
        ", ".join(f"{f.name or 'unnamed'} ({f.kind}{f' {f.size} {f.distance}' if f.size else ''})" for f in vector_fields(config)) or "none"
    )


def _compare_aliases(directory: Path, artifacts: Sequence[Artifact], evidence: QdrantEvidence, found: _Found) -> None:
    differences = found.parts.setdefault("aliases", [])
    listing = next((a for a in artifacts if a.kind == "aliases"), None)
    if listing is None:
        differences.append(Difference(store="qdrant", what="aliases.json", expected="present", found="absent"))
        return
    try:
        aliases = read_aliases(directory / listing.path)
    except VerificationFailed as exc:
        differences.append(Difference(store="qdrant", what=listing.path, expected="a list of aliases", found=exc.message))
        return
    differences.extend(compare_mappings("qdrant", "alias", evidence.aliases, aliases))


def read_aliases(path: Path) -> dict[str, str]:
    """The aliases of a set's ``aliases.json``. Raises VerificationFailed if it is not one."""
    try:
        if path.stat().st_size > _MAX_ALIASES_BYTES:
            raise VerificationFailed(f"{path.name} is far too large")
        found = json.loads(path.read_bytes())
        created = [action["create_alias"] for action in found["actions"]]
        aliases = {str(one["alias_name"]): str(one["collection_name"]) for one in created}
        if alias_actions(aliases) != {"actions": sorted(found["actions"], key=lambda a: str(a["create_alias"]["alias_name"]))}:
            raise VerificationFailed(f"{path.name} holds more than aliases")
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise VerificationFailed(f"{path.name} is damaged: {exc}") from exc
    return aliases


def _recover_all(directory: Path, evidence: QdrantEvidence, found: _Found, ctx: Context, limits: Limits) -> str:
    """Recover and measure every sound snapshot; returns the version that did it."""
    largest = max((a.raw_size_bytes or a.size_bytes for a, _ in found.sound), default=0)
    with Scratch(ctx, largest=largest) as scratch:
        for artifact, expected in found.sound:
            ctx.cancel.check()
            try:
                size = artifact.raw_size_bytes or artifact.size_bytes
                scratch.recover(directory / artifact.path, expected.name, size=size, compressed=artifact.compression == "gzip")
                look = Look.again(evidence, expected.name)
                found.measured[expected.name] = measure_collection(scratch.rest, scratch.source, expected.name, look, limits)
            except StoreError as exc:
                found.recovery.append(_difference(expected.name, "recovery", "accepted by a Qdrant server", exc.message))
            scratch.forget(expected.name)
        version = scratch.version
    part = QdrantEvidence(
        server_version=evidence.server_version,
        cut_at=evidence.cut_at,
        collections=found.measured,
        aliases=evidence.aliases,  # compared from the file
        measured_on="snapshot",
        measured_by=version,
        seed=evidence.seed,
    )
    judged = evidence.model_copy(update={"collections": {n: c for n, c in evidence.collections.items() if n in found.measured}})
    for name, difference in compare_by_part(judged, part):
        found.parts.setdefault(name, []).append(difference)
    return version


def _structure_check(evidence: QdrantEvidence, found: _Found) -> Check:
    return Check(
        "snapshot_structure",
        not found.structure,
        _said(found.structure) or f"{len(found.sound)} whole snapshot(s), {found.segments} segments",
        {"collections": len(evidence.collections), "segments": found.segments, "bytes": found.bytes},
        tuple(found.structure),
    )


def _recovery_check(evidence: QdrantEvidence, found: _Found, unjudged: str, judged_by: str) -> Check:
    if unjudged:
        return Check("snapshot_recovery", None, unjudged)
    missing = len(evidence.collections) - len(found.measured)
    detail = _said(found.recovery) or (
        f"{missing} of {len(evidence.collections)} snapshot(s) not recovered: see snapshot_structure"
        if missing
        else f"recovered by Qdrant {judged_by}"
    )
    return Check("snapshot_recovery", missing == 0, detail, {"recovered": len(found.measured)}, tuple(found.recovery))


def _part_check(part: Part, evidence: QdrantEvidence, found: _Found, unjudged: str) -> Check:
    differences = found.parts.get(part, [])
    numbers = _numbers(part, found.measured)
    if part == "aliases":
        numbers = {"aliases": len(evidence.aliases)}
    elif unjudged:
        return Check(part, None, unjudged)
    elif len(found.measured) < len(evidence.collections):
        lost = sorted(evidence.collections.keys() - found.measured.keys())
        return Check(part, False, f"not to be read: {', '.join(lost)}", numbers, tuple(differences))
    lossy = losses(differences)
    notes = [d for d in differences if d.severity == "note"]
    detail = _said(lossy) or f"{_ABOUT[part]} agree" + (f"; {_said(notes)}" if notes else "")
    return Check(part, not lossy, detail, numbers, tuple(differences))


def _numbers(part: Part, measured: Mapping[str, CollectionEvidence]) -> dict[str, int | float]:
    """How much was looked at, for plots."""
    found = list(measured.values())
    counts: dict[Part, dict[str, int | float]] = {
        "points": {"points": sum(c.points for c in found), "collections": len(found)},
        "payloads": {"points": sum(c.points for c in found if c.fingerprint.payloads)},
        "vectors": {"points": sum(c.points for c in found if c.fingerprint.vectors)},
        "payload_indexes": {"indexes": sum(len(c.indexes) for c in found)},
        "sampled_points": {"points": sum(len(c.sample) for c in found)},
        "golden_searches": {"searches": sum(len(c.golden) for c in found)},
    }
    return counts.get(part, {"collections": len(found)})


def _said(differences: Sequence[Difference]) -> str:
    """The first few differences as one text."""
    shown = "; ".join(f"{d.what}: expected {d.expected}, found {d.found}" for d in differences[:3])
    return shown + (f"; and {len(differences) - 3} more" if len(differences) > 3 else "")


def _difference(collection: str, what: str, expected: str, found: str) -> Difference:
    return Difference(store="qdrant", what=f"collection {collection}: {what}", expected=expected, found=found)
