"""Room for a second copy: on the live server beside what it serves, and here for the scratch server."""

from __future__ import annotations

import contextlib
import ipaddress
import shutil
from pathlib import Path

from scholaria_ops.connections import RedisConnection
from scholaria_ops.sandbox.server import listens
from scholaria_ops.stores.live import Need
from scholaria_ops.stores.redis.info import ServerInfo
from scholaria_ops.stores.redis.preflight import available_memory

#: The same data take a little more or less memory on another version or allocator.
_STAGED_FACTOR = 1.05
#: Beside both copies: pages copied while a child saves or rewrites, buffers, and what the application adds meanwhile.
_HEADROOM_FACTOR = 0.1
_HEADROOM_BYTES = 8 << 20
#: Commands of an append-only file against the memory of the same data: small keys take less, large values about as much.
_COMMANDS_FACTOR = 1.2
_GROUPS = Path("/sys/fs/cgroup")


def staged_bytes(used: int) -> int:
    return int(used * _STAGED_FACTOR)


def headroom_bytes(info: ServerInfo, staged: int) -> int:
    return int((info.number("used_memory") + staged) * _HEADROOM_FACTOR) + _HEADROOM_BYTES


def server_needs(connection: RedisConnection, info: ServerInfo, staged: int) -> list[Need]:
    """Memory and disk that the live server must have for the staged copy (bytes as measured in a scratch server)."""
    needed = staged_bytes(staged) + headroom_bytes(info, staged)
    needs = []
    if limit := info.number("maxmemory"):
        counted = info.number("used_memory") - info.number("mem_not_counted_for_evict")
        needs.append(
            Need(what=f"memory of Redis within its maxmemory ({limit:,} bytes)", needed_bytes=needed, free_bytes=max(0, limit - counted))
        )
    pid = local_process(connection, info)
    what, free = _host_memory(info, pid)
    needs.append(Need(what=what, needed_bytes=needed, free_bytes=free))
    if info.aof or info.setting("save"):
        needs.append(_disk(info, staged, pid))
    return needs


def _disk(info: ServerInfo, staged: int, pid: int | None) -> Need:
    """The staged data go through the append-only file; a save or rewrite writes both copies once more."""
    what = "disk of the Redis server, for its append-only file and saves"
    commands = int(staged * _COMMANDS_FACTOR) if info.aof else 0
    needed = commands + info.number("used_memory_dataset") + staged
    free: int | None = None
    if pid is not None:
        with contextlib.suppress(OSError):
            free = shutil.disk_usage(f"/proc/{pid}/cwd").free  # Redis works in its data directory
    return Need(what=what, needed_bytes=needed, free_bytes=free)


def local_needs(scratch: Path, *, staged: int, rdb: int, served: int) -> list[Need]:
    """Here: memory for one scratch server more than the one that just ran, disk for RDBs, commands and the way back."""
    return [
        Need(what="memory here, for a scratch Redis", needed_bytes=int((staged + served) * 1.1), free_bytes=available_memory() + staged),
        Need(what=f"disk here, in {scratch}", needed_bytes=rdb + 3 * (staged + served), free_bytes=shutil.disk_usage(scratch).free),
    ]


def _host_memory(info: ServerInfo, pid: int | None) -> tuple[str, int | None]:
    if pid is not None:
        free = available_memory()
        limited = group_free(_group_of(pid))
        if limited is not None and limited < free:
            return "memory of the Redis server within its container's limit", limited
        return "memory of the host that Redis runs on", free
    total = info.number("total_system_memory")
    used = info.number("used_memory_rss", info.number("used_memory"))
    if not total:
        return "memory of the host that Redis runs on", None
    return "memory of the host that Redis runs on (a container's limit cannot be seen from here)", max(0, total - used)


def local_process(connection: RedisConnection, info: ServerInfo) -> int | None:
    """The server's process, if it is one of this host: the pid that it tells must listen on its port here."""
    import psutil

    pid = info.number("process_id")
    if not pid or not (connection.unix_socket or _loopback(connection.host)):
        return None
    try:
        process = psutil.Process(pid)
        name = process.name()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return None
    if not name.startswith(("redis", "valkey", "keydb")):
        return None
    port = info.number("tcp_port")
    return pid if not port or listens(pid, port) else None


def _loopback(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def _group_of(pid: int) -> Path | None:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
            hierarchy, _, place = line.split(":", 2)
            if hierarchy == "0":
                return _GROUPS / place.lstrip("/")
    return None


def group_free(group: Path | None, root: Path = _GROUPS) -> int | None:
    """Bytes left within the tightest memory limit of a control group and those above it; None: no limit to be seen."""
    least: int | None = None
    while group is not None and group.is_relative_to(root):
        with contextlib.suppress(OSError, ValueError):
            limit = (group / "memory.max").read_text().strip()
            if limit != "max":
                stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
                free = int(limit) - int((group / "memory.current").read_text()) + int(stat.get("inactive_file", "0"))
                least = max(0, free) if least is None else min(least, max(0, free))
        group = group.parent if group != root else None
    return least
