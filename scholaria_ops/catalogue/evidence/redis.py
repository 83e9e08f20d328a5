"""What was measured of a Redis server at the cut that its RDB shows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Literal

from pydantic import AwareDatetime

from scholaria_ops.catalogue.evidence.base import Model, StoreEvidence


class RedisKeys(Model):
    """The keys of one database that share a prefix, a type and the window in which they expire.

    ``fingerprint`` is a sum (so the order of keys does not matter) over a digest of every key's name, value and absolute
    expiry in milliseconds. It covers everything that an append-only file would carry: field expiries of hashes, consumer
    groups and pending entries of streams.
    """

    db: int
    #: What stands before the first ``:`` of the key, ``(no prefix)``, or ``(other)`` for what did not fit in the list.
    prefix: str
    #: ``string``, ``list``, ``set``, ``zset``, ``hash``, ``stream``, or ``hash with expiring fields`` (its window is then
    #: that of the first field or key to expire).
    type: str
    #: End of the window in seconds since the epoch; None for keys that never expire.
    expires_before: int | None = None
    keys: int
    fingerprint: str


class RedisFunctionLibrary(Model):
    """A library of functions: part of every RDB, and of the evidence."""

    name: str
    sha256: str


class RedisEvidence(StoreEvidence):
    """Measured from the RDB itself, loaded into a scratch server in which no key expires."""

    run_id: str
    role: Literal["master", "replica"]
    #: The fork that made the RDB happened between ``cut_at`` and this many seconds later.
    cut_uncertainty_s: float
    #: How the server made the RDB: on its own ``disk`` first, or straight to the ``socket``.
    form: Literal["disk", "socket"]

    rdb_version: int
    #: False: the server writes no checksum (``rdbchecksum no``), so Redis itself would load flipped bytes silently.
    rdb_checksum: bool
    rdb_aux: Mapping[str, str]

    #: Names how fingerprints are made. Evidence of unlike methods is never compared.
    method: str
    measured_with: str
    #: Seconds since the epoch from which the windows of :attr:`RedisKeys.expires_before` are laid out.
    window_origin: int
    #: Prefixes that the settings asked to tell apart although no colon ends them; a comparison needs the same.
    prefix_rules: tuple[str, ...] = ()
    #: Set when a *running* server was measured: keys that expired before may be gone, which is not loss.
    expired_until: AwareDatetime | None = None
    keys: tuple[RedisKeys, ...]
    #: Keys that were past their expiry at the cut, yet still in the server's memory and in the RDB.
    expired_at_cut: int
    functions: tuple[RedisFunctionLibrary, ...]

    #: Number of databases the server is configured for; None where CONFIG is not permitted (so too below).
    databases: int | None
    used_memory_bytes: int
    maxmemory_bytes: int
    maxmemory_policy: str
    aof_enabled: bool
    save_points: str | None
    modules: tuple[str, ...] = ()
    #: ACL users live in the server's configuration, not in an RDB: these are *not* kept. None: not permitted to ask.
    acl_users_not_kept: tuple[str, ...] | None = None

    def headline(self) -> Mapping[str, int]:
        return {"keys": self.total_keys, "databases": len(self.per_database())}

    @property
    def total_keys(self) -> int:
        return sum(row.keys for row in self.keys)

    @property
    def keys_with_ttl(self) -> int:
        return sum(row.keys for row in self.keys if row.expires_before is not None)

    def per_database(self) -> dict[int, int]:
        """Database → number of keys, for every database that has any."""
        counts: Counter[int] = Counter()
        for row in self.keys:
            counts[row.db] += row.keys
        return dict(sorted(counts.items()))

    def per_prefix(self) -> dict[tuple[int, str], int]:
        """(database, prefix) → number of keys."""
        counts: Counter[tuple[int, str]] = Counter()
        for row in self.keys:
            counts[row.db, row.prefix] += row.keys
        return dict(sorted(counts.items()))

    def per_type(self) -> dict[str, int]:
        counts: Counter[str] = Counter()
        for row in self.keys:
            counts[row.type] += row.keys
        return dict(sorted(counts.items()))
