"""Rebuild Dagster's index (partitions and materializations) from what is on disk and in the bucket. They are the truth."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import dagster as dg

from scholaria_ops.catalogue.evidence.base import STORE_NAMES
from scholaria_ops.catalogue.ids import RESERVATION_VALID
from scholaria_ops.catalogue.manifest import Manifest
from scholaria_ops.catalogue.records import Record
from scholaria_ops.catalogue.sets import Kind
from scholaria_ops.errors import VerificationFailed
from scholaria_ops.operations.offsite import offsite_manifest, offsite_sets
from scholaria_ops.operations.services import Services
from scholaria_ops.pipeline.assets_backup import SEALED, VERIFIED, backup_key
from scholaria_ops.pipeline.assets_offsite import OFFSITE
from scholaria_ops.pipeline.assets_rehearsal import RESTORED
from scholaria_ops.pipeline.metadata import Metadata, set_metadata, store_metadata
from scholaria_ops.pipeline.partitions import BACKUPS, add_partition, known_partitions


@dataclass
class SyncResult:
    """What changed in Dagster's index."""

    added: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    reported: int = 0
    offsite_only: int = 0
    skipped: dict[str, str] = field(default_factory=dict)
    #: Ids that could not be read: they may be sound, so their partitions stay.
    unread: set[str] = field(default_factory=set)

    def lines(self) -> Iterator[str]:
        yield f"partitions added: {', '.join(self.added) or 'none'}"
        yield f"partitions of sets that are gone removed: {', '.join(self.removed) or 'none'}"
        yield f"materializations reported: {self.reported}; sets that stand offsite only: {self.offsite_only}"
        for name, reason in self.skipped.items():
            yield f"left out {name}: {reason}"

    def metadata(self) -> Metadata:
        return {
            "added": len(self.added),
            "removed": len(self.removed),
            "reported": self.reported,
            "offsite_only": self.offsite_only,
            "left_out": len(self.skipped),
        }


@dataclass(frozen=True, slots=True)
class _Known:
    """A set as the index should show it."""

    manifest: Manifest
    place: str
    records: Sequence[Record]


def sync_catalogue(services: Services, instance: dg.DagsterInstance) -> SyncResult:
    """Bring the index into line with the catalogue here and offsite. Repeating it changes nothing.

    Raises:
        Refused, OffsiteError: the catalogue, or the bucket that is set, cannot be read. A failed read is never an empty
            catalogue: nothing is removed then.
    """
    result = SyncResult()
    sets = _local(services, result)
    sets.update(_offsite_only(services, sets, result))
    known = known_partitions(instance)
    already = {key: set(instance.get_materialized_partitions(key)) for key in _keys()}
    for set_id, one in sets.items():
        if set_id not in known:
            add_partition(instance, set_id)
            result.added.append(set_id)
        for key, metadata in _wanted(one).items():
            if set_id not in already[key]:
                _report(instance, key, set_id, metadata)
                result.reported += 1
    recorded = services.catalogue.records.ids()
    for set_id in sorted(known - sets.keys() - result.unread - _in_flight(instance)):
        # An id that is reserved and was never sealed may be about to run; after a while it never will.
        reserved = services.catalogue.records.last(set_id, "reserved")
        waits = reserved and services.now() - reserved.at < RESERVATION_VALID
        if set_id not in recorded or services.catalogue.records.last(set_id, "sealed") or not waits:
            instance.delete_dynamic_partition(str(BACKUPS.name), set_id)
            result.removed.append(set_id)
    return result


def _keys() -> list[dg.AssetKey]:
    return [*(backup_key(n) for n in STORE_NAMES), SEALED, VERIFIED, OFFSITE, RESTORED]


def _local(services: Services, result: SyncResult) -> dict[str, _Known]:
    found: dict[str, _Known] = {}
    for entry in services.catalogue.entries():
        if entry.kind is Kind.SEALED and entry.set:
            found[entry.set.id] = _Known(entry.set.manifest, str(entry.directory), entry.records)
        else:
            result.skipped[entry.name] = f"{entry.kind}" + (f", {entry.reason}" if entry.reason else "")
        if entry.unread and entry.id:
            result.unread.add(entry.id)
    return found


def _offsite_only(services: Services, local: Mapping[str, _Known], result: SyncResult) -> dict[str, _Known]:
    if services.offsite is None:
        return {}
    found: dict[str, _Known] = {}
    for remote in offsite_sets(services):
        if remote.id in local:
            continue
        try:
            manifest = offsite_manifest(services, remote.id)
        except VerificationFailed as exc:
            # One damaged set offsite must not keep a new machine from seeing all the others.
            result.skipped[f"{remote.name} (offsite)"] = exc.message
            continue
        found[remote.id] = _Known(manifest, f"{services.offsite.where.rstrip('/')}/{remote.name}", remote.records)
    result.offsite_only = len(found)
    return found


def _wanted(one: _Known) -> dict[dg.AssetKey, Metadata]:
    """Which cells of a set are green, by its records, and what they show."""
    wanted: dict[dg.AssetKey, Metadata] = {backup_key(n): store_metadata(one.manifest, n) for n in STORE_NAMES}
    wanted[SEALED] = set_metadata(one.manifest, one.place)
    verified, shipped, rehearsed = (_newest(one.records, event) for event in ("verified", "shipped", "rehearsed"))
    if verified and verified.detail.get("passed") is True:
        wanted[VERIFIED] = {
            "level": str(verified.detail.get("level", "")),
            **_numbers(verified, {"bytes": "size_bytes", "seconds": "duration_s"}),
            "verified_at": dg.MetadataValue.timestamp(verified.at),
        }
    if shipped:
        wanted[OFFSITE] = {
            "where": str(shipped.detail.get("where", "")),
            **_numbers(shipped, {"bytes": "size_bytes", "sent_bytes": "sent_bytes", "seconds": "duration_s"}),
            "shipped_at": dg.MetadataValue.timestamp(shipped.at),
        }
    if rehearsed and rehearsed.detail.get("verdict") == "proven":
        wanted[RESTORED] = {
            "verdict": "proven",
            "source": str(rehearsed.detail.get("source", "")),
            **_numbers(rehearsed, {"rto_s": "rto_s", "rpo_s": "rpo_s", "fetch_s": "fetch_s"}),
            "rehearsed_at": dg.MetadataValue.timestamp(rehearsed.at),
        }
    return wanted


def _newest(records: Sequence[Record], event: str) -> Record | None:
    return next((r for r in reversed(records) if r.event == event), None)


def _numbers(record: Record, names: Mapping[str, str]) -> dict[str, Any]:
    """Numbers of a record under the keys that the live runs plot; bytes stay whole numbers, seconds stay fractions."""
    shown: dict[str, Any] = {}
    for source, name in names.items():
        value = record.detail.get(source)
        if isinstance(value, (int, float)):
            shown[name] = int(value) if name.endswith("bytes") else float(value)
    return shown


def _report(instance: dg.DagsterInstance, key: dg.AssetKey, set_id: str, metadata: Metadata) -> None:
    instance.report_runless_asset_event(
        dg.AssetMaterialization(asset_key=key, partition=set_id, metadata={**metadata, "adopted": "from the set and its records"})
    )


def _in_flight(instance: dg.DagsterInstance) -> set[str]:
    """Partitions whose run is queued or under way: deleting one would fail that run at its end."""
    unfinished = dg.RunsFilter(
        statuses=[dg.DagsterRunStatus.QUEUED, dg.DagsterRunStatus.NOT_STARTED, dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED]
    )
    return {run.tags["dagster/partition"] for run in instance.get_runs(unfinished) if "dagster/partition" in run.tags}
