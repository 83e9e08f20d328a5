"""What was written since the switch: told by fingerprints, so nothing is missed, and counted from above."""

from __future__ import annotations

from collections import Counter

from scholaria_ops.catalogue.evidence.redis import RedisEvidence, RedisKeys
from scholaria_ops.stores.base import Context
from scholaria_ops.stores.live import Effect
from scholaria_ops.stores.redis.live.journal import Journal
from scholaria_ops.stores.redis.live.keep import require_kept
from scholaria_ops.stores.redis.live.link import Link
from scholaria_ops.stores.redis.live.staging import measure_part
from scholaria_ops.stores.redis.windows import Windows

_Group = tuple[int, str, str, int | None]


def later_writes(link: Link, journal: Journal, ctx: Context) -> tuple[Effect, ...]:
    """Keys that were written, changed or removed since the last switch, per database and prefix.

    Keys of one prefix, type and window of expiry have one fingerprint: when it differs, all keys of that group may have
    been written, and so many are counted ("at most"). Keys that merely expired are not counted.
    """
    crossing = journal.crossing
    if crossing is None and journal.served == "after":
        require_kept(journal)
    baseline = crossing.expected if crossing else journal.baseline
    if not baseline:
        return ()
    expected = journal.get_evidence(baseline)
    without = frozenset({crossing.ledger, *crossing.spares.values()}) if crossing else frozenset()
    return differences(expected, measure_part(link, expected, None, ctx, without=without))


def differences(expected: RedisEvidence, found: RedisEvidence) -> tuple[Effect, ...]:
    """Effects from two measurements of which the second was made later."""
    windows = Windows(expected.window_origin)
    now = found.expired_until.timestamp() if found.expired_until else 0.0
    before, after = _grouped(expected.keys), _grouped(found.keys)
    written: Counter[tuple[int, str]] = Counter()
    removed: Counter[tuple[int, str]] = Counter()
    for group in before.keys() | after.keys():
        ours, theirs = before.get(group), after.get(group)
        if ours and theirs and (ours.keys, ours.fingerprint) == (theirs.keys, theirs.fingerprint):
            continue
        db, prefix, _, end = group
        passing = end is not None and windows.start(end) < now
        n, m = (ours.keys if ours else 0), (theirs.keys if theirs else 0)
        if m:
            written[db, prefix] += m
        if n > m and not passing:
            removed[db, prefix] += n - m
    effects = [
        Effect(kind="lost", what=f"database {db}, {prefix}: keys written since the switch, at most", count=n)
        for (db, prefix), n in sorted(written.items())
    ]
    effects += [
        Effect(kind="back", what=f"database {db}, {prefix}: keys removed since the switch, at least", count=n)
        for (db, prefix), n in sorted(removed.items())
    ]
    if {f.name: f.sha256 for f in expected.functions} != {f.name: f.sha256 for f in found.functions}:
        effects.append(Effect(kind="lost", what="functions loaded or changed since the switch"))
    return tuple(effects)


def _grouped(rows: tuple[RedisKeys, ...]) -> dict[_Group, RedisKeys]:
    return {(row.db, row.prefix, row.type, row.expires_before): row for row in rows}
