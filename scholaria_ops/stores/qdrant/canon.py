"""The canonical form of a point: what its digests are taken over, however the point was read.

The same point gives the same bytes whether it came as JSON over REST or as protocol buffers over gRPC, and on any
server version. The form is that of the server's own ``Value`` message, with the entries of every map sorted by their bytes:

* null ``08 00``; true/false ``28 01``/``28 00``; an integer that fits 64 signed bits ``18`` and its varint; any other
  number ``11`` and eight bytes, little-endian (a larger integer too: gRPC knows it as a double only);
* text ``22``, length, UTF-8; an object ``32``, length, entries ``0a`` length (``0a`` length key, ``12`` length value);
  a list ``3a``, length, items ``0a`` length value.

A payload is the entries of an object without the frame. A vector is ``D`` and its float32 components, little-endian;
``S``, the number of entries, the dimensions (uint32, ascending) and their values; or ``M`` and, per row, its length and
components. A point's id is ``n`` and eight bytes, big-endian, or ``u`` and the UUID's text.
"""

from __future__ import annotations

import array
import hashlib
import itertools
import struct
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

PointId = int | str

_DOUBLE = struct.Struct("<d")
_INT64 = range(-(1 << 63), 1 << 63)
_SWAP = sys.byteorder == "big"


def varint(number: int) -> bytes:
    """``number`` (0 … 2**64-1) in base 128, least significant group first."""
    if number < 0x80:
        return bytes((number,))
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def framed(tag: bytes, content: bytes) -> bytes:
    return tag + varint(len(content)) + content


def value(found: Any) -> bytes:  # noqa: PLR0911 - one line per kind
    """The canonical bytes of one JSON value."""
    match found:
        case None:
            return b"\x08\x00"
        case bool():
            return b"\x28\x01" if found else b"\x28\x00"
        case int() if found in _INT64:
            return b"\x18" + varint(found & 0xFFFF_FFFF_FFFF_FFFF)
        case int() | float():
            return b"\x11" + _DOUBLE.pack(float(found))
        case str():
            return framed(b"\x22", found.encode())
        case list() | tuple():
            return framed(b"\x3a", b"".join(framed(b"\x0a", value(item)) for item in found))
        case Mapping():
            return framed(b"\x32", payload(found))
    raise TypeError(f"{type(found).__name__} is no JSON value")


def payload(found: Mapping[str, Any] | None) -> bytes:
    """The canonical bytes of a payload (of none and of an empty one: no bytes)."""
    return joined(entry(key.encode(), value(item)) for key, item in (found or {}).items())


def entry(key: bytes, item: bytes) -> bytes:
    """A map entry of a key and a canonical value, without its frame."""
    return framed(b"\x0a", key) + framed(b"\x12", item)


def joined(entries: Iterable[bytes]) -> bytes:
    """Map entries in the order of their bytes (shorter keys first, then by key)."""
    return b"".join([b"\x0a" + varint(len(e)) + e for e in sorted(entries)])


def floats(components: Sequence[float]) -> bytes:
    """Components as little-endian float32."""
    packed = array.array("f", components)
    if _SWAP:  # pragma: no cover - no server runs on such a machine
        packed.byteswap()
    return packed.tobytes()


def dense(components: bytes) -> bytes:
    return b"D" + components


def sparse(indices: Sequence[int], components: Sequence[float]) -> bytes:
    order = sorted(range(len(indices)), key=indices.__getitem__)
    return b"S" + struct.pack(f"<I{len(order)}I", len(order), *(indices[i] for i in order)) + floats([components[i] for i in order])


def multi(rows: Iterable[bytes]) -> bytes:
    return b"M" + b"".join(struct.pack("<I", len(row) // 4) + row for row in rows)


def vector(found: Any) -> bytes:
    """The canonical bytes of a vector as REST gives it: a list, a list of lists, or indices with values."""
    if isinstance(found, Mapping):
        return sparse(found["indices"], found["values"])
    if found and isinstance(found[0], list):
        return multi(floats(row) for row in found)
    return dense(floats(found))


def vectors_by_name(found: Any) -> Mapping[str, Any]:
    """A point's vectors by name, from the ``vector`` field of REST; the unnamed one has the name ``""``."""
    if found is None:
        return {}
    if isinstance(found, Mapping) and found.keys() != {"indices", "values"}:
        return found
    return {"": found}


def named(vectors: Sequence[tuple[str, bytes]]) -> list[bytes]:
    """All vectors of a point in the order of their names, as parts (they are long, so they are not joined)."""
    parts: list[bytes] = []
    for name, item in sorted(vectors):
        parts += framed(b"\x0a", name.encode()), b"\x12" + varint(len(item)), item
    return parts


def point_id(found: PointId) -> bytes:
    return b"n" + found.to_bytes(8, "big") if isinstance(found, int) else b"u" + found.lower().encode()


def share(*parts: bytes) -> int:
    """A point's share in a fingerprint: SHA-256 over the parts."""
    digest = hashlib.sha256(parts[0])
    for part in parts[1:]:
        digest.update(part)
    return int.from_bytes(digest.digest(), "big")


def total(shares: Iterable[int]) -> int:
    """The sum of shares modulo 2**256."""
    return sum(shares) & ((1 << 256) - 1)


def hexed(fingerprint: int) -> str:
    return f"{fingerprint:064x}"


def head(canonical: bytes, count: int = 8) -> tuple[float, ...]:
    """The first components of a canonical vector (values of a sparse one, of the first row of a multi-vector)."""
    kind, body = canonical[:1], canonical[1:]
    if kind == b"S":
        entries = int.from_bytes(body[:4], "little")
        body = body[4 + 4 * entries :]
    elif kind == b"M":
        body = body[4 : 4 + 4 * int.from_bytes(body[:4], "little")]
    found = array.array("f", body[: 4 * count])
    return tuple(itertools.islice(found, count))


def length(canonical: bytes) -> int:
    """Components of a dense vector, entries of a sparse one, rows of a multi-vector."""
    kind, body = canonical[:1], canonical[1:]
    if kind == b"D":
        return len(body) // 4
    if kind == b"S":
        return int.from_bytes(body[:4], "little")
    rows = 0
    while body:
        body = body[4 + 4 * int.from_bytes(body[:4], "little") :]
        rows += 1
    return rows


KINDS = {b"D": "dense", b"S": "sparse", b"M": "multi"}
