"""Read databases out of a running server, key by key, into an RDB.

For databases in which nobody writes. The server makes no RDB of everything it holds, so it does not fork while it holds both
what is served and what was served before; it answers a few hundred keys at a time, and its other clients in between.
Memory here stays flat: what is too large to come as one value is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from scholaria_ops.cancel import CancelToken
from scholaria_ops.errors import StoreError
from scholaria_ops.stores.redis.info import look
from scholaria_ops.stores.redis.live.classes import scan
from scholaria_ops.stores.redis.live.read_back import Expected
from scholaria_ops.stores.redis.rdb import RdbWriter
from scholaria_ops.stores.redis.wire import ServerError, Wire

#: Bounds of what is asked at once: keys (of which the server has to say two things each), and bytes of their values.
_KEYS, _BYTES = 500, 1 << 20
#: Collections are asked for a few at a time.
_COLLECTIONS = 16
#: Largest value (bytes) that comes as one.
MAX_VALUE = 64 << 20
#: Of each database so many keys, spread over it, are remembered for a comparison; of strings only up to this size.
_SAMPLE, _SAMPLE_BYTES = 200, 1 << 16
#: Type → the command that makes such a key.
_MADE_BY = {b"list": b"RPUSH", b"set": b"SADD", b"zset": b"ZADD", b"hash": b"HMSET", b"stream": b"XADD"}


class TooLarge(Exception):
    """A value is larger than :data:`MAX_VALUE`: read the database in another way."""


@dataclass
class Extracted:
    """What was read: keys by database (in the numbers of the RDB), and some of them for a comparison."""

    keys: dict[int, int] = field(default_factory=dict)
    sample: dict[int, list[Expected]] = field(default_factory=dict)


def extract(wire: Wire, names: Wire, databases: Mapping[int, int], rdb: RdbWriter, cancel: CancelToken) -> Extracted:
    """Write the keys of ``databases`` (there → number in the RDB); the caller begins and ends the RDB.

    ``names`` is a second connection to the same server, over which the next names come while the keys before them are written.

    A key that comes twice is written twice (a scan may return one so while a table is resized): no server loads such a file.

    Raises:
        TooLarge: as it says.
        StoreError: the server refused a command, or holds more keys in the end than came.
    """
    found = Extracted()
    for there, number in sorted(databases.items(), key=lambda pair: pair[1]):
        if (held := look(wire, config=False).keyspace.get(there, 0)) == 0:
            continue
        for connection in (wire, names):
            connection.call("SELECT", there)
        rdb.select(number)
        found.keys[number] = 0
        found.sample[number] = []
        one = _Database(wire, rdb, found, number, max(1, held // _SAMPLE))
        for keys in scan(names, cancel, ahead=True):
            for begin in range(0, len(keys), _KEYS):
                cancel.check()
                one.take(keys[begin : begin + _KEYS])
        one.take([])
        held = look(wire, config=False).keyspace.get(there, 0)
        if held > found.keys[number]:
            raise StoreError(
                f"database {there} of Redis at {wire.where} holds {held:,} keys, {found.keys[number]:,} could be read out",
                store="redis",
                hint="Does somebody write there? Its keys are those that were served before the restore.",
            )
        if not found.keys[number]:  # all had expired: no server tells of a database without keys
            del found.keys[number]
    return found


class _Database:
    def __init__(self, wire: Wire, rdb: RdbWriter, found: Extracted, number: int, step: int) -> None:
        self._wire = wire
        self._rdb = rdb
        self._found = found
        self._number = number
        self._step = step
        self._seen = 0
        #: Keys of which the server has been asked what they are.
        self._asked: list[bytes] = []

    def take(self, following: list[bytes]) -> None:
        """Write the keys of the call before; those whose time has come are left out.

        What the ``following`` are is asked along with the last values, so that the server is at work while these are written.
        """
        keys, self._asked = self._asked, following
        n = len(keys)
        replies = self._wire.replies(2 * n)
        strings: list[tuple[bytes, int]] = []
        others: list[tuple[bytes, int]] = []
        size = 0
        for key, expiry, length in zip(keys, replies[:n], replies[n:], strict=True):
            if expiry == -2:
                continue
            if length.__class__ is not int:
                _only_another_type(self._wire, length)
                others.append((key, expiry))
                continue
            if length > MAX_VALUE:
                raise TooLarge(key)
            if size + length > _BYTES and strings:
                self._strings(strings)
                strings, size = [], 0
            strings.append((key, expiry))
            size += length
        for begin in range(0, len(others), _COLLECTIONS):
            self._others(others[begin : begin + _COLLECTIONS])
        self._strings(strings, following)

    def _strings(self, keys: list[tuple[bytes, int]], following: Sequence[bytes] = ()) -> None:
        values: list[tuple[bytes | str, ...]] = [("MGET", *(key for key, _ in keys))] if keys else []
        self._wire.send([*values, *(("PEXPIRETIME", key) for key in following), *(("STRLEN", key) for key in following)])
        if not keys:
            return
        string = self._rdb.string
        for (key, expiry), value in zip(keys, self._wire.answer("MGET"), strict=True):
            if value is not None:
                string(key, value, expiry)
                self._count(key, expiry, value)

    def _others(self, keys: list[tuple[bytes, int]]) -> None:
        replies = self._wire.batch([*(("MEMORY", "USAGE", key) for key, _ in keys), *(("TYPE", key) for key, _ in keys)])
        _refuse_errors(self._wire, replies)
        for (key, _), size in zip(keys, replies, strict=False):
            if (size or 0) > MAX_VALUE:
                raise TooLarge(key)
        payloads = self._wire.batch([("DUMP", key) for key, _ in keys])
        _refuse_errors(self._wire, payloads)
        for (key, expiry), kind, payload in zip(keys, replies[len(keys) :], payloads, strict=True):
            if payload is not None:
                self._rdb.payload(key, payload, expiry)
                self._count(key, expiry, None, made_by=_MADE_BY.get(kind, b""))

    def _count(self, key: bytes, expiry: int, value: bytes | None, made_by: bytes = b"SET") -> None:
        self._found.keys[self._number] += 1
        self._seen += 1
        if self._seen % self._step == 0 and (value is None or len(value) <= _SAMPLE_BYTES):
            self._found.sample[self._number].append(Expected(key, value, made_by, max(expiry, 0)))


def _only_another_type(wire: Wire, reply: Any) -> None:
    if not (isinstance(reply, ServerError) and str(reply).startswith("WRONGTYPE")):
        _refuse_errors(wire, [reply])


def _refuse_errors(wire: Wire, replies: list[Any]) -> None:
    for reply in replies:
        if isinstance(reply, ServerError):
            raise StoreError(f"what Redis at {wire.where} served before cannot be read out: {reply}", store="redis", hint="See its log.")
