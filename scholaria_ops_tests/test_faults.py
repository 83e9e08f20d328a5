"""Every fault that the product promises to survive has a test that bears its number."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest

#: Number → what goes wrong. Numbers are kept for ever, those of faults that fell away too.
FAULTS = {
    1: "pg_dump older than the server",
    3: "pg_dump fails midway",
    4: "pg_dump is killed",
    6: "we are killed at each step of the commit protocol",
    7: "disk full during a dump",
    8: "disk full while the manifest is written",
    11: "row-level security hides rows from the dump role",
    12: "a role is missing on the target",
    14: "an extension is missing on the target",
    15: "a restore fails midway",
    16: "the target is not empty",
    17: "the target is not the one that was planned",
    18: "a dump is cut",
    19: "one bit is flipped anywhere",
    20: "an artifact is swapped for another set's valid one",
    21: "a hostile, unauthenticated archive",
    23: "a password in argv, log, event or manifest",
    25: "a constraint, index, trigger or sequence is missing after a restore",
    27: "rows are written during the dump",
    28: "the end mark of a replication stream is split across reads",
    29: "newlines before the length",
    30: "the connection is cut midway",
    32: "an RDB is cut or flipped",
    34: "an RDB newer than the target server",
    36: "AOF is on at the target",
    37: "keys that expire meanwhile",
    38: "an eviction policy and little memory at the target",
    39: "ACL users and functions",
    42: "a snapshot request times out but succeeds",
    45: "a download is cut, or a short 200",
    46: "a snapshot is left on the server after we were killed",
    47: "aliases",
    49: "the target's version is incompatible",
    50: "a recovery is accepted but fails",
    51: "Qdrant's disk is full",
    52: "cluster mode, one node configured",
    54: "a wrong API key",
    55: "a burst of 503 SlowDown",
    56: "200 with an error body at Complete",
    57: "bytes are changed in flight or at rest",
    58: "killed during the upload",
    61: "a download is cut or stalled",
    62: "a listing is partial, paged or failing",
    64: "credentials expire midway",
    66: "rot of an old object",
    67: "manifest missing, artifact missing, stray directory",
    69: "the manifest is edited",
    70: "prune would remove the last good copy",
    71: "the clock jumps",
    73: "prune and backup overlap",
    74: "two schedulers; the stale lock of a dead process",
    75: "prune is killed midway",
    77: "a rehearsal is pointed at a live store",
    78: "a rehearsal that compares nothing",
    79: "killed during a rehearsal",
    81: "the schedule never ran",
    82: "the alert channel is down",
    83: "SIGTERM or cancel in each step",
    84: "one store fails, the others succeed",
    86: "permissions",
}


@functools.cache
def _tested() -> set[int]:
    found: set[int] = set()
    for path in Path(__file__).parent.rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_f"):
                numbered = re.match(r"test((?:_f\d+)+)_", node.name)
                if numbered:
                    found |= {int(n) for n in re.findall(r"f(\d+)", numbered[1])}
    return found


@pytest.mark.parametrize(("number", "what"), FAULTS.items())
def test_every_fault_has_a_test(number: int, what: str) -> None:
    assert number in _tested(), f"no test is named test_f{number:02}_…: {what}"
