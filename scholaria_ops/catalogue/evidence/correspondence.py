"""How well the rows of PostgreSQL and the points of Qdrant belong together: the baseline that a restore is measured against."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import AwareDatetime

from scholaria_ops.catalogue.evidence.base import Model

Kind = Literal["row without point", "point without row", "other context", "other text"]
#: One of a kind, and several, in a sentence.
_WORDS: Mapping[Kind, tuple[str, str]] = {
    "row without point": ("row without a point", "rows without a point"),
    "point without row": ("point without a row", "points without a row"),
    "other context": ("point of another context than its row", "points of another context than their rows"),
    "other text": ("point with another text than its row", "points with another text than their rows"),
}
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
        wrong = ", ".join(worded(k, self.counts[k]) for k in KINDS if self.counts.get(k))
        sides = f"{_counted(self.rows, 'row')}, {_counted(self.points, 'point')}"
        return f"{sides}: {wrong or 'every id on both sides'} ({_counted(self.texts_compared, 'text')} read)"

    def worse_than(self, baseline: Correspondence | None) -> dict[Kind, int]:
        """By how much each kind exceeds the baseline (or zero, without one)."""
        before = baseline.counts if baseline else {}
        grown = {k: self.counts.get(k, 0) - before.get(k, 0) for k in KINDS}
        return {k: n for k, n in grown.items() if n > 0}


def worded(kind: Kind, count: int, more: str = "") -> str:
    """``3 rows without a point``; ``more`` stands behind the number."""
    return " ".join(filter(None, (f"{count:,}", more, _WORDS[kind][count != 1])))


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("" if count == 1 else "s")
