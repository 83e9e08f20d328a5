"""The live stores that a restore writes to, each with the type of its plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from scholaria_ops.catalogue.evidence.base import StoreName
from scholaria_ops.stores.live import LiveStore, StorePlan

AnyLive = LiveStore[Any, Any]


@dataclass(frozen=True, slots=True)
class Live:
    """A live store and the type that its plans are read back as."""

    store: AnyLive
    plan_type: type[StorePlan]


LiveStores = Mapping[StoreName, Live]
