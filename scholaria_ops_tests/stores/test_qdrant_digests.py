"""Digests of points in packed memory say what a dictionary would."""

from __future__ import annotations

import uuid

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scholaria_ops.stores.qdrant import canon
from scholaria_ops.stores.qdrant.live.digests import Change, Digests

#: Ends of the range, and UUIDs whose last or first bytes are zero, besides any others.
_NUMBERS = st.sampled_from([0, 1, 255, 256, 2**63, 2**64 - 1]) | st.integers(0, 2**64 - 1)
_UUIDS = st.sampled_from([uuid.UUID(int=n) for n in (0, 1, 1 << 127, 0xFF << 120, 1 << 8)]) | st.uuids()
_IDS = (_NUMBERS | _UUIDS.map(str)).map(canon.point_id)
_POINTS = st.dictionaries(_IDS, st.binary(min_size=8, max_size=8), max_size=30)


def packed(points: dict[bytes, bytes]) -> Digests:
    found = Digests()
    for raw, digest in points.items():
        found.add(raw, digest)
    return found


@settings(deadline=None)
@given(_POINTS)
def test_they_hold_what_was_put_in(points: dict[bytes, bytes]) -> None:
    found = packed(points)
    assert dict(found.items()) == points
    assert len(found) == len(points)
    for count in (0, 1, len(points) // 2, len(points), len(points) + 1):
        assert list(found.lowest(count)) == sorted(points)[:count]


@settings(deadline=None)
@given(_POINTS, _POINTS, st.booleans())
def test_they_tell_what_changed(then: dict[bytes, bytes], other: dict[bytes, bytes], mixed: bool) -> None:
    now = {**then, **other} if mixed else other
    new, gone = now.keys() - then.keys(), then.keys() - now.keys()
    changed = [raw for raw in now.keys() & then.keys() if now[raw] != then[raw]]
    assert packed(now).change_since(packed(then)) == Change(len(new), len(changed), len(gone))
    assert packed(now).same_ids(packed(then)) == (now.keys() == then.keys())
    assert (packed(now) == packed(then)) == (now == then)
    assert packed(now) == packed(dict(reversed(now.items())))


def test_a_point_that_comes_twice_counts_as_it_came_last() -> None:
    raw, other = canon.point_id(7), canon.point_id(str(uuid.UUID(int=7)))
    twice = packed({raw: b"11111111", other: b"11111111"})
    twice.add(raw, b"22222222")
    assert packed({raw: b"22222222", other: b"11111111"}).change_since(twice) == Change(0, 0, 0)
    assert packed({raw: b"11111111", other: b"11111111"}).change_since(twice) == Change(0, 1, 0)


def test_a_hundred_thousand_points_take_little_memory() -> None:
    found = Digests()
    for n in range(100_000):
        found.add(canon.point_id(n), n.to_bytes(8, "big"))
    assert len(found._numbers.ids) + len(found._numbers.digests) == 1_600_000


@pytest.mark.parametrize(("raw", "digest"), [(b"n123", b"12345678"), (b"x" * 9, b"12345678"), (b"u7", b"12345678"), (b"n12345678", b"1")])
def test_what_is_no_id_or_no_digest_is_refused(raw: bytes, digest: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        Digests().add(raw, digest)
