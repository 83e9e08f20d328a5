"""What restoring a set into the live Redis would do, and every reason not to."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256

from scholaria_ops.catalogue.artifacts import Artifact
from scholaria_ops.catalogue.evidence.base import StoreName
from scholaria_ops.catalogue.evidence.redis import RedisEvidence
from scholaria_ops.errors import ToolMissing
from scholaria_ops.profiles.scholaria import KeyAction
from scholaria_ops.stores.base import Context
from scholaria_ops.stores.live import Effect, Need, Objection, Source, StorePlan
from scholaria_ops.stores.redis.info import ServerInfo, local_version, look, newer_than_local, rdb_version_written_by, version_tuple
from scholaria_ops.stores.redis.live import rights
from scholaria_ops.stores.redis.live.budget import local_needs, server_needs
from scholaria_ops.stores.redis.live.classes import Classes, apply
from scholaria_ops.stores.redis.live.effects import compare_names, describe, describe_names, describe_tasks
from scholaria_ops.stores.redis.live.journal import STAGED, SWITCHED, find_marker
from scholaria_ops.stores.redis.live.link import Link
from scholaria_ops.stores.redis.live.swap import function_code, function_name
from scholaria_ops.stores.redis.live.tasks import QueuedTask, tasks_in
from scholaria_ops.stores.redis.measure import METHOD
from scholaria_ops.stores.redis.restore import loaded_scratch
from scholaria_ops.stores.redis.scratch import Scratch
from scholaria_ops.stores.redis.sync import SyncMode, choose_form
from scholaria_ops.stores.redis.wire import Wire

BY_HAND = (
    "or take a backup and replace the data by hand with the application stopped, as RESTORE.txt of the set says (Redis is down for as "
    "long as it loads)"
)
#: A plan names so many tasks one by one.
_MAX_TASKS = 1000
#: Default of a server that does not tell.
_USUAL_DATABASES = 16
#: Measured, keys and bytes of commands per second, of the slowest part (fingerprints).
_KEYS_S = 200_000
_BYTES_S = 120e6
_EXPECTED_LOCKOUT_S = 0.01
_FIRST_WITH_FUNCTIONS = (7, 0)


class RedisPlan(StorePlan):
    """The plan for Redis."""

    store: StoreName = "redis"
    #: (served database, database where what replaces it is staged).
    pairs: tuple[tuple[int, int], ...] = ()
    #: Database of the marker.
    ledger: int = -1
    #: Class of keys → what becomes of it.
    key_actions: Mapping[str, KeyAction]
    #: The tasks in the set's queues, as many as are worth naming.
    tasks: tuple[QueuedTask, ...] = ()
    tasks_total: int = 0
    #: Keys that will be served (those that expire meanwhile are not).
    keys: int = 0
    #: Memory of the staged data (bytes) as measured in a scratch server.
    staged_bytes: int = 0
    #: Eviction policy while both copies are in memory replaces this one; empty: it is ``noeviction`` already.
    policy: str = ""


@dataclass(frozen=True)
class _Set:
    """What was learnt from the set in a scratch server."""

    effects: tuple[Effect, ...] = ()
    tasks: tuple[QueuedTask, ...] = ()
    keys: int = 0
    memory: int = 0
    seconds: float = 0.0


def make_plan(link: Link, classes: Classes, source: Source[RedisEvidence], ctx: Context) -> RedisPlan:
    """See :meth:`scholaria_ops.stores.live.LiveStore.plan`."""
    (artifact,) = [a for a in source.artifacts if a.kind == "rdb"]
    evidence = source.evidence
    with link.wire(ctx) as wire:
        info = look(wire)
        databases = count_databases(wire, info)
        pairs, ledger = choose_databases(evidence.per_database(), info, databases)
        objections = rights.lacking_rights(wire, _further_commands(info)) or unfit(wire, info)
        objections += _unreadable(info, evidence, ctx, wire.where)
        objections += too_few(evidence.per_database(), databases, ledger, wire.where)
        found = _Set() if objections else _look_into(source, artifact, wire, info, databases, classes, ctx)
    needs: list[Need] = []
    if not objections:
        needs = [
            *server_needs(link.connection, info, found.memory),
            *local_needs(ctx.scratch, staged=found.memory, rdb=artifact.raw_size_bytes or 0, served=info.number("used_memory_dataset")),
        ]
        objections = over_budget(needs, info)
    policy = policy_to_change(info)
    return RedisPlan(
        artifacts=(artifact.path,),
        target=link.where,
        identity=info.run_id,
        steps=_steps(artifact, link.where, pairs, policy, classes),
        effects=found.effects,
        needs=tuple(needs),
        objections=tuple(objections),
        warnings=tuple(_warnings(info)),
        expected_s=_expected_s(found, artifact, info, link.sync_mode),
        expected_lockout_s=_EXPECTED_LOCKOUT_S,
        pairs=pairs,
        ledger=ledger,
        key_actions=dict(classes.actions),
        tasks=found.tasks[:_MAX_TASKS],
        tasks_total=len(found.tasks),
        keys=found.keys,
        staged_bytes=found.memory,
        policy=policy,
    )


def policy_to_change(info: ServerInfo) -> str:
    policy = info.info.get("maxmemory_policy", "noeviction")
    return "" if policy == "noeviction" else policy


def count_databases(wire: Wire, info: ServerInfo) -> int:
    """How many databases there are; where CONFIG is not permitted, by selecting (up to the usual number)."""
    if info.databases is not None:
        return info.databases
    replies = wire.batch([("SELECT", n) for n in range(_USUAL_DATABASES)])
    return sum(reply == b"OK" for reply in replies)


def choose_databases(used: Mapping[int, int], info: ServerInfo, databases: int) -> tuple[tuple[tuple[int, int], ...], int]:
    """A spare for each database that has keys on either side, from above, and one for the marker (-1: there are too few)."""
    served = sorted(set(used) | set(info.keyspace)) or [0]
    free = [db for db in range(databases - 1, -1, -1) if db not in served]
    if len(free) < len(served) + 1:
        return (), -1
    return tuple(zip(served, free, strict=False)), free[len(served)]


def too_few(used: Mapping[int, int], databases: int, ledger: int, where: str) -> list[Objection]:
    highest = max(used, default=0)
    if highest >= databases:
        message = f"the backup has keys in database {highest}, but Redis at {where} is configured for {databases} databases"
    elif ledger < 0:
        message = f"Redis at {where} has too few databases ({databases}) to stage a copy of all that are in use beside them"
    else:
        return []
    return [Objection(message=message, hint=f"Raise its setting 'databases' and start it again, {BY_HAND}.")]


def unfit(wire: Wire, info: ServerInfo) -> list[Objection]:
    """Reasons that lie in the live server."""
    where = wire.where
    found = []

    def object_to(message: str, hint: str) -> None:
        found.append(Objection(message=message, hint=hint))

    if info.info.get("redis_mode", "standalone") != "standalone" or info.flag("cluster_enabled"):
        object_to(
            f"Redis at {where} runs in {info.info.get('redis_mode', 'cluster')} mode, which has no databases to swap",
            "Restoring such a server is not supported.",
        )
    if info.is_replica:
        object_to(f"Redis at {where} is a replica", "Restore into its master.")
    if replicas := info.number("connected_slaves"):
        object_to(
            f"Redis at {where} has {replicas} replica(s): each would have to hold both copies as well, and could be promoted midway",
            f"Detach them (REPLICAOF NO ONE) and attach them again after the restore, {BY_HAND}.",
        )
    if info.modules:
        object_to(
            f"Redis at {where} has modules loaded ({', '.join(info.modules)}) that the scratch server here lacks: what is served now could "
            "not be kept",
            f"Keep data of modules in a server of their own, {BY_HAND}.",
        )
    if info.loading:
        object_to(f"Redis at {where} is still loading its data", "Try again once it serves.")
    elif marked := find_marker(wire, info):
        object_to(
            f"restore {marked[1].restore} was left unfinished on Redis at {where} (marker in database {marked[0]})",
            "`scholaria-ops restore --recover` rolls it back or finishes it; of one that was given up, empty its spare databases, then "
            f"SELECT {marked[0]}, DEL {STAGED} {SWITCHED}.",
        )
    if info.info.get("rdb_last_bgsave_status", "ok") != "ok":
        object_to(f"the last BGSAVE of Redis at {where} failed: it may refuse writes", "Look at its log and its disk.")
    if info.aof and info.info.get("aof_last_write_status", "ok") != "ok":
        object_to(f"Redis at {where} cannot write its append-only file", "Look at its log and its disk.")
    return found


def _unreadable(info: ServerInfo, evidence: RedisEvidence, ctx: Context, where: str) -> list[Objection]:
    found = []
    reads = rdb_version_written_by(info)
    if reads is not None and evidence.rdb_version > reads:
        found.append(
            Objection(
                message=f"the backup is of Redis {evidence.server_version} (RDB version {evidence.rdb_version}), "
                f"but {info.product} {info.version} at {where} reads RDB versions up to {reads}",
                hint="Restore into a server at least as new as the source: upgrade it first.",
            )
        )
    if version_tuple(info.info.get("redis_version", "")) < _FIRST_WITH_FUNCTIONS:
        found.append(Objection(message=f"Redis {info.version} at {where} is too old: 7.0 is the oldest", hint=f"Upgrade it, {BY_HAND}."))
    if evidence.method != METHOD:
        found.append(
            Objection(
                message=f"the set was measured by {evidence.method!r}, which this version does not know (it knows {METHOD!r})",
                hint="Use the version of this product that took it.",
            )
        )
    try:
        local = local_version(ctx.tools.require_redis())
    except ToolMissing as exc:
        return [*found, Objection(message=exc.message, hint=exc.hint)]
    if newer_than_local(info, local):
        found.append(
            Objection(
                message=f"{info.product} {info.version} at {where} writes an RDB that redis-server {local} here may not read: "
                "neither the staged data nor what is kept could be proven",
                hint="Install a redis-server here that is at least as new as the live one and name it in REDIS_SERVER.",
            )
        )
    return found


def _further_commands(info: ServerInfo) -> tuple[tuple[str, ...], ...]:
    further: list[tuple[str, ...]] = []
    if policy_to_change(info):
        further.append(rights.POLICY)
    if info.aof and version_tuple(info.info.get("redis_version", "")) >= (7, 2):
        further.append(rights.WAIT)
    elif info.aof:
        further.append(rights.REWRITE)
    elif info.setting("save"):
        further.append(rights.SAVE)
    return tuple(further)


def _look_into(
    source: Source[RedisEvidence], artifact: Artifact, live: Wire, info: ServerInfo, databases: int, classes: Classes, ctx: Context
) -> _Set:
    """Load the set into a scratch server and compare names with the live server's."""
    evidence = source.evidence
    began = time.monotonic()
    highest = max(evidence.per_database(), default=0)
    with loaded_scratch(source.directory / artifact.path, artifact, ctx, databases=max(databases, highest + 1)) as scratch:
        seconds = time.monotonic() - began
        tasks: list[QueuedTask] = []
        applied = apply(
            scratch, classes, "plan", ctx.cancel, first=lambda db, keys: tasks.extend(tasks_in(scratch.wire, db, keys, ctx.cancel))
        )
        memory = memory_of(scratch)
        keys = sum(scratch.keyspace().values())
        found = compare_names(live, info, scratch, classes, evidence.prefix_rules, ctx)
        effects = describe(found, applied, classes)
    effects += describe_tasks(tasks, found.waiting, classes)
    now = {function_name(code): sha256(code).hexdigest() for code in function_code(live)}
    effects += describe_names(live, evidence, now)
    return _Set(tuple(effects), tuple(tasks), keys, memory, seconds)


def memory_of(scratch: Scratch) -> int:
    """What the dataset of a scratch server takes in memory (bytes)."""
    info = look(scratch.wire, config=False)
    return max(0, info.number("used_memory") - info.number("used_memory_startup"))


def over_budget(needs: Sequence[Need], info: ServerInfo) -> list[Objection]:
    found = []
    for need in needs:
        if need.met:
            continue
        lacking = need.needed_bytes - (need.free_bytes or 0)
        if "maxmemory" in need.what:
            hint = f"Raise maxmemory for the while (CONFIG SET maxmemory {info.number('maxmemory') + lacking}) if its host has that room"
        else:
            hint = "Make room there"
        found.append(
            Objection(
                message=f"both copies do not fit: {need.what}: {need.needed_bytes:,} bytes needed, {need.free_bytes:,} free",
                hint=f"{hint}, {BY_HAND}.",
            )
        )
    return found


def _steps(artifact: Artifact, where: str, pairs: Sequence[tuple[int, int]], policy: str, classes: Classes) -> tuple[str, ...]:
    served = ", ".join(str(db) for db, _ in pairs)
    spare = ", ".join(str(db) for _, db in pairs)
    dropped = [name for name, action in classes.actions.items() if action == "drop"]
    parked = [name for name, action in classes.actions.items() if action == "park"]
    left_out = "; ".join(f"{verb} keys of class {', '.join(names)}" for verb, names in (("drop", dropped), ("park", parked)) if names)
    steps = [f"load {artifact.path} into a scratch server and compare it with the evidence, key for key"]
    if left_out:
        steps.append(f"there, {left_out}")
    if policy:
        steps.append(f"set maxmemory-policy of Redis at {where} from {policy} to noeviction until both copies are no longer in memory")
    steps += [
        f"send the data into the empty database(s) {spare}, read them back and compare them",
        f"swap database(s) {served} with {spare} and replace functions in one transaction; wait until a restart would serve them",
        "once all stores are restored: write what was served before into an RDB here, load that once more, and empty the spare database(s)",
    ]
    return tuple(steps)


def _warnings(info: ServerInfo) -> list[str]:
    found = []
    if not info.aof and info.setting("save") == "":
        found.append("the live server has neither an append-only file nor save points: a restart loses everything")
    if policy_to_change(info) and info.number("maxmemory"):
        found.append("until the restore is finished the live server refuses writes that go beyond maxmemory, instead of evicting keys")
    return found


def _expected_s(found: _Set, artifact: Artifact, info: ServerInfo, mode: SyncMode) -> float:
    size = float(artifact.raw_size_bytes or 0)
    form, _ = choose_form(info, mode)
    delay = float(info.setting("repl-diskless-sync-delay") or 5) if form == "socket" else 0.0
    measured = max(found.keys / _KEYS_S, size / _BYTES_S)
    return round(2 * found.seconds + 4 * measured + delay + 1.0, 1)
