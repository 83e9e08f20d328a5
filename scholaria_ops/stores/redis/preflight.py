"""Look at a live Redis before a backup, and refuse by name what could not be backed up whole or proven."""

from __future__ import annotations

import shutil
from pathlib import Path

from scholaria_ops.connections import RedisConnection
from scholaria_ops.errors import Refused, StoreUnavailable
from scholaria_ops.sandbox.identity import server_account
from scholaria_ops.stores.base import Context, Facts
from scholaria_ops.stores.redis.info import ServerInfo, acl_users, local_version, look, may_sync, newer_than_local
from scholaria_ops.stores.redis.sync import SyncMode, choose_form
from scholaria_ops.stores.redis.wire import connect

#: Silence on the link to a replica's master (seconds) that is worth a warning; the master pings every 10 s by default.
_LAG_WARNING_S = 30
#: On disk the scratch server needs the RDB uncompressed and the commands, each at most about what the data use in memory.
_DISK_FACTOR = 2
_MEMORY_FACTOR = 1.1


def preflight(connection: RedisConnection, mode: SyncMode, ctx: Context, *, timeout_s: float) -> Facts:
    """Facts about the live server, or the first reason to refuse."""
    program = ctx.tools.require_redis()
    local = local_version(program)
    with connect(connection, timeout_s=timeout_s, cancel=ctx.cancel) as wire:
        info = look(wire)
        refuse_unfit(info, connection.where)
        if newer_than_local(info, local):
            raise Refused(
                f"{info.product} {info.version} at {connection.where} writes an RDB that redis-server {local} here may not read: "
                "a backup could not be proven",
                store="redis",
                hint="Install a redis-server here that is at least as new as the live one and name it in REDIS_SERVER.",
            )
        may_sync(wire)
        users = acl_users(wire)
    used = info.number("used_memory")
    dataset = info.number("used_memory_dataset", used)
    _refuse_disk(dataset, ctx.scratch)
    _refuse_memory(dataset)
    form, why = choose_form(info, mode)
    return Facts(
        store="redis",
        server_version=info.version,
        expected_bytes=used,
        details=_details(info, local, f"{form} ({why})", users),
        warnings=tuple(_warnings(info, form, users)),
        clock_ahead_s=info.clock_offset_s,
    )


def refuse_unfit(info: ServerInfo, where: str) -> None:
    """Raise when the server cannot give a whole RDB, or only one that cannot be proven."""
    mode = info.info.get("redis_mode", "standalone")
    if mode == "cluster" or info.flag("cluster_enabled"):
        raise Refused(
            f"Redis at {where} runs in cluster mode: one node holds only its share of the keys",
            store="redis",
            hint="Backups of a Redis cluster are not supported.",
        )
    if mode == "sentinel":
        raise Refused(f"{where} is a Sentinel, which holds no data", store="redis", hint="Name the Redis server that it watches.")
    if info.loading:
        raise StoreUnavailable(
            f"Redis at {where} is still loading its data (ETA {info.info.get('loading_eta_seconds', '?')} s)",
            store="redis",
            hint="Try again once it serves.",
        )
    if info.is_replica and info.info.get("master_link_status") != "up":
        raise Refused(
            f"Redis at {where} is a replica whose link to its master is down: its data are old, "
            f"by {info.info.get('master_link_down_since_seconds', '?')} s or more",
            store="redis",
            hint="Back up the master, or mend the replication.",
        )
    if info.modules:
        raise Refused(
            f"Redis at {where} has modules loaded ({', '.join(info.modules)}) that the scratch server here lacks: "
            "their data could be neither loaded nor proven",
            store="redis",
            hint="Keep data of modules in a server of their own.",
        )


def _refuse_disk(dataset: int, scratch: Path) -> None:
    # As root the scratch server runs under another account, which may not be let into our own directory.
    for place in (scratch, *((Path("/var/tmp"),) if server_account() else ())):  # noqa: S108
        free = shutil.disk_usage(place).free
        if free < dataset * _DISK_FACTOR:
            raise Refused(
                f"the scratch server needs about {dataset * _DISK_FACTOR:,} bytes of disk in {place}, {free:,} are free",
                store="redis",
                hint="Free space there: without a scratch server the backup cannot be measured.",
            )


def _refuse_memory(dataset: int) -> None:
    available = available_memory()
    if available < dataset * _MEMORY_FACTOR:
        raise Refused(
            f"the scratch server needs about {int(dataset * _MEMORY_FACTOR):,} bytes of memory, {available:,} are available",
            store="redis",
            hint="Run the backup on a host with more memory: the evidence is measured from the loaded RDB.",
        )


def available_memory(group: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that a new process may take: what the host has, within the container's limit where there is one."""
    import psutil

    available: int = psutil.virtual_memory().available
    try:
        limit, used = (group / "memory.max").read_text().strip(), int((group / "memory.current").read_text())
        reclaimable = dict(line.split() for line in (group / "memory.stat").read_text().splitlines()).get("inactive_file", "0")
    except (OSError, ValueError):
        return available  # no limit that we could see
    return available if limit == "max" else min(available, int(limit) - used + int(reclaimable))


def _details(info: ServerInfo, local: str, form: str, users: tuple[str, ...] | None) -> dict[str, str]:
    keys = sum(info.keyspace.values())
    save = info.setting("save")
    points = "unknown (CONFIG not permitted)" if save is None else (f"save {save}" if save else "none")
    limit = info.number("maxmemory")
    return {
        "server": f"{info.product} {info.version}, {'replica' if info.is_replica else 'master'}",
        "scratch server here": local,
        "keys": f"{keys:,} in {len(info.keyspace)} database(s)",
        "memory used": f"{info.number('used_memory'):,} bytes" + (f" of {limit:,}" if limit else ""),
        "eviction": info.info.get("maxmemory_policy", "unknown"),
        "append-only file": "on" if info.aof else "off",
        "save points": points,
        "RDB by way of": form,
        "ACL users (not kept)": "not permitted to ask" if users is None else ", ".join(users),
    }


def _warnings(info: ServerInfo, form: str, users: tuple[str, ...] | None) -> list[str]:
    found = []
    if users is None:
        found.append(
            "ACL users are not part of an RDB and could not even be named (no permission for ACL USERS): keep the server's ACL file"
        )
    elif set(users) - {"default"}:
        names = ", ".join(u for u in users if u != "default")
        found.append(f"ACL users are not part of an RDB: {names} must be kept by keeping the server's ACL file or configuration")
    if info.config is None:
        found.append("CONFIG GET is not permitted: number of databases, checksums and save points are unknown")
    if info.setting("rdbchecksum") == "no":
        found.append(
            "the server writes its RDB without a checksum (rdbchecksum no): Redis itself would load flipped bytes; our digests find them"
        )
    if info.is_replica and info.number("master_last_io_seconds_ago") > _LAG_WARNING_S:
        found.append(f"this replica has heard nothing from its master for {info.number('master_last_io_seconds_ago')} s: it may lag behind")
    if form == "disk" and info.setting("repl-diskless-sync") == "no" and not info.setting("save") and not info.aof:
        found.append("repl-diskless-sync is off: the server will leave a dump.rdb in its directory and load it at its next start")
    if busy := info.child_at_work:
        found.append(f"a background child ({busy}) is at work now: the dump waits for it")
    return found
