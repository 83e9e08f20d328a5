"""How well the rows of PostgreSQL and the points of Qdrant belong together: the baseline that a restore is measured against."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import AwareDatetime

from scholaria_ops.catalogue.evidence.base import Model

Kind = Literal["row without point", "point without row", "other context", "other text"]
KINDS: tuple[Kind, ...] = ("row without point", "point without row", "other context", "other text")


class Correspondence(Model):
    """Rows and points of one application, compared by id. Measured on the live stores while a set is taken, so that writes of
    those seconds can show as a few stray rows or points; it is no digest, and never makes a set unsound.
    """

    at: AwareDatetime
    table: str
    collection: str
    rows: int
    points: int
    #: How many ids are wrong, and in which way.
    counts: Mapping[Kind, int]
    #: A few ids of each kind, for people.
    examples: Mapping[Kind, tuple[int, ...]]
    #: How many ids had their texts compared: a sample, chosen by the ids themselves.
    texts_compared: int
    #: Largest id of a point (0 if there is none): sequences must stand above it.
    largest_point: int

    def line(self) -> str:
        """For people."""
        wrong = ", ".join(f"{self.counts[k]:,} {k}" for k in KINDS if self.counts.get(k))
        return (
            f"{self.rows:,} rows, {self.points:,} points: " + (wrong or "every id on both sides") + f" ({self.texts_compared:,} texts read)"
        )

    def worse_than(self, baseline: Correspondence | None) -> dict[Kind, int]:
        """By how much each kind exceeds the baseline (or zero, without one)."""
        before = baseline.counts if baseline else {}
        grown = {k: self.counts.get(k, 0) - before.get(k, 0) for k in KINDS}
        return {k: n for k, n in grown.items() if n > 0}
