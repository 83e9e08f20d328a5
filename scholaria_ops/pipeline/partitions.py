"""A partition is a backup set: Dagster's partition grid is the catalogue."""

from __future__ import annotations

import dagster as dg

BACKUPS = dg.DynamicPartitionsDefinition(name="backups")


def add_partition(instance: dg.DagsterInstance, set_id: str) -> None:
    """Make the set known to Dagster; harmless if it is already."""
    instance.add_dynamic_partitions(str(BACKUPS.name), [set_id])


def known_partitions(instance: dg.DagsterInstance) -> frozenset[str]:
    """Ids that this Dagster instance knows (they may outlive a disk, so none of them is given out again)."""
    return frozenset(instance.get_dynamic_partitions(str(BACKUPS.name)))
