"""What is said of rows and points, in one and in many."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from scholaria_ops.catalogue.evidence.correspondence import KINDS, Correspondence, Kind, worded


def found(rows: int, points: int, *wrong: int) -> Correspondence:
    kinds: dict[Kind, int] = dict(zip(KINDS, (*wrong, 0, 0, 0, 0), strict=False))
    return Correspondence(
        at=datetime(2024, 10, 1, tzinfo=UTC),
        table="public.rag_contextitem",
        collection="scholaria_documents",
        rows=rows,
        points=points,
        counts=kinds,
        examples={},
        texts_compared=1,
        largest_point=points,
    )


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (found(300, 300), "300 rows, 300 points: every id on both sides (1 text read)"),
        (found(1, 1), "1 row, 1 point: every id on both sides (1 text read)"),
        (found(2, 1, 1), "2 rows, 1 point: 1 row without a point (1 text read)"),
        (
            found(0, 1277, 0, 1277, 0, 2),
            "0 rows, 1,277 points: 1,277 points without a row, 2 points with another text than their rows",
        ),
    ],
)
def test_numbers_and_nouns_agree(line: Correspondence, said: str) -> None:
    assert line.line().startswith(said)


def test_what_grew_is_told_with_its_number_first() -> None:
    assert worded("point without row", 1277, "more") == "1,277 more points without a row"
    assert worded("row without point", 1, "more") == "1 more row without a point"
