"""Reading the structure of a collection snapshot without any server.

A snapshot is a tar archive: ``config.json``, ``version.info``, ``payload_index.json`` and one directory per shard, whose
segments are tar archives in turn (older servers put ``./`` before every name). Long runs of zeros are left out as GNU
sparse members. Walking the headers finds cut files, foreign files and hostile member names; it does not read the data,
which only a server can judge. The version in it is that of the storage format, not the server's: it has been the same
from 1.7 to 1.19.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol, cast

from scholaria_ops.errors import VerificationFailed

_BLOCK = 512
_SKIP_BLOCK = 1 << 20
_MAX_MEMBERS = 5_000_000
_MAX_TEXT = 4 << 20
_REGULAR, _SPARSE, _DIRECTORY = {b"0", b"\0"}, b"S", b"5"
_LONG_NAME, _EXTENDED = b"L", {b"x", b"g"}


@dataclass(frozen=True, slots=True)
class Member:
    """A file in a snapshot. ``offset`` is where its stored bytes begin in the (uncompressed) snapshot."""

    name: str
    size: int
    offset: int
    sparse: bool
    #: Name of the inner archive that it lies in; empty at the top.
    inside: str = ""


@dataclass(slots=True)
class Structure:
    """What a snapshot consists of."""

    config: Mapping[str, Any] = field(default_factory=dict)
    indexes: Mapping[str, Any] = field(default_factory=dict)
    storage_version: str = ""
    members: list[Member] = field(default_factory=list)
    size: int = 0

    @property
    def shards(self) -> int:
        return len({m.name.split("/")[0] for m in self.members if not m.inside and "/" in m.name and m.name.split("/")[0].isdigit()})

    @property
    def segments(self) -> int:
        found = {m.name.split("/")[2].removesuffix(".tar") for m in self.members if not m.inside and m.name.split("/")[1:2] == ["segments"]}
        return len(found)


class _Reader(Protocol):
    at: int

    def read(self, count: int) -> bytes: ...
    def skip(self, count: int) -> None: ...


class _Stream:
    """Sequential reading that knows where it is; a plain file is skipped through without reading."""

    def __init__(self, source: IO[bytes], size: int | None) -> None:
        self._source = source
        self._size = size
        self.at = 0

    def read(self, count: int) -> bytes:
        try:
            found = self._source.read(count)
        except (EOFError, OSError, ValueError) as exc:  # damaged or cut compression
            raise VerificationFailed(f"unreadable after {self.at:,} bytes: {exc}") from exc
        self.at += len(found)
        return found

    def skip(self, count: int) -> None:
        if self._size is not None:
            if self.at + count > self._size:
                raise _cut(self._size)
            self._source.seek(count, 1)
            self.at += count
            return
        while count:
            found = self.read(min(count, _SKIP_BLOCK))
            if not found:
                raise _cut(self.at)
            count -= len(found)


def read_structure(path: Path, *, compressed: bool) -> Structure:
    """Walk a snapshot file.

    Raises:
        VerificationFailed: it is cut, is no snapshot, or has members that must not be in one; the message says which.
    """
    with opened(path, compressed=compressed) as source:
        size = None if compressed else path.stat().st_size
        reader = _Stream(source, size)
        found = Structure()
        first = reader.read(_BLOCK)
        refuse_foreign(first)
        _walk(reader, first, found, inside="", end=None)
        found.size = reader.at if size is None else size
    if not found.config:
        raise VerificationFailed("not a collection snapshot: no config.json in it")
    if not found.shards:
        raise VerificationFailed("not a collection snapshot: no shard in it")
    return found


@contextlib.contextmanager
def opened(path: Path, *, compressed: bool) -> Iterator[IO[bytes]]:
    """The uncompressed content of a snapshot artifact, as a stream."""
    if compressed:
        from isal import igzip

        with igzip.open(path, "rb") as source:  # type: ignore[no-untyped-call]
            yield cast(IO[bytes], source)
    else:
        with path.open("rb") as plain:
            yield plain


def refuse_foreign(first: bytes) -> None:
    """Raise VerificationFailed if a file that begins so is no tar archive, saying what it is as far as can be told."""
    if not first:
        raise VerificationFailed("not a snapshot: the file is empty")
    if len(first) >= _BLOCK and first[257:262] == b"ustar" and _checksum_fits(first):
        return
    head = first.lstrip()
    if head[:1] == b"{":
        raise VerificationFailed(f"not a snapshot: a saved error message ({_said(head)})")
    if head[:1] == b"<":
        raise VerificationFailed("not a snapshot: a saved web page")
    raise VerificationFailed("not a snapshot: it does not begin like a tar archive")


def _said(head: bytes) -> str:
    try:
        status = json.loads(head)["status"]
        return str(status["error"] if isinstance(status, dict) else status)[:200]
    except (ValueError, KeyError, TypeError):
        return head[:120].decode("utf-8", "replace")


def _walk(reader: _Reader, first: bytes, found: Structure, *, inside: str, end: int | None) -> None:
    """Walk the members of one archive; ``first`` is its first header, already read.

    The snapshot itself ends in two blocks of zeros, so a file cut anywhere is found. Segments' inner archives end where
    their member does: servers write them as a stream and leave the mark out.
    """
    header, long_name, zeros = first, None, 0
    while True:
        if len(header) < _BLOCK:
            raise _cut(reader.at)
        if header.count(0) == _BLOCK:
            zeros += 1
            if zeros == 2:
                return
        else:
            zeros = 0
            long_name = _member(reader, header, long_name, found, inside)
        if end is not None and reader.at >= end:
            if reader.at > end:
                raise VerificationFailed(f"damaged: a member reaches beyond its archive {inside}")
            return
        header = reader.read(_BLOCK)


def _member(reader: _Reader, header: bytes, long_name: str | None, found: Structure, inside: str) -> str | None:
    """Take in one member; returns the name it announces for the next one, if it does."""
    if not _checksum_fits(header):
        raise VerificationFailed(f"damaged at byte {reader.at - _BLOCK:,}: a header's checksum is wrong")
    kind, size = header[156:157], _number(header[124:136])
    name = long_name or (_text(header[345:500]) + "/" if header[257:263] == b"ustar\0" and header[345] else "") + _text(header[:100])
    if kind == _LONG_NAME:
        return _text(_content(reader, size))
    if kind in _EXTENDED:
        reader.skip(_padded(size))
        return None
    if kind == _SPARSE:
        extended = header[482]
        while extended:
            block = reader.read(_BLOCK)
            if len(block) < _BLOCK:
                raise _cut(reader.at)
            extended = block[504]
    elif kind != _DIRECTORY and kind not in _REGULAR:
        raise VerificationFailed(f"hostile or damaged: member {name!r} is neither a file nor a directory")
    _check_name(name)
    if kind != _DIRECTORY:
        _file(reader, Member(name.removeprefix("./"), size, reader.at, kind == _SPARSE, inside), found)
    return None


def _file(reader: _Reader, member: Member, found: Structure) -> None:
    if len(found.members) >= _MAX_MEMBERS:
        raise VerificationFailed("hostile or damaged: far too many members")
    found.members.append(member)
    end = member.offset + _padded(member.size)
    if not member.inside and not member.sparse:
        if member.name == "config.json":
            found.config = _json(reader, member)
        elif member.name == "payload_index.json":
            found.indexes = _json(reader, member)
        elif member.name == "version.info":
            found.storage_version = _text(_content(reader, member.size)).strip()
        elif "/segments/" in member.name and member.name.endswith(".tar") and member.size:
            first = reader.read(_BLOCK)
            if len(first) < _BLOCK:
                raise _cut(reader.at)
            if first.count(0) != _BLOCK and not _checksum_fits(first):
                raise VerificationFailed(f"damaged: {member.name} does not begin like a tar archive")
            _walk(reader, first, found, inside=member.name, end=end)
    reader.skip(end - reader.at)


def _json(reader: _Reader, member: Member) -> Mapping[str, Any]:
    try:
        found = json.loads(_content(reader, member.size))
    except ValueError as exc:
        raise VerificationFailed(f"damaged: {member.name} is not JSON") from exc
    if not isinstance(found, dict):
        raise VerificationFailed(f"damaged: {member.name} is not what it should be")
    return found


def _content(reader: _Reader, size: int) -> bytes:
    if size > _MAX_TEXT:
        raise VerificationFailed("hostile or damaged: a description far too large")
    content = reader.read(size)
    if len(content) < size:
        raise _cut(reader.at)
    reader.skip(_padded(size) - size)
    return content


def _check_name(name: str) -> None:
    parts = name.removeprefix("./").rstrip("/").split("/")
    if name.startswith("/") or ".." in parts or "\\" in name:
        raise VerificationFailed(f"hostile: member {name!r} leaves the snapshot")


def _checksum_fits(header: bytes) -> bool:
    try:
        told = int(header[148:156].strip(b"\0 ") or b"x", 8)
    except ValueError:
        return False
    return told == sum(header[:148]) + 8 * 32 + sum(header[156:_BLOCK])


def _number(raw: bytes) -> int:
    """A size: octal digits, or (first bit set) big-endian binary for files of 8 GiB and more."""
    if raw[0] & 0x80:
        return int.from_bytes(raw[1:], "big")
    try:
        return int(raw.strip(b"\0 ") or b"0", 8)
    except ValueError:
        raise VerificationFailed("damaged: a member's size is not a number") from None


def _text(raw: bytes) -> str:
    return raw.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _cut(where: int) -> VerificationFailed:
    return VerificationFailed(f"cut: it ends after {where:,} bytes, in the middle of its content")
