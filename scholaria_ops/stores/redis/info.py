"""What a Redis server tells about itself, and which RDB versions servers write and read."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from scholaria_ops.errors import ToolMissing
from scholaria_ops.process import run
from scholaria_ops.stores.redis.wire import ServerError, Wire, meaning

#: (first version, RDB version it writes): from the servers' headers and release notes. Servers read what is older.
_RDB_VERSIONS = (((7, 4), 12), ((7, 2), 11), ((7, 0), 10), ((5, 0), 9), ((4, 0), 8), ((3, 2), 7))
#: Newest line of servers that the table above is known to hold for.
_KNOWN_UP_TO = (8, 0)

_CONFIG_NAMES = ("databases", "save", "repl-diskless-sync", "repl-diskless-sync-delay", "rdbchecksum", "stop-writes-on-bgsave-error")


@dataclass(frozen=True)
class ServerInfo:
    """INFO and (where permitted) CONFIG of one moment."""

    info: Mapping[str, str]
    #: None where CONFIG GET is not permitted.
    config: Mapping[str, str] | None
    modules: tuple[str, ...]
    #: Database → number of keys.
    keyspace: Mapping[int, int]
    #: How far the server's clock is ahead of ours (seconds, at most; never negative).
    clock_ahead_s: float = 0.0
    #: The same, negative if it is behind; None where the server does not tell its time.
    clock_offset_s: float | None = None

    @property
    def version(self) -> str:
        return self.info.get("valkey_version") or self.info.get("redis_version", "unknown")

    @property
    def product(self) -> str:
        return "Valkey" if "valkey_version" in self.info else "Redis"

    @property
    def run_id(self) -> str:
        return self.info.get("run_id", "")

    @property
    def is_replica(self) -> bool:
        return self.info.get("role") == "slave"

    @property
    def loading(self) -> bool:
        return self.flag("loading")

    @property
    def aof(self) -> bool:
        return self.flag("aof_enabled")

    @property
    def child_at_work(self) -> str:
        """Which background child runs now (``""``: none): a new one would have to wait for it."""
        for field, name in (
            ("rdb_bgsave_in_progress", "BGSAVE"),
            ("aof_rewrite_in_progress", "AOF rewrite"),
            ("module_fork_in_progress", "module"),
        ):
            if self.flag(field):
                return name
        return ""

    @property
    def databases(self) -> int | None:
        return int(self.config["databases"]) if self.config and "databases" in self.config else None

    def flag(self, name: str) -> bool:
        return self.info.get(name, "0") not in {"0", ""}

    def number(self, name: str, default: int = 0) -> int:
        try:
            return int(self.info.get(name, default))
        except ValueError:
            return default

    def setting(self, name: str) -> str | None:
        """A CONFIG value; None when unknown."""
        return self.config.get(name) if self.config is not None else None


def look(wire: Wire, *, config: bool = True) -> ServerInfo:
    """Ask a server about itself. CONFIG being refused is an answer too; INFO being refused is an error."""
    asked = time.time()
    text = wire.call("INFO", "everything")
    info, modules = _parse(text.decode("utf-8", "replace"))
    keyspace = {int(k[2:]): int(v.split(",")[0].partition("=")[2]) for k, v in info.items() if re.fullmatch(r"db\d+", k)}
    ahead = int(info["server_time_usec"]) / 1e6 - asked if "server_time_usec" in info else None
    return ServerInfo(info, _config(wire) if config else None, modules, keyspace, max(0.0, ahead or 0.0), ahead)


def _parse(text: str) -> tuple[dict[str, str], tuple[str, ...]]:
    info: dict[str, str] = {}
    modules = []
    for line in text.splitlines():
        name, colon, value = line.partition(":")
        if not colon or line.startswith("#"):
            continue
        if name == "module":  # module:name=bf,ver=20805,api=1,…
            modules.append(value.partition("name=")[2].partition(",")[0])
        info[name] = value
    return info, tuple(sorted(modules))


def _config(wire: Wire) -> dict[str, str] | None:
    found: dict[str, str] = {}
    # One name per call: several at once came with 7.0 only.
    for reply in wire.batch([("CONFIG", "GET", name) for name in _CONFIG_NAMES]):
        if isinstance(reply, ServerError):
            return None
        pairs = [item.decode("utf-8", "replace") for item in reply]
        found.update(zip(pairs[::2], pairs[1::2], strict=True))
    return found or None


def acl_users(wire: Wire) -> tuple[str, ...] | None:
    """Names of the ACL users, or None where we may not ask (or the server is older than 6)."""
    (reply,) = wire.batch([("ACL", "USERS")])
    if isinstance(reply, ServerError):
        return None
    return tuple(sorted(name.decode("utf-8", "backslashreplace") for name in reply))


def may_sync(wire: Wire) -> None:
    """Raise unless this user may run REPLCONF and SYNC here. Nothing is started on the server.

    A SYNC that arrives while the reply to an earlier command is still unsent is refused by the command itself, that is
    *after* the checks of name and permission that we are after (``syncCommand``, "invalid with pending output").
    """
    replconf, ping, sync = wire.batch([("REPLCONF", "capa", "eof"), ("PING",), ("SYNC",)])
    for name, reply in (("REPLCONF", replconf), ("PING", ping), ("SYNC", sync)):
        if isinstance(reply, ServerError) and "pending output" not in str(reply):
            raise meaning(str(reply), wire.where, name)


def version_tuple(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


def rdb_version_written_by(info: ServerInfo) -> int | None:
    """The RDB version that a server writes; None when it is newer than what we know of."""
    # Valkey tells the Redis version that it is compatible with here (7.2.4), and up to 8 it writes that version's RDB.
    version = version_tuple(info.info.get("redis_version", ""))
    if info.product == "Valkey" and version_tuple(info.version) >= (9,):
        return None
    return _rdb_version(version)


def _rdb_version(version: tuple[int, ...]) -> int | None:
    if not version or version[:2] > _KNOWN_UP_TO:
        return None
    return next((rdb for first, rdb in _RDB_VERSIONS if version >= first), 6)


def local_version(redis_server: Path) -> str:
    """Version of the ``redis-server`` program here, for example ``7.4.1``. Raises ToolMissing when it tells none."""
    output = run([str(redis_server), "--version"], timeout_s=20).stdout.decode("utf-8", "replace")
    match = re.search(r"\bv=(\d+(?:\.\d+)+)", output)
    if match is None:
        raise ToolMissing(
            f"{redis_server} does not tell its version: {output.strip()[:100]!r}", store="redis", hint="Set REDIS_SERVER to a redis-server."
        )
    return match[1]


def newer_than_local(info: ServerInfo, local: str) -> bool:
    """Whether that server's RDB is (or must be taken to be) newer than a local server of version ``local`` reads."""
    theirs, ours = rdb_version_written_by(info), _rdb_version(version_tuple(local))
    if theirs is not None and ours is not None:
        return theirs > ours
    return version_tuple(info.version)[:2] > version_tuple(local)[:2]
