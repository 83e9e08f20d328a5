"""The canonical form, the gRPC reader, golden vectors and names: pure functions, checked against the official messages."""

from __future__ import annotations

import hashlib
import random
import struct
import uuid
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scholaria_ops.catalogue.evidence.qdrant import GoldenSearch, Hit
from scholaria_ops.stores.qdrant import canon, golden, names, wire

# -- canonical form ----------------------------------------------------------------------------------------------------

_SCALARS = st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text(max_size=300)
_JSON = st.recursive(
    _SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4), max_leaves=12
)
_PAYLOADS = st.dictionaries(st.text(max_size=150), _JSON, max_size=6)


def _as_message(found: Any) -> Any:  # noqa: PLR0911 - one line per kind
    """A JSON value as the official protocol buffers message, its map entries in arbitrary order."""
    from qdrant_client import grpc

    match found:
        case None:
            return grpc.Value(null_value=grpc.NullValue.NULL_VALUE)
        case bool():
            return grpc.Value(bool_value=found)
        case int():
            return grpc.Value(integer_value=found)
        case float():
            return grpc.Value(double_value=found)
        case str():
            return grpc.Value(string_value=found)
        case list():
            return grpc.Value(list_value=grpc.ListValue(values=[_as_message(item) for item in found]))
    return grpc.Value(struct_value=grpc.Struct(fields={key: _as_message(item) for key, item in found.items()}))


def _answer(*points: Any, offset: Any = None) -> bytes:
    from qdrant_client import grpc

    message: bytes = grpc.ScrollResponse(result=list(points), next_page_offset=offset, time=0.5).SerializeToString()
    return message


@settings(max_examples=150, deadline=None)
@given(payload=_PAYLOADS, number=st.integers(0, 2**64 - 1))
def test_a_payload_read_over_grpc_has_the_canonical_form_of_its_json(payload: dict[str, Any], number: int) -> None:
    from qdrant_client import grpc

    point = grpc.RetrievedPoint(id=grpc.PointId(num=number), payload={key: _as_message(item) for key, item in payload.items()})
    ((found, canonical, vectors),) = wire.points(_answer(point))
    assert (found, canonical, vectors) == (number, canon.payload(payload), [])


@settings(max_examples=60, deadline=None)
@given(left=_PAYLOADS, right=_PAYLOADS)
def test_different_payloads_have_different_canonical_forms(left: dict[str, Any], right: dict[str, Any]) -> None:
    same = repr(_sorted(left)) == repr(_sorted(right))
    assert (canon.payload(left) == canon.payload(right)) is same


def _sorted(found: Any) -> Any:
    if isinstance(found, dict):
        return [(key, _sorted(found[key])) for key in sorted(found)]
    return [_sorted(item) for item in found] if isinstance(found, list) else found


def test_an_integer_too_large_for_grpc_is_the_double_that_grpc_makes_of_it() -> None:
    assert canon.value(2**63) == canon.value(float(2**63))
    assert canon.value(2**63 - 1) != canon.value(float(2**63))


def test_vectors_have_one_canonical_form_in_every_layout_of_the_protocol() -> None:
    from qdrant_client import grpc

    values = [0.25, -1.5, 3e-5, 1.0]
    point = grpc.PointId(uuid="6F9619FF-8B86-D011-B42D-00C04FC964FF")

    def read(**vectors: Any) -> list[tuple[str, bytes]]:
        ((found, _, read_vectors),) = wire.points(_answer(grpc.RetrievedPoint(id=point, vectors=grpc.VectorsOutput(**vectors))))
        assert found == "6f9619ff-8b86-d011-b42d-00c04fc964ff"
        return sorted(read_vectors)

    dense = ("", canon.vector(values))
    assert read(vector=grpc.VectorOutput(data=values)) == [dense]
    assert read(vector=grpc.VectorOutput(dense=grpc.DenseVector(data=values))) == [dense]
    named = {
        "old sparse": grpc.VectorOutput(data=[0.5, 2.0], indices=grpc.SparseIndices(data=[300, 7])),
        "new sparse": grpc.VectorOutput(sparse=grpc.SparseVector(values=[0.5, 2.0], indices=[300, 7])),
        "old multi": grpc.VectorOutput(data=values, vectors_count=2),
        "new multi": grpc.VectorOutput(
            multi_dense=grpc.MultiDenseVector(vectors=[grpc.DenseVector(data=values[:2]), grpc.DenseVector(data=values[2:])])
        ),
    }
    sparse = canon.vector({"indices": [7, 300], "values": [2.0, 0.5]})
    multi = canon.vector([values[:2], values[2:]])
    assert read(vectors=grpc.NamedVectorsOutput(vectors=named)) == [
        ("new multi", multi),
        ("new sparse", sparse),
        ("old multi", multi),
        ("old sparse", sparse),
    ]


def test_a_vector_whose_floats_come_one_by_one_is_read_as_servers_write_them() -> None:
    """The servers do not pack floats: tag and four bytes each. The bytes here were put together by hand."""
    values = struct.pack("<3f", 1.0, -2.0, 0.5)
    output = b"".join(b"\x0d" + values[i : i + 4] for i in (0, 4, 8))
    vectors = canon.framed(b"\x0a", output)
    point = canon.framed(b"\x0a", b"\x08\x05") + canon.framed(b"\x22", vectors)
    assert list(wire.points(canon.framed(b"\x12", point))) == [(5, b"", [("", b"D" + values)])]
    with_indices = output[:10] + canon.framed(b"\x12", b"\x08\x09\x08\x03")
    point = canon.framed(b"\x0a", b"\x08\x05") + canon.framed(b"\x22", canon.framed(b"\x0a", with_indices))
    assert next(wire.points(canon.framed(b"\x12", point)))[2] == [("", canon.sparse([9, 3], [1.0, -2.0]))]


@pytest.mark.parametrize("cut", [1, 3, 6, 11, 14])
def test_a_cut_answer_is_malformed_rather_than_shorter(cut: int) -> None:
    from qdrant_client import grpc

    whole = _answer(grpc.RetrievedPoint(id=grpc.PointId(num=700), payload={"a": grpc.Value(string_value="text")}))
    with pytest.raises(wire.Malformed):
        list(wire.points(whole[:cut]))


def test_the_next_offset_is_read_from_an_answer_and_sent_in_a_request() -> None:
    from qdrant_client import grpc

    assert wire.next_offset(_answer(offset=grpc.PointId(num=77))) == 77
    assert wire.next_offset(_answer()) is None
    for offset in (2**40, str(uuid.uuid4())):
        request = grpc.ScrollPoints.FromString(wire.scroll_request("모음", limit=999, payload=True, vectors=False, offset=offset))
        assert (request.collection_name, request.limit) == ("모음", 999)
        assert request.with_payload.enable
        assert request.HasField("with_vectors")
        assert not request.with_vectors.enable
        assert offset == (request.offset.num or request.offset.uuid)


def test_a_fingerprint_does_not_depend_on_the_order_but_on_every_point() -> None:
    source = random.Random(3)
    shares = [canon.share(canon.point_id(n), bytes(source.randbytes(20))) for n in range(500)]
    shuffled = source.sample(shares, len(shares))
    assert canon.total(shares) == canon.total(shuffled) != canon.total(shares[1:])
    assert canon.total([*shares[1:], shares[0] ^ 1]) != canon.total(shares)
    assert len(canon.hexed(canon.total(shares))) == 64


def test_head_and_length_tell_what_a_canonical_vector_begins_with() -> None:
    assert canon.head(canon.vector([0.5, 0.25]), 1) == (0.5,)
    assert canon.head(canon.vector({"indices": [9, 2], "values": [1.0, 2.0]})) == (2.0, 1.0)
    assert canon.head(canon.vector([[1.0, 2.0], [3.0, 4.0]])) == (1.0, 2.0)
    assert [canon.length(canon.vector(v)) for v in ([1.0] * 5, {"indices": [1], "values": [1.0]}, [[1.0], [2.0], [3.0]])] == [5, 1, 3]


def test_a_vector_field_of_rest_is_told_from_named_vectors() -> None:
    assert canon.vectors_by_name([1.0]) == {"": [1.0]}
    assert canon.vectors_by_name({"a": [1.0]}) == {"a": [1.0]}
    assert canon.vectors_by_name({"indices": [1], "values": [2.0]}) == {"": {"indices": [1], "values": [2.0]}}
    assert canon.vectors_by_name(None) == {}


# -- golden searches ---------------------------------------------------------------------------------------------------


def test_golden_vectors_are_the_same_for_ever() -> None:
    """Computed once and written down: evidence of old sets is worthless if these ever change."""
    first = int.from_bytes(hashlib.sha256(b"20241001_020000\n\n0\n0").digest()[:4], "big")
    found = golden.components("20241001_020000", "", 0, 9)
    assert found[0] == (first >> 8) / 2**23 - 1
    assert [f"{v:.7f}" for v in found[:4]] == ["0.0908364", "-0.3444961", "0.6950709", "0.1954197"]
    assert golden.components("20241001_020000", "", 1, 9) != found != golden.components("20241001_020000", "title", 0, 9)
    assert all(-1 <= v < 1 and struct.unpack("<f", struct.pack("<f", v))[0] == v for v in found)
    assert all(v == int(v) and 0 <= v < 256 for v in golden.components("s", "", 0, 50, integers=True))


def test_golden_results_agree_despite_ties_and_rounding_and_disagree_otherwise() -> None:
    def search(*hits: tuple[int, float]) -> GoldenSearch:
        return GoldenSearch(using="", number=0, hits=tuple(Hit(id=i, score=s) for i, s in hits))

    recorded = search((1, 0.9), (2, 0.5), (3, 0.5))
    assert not golden.disagreement(recorded, search((1, 0.90001), (3, 0.5), (2, 0.49999)))
    assert not golden.disagreement(recorded, search((1, 0.9), (2, 0.5), (4, 0.5))), "another point with the last score"
    assert "score 0.4" in golden.disagreement(recorded, search((1, 0.9), (2, 0.4), (3, 0.4)))
    assert "point 1" in golden.disagreement(recorded, search((9, 0.9), (2, 0.5), (3, 0.5)))
    assert "2 results instead of 3" in golden.disagreement(recorded, search((1, 0.9), (2, 0.5)))
    swapped = golden.disagreement(search((1, 0.9), (2, 0.7), (3, 0.5)), search((1, 0.9), (3, 0.7), (2, 0.5)))
    assert "point 2" in swapped


def test_sparse_queries_use_dimensions_that_occur() -> None:
    chosen = golden.choose_indices("s", "words", 0, [5, 7, 7, 9])
    assert chosen == (5, 7, 9)
    many = golden.choose_indices("s", "words", 0, range(1000))
    assert len(many) == golden.SPARSE_TERMS == len(set(many))
    assert many != golden.choose_indices("s", "words", 1, range(1000))


# -- names -------------------------------------------------------------------------------------------------------------


@settings(max_examples=300)
@given(left=st.text(min_size=1, max_size=260), right=st.text(min_size=1, max_size=260))
def test_file_names_are_safe_and_injective(left: str, right: str) -> None:
    for name in (left, right):
        made = names.file_name(name)
        assert made not in {"", ".", ".."}
        assert not made.startswith(".")
        assert len(made) <= 180
        assert set(made) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-.%~")
    assert (names.file_name(left) == names.file_name(right)) is (left == right)


def test_ordinary_names_stay_readable() -> None:
    assert names.file_name("scholaria_documents") == "scholaria_documents"
    assert names.file_name("../x") == "%2E.%2Fx"
    assert names.quoted("a/b %") == "a%2Fb%20%25"


def test_the_time_of_a_snapshot_is_read_from_its_name() -> None:
    stamp = names.stamp_of("my-docs-2024-01-01-8906379411333481-2026-11-22-20-27-12.snapshot")
    assert stamp is not None
    assert stamp.isoformat() == "2026-11-22T20:27:12+00:00"
    assert names.stamp_of("mine.snapshot") is None
    assert names.stamp_of("x-1-2026-13-45-99-00-00.snapshot") is None


@pytest.mark.parametrize(
    ("source", "reader", "fits"),
    [
        ("1.16.3", "1.16.3", True),
        ("1.16.0", "1.16.3", True),
        ("1.16.3", "1.17.0-dev", True),
        ("1.16.3", "1.18.0", False),
        ("1.17.0", "1.16.3", False),
        ("1.7.4", "1.16.3", False),
        ("1.9.1", "1.10.0", True),
        ("1.16.3", "2.16.3", False),
    ],
)
def test_snapshots_open_in_the_same_and_the_next_minor_version(source: str, reader: str, fits: bool) -> None:
    assert names.opens(source, reader) is fits
