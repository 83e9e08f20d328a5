"""Rebuild Dagster's index (partitions and materializations) from what is on disk. The disk is the truth."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import dagster as dg

from scholaria_ops.catalogue.evidence.base import STORE_NAMES
from scholaria_ops.catalogue.sets import BackupSet, Entry, Kind
from scholaria_ops.operations.services import Services
from scholaria_ops.pipeline.assets_backup import SEALED, VERIFIED, backup_key
from scholaria_ops.pipeline.metadata import Metadata, set_metadata, store_metadata
from scholaria_ops.pipeline.partitions import BACKUPS, add_partition, known_partitions


@dataclass
class SyncResult:
    """What changed in Dagster's index."""

    added: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    reported: int = 0
    skipped: dict[str, str] = field(default_factory=dict)

    def lines(self) -> Iterator[str]:
        yield f"partitions added: {', '.join(self.added) or 'none'}"
        yield f"partitions of sets that are gone removed: {', '.join(self.removed) or 'none'}"
        yield f"materializations reported: {self.reported}"
        for name, reason in self.skipped.items():
            yield f"left out {name}: {reason}"

    def metadata(self) -> Metadata:
        return {"added": len(self.added), "removed": len(self.removed), "reported": self.reported, "left_out": len(self.skipped)}


def sync_catalogue(services: Services, instance: dg.DagsterInstance) -> SyncResult:
    """Bring the index into line with the catalogue. Repeating it changes nothing.

    Raises:
        Refused: the catalogue cannot be read; nothing is removed on a failed read.
    """
    result = SyncResult()
    entries = services.catalogue.entries()
    present: set[str] = set()
    known = known_partitions(instance)
    for entry in entries:
        if entry.kind is not Kind.SEALED or entry.set is None:
            result.skipped[entry.name] = f"{entry.kind}" + (f", {entry.reason}" if entry.reason else "")
            continue
        present.add(entry.set.id)
        if entry.set.id not in known:
            add_partition(instance, entry.set.id)
            result.added.append(entry.set.id)
        result.reported += _report(instance, entry, entry.set)
    for set_id in sorted(known - present - _in_flight(instance)):
        if services.catalogue.records.last(set_id, "sealed") or set_id not in services.catalogue.records.ids():
            instance.delete_dynamic_partition(str(BACKUPS.name), set_id)
            result.removed.append(set_id)
    return result


def _in_flight(instance: dg.DagsterInstance) -> set[str]:
    """Partitions whose run is queued or under way: deleting one would fail that run at its end."""
    unfinished = dg.RunsFilter(
        statuses=[dg.DagsterRunStatus.QUEUED, dg.DagsterRunStatus.NOT_STARTED, dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED]
    )
    return {run.tags["dagster/partition"] for run in instance.get_runs(unfinished) if "dagster/partition" in run.tags}


def _report(instance: dg.DagsterInstance, entry: Entry, backup_set: BackupSet) -> int:
    wanted: dict[dg.AssetKey, Mapping[str, Any]] = {backup_key(n): store_metadata(backup_set, n) for n in STORE_NAMES}
    wanted[SEALED] = set_metadata(backup_set)
    if entry.verified_at and (record := entry.last("verified")):
        wanted[VERIFIED] = {
            "level": str(record.detail.get("level", "")),
            "size_bytes": int(record.detail.get("bytes", 0)),
            "duration_s": float(record.detail.get("seconds", 0.0)),
            "verified_at": dg.MetadataValue.timestamp(record.at),
        }
    reported = 0
    for key, metadata in wanted.items():
        if backup_set.id not in _materialized(instance, key):
            instance.report_runless_asset_event(
                dg.AssetMaterialization(
                    asset_key=key,
                    partition=backup_set.id,
                    metadata={**metadata, "adopted": "from the set on disk"},
                )
            )
            reported += 1
    return reported


def _materialized(instance: dg.DagsterInstance, key: dg.AssetKey) -> set[str]:
    return set(instance.get_materialized_partitions(key))
