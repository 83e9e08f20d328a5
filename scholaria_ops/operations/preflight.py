"""Look before leaping: are all stores reachable, readable, and is there room for what they will give us?"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from scholaria_ops.catalogue.evidence.base import StoreName
from scholaria_ops.errors import DiskFull, OpsError
from scholaria_ops.operations.services import Services
from scholaria_ops.stores.base import Context, Facts

#: Free space wanted beyond the expected artifacts: manifests, scratch servers' overhead.
_HEADROOM_BYTES = 64 << 20


@dataclass(frozen=True)
class Preflight:
    """What every store said; a store is either in ``facts`` or in ``refusals``."""

    facts: Mapping[StoreName, Facts]
    refusals: Mapping[StoreName, OpsError]
    free_bytes: int

    @property
    def expected_bytes(self) -> int:
        return sum(f.expected_bytes for f in self.facts.values())

    @property
    def room(self) -> DiskFull | None:
        """The error if the disk under BACKUP_DIR cannot take the set, else None."""
        needed = self.expected_bytes + _HEADROOM_BYTES
        if needed <= self.free_bytes:
            return None
        return DiskFull(
            f"the set may need {needed:,} bytes, but only {self.free_bytes:,} bytes are free in BACKUP_DIR",
            hint="Free space there (`scholaria-ops list` shows sizes), or point BACKUP_DIR at a larger disk.",
        )


def preflight(services: Services, ctx: Context) -> Preflight:
    """Ask all stores side by side. Errors of a store are collected, not raised; cancellation is raised."""
    with ThreadPoolExecutor(max_workers=len(services.stores), thread_name_prefix="preflight") as pool:
        futures = {name: pool.submit(store.preflight, ctx) for name, store in services.stores.items()}
    services.cancel.check()
    facts: dict[StoreName, Facts] = {}
    refusals: dict[StoreName, OpsError] = {}
    for name, future in futures.items():
        try:
            facts[name] = future.result()
        except OpsError as exc:
            refusals[name] = exc
    return Preflight(facts, refusals, shutil.disk_usage(services.catalogue.layout.root).free)
