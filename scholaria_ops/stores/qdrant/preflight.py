"""Looking at a live Qdrant before a backup, without changing it."""

from __future__ import annotations

import json
import math
import time
import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from scholaria_ops.connections import QdrantConnection
from scholaria_ops.errors import AuthenticationFailed, Refused, StoreError
from scholaria_ops.stores.base import Context, Facts
from scholaria_ops.stores.qdrant.measure import aliases_of, collections_of, largest_page, vector_fields
from scholaria_ops.stores.qdrant.names import version_tuple
from scholaria_ops.stores.qdrant.rest import NotFound, Rest, at
from scholaria_ops.stores.qdrant.scratch import program_version, unfit

#: Oldest server that is spoken to: production runs 1.7.4, and its routes are what the contract tests hold.
OLDEST = (1, 7)

#: Bytes per vector component by stored type, and what else a point weighs: id, version, graph links.
_COMPONENT = {"float32": 4, "float16": 2, "uint8": 1}
_OVERHEAD = 512
_GRAPH_LINK = 4
#: Segments' fixed files (each begins with pages of 1 to 32 MB) and the archive's frame, per shard.
_FIXED_PER_SHARD = 64 << 20
#: Points whose payload is looked at for the estimate.
_LOOKED_AT = 32
_MARGIN = 1.25


@dataclass(slots=True)
class _Findings:
    warnings: list[str] = field(default_factory=list)
    red: list[str] = field(default_factory=list)
    points: int = 0
    expected: int = 0


def preflight(connection: QdrantConnection, ctx: Context, kept: Collection[str] = ()) -> Facts:
    """See :meth:`scholaria_ops.stores.base.Store.preflight`.

    The first request already needs the key: a wrong one is told after exactly one request.
    """
    with Rest(connection, cancel=ctx.cancel) as rest:
        names = collections_of(rest)
        _require_supported(rest)
        require_ready(rest)
        aliases = aliases_of(rest)
        left_out = leave_out(names, aliases, kept)
        names = [name for name in names if name not in left_out]
        cluster = whole_node(connection, ctx, names)
        require_rights(rest, names, ctx)
        found = _Findings()
        for name in names:
            info = rest.get(at(name))
            _look_at(info, name, found)
            found.expected += _expected(rest, name, info)
        if found.red:
            raise Refused(
                f"Qdrant at {rest.where} has failed collections (status red): {', '.join(found.red)}",
                hint="Their points may be incomplete. Look at the server's log, repair or restore them first.",
                store="qdrant",
            )
        _tell_about_scratch(rest, ctx, found)
        if cluster.peers:
            found.warnings.append(f"cluster mode with {cluster.peers} peer(s): snapshots are taken on {cluster.node.url}")
        details = {
            "version": rest.version,
            "collections": f"{len(names)} ({', '.join(names)})" if names else "none",
            **({"left out": f"{', '.join(left_out)} (kept for undoing a restore)"} if left_out else {}),
            "aliases": ", ".join(f"{a} → {c}" for a, c in aliases.items()) or "none",
            "points": f"about {found.points:,}",
            "cluster": f"{cluster.peers} peers" if cluster.peers else "disabled",
            "free space on the server": "not told by Qdrant; a snapshot needs about the size of its collection there",
        }
        return Facts("qdrant", rest.version, found.expected, details, tuple(found.warnings), _clock_ahead_s(rest))


def _clock_ahead_s(rest: Rest) -> float | None:
    """By the Date of one more answer, which counts whole seconds."""
    asked = time.time()
    server_time = rest.call("GET", "/collections").server_time
    return server_time.timestamp() - asked if server_time else None


def leave_out(names: Collection[str], aliases: Mapping[str, str], kept: Collection[str]) -> tuple[str, ...]:
    """Which of these collections a backup leaves out: the kept ones, except for what an alias leads to (it is served)."""
    return tuple(sorted((set(names) & set(kept)) - set(aliases.values())))


def _require_supported(rest: Rest) -> None:
    if version_tuple(rest.version)[:2] < OLDEST:
        raise Refused(
            f"Qdrant at {rest.where} is {rest.version}; {OLDEST[0]}.{OLDEST[1]} is the oldest version that can be backed up",
            hint="Upgrade the server, one minor version at a time.",
            store="qdrant",
        )


def require_ready(rest: Rest) -> None:
    """A server that is still loading shards answers 503 here; one that does not know the route, or a gateway that hides it, 404."""
    status = rest.status("/readyz")
    if status >= 500:
        raise Refused(
            f"Qdrant at {rest.where} is not ready ({status}): it is still loading its shards",
            hint="Wait until /readyz answers 200.",
            store="qdrant",
        )


def require_rights(rest: Rest, names: Sequence[str], ctx: Context) -> None:
    """Whether the key may write, found out with a request that changes nothing: deleting a snapshot that cannot exist."""
    if not names or not rest.connection.api_key.get_secret_value():
        return
    try:
        rest.delete(at(names[0], "snapshots", f"scholaria-ops-no-such-{uuid.uuid4().hex}.snapshot"), wait="true")
    except AuthenticationFailed:
        raise
    except StoreError as exc:  # "not found", in whatever words its snapshot storage has for it
        ctx.log.debug("the key may write: %s", exc.message)


def _look_at(info: Mapping[str, Any], name: str, found: _Findings) -> None:
    status = info["status"]
    if status == "red":
        found.red.append(name)
    elif status != "green":
        found.warnings.append(f"collection {name} is {status}: its indexes are still being built; its points are whole")
    if isinstance(info.get("optimizer_status"), Mapping):
        found.warnings.append(f"collection {name}: its optimizer failed: {info['optimizer_status'].get('error')}")
    found.points += int(info.get("points_count") or 0)


def expected_sizes(rest: Rest, names: Sequence[str]) -> dict[str, int]:
    """Collection → an upper estimate of its snapshot, in bytes."""
    sizes = {}
    for name in names:
        try:
            sizes[name] = _expected(rest, name, rest.get(at(name)))
        except NotFound:  # deleted a moment ago: the dump will tell
            continue
    return sizes


def live_bytes(rest: Rest, name: str) -> int:
    """An upper estimate of the snapshot of one live collection, in bytes."""
    return _expected(rest, name, rest.get(at(name)))


def expected_bytes(info: Mapping[str, Any], points: int, payload: int) -> int:
    """An upper estimate of a collection's snapshot in bytes, from its description and the size of a typical payload."""
    config = info["config"]
    params = config["params"]
    dense = params.get("vectors") or {}
    named = {"": dense} if "size" in dense else dense
    per_point = float(_OVERHEAD + payload * 2)
    for one in vector_fields(config):
        settings = named.get(one.name, {})
        size = one.size or 128
        rows = 32 if one.kind == "multi" else 1
        per_point += rows * size * _COMPONENT.get(settings.get("datatype") or "float32", 4)
        graph = {**(config.get("hnsw_config") or {}), **{k: v for k, v in (settings.get("hnsw_config") or {}).items() if v is not None}}
        per_point += 2 * (graph.get("m") or 16) * _GRAPH_LINK * 1.5
        if settings.get("quantization_config") or config.get("quantization_config"):
            per_point += size
    shards = int(params.get("shard_number") or 1)
    wal = int((config.get("wal_config") or {}).get("wal_capacity_mb") or 32) << 20
    return math.ceil(points * per_point * _MARGIN) + shards * (_FIXED_PER_SHARD + 2 * wal)


def _expected(rest: Rest, name: str, info: Mapping[str, Any]) -> int:
    """:func:`expected_bytes` with the payloads of a few points looked at (telemetry counts 512 bytes for each, whatever its size)."""
    body = {"limit": min(_LOOKED_AT, largest_page(info["config"]) or _LOOKED_AT), "with_payload": True, "with_vector": False}
    page = rest.post(at(name, "points", "scroll"), body, timeout_s=60.0)["points"]
    sizes = [len(json.dumps(point.get("payload") or {}, ensure_ascii=False).encode()) for point in page]
    return expected_bytes(info, int(info.get("points_count") or 0), max(sizes, default=0))


def _tell_about_scratch(rest: Rest, ctx: Context, found: _Findings) -> None:
    problem = unfit(ctx.tools, rest.version)
    if problem:
        found.warnings.append(
            f"{problem}; until then evidence is measured on the live server, and snapshots cannot be opened for verification"
        )
    elif version_tuple(program_version(ctx.tools) or "0")[:2] != version_tuple(rest.version)[:2]:
        found.warnings.append(
            f"snapshots of {rest.version} are opened by {program_version(ctx.tools)} here: the next minor version, which Qdrant supports"
        )


@dataclass(frozen=True, slots=True)
class Cluster:
    """What is known of cluster mode: the number of peers (0: disabled) and the node whose snapshots hold everything."""

    peers: int
    node: QdrantConnection


def whole_node(connection: QdrantConnection, ctx: Context, names: Sequence[str]) -> Cluster:
    """Find the node whose snapshots are whole. In cluster mode a snapshot holds only the shards of its own node.

    Raises:
        Refused: a peer is not configured, or no configured node holds an active copy of every shard.
    """
    with Rest(connection, cancel=ctx.cancel) as rest:
        told = rest.get("/cluster")
    if told.get("status") != "enabled":
        return Cluster(0, connection)
    peers = {str(peer): str(about.get("uri")) for peer, about in (told.get("peers") or {}).items()}
    configured: dict[str, QdrantConnection] = {str(told.get("peer_id")): connection}
    for url in connection.nodes:
        node = connection.model_copy(update={"url": url, "nodes": ()})
        with Rest(node, cancel=ctx.cancel) as rest:
            configured.setdefault(str(rest.get("/cluster").get("peer_id")), node)
    missing = {peer: uri for peer, uri in peers.items() if peer not in configured}
    if missing:
        raise Refused(
            f"Qdrant at {connection.url} runs in cluster mode with {len(peers)} peers, and {len(missing)} of them are not configured: "
            + ", ".join(f"{uri} (peer {peer})" for peer, uri in sorted(missing.items())),
            hint="A snapshot holds only the shards of its own node. Name every peer's REST endpoint in QDRANT_NODES.",
            store="qdrant",
        )
    lacking = ""
    for node in configured.values():
        lacking = _shards_elsewhere(node, ctx, names)
        if not lacking:
            return Cluster(len(peers), node)
    raise Refused(
        f"no single node of the Qdrant cluster holds every shard: {lacking}",
        hint="A sharded cluster cannot be backed up by this version. Replicate its collections so that one node holds every shard.",
        store="qdrant",
    )


def _shards_elsewhere(node: QdrantConnection, ctx: Context, names: Sequence[str]) -> str:
    with Rest(node, cancel=ctx.cancel) as rest:
        for name in names:
            told = rest.get(at(name, "cluster"))
            here = {shard["shard_id"] for shard in told.get("local_shards") or [] if shard.get("state") == "Active"}
            everywhere = here | {shard["shard_id"] for shard in told.get("remote_shards") or []}
            if here != everywhere or len(here) < int(told.get("shard_count") or 0):
                return f"{node.url} lacks shards {sorted(everywhere - here)} of collection {name!r}"
    return ""
