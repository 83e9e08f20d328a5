"""Classes of keys: what comes back, what does not, what comes back where nobody acts on it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

from scholaria_ops.cancel import CancelToken
from scholaria_ops.errors import ConfigError, StoreError
from scholaria_ops.profiles.scholaria import KEY_ACTIONS, KEY_CLASSES, KeyAction, KeyClass
from scholaria_ops.stores.redis.scratch import Scratch
from scholaria_ops.stores.redis.wire import ServerError, Wire

#: Keys per command or pipeline: a millisecond of the server's time.
BATCH = 2000


class Classes:
    """The profile's classes with what is to become of each. ``overrides``: class name → action, instead of the profile's.

    Raises:
        ConfigError: there is no such class, or no such action.
    """

    def __init__(self, overrides: Mapping[str, KeyAction] | None = None, *, known: tuple[KeyClass, ...] = KEY_CLASSES) -> None:
        chosen = dict(overrides or {})
        for name, action in chosen.items():
            if name not in {c.name for c in known} or action not in KEY_ACTIONS:
                raise ConfigError(
                    f"{name}={action} is no class of Redis keys with an action",
                    hint=f"Classes: {', '.join(c.name for c in known)}. Actions: {', '.join(KEY_ACTIONS)}.",
                )
        self.known = known
        self.actions: dict[str, KeyAction] = {c.name: chosen.get(c.name, c.action) for c in known}
        self._exact: dict[bytes, tuple[int, KeyClass]] = {}
        self._prefixes: list[tuple[bytes, int, KeyClass]] = []
        for rank, entry in enumerate(known):
            for pattern in entry.patterns:
                if pattern.endswith("*"):
                    self._prefixes.append((pattern[:-1].encode(), rank, entry))
                else:
                    self._exact.setdefault(pattern.encode(), (rank, entry))

    def of(self, key: bytes) -> KeyClass | None:
        """The first class that matches; None for keys of no class, which are restored."""
        rank, found = self._exact.get(key, (len(self.known), None))
        for prefix, other, entry in self._prefixes:
            if other < rank and key.startswith(prefix):
                return entry
        return found

    def action(self, key: bytes) -> KeyAction:
        entry = self.of(key)
        return self.actions[entry.name] if entry else "restore"

    def picker(self, entries: Collection[KeyClass]) -> Callable[[list[bytes]], dict[str, list[bytes]]]:
        """What picks the keys of these classes out of some names: class → its keys, of the classes that have any."""
        patterns = [p for entry in entries for p in entry.patterns]
        # One pass of one expression over all names; few are looked at again.
        texts = [re.escape(p.removesuffix("*").encode()) + (b"" if p.endswith("*") else rb"\Z") for p in patterns]
        match = re.compile(b"|".join(texts) if texts else rb"(?!)").match
        wanted = {entry.name for entry in entries}

        def pick(keys: list[bytes]) -> dict[str, list[bytes]]:
            found: dict[str, list[bytes]] = {}
            for key in keys:
                if match(key) and (entry := self.of(key)) and entry.name in wanted:
                    found.setdefault(entry.name, []).append(key)
            return found

        return pick

    def members(self, wire: Wire, db: int, entries: Collection[KeyClass], cancel: CancelToken) -> Iterator[dict[str, list[bytes]]]:
        """The keys of these classes in one database, in batches of one pass over its names. The database is selected."""
        wire.call("SELECT", db)
        pick = self.picker(entries)
        for keys in scan(wire, cancel):
            if found := pick(keys):
                yield found


def scan(wire: Wire, cancel: CancelToken, *, ahead: bool = False) -> Iterator[list[bytes]]:
    """The names in the selected database, in batches.

    A key that is there throughout is returned at least once (``SCAN``'s promise), perhaps twice; expired ones are not.

    Args:
        ahead: let the server look for the next batch while the caller works on one. Nothing else may be sent on ``wire`` until
            the last batch has come.
    """
    cursor = b"0"
    asked = False
    while True:
        cancel.check()
        if not asked:
            wire.send([("SCAN", cursor, "COUNT", BATCH)])
        cursor, keys = wire.answer("SCAN")
        more = cursor != b"0"
        if asked := more and ahead:
            wire.send([("SCAN", cursor, "COUNT", BATCH)])
        if keys:
            yield keys
        if not more:
            return


@dataclass(frozen=True, slots=True)
class Applied:
    """What was left out or renamed: (class, database) → keys."""

    dropped: Mapping[tuple[str, int], int]
    parked: Mapping[tuple[str, int], int]

    @property
    def changed(self) -> bool:
        return bool(self.dropped or self.parked)


def parked_name(restore_id: str, key: bytes) -> bytes:
    """No worker listens to a key of this name, and no code of the application looks for it."""
    return b"parked:%b:%b" % (restore_id.encode(), key)


@dataclass(frozen=True, slots=True)
class Leaving:
    """What :func:`apply` is going to make of keys, for a measurement; see :class:`scholaria_ops.stores.redis.measure.Moves`."""

    classes: Classes
    restore_id: str

    def touches(self, head: bytes) -> bool:
        begin = head + b":"
        moving = [entry for entry in self.classes.known if self.classes.actions[entry.name] != "restore"]
        patterns = [pattern.removesuffix("*").encode() for entry in moving for pattern in entry.patterns]
        return any(pattern.startswith(begin) or begin.startswith(pattern) for pattern in patterns)

    def renamed(self, key: bytes) -> bytes | None:
        action = self.classes.action(key)
        return key if action == "restore" else None if action == "drop" else parked_name(self.restore_id, key)


def apply(
    scratch: Scratch, classes: Classes, restore_id: str, cancel: CancelToken, *, first: Callable[[int, list[bytes]], None] | None = None
) -> Applied:
    """Drop and park keys in a scratch server. Keys past their expiry leave it on this occasion.

    Args:
        first: is shown the database and keys that hold tasks, before anything becomes of them.
    """
    dropped: Counter[tuple[str, int]] = Counter()
    parked: Counter[tuple[str, int]] = Counter()
    tasks = {entry.name for entry in classes.known if entry.tasks and first}
    wanted = [entry for entry in classes.known if entry.name in tasks or classes.actions[entry.name] != "restore"]
    for db in sorted(scratch.keyspace()):
        for found in classes.members(scratch.wire, db, wanted, cancel):
            for name, keys in found.items():
                if first and name in tasks:
                    first(db, keys)
                if classes.actions[name] == "drop":
                    dropped[name, db] += scratch.wire.call("UNLINK", *keys)
                elif classes.actions[name] == "park":
                    parked[name, db] += _park(scratch.wire, restore_id, keys)
    return Applied(+dropped, +parked)


def _park(wire: Wire, restore_id: str, keys: list[bytes]) -> int:
    moved = 0
    for key, reply in zip(keys, wire.batch([("RENAMENX", key, parked_name(restore_id, key)) for key in keys]), strict=True):
        if isinstance(reply, ServerError):
            if "no such key" in str(reply):
                continue  # expired this moment
            raise StoreError(f"the scratch Redis could not rename {key[:80]!r}: {reply}", store="redis")
        if reply != 1:
            raise StoreError(
                f"the set already holds a key {parked_name(restore_id, key)[:120]!r}",
                store="redis",
                hint="Begin the restore again: it gets another id.",
            )
        moved += 1
    return moved
