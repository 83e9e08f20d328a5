"""Write an RDB of what a server gives out key by key.

The payload of ``DUMP`` is what an RDB holds of a value, between the type in front and a version with a checksum behind. A
plain string is its length and its bytes. So a part of a dataset can be written without the server making an RDB of all
of it. There is no checksum at the end: Redis loads such a file unchecked, and whoever keeps it keeps its SHA-256.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final

#: Version of the format and checksum at the end of a payload of ``DUMP``.
FOOTER: Final = 10
_FUNCTION, _EXPIRY, _SELECT, _END = b"\xf5", b"\xfc", b"\xfe", b"\xff"
_STRING = b"\x00"
_BLOCK = 1 << 18
_expiry = struct.Struct("<q").pack


def version_of(payload: bytes) -> int:
    """The version of the RDB format that the server of a payload writes."""
    return int.from_bytes(payload[-FOOTER:-8], "little")


class RdbWriter:
    """Feed it functions, then each database with its keys, then :meth:`end`. ``write`` gets blocks of some 256 KB.

    Args:
        version: of the format, as the server that the payloads are of writes it.
    """

    def __init__(self, write: Callable[[bytes], object], version: int) -> None:
        self._write = write
        self._parts: list[bytes] = [b"REDIS%04d" % version]
        self._size = 0

    def function(self, code: bytes) -> None:
        """A library of functions, by its code."""
        self._add(_FUNCTION + _length(len(code)) + code)

    def select(self, db: int) -> None:
        """The keys that follow are of this database."""
        self._add(_SELECT + _length(db))

    def string(self, key: bytes, value: bytes, expiry: int) -> None:
        """A plain string. ``expiry`` in milliseconds since 1970, 0 or less for none."""
        head = _EXPIRY + _expiry(expiry) + _STRING if expiry > 0 else _STRING
        self._add(head + _length(len(key)) + key + _length(len(value)) + value)

    def payload(self, key: bytes, payload: bytes, expiry: int) -> None:
        """Any value, as ``DUMP`` gave it."""
        head = _EXPIRY + _expiry(expiry) + payload[:1] if expiry > 0 else payload[:1]
        self._add(head + _length(len(key)) + key + payload[1:-FOOTER])

    def end(self) -> None:
        self._parts.append(_END + bytes(8))
        self._flush()

    def _add(self, part: bytes) -> None:
        self._parts.append(part)
        self._size += len(part)
        if self._size >= _BLOCK:
            self._flush()

    def _flush(self) -> None:
        self._write(b"".join(self._parts))
        self._parts.clear()
        self._size = 0


def _length(n: int) -> bytes:
    if n < 1 << 6:
        return bytes((n,))
    if n < 1 << 14:
        return bytes((0x40 | n >> 8, n & 0xFF))
    return b"\x80" + n.to_bytes(4, "big") if n < 1 << 32 else b"\x81" + n.to_bytes(8, "big")
