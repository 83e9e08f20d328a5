"""Fingerprints of a whole dataset, read from the stream of commands that would rebuild it.

Each key gives one digest over its type, name, value and absolute expiry; digests are added up (modulo 2**256) per
database, prefix, type and window of expiry, so that order does not matter and a difference can be located.
Elements of sets, hashes and sorted sets are added up likewise, because their order in memory is accidental.

Python's share is what limits the speed (measured: 203,000 keys, 130 MB in about 0.8 s), hence the few, plain loops.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import sha256
from typing import Any, Protocol

from scholaria_ops.catalogue.evidence.redis import RedisFunctionLibrary, RedisKeys
from scholaria_ops.errors import Refused, VerificationFailed
from scholaria_ops.stores.redis.windows import Windows

#: Changes whenever the meaning of a fingerprint changes.
METHOD = "commands-sha256-sum/1"
OTHER = "(other)"
NO_PREFIX = "(no prefix)"
EXPIRING_FIELDS = "hash with expiring fields"

#: Bounds on what a server with a million prefixes can do to a manifest (each row is about 150 bytes).
MAX_PREFIXES = 200
MAX_ROWS = 4000
#: Prefixes looked at per database before the most frequent ones are chosen.
_MAX_TRACKED = 1000

_MODULUS = 1 << 256
_TYPES = {b"RPUSH": "list", b"SADD": "set", b"ZADD": "zset", b"HMSET": "hash", b"XADD": "stream", b"XSETID": "stream"}
_CONTINUES = {b"HPEXPIREAT", b"XCLAIM", b"XGROUP", *_TYPES}
#: Keys without a colon that end in a number, a UUID or a long hexadecimal string belong together by what precedes it.
_TAIL = re.compile(rb"(?:[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}|[0-9a-fA-F]{16,}|\d+)$")

#: (database, prefix, type), and for each: end of the window of expiry (None: never) → [keys, sum of digests].
Which = tuple[int, str, str]
Table = dict[int | None, list[int]]


def prefix_of(key: bytes, rules: Sequence[bytes] = ()) -> str:
    """The prefix that a key is counted under: the first of ``rules`` it begins with, else what precedes its first ``:``."""
    for rule in rules:
        if key.startswith(rule):
            return _label(rule)
    head, colon, _ = key.partition(b":")
    if colon:
        return _label(head)
    tail = _TAIL.search(key)
    return _label(key[: tail.start()]) + "*" if tail and tail.start() > 0 else NO_PREFIX


def _label(raw: bytes) -> str:
    return raw.decode("utf-8", "backslashreplace")[:120] or NO_PREFIX


def _number(digest: bytes) -> int:
    return int.from_bytes(digest, "big")


def key_of(command: Sequence[bytes]) -> bytes:
    """The key that a command of the stream speaks of (neither SELECT nor FUNCTION)."""
    return command[2] if command[0] == b"XGROUP" else command[1]


class _Aggregate:
    """Accumulates the commands of one key that is not a plain string."""

    def __init__(self, key: bytes, kind: str) -> None:
        self.key = key
        self.kind = kind
        self.first_expiry = 0
        self._sum = 0
        self._sequence = sha256()

    def add(self, command: list[bytes]) -> None:
        name = command[0]
        if name == b"HMSET":
            self._pairs(command[2::2], command[3::2], b"")
        elif name == b"SADD":
            self._sum += sum(_number(sha256(member).digest()) for member in command[2:])
        elif name == b"ZADD":
            # The server's own notation of a number changed between 7.0 and 7.2.
            self._pairs([repr(float(score)).encode() for score in command[2::2]], command[3::2], b"")
        elif name == b"HPEXPIREAT":
            self._field_expiry(int(command[2]), command[5:])
        else:  # lists and streams are sequences; the key's name stands in the digest of the whole
            self._in_order(command[2:] if name == b"RPUSH" else command)

    def _pairs(self, left: Sequence[bytes], right: Sequence[bytes], tag: bytes) -> None:
        for a, b in zip(left, right, strict=True):
            self._sum += _number(sha256(b"%b%d:%b%b" % (tag, len(a), a, b)).digest())

    def _field_expiry(self, expiry: int, fields: Sequence[bytes]) -> None:
        self.kind = EXPIRING_FIELDS
        self.first_expiry = min(self.first_expiry or expiry, expiry)
        self._pairs([b"%d" % expiry] * len(fields), fields, b"expiry ")

    def _in_order(self, items: Iterable[bytes]) -> None:
        update = self._sequence.update
        for item in items:
            update(b"%d:" % len(item))
            update(item)

    def value(self) -> bytes:
        return self._sequence.digest() + (self._sum % _MODULUS).to_bytes(32, "big")


#: A plain string as (key, value), or anything else; None between keys.
Pending = tuple[bytes, bytes] | _Aggregate | None


class Moves(Protocol):
    """What is about to become of some keys."""

    def touches(self, head: bytes) -> bool:
        """Whether any key that begins with ``head`` and a colon may be dropped or renamed."""

    def renamed(self, key: bytes) -> bytes | None:
        """The key's name afterwards (its own, if it stays as it is); None if it is dropped."""


class Measure:
    """Feed it commands, then read :meth:`rows`, :attr:`functions`, :attr:`total` and :attr:`expired`.

    Args:
        windows: where expiries are told apart.
        prefixes: for a measurement that is to be compared: the prefixes of the other one, per database; everything else
            is counted as :data:`OTHER`. None: discover them.
        rules: prefixes that the operator wants told apart although no colon ends them.
        renumber: database in the stream → database to report (for data staged elsewhere).
        expired_before_ms: keys with an expiry up to here are counted in :attr:`expired`.
        moves: keys that will be dropped or renamed: :meth:`rows_after` says what there is then.
    """

    def __init__(
        self,
        windows: Windows,
        *,
        prefixes: Mapping[int, frozenset[str]] | None = None,
        rules: Sequence[bytes] = (),
        renumber: Mapping[int, int] | None = None,
        expired_before_ms: int = 0,
        moves: Moves | None = None,
    ) -> None:
        self._ends = windows.ends
        self._wanted = prefixes
        self._rules = tuple(sorted(rules, key=len, reverse=True))
        self._renumber = renumber or {}
        self._expired_before_ms = expired_before_ms
        self._moves = moves
        self._tables: dict[Which, Table] = {}
        #: What :attr:`_moves` takes away (counted below zero) and brings.
        self._changes: dict[Which, Table] = {}
        self._select(0)
        self.functions: list[RedisFunctionLibrary] = []
        self.total = 0
        self.expired = 0

    def read(self, blocks: Iterable[memoryview], on_keys: Callable[[int], None] = lambda _: None) -> None:
        """Measure a whole stream of commands. ``on_keys`` is told how many keys were added, block by block."""
        import hiredis

        reader = hiredis.Reader()
        pending: Pending = None
        for block in blocks:
            before = self.total
            reader.feed(block)  # type: ignore[arg-type] # any buffer will do
            pending = self._drain(reader.gets, pending)
            on_keys(self.total - before)
        self._finish(pending, 0)
        if reader.has_data():
            raise VerificationFailed("the scratch server's commands end in the middle of one", store="redis")

    def _drain(self, gets: Callable[[], Any], pending: Pending) -> Pending:
        """Take all whole commands. ``pending`` is the key whose expiry, or further elements, may still follow."""
        # Nearly all commands of a cache are SET and PEXPIREAT: they take the short way.
        while (command := gets()) is not False:
            name = command[0]
            if name == b"PEXPIREAT":
                self._finish(pending, int(command[2]))
                pending = None
            elif name == b"SET":
                if pending is not None:
                    self._finish(pending, 0)
                pending = (command[1], command[2])
            else:
                pending = self._other_command(command, pending)
        return pending

    def _other_command(self, command: list[bytes], pending: Pending) -> Pending:
        name = command[0]
        if name in _CONTINUES:
            key = key_of(command)
            if not (isinstance(pending, _Aggregate) and pending.key == key):
                self._finish(pending, 0)
                pending = _Aggregate(key, _TYPES.get(name, "stream"))
            pending.add(command)
            return pending
        self._finish(pending, 0)
        if name == b"SELECT":
            self._select(int(command[1]))
        elif name == b"FUNCTION":
            self._function(command[-1])
        else:
            raise Refused(
                f"the dataset holds something that only a module understands ({name.decode('ascii', 'replace')[:40]})",
                store="redis",
                hint="Data of modules cannot be proven here; keep them in a server of their own.",
            )
        return None

    def _select(self, db: int) -> None:
        self._db = self._renumber.get(db, db)
        self._known = set(self._wanted.get(self._db, ())) if self._wanted is not None else set()
        self._strings: dict[bytes, Table] = {}

    def _function(self, code: bytes) -> None:
        name = re.match(rb"#!\S+\s+.*?name=(\S+)", code)
        label = name[1].decode("utf-8", "backslashreplace") if name else "?"
        self.functions.append(RedisFunctionLibrary(name=label, sha256=sha256(code).hexdigest()))

    def _finish(self, pending: Pending, expiry: int) -> None:
        """Add one finished key to its cell. ``expiry`` in milliseconds, 0 for none."""
        if pending is None:
            return
        moves = self._moves
        if pending.__class__ is tuple:
            key, value = pending
            first = expiry
            digest = sha256(b"string %d %d:%b" % (expiry, len(key), key) + value).digest()
            head, colon, _ = key.partition(b":")
            table = self._strings.get(head) if colon else None
            if table is None:
                table = self._table_of_strings(key, head if colon else b"")
            else:
                moves = None  # a head whose keys may move is looked up anew for each of them
        else:
            digest, first, table = self._close(pending, expiry)  # type: ignore[arg-type]
        end = self._ends[bisect_right(self._ends, first // 1000)] if first else None
        number = int.from_bytes(digest, "big")
        cell = table.get(end)
        if cell is None:
            cell = table[end] = [0, 0]
        cell[0] += 1
        cell[1] += number
        self.total += 1
        if 0 < expiry <= self._expired_before_ms:
            self.expired += 1
        if moves is not None:
            self._move(moves, pending, expiry, end, number)

    def _move(self, moves: Moves, pending: tuple[bytes, bytes] | _Aggregate, expiry: int, end: int | None, digest: int) -> None:
        if isinstance(pending, tuple):
            key, kind, value = pending[0], "string", pending[1]
        else:
            key, kind, value = pending.key, pending.kind, pending.value()
        name = moves.renamed(key)
        if name == key:
            return
        self._change(key, kind, end, -1, -digest)
        if name is not None:
            renamed = sha256(b"%b %d %d:%b" % (kind.encode(), expiry, len(name), name) + value).digest()
            self._change(name, kind, end, 1, _number(renamed))

    def _change(self, key: bytes, kind: str, end: int | None, keys: int, digest: int) -> None:
        prefix = prefix_of(key, self._rules)
        which = (self._db, prefix if prefix in self._known else OTHER, kind)
        cell = self._changes.setdefault(which, {}).setdefault(end, [0, 0])
        cell[0] += keys
        cell[1] += digest

    def _close(self, pending: _Aggregate, expiry: int) -> tuple[bytes, int, Table]:
        key = pending.key
        first = min(expiry or pending.first_expiry, pending.first_expiry or expiry)
        digest = sha256(b"%b %d %d:%b" % (pending.kind.encode(), expiry, len(key), key) + pending.value()).digest()
        return digest, first, self._table(key, pending.kind)

    def _table_of_strings(self, key: bytes, head: bytes) -> Table:
        table = self._table(key, "string")
        if head and not self._rules and len(self._strings) < _MAX_TRACKED and not (self._moves and self._moves.touches(head)):
            self._strings[head] = table
        return table

    def _table(self, key: bytes, kind: str) -> Table:
        prefix = prefix_of(key, self._rules)
        if prefix not in self._known:
            if self._wanted is not None or len(self._known) >= _MAX_TRACKED:
                prefix = OTHER
            else:
                self._known.add(prefix)
        return self._tables.setdefault((self._db, prefix, kind), {})

    def rows(self) -> tuple[RedisKeys, ...]:
        """The result in a stable order, the rarest prefixes folded into :data:`OTHER` where there are too many."""
        return _rows(self._tables if self._wanted is not None else _fold(self._tables))

    def rows_after(self) -> tuple[RedisKeys, ...]:
        """The same, once the keys have been dropped and renamed. What has expired until then is still counted."""
        tables = {which: {end: list(cell) for end, cell in table.items()} for which, table in self._tables.items()}
        for which, changes in self._changes.items():
            table = tables.setdefault(which, {})
            for end, (keys, total) in changes.items():
                cell = table.setdefault(end, [0, 0])
                cell[0] += keys
                cell[1] += total
        return _rows({which: {end: cell for end, cell in table.items() if cell[0]} for which, table in tables.items()})


def _rows(tables: Mapping[Which, Table]) -> tuple[RedisKeys, ...]:
    return tuple(
        RedisKeys(db=db, prefix=prefix, type=kind, expires_before=end, keys=keys, fingerprint=f"{total % _MODULUS:064x}"[:32])
        for (db, prefix, kind), table in sorted(tables.items())
        for end, (keys, total) in sorted(table.items(), key=lambda item: item[0] or 0)
    )


def _fold(tables: Mapping[Which, Table]) -> dict[Which, Table]:
    """Keep the prefixes with the most keys, as many as there is room for."""
    keys: Counter[tuple[int, str]] = Counter()
    widths: Counter[tuple[int, str]] = Counter()
    for (db, prefix, _), table in tables.items():
        keys[db, prefix] += sum(n for n, _ in table.values())
        widths[db, prefix] += len(table)
    kept: set[tuple[int, str]] = set()
    room = MAX_ROWS
    for which, _ in sorted(keys.items(), key=lambda item: (-item[1], item[0])):
        if len(kept) < MAX_PREFIXES and widths[which] <= room:
            kept.add(which)
            room -= widths[which]
    folded: dict[Which, Table] = {}
    for (db, prefix, kind), table in tables.items():
        into = folded.setdefault((db, prefix if (db, prefix) in kept else OTHER, kind), {})
        for end, (n, total) in table.items():
            cell = into.setdefault(end, [0, 0])
            cell[0] += n
            cell[1] += total
    return folded


def prefixes_of(keys: Iterable[RedisKeys]) -> dict[int, frozenset[str]]:
    """Database → its prefixes in an evidence, for a measurement that is to be compared with it."""
    found: dict[int, set[str]] = {}
    for row in keys:
        found.setdefault(row.db, set()).add(row.prefix)
    return {db: frozenset(names) for db, names in found.items()}
