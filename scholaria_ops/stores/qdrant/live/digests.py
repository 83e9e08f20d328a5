"""A digest of each point of a collection in little memory: 16 bytes a point whose id is a number, 24 where it is a UUID."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Bytes of a digest: a point that was changed has the same one with a chance of one in 2**64.
DIGEST_BYTES = 8
_NUMBER, _UUID = b"n"[0], b"u"[0]


@dataclass(frozen=True, slots=True)
class Change:
    """How two readings of a collection differ, in points."""

    new: int
    changed: int
    gone: int


@dataclass(slots=True)
class _Packed:
    """Ids of one kind and their digests, one after the other, in the order in which they came."""

    id_bytes: int
    dtype: str
    ids: bytearray = field(default_factory=bytearray)
    digests: bytearray = field(default_factory=bytearray)

    def by_id(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """In the order of ids; of an id that came twice, what came last."""
        import numpy as np

        ids = np.frombuffer(bytes(self.ids), self.dtype)
        order = ids.argsort(kind="stable")
        ids, digests = ids[order], np.frombuffer(bytes(self.digests), ">u8")[order]
        last = np.append(ids[1:] != ids[:-1], True) if len(ids) else np.zeros(0, bool)
        return ids[last], digests[last]


class Digests:
    """Ids in canonical bytes (see :func:`scholaria_ops.stores.qdrant.canon.point_id`) → eight bytes of a digest."""

    def __init__(self) -> None:
        self._numbers = _Packed(8, ">u8")
        self._uuids = _Packed(16, "S16")

    def add(self, raw: bytes, digest: bytes) -> None:
        """Note a point. ``digest`` has :data:`DIGEST_BYTES`.

        Raises:
            ValueError: these are no canonical bytes of an id, or no digest.
        """
        if len(digest) != DIGEST_BYTES:
            raise ValueError(f"a digest of {len(digest)} bytes")
        if raw[0] == _NUMBER and len(raw) == 9:
            part, packed = self._numbers, raw[1:]
        elif raw[0] == _UUID:
            part, packed = self._uuids, uuid.UUID(raw[1:].decode()).bytes
        else:
            raise ValueError(f"{raw!r} is no id of a point")
        part.ids += packed
        part.digests += digest

    def __len__(self) -> int:
        return (len(self._numbers.digests) + len(self._uuids.digests)) // DIGEST_BYTES

    def __eq__(self, other: object) -> bool:
        """Whether both hold the same points with the same digests, in whatever order they came."""
        if not isinstance(other, Digests):
            return NotImplemented
        return self.same_ids(other) and self.change_since(other).changed == 0

    __hash__ = None  # type: ignore[assignment] # they grow

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """Every id with its digest: numbers as they came, then UUIDs as they came."""
        for part in (self._numbers, self._uuids):
            size = part.id_bytes
            for n in range(len(part.digests) // DIGEST_BYTES):
                digest = bytes(part.digests[n * DIGEST_BYTES : (n + 1) * DIGEST_BYTES])
                yield _raw(part, bytes(part.ids[n * size : (n + 1) * size])), digest

    def lowest(self, count: int) -> Iterator[bytes]:
        """The first ``count`` ids in the order of their canonical bytes: numbers, then UUIDs."""
        for part in (self._numbers, self._uuids):
            ids, _ = part.by_id()
            packed, size = ids[: max(0, count)].tobytes(), part.id_bytes
            yield from (_raw(part, packed[at : at + size]) for at in range(0, len(packed), size))
            count -= len(ids)

    def same_ids(self, other: Digests) -> bool:
        return all((a.by_id()[0].tobytes() == b.by_id()[0].tobytes()) for a, b in self._pairs(other))

    def change_since(self, then: Digests) -> Change:
        """What happened between an earlier reading and this one, if both looked at the same things."""
        import numpy as np

        new = changed = gone = 0
        for now_part, then_part in self._pairs(then):
            (now, now_digests), (before, before_digests) = now_part.by_id(), then_part.by_id()
            both, here, there = np.intersect1d(now, before, assume_unique=True, return_indices=True)
            new += len(now) - len(both)
            gone += len(before) - len(both)
            changed += int(np.count_nonzero(now_digests[here] != before_digests[there]))
        return Change(new, changed, gone)

    def _pairs(self, other: Digests) -> tuple[tuple[_Packed, _Packed], ...]:
        return (self._numbers, other._numbers), (self._uuids, other._uuids)


def _raw(part: _Packed, packed: bytes) -> bytes:
    return b"n" + packed if part.id_bytes == 8 else b"u" + str(uuid.UUID(bytes=packed)).encode()
