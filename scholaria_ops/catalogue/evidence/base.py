"""What the evidence of all stores has in common, and how two pieces of evidence are told apart."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict

StoreName = Literal["postgres", "redis", "qdrant"]
STORE_NAMES: tuple[StoreName, ...] = ("postgres", "redis", "qdrant")


class Model(BaseModel):
    """Base of everything that is written into a manifest: immutable, and unknown fields are an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_bytes="base64", val_json_bytes="base64")


class Difference(Model):
    """One thing that is not as it was measured. ``what`` names it (``table rag_topic: rows``)."""

    store: StoreName
    what: str
    expected: str
    found: str
    #: ``loss``: content or structure differs; ``note``: worth telling, not a failure (another locale, another version).
    severity: Literal["loss", "note"] = "loss"

    def __str__(self) -> str:
        return f"{self.store}: {self.what}: expected {self.expected}, found {self.found}"


class StoreEvidence(Model):
    """Common part: which server, when the cut was (all times aware)."""

    server_version: str
    #: The instant that the dump shows. For Qdrant the instant of the last collection's snapshot.
    cut_at: AwareDatetime

    @abstractmethod
    def headline(self) -> Mapping[str, int]:
        """The counts an operator asks for first, for example ``{"rows": 120480, "tables": 7}``."""


def compare_mappings(
    store: StoreName, label: str, expected: Mapping[str, Any], found: Mapping[str, Any], *, absent: str = "absent"
) -> Iterable[Difference]:
    """Differences of two flat mappings, one per key, in key order; ``label`` precedes the key in ``what``."""
    for key in sorted(expected.keys() | found.keys()):
        left, right = expected.get(key, absent), found.get(key, absent)
        if left != right:
            yield Difference(store=store, what=f"{label} {key}".strip(), expected=_short(left), found=_short(right))


def _short(value: object, limit: int = 200) -> str:
    text = value.isoformat() if isinstance(value, datetime) else str(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"
