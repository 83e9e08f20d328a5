"""The one moment that counts: databases exchanged, functions replaced and the marker changed in a single transaction."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Sequence

from scholaria_ops.errors import StoreError
from scholaria_ops.stores.redis.info import look
from scholaria_ops.stores.redis.live.journal import STAGED, SWITCHED, Crossing
from scholaria_ops.stores.redis.wire import ServerError, Wire

_LAZY_POLL_S = 0.02
_LAZY_PATIENCE_S = 600.0

Command = tuple[bytes | str | int, ...]


def function_code(wire: Wire) -> list[bytes]:
    """The code of every function library that a server has."""
    found = []
    for entry in wire.call("FUNCTION", "LIST", "WITHCODE"):
        fields = dict(zip(entry[::2], entry[1::2], strict=True))
        found.append(bytes(fields[b"library_code"]))
    return sorted(found)


def function_name(code: bytes) -> str:
    name = re.match(rb"#!\S+\s+.*?name=(\S+)", code)
    return name[1].decode("utf-8", "backslashreplace") if name else "?"


def exchange(wire: Wire, crossing: Crossing, code: Sequence[bytes] | None, *, back: bool = False) -> float:
    """Swap, make the functions exactly ``code`` (None: leave them), rename the marker; returns seconds.

    Nobody else is served within these. ``back``: the marker says that the data are staged, afterwards.

    Raises:
        StoreError: the server refused something. The marker tells whether the databases were swapped.
    """
    commands: list[Command] = [("SWAPDB", a, b) for a, b in crossing.pairs]
    if code is not None:
        commands += change_functions(wire, code)
    commands += [("SELECT", crossing.ledger), ("RENAME", *((SWITCHED, STAGED) if back else (STAGED, SWITCHED)))]
    began = time.monotonic()
    transaction(wire, commands, "swap the databases")
    return time.monotonic() - began


def change_functions(wire: Wire, code: Sequence[bytes]) -> list[Command]:
    """The commands that make a server's functions exactly ``code``."""
    if function_code(wire) == sorted(code):
        return []
    return [("FUNCTION", "FLUSH"), *(("FUNCTION", "LOAD", c) for c in code)]


def transaction(wire: Wire, commands: Iterable[Command], what: str) -> list[object]:
    *queued, outcome = wire.batch([("MULTI",), *commands, ("EXEC",)])
    problems = [r for r in (*queued, outcome, *(outcome if isinstance(outcome, list) else ())) if isinstance(r, ServerError)]
    if problems or not isinstance(outcome, list):
        reason = "; ".join(str(p) for p in problems[:3]) or "the transaction was not carried out"
        raise StoreError(f"Redis at {wire.where} did not {what}: {reason}", store="redis", hint="See its log.")
    return outcome


def empty(wire: Wire, databases: Iterable[int], ledger: int) -> None:
    """Empty databases and remove the marker, at one instant; returns once the memory is free again.

    Before that the eviction policy must not come back: what is still being freed counts as used.
    """
    commands: list[Command] = []
    for db in databases:
        commands += [("SELECT", db), ("FLUSHDB", "ASYNC")]
    transaction(wire, [*commands, ("SELECT", ledger), ("DEL", STAGED, SWITCHED)], "empty the spare databases")
    deadline = time.monotonic() + _LAZY_PATIENCE_S
    while look(wire, config=False).number("lazyfree_pending_objects") and time.monotonic() < deadline:
        time.sleep(_LAZY_POLL_S)


def forbid_eviction(wire: Wire) -> None:
    wire.call("CONFIG", "SET", "maxmemory-policy", "noeviction")


def put_policy_back(wire: Wire, policy: str) -> str | None:
    """Put the eviction policy back unless somebody changed it, or a restart did; returns a line if it was."""
    if not policy or look(wire, config=False).info.get("maxmemory_policy") != "noeviction":
        return None
    wire.call("CONFIG", "SET", "maxmemory-policy", policy)
    return f"maxmemory-policy of Redis at {wire.where} put back to {policy}"
