"""What differs between two measurements, and what is merely the passing of time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime

from scholaria_ops.catalogue.evidence.base import Difference, compare_mappings
from scholaria_ops.catalogue.evidence.redis import RedisEvidence, RedisKeys
from scholaria_ops.stores.redis.measure import EXPIRING_FIELDS
from scholaria_ops.stores.redis.windows import Windows

Group = tuple[int, str, str]
#: Differences named one by one before the rest is summed up.
_SHOWN = 100


def compare(expected: RedisEvidence, found: RedisEvidence) -> list[Difference]:
    """Differences in content. Keys that expired before ``found`` was taken from a running server are a note, never loss.

    Exactly equal must be: all keys that never expire, and all that expire after that moment (to the width of a window,
    see :mod:`windows`); and at any time there must be no key that was not there before.
    """
    unlike = _unlike(expected, found)
    if unlike:
        return unlike
    differences = list(_keys(expected, found))
    differences += compare_mappings(
        "redis", "function library", {f.name: f.sha256 for f in expected.functions}, {f.name: f.sha256 for f in found.functions}
    )
    if expected.server_version != found.server_version:
        differences.append(_difference("server version", expected.server_version, found.server_version, note=True))
    return differences


def _unlike(expected: RedisEvidence, found: RedisEvidence) -> list[Difference]:
    for what, left, right in (
        ("method of measuring", expected.method, found.method),
        ("origin of the windows", expected.window_origin, found.window_origin),
        ("rules for prefixes", expected.prefix_rules, found.prefix_rules),
    ):
        if left != right:
            return [_difference(f"{what} (so nothing could be compared)", str(left), str(right))]
    return []


def _keys(expected: RedisEvidence, found: RedisEvidence) -> Iterator[Difference]:
    windows = Windows(expected.window_origin)
    until = max((e.expired_until for e in (expected, found) if e.expired_until), default=None)
    horizon = until.timestamp() if until else None
    left, right = _grouped(expected.keys), _grouped(found.keys)
    gone = 0
    shown = 0
    for group in sorted(left.keys() | right.keys()):
        ours, theirs = left.get(group, {}), right.get(group, {})
        if horizon is not None and group[2] == EXPIRING_FIELDS and ours != theirs and _passed(ours, windows, horizon):
            yield _difference(f"{_name(group)} (fields expired meanwhile: not compared)", _count(ours), _count(theirs), note=True)
            continue
        for end in sorted(ours.keys() | theirs.keys(), key=lambda e: e or 0):
            row, other = ours.get(end), theirs.get(end)
            if _same(row, other):
                continue
            keys, others = row.keys if row else 0, other.keys if other else 0
            if end is not None and horizon is not None and windows.start(end) < horizon and others < keys:
                gone += keys - others
                continue
            shown += 1
            if shown <= _SHOWN:
                yield _difference(f"{_name(group)}, {_when(end, windows)}", *_content(keys, others))
    if shown > _SHOWN:
        yield _difference(f"keys in {shown - _SHOWN} further groups", "as in the evidence", "different")
    if gone:
        yield _difference(
            "keys that expired between the backup and this measurement (not loss)",
            f"{expected.total_keys:,} keys in all",
            f"{gone:,} fewer",
            note=True,
        )


def _passed(rows: dict[int | None, RedisKeys], windows: Windows, horizon: float) -> bool:
    return any(end is not None and windows.start(end) < horizon for end in rows)


def _same(row: RedisKeys | None, other: RedisKeys | None) -> bool:
    return row is not None and other is not None and (row.keys, row.fingerprint) == (other.keys, other.fingerprint)


def _content(keys: int, others: int) -> tuple[str, str]:
    if keys == others:
        return f"{keys:,} keys as measured", f"{others:,} keys, but names, values or expiries differ"
    return f"{keys:,} keys", f"{others:,} keys"


def _grouped(rows: Iterable[RedisKeys]) -> dict[Group, dict[int | None, RedisKeys]]:
    groups: dict[Group, dict[int | None, RedisKeys]] = defaultdict(dict)
    for row in rows:
        groups[row.db, row.prefix, row.type][row.expires_before] = row
    return groups


def _name(group: Group) -> str:
    db, prefix, kind = group
    return f"database {db}, {prefix} ({kind})"


def _when(end: int | None, windows: Windows) -> str:
    if end is None:
        return "without expiry"
    start = windows.start(end)
    if start == 0:
        return "expired before the backup"
    if end >= 1 << 40:
        return f"expiring after {_date(start)}"
    return f"expiring {_date(start)} to {_date(end)}"


def _date(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _count(rows: dict[int | None, RedisKeys]) -> str:
    return f"{sum(row.keys for row in rows.values()):,} keys"


def _difference(what: str, expected: str, found: str, *, note: bool = False) -> Difference:
    return Difference(store="redis", what=what, expected=expected, found=found, severity="note" if note else "loss")
