"""What a restore changes, counted by comparing names: the live server's against the set's, in a scratch server.

A scratch server holds what would be served. Each live key is taken out of it: what was there is in both, what was not
would be lost, and what remains in the end would come back. No list of names is kept, here or anywhere.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from scholaria_ops.catalogue.evidence.redis import RedisEvidence
from scholaria_ops.stores.base import Context
from scholaria_ops.stores.live import Effect, EffectKind
from scholaria_ops.stores.redis.info import ServerInfo, acl_users
from scholaria_ops.stores.redis.live.classes import Applied, Classes, scan
from scholaria_ops.stores.redis.live.tasks import UNREADABLE, QueuedTask, tasks_in
from scholaria_ops.stores.redis.measure import prefix_of
from scholaria_ops.stores.redis.scratch import Scratch
from scholaria_ops.stores.redis.wire import Wire

#: Prefixes told one by one; the rest is summed up.
_SHOWN = 40
_NAMED_TASKS = 5
_TAKE_OUT = "local n = {} for i, k in ipairs(ARGV) do n[i] = redis.call('UNLINK', k) end return n"

#: (database, prefix) → keys
Counts = Counter[tuple[int, str]]


@dataclass
class Comparison:
    """Names on both sides. ``lost`` is never below the truth: a key that SCAN returns twice counts twice."""

    lost: Counts = field(default_factory=Counter)
    both: Counts = field(default_factory=Counter)
    back: Counts = field(default_factory=Counter)
    #: Where live keys belong to a class that is dropped: (database, prefix) → class.
    left_out: dict[tuple[int, str], str] = field(default_factory=dict)
    #: Class of sessions → keys that would come back.
    revived: Counter[str] = field(default_factory=Counter)
    #: The tasks that wait in the live server's queues.
    waiting: list[QueuedTask] = field(default_factory=list)


def compare_names(live: Wire, info: ServerInfo, scratch: Scratch, classes: Classes, rules: Sequence[str], ctx: Context) -> Comparison:
    """Compare, and use the scratch server up."""
    found = Comparison()
    raw_rules = sorted((rule.encode() for rule in rules), key=len, reverse=True)
    queues_among = classes.picker([entry for entry in classes.known if entry.tasks])
    ctx.progress.start("redis: names", total=sum(info.keyspace.values()), unit="keys")

    def judge(db: int, keys: list[bytes]) -> None:
        for key, taken in zip(keys, scratch.wire.answer("EVAL"), strict=True):
            which = db, prefix_of(key, raw_rules)
            (found.both if taken else found.lost)[which] += 1
            if not taken and which not in found.left_out and classes.action(key) == "drop" and (entry := classes.of(key)):
                found.left_out[which] = entry.name
        ctx.progress.advance("redis: names", len(keys))

    for db in sorted(info.keyspace):
        live.call("SELECT", db)
        scratch.wire.call("SELECT", db)
        queues: set[bytes] = set()
        before: list[bytes] = []
        # Both servers are at work on the next names while we look at these.
        for keys in scan(live, ctx.cancel, ahead=True):
            scratch.wire.send([("EVAL", _TAKE_OUT, 0, *keys)])
            for names in queues_among(keys).values():
                queues.update(names)
            if before:
                judge(db, before)
            before = keys
        if before:
            judge(db, before)
        found.waiting += tasks_in(live, db, sorted(queues), ctx.cancel)
    ctx.progress.finish("redis: names")
    for db in sorted(scratch.keyspace()):
        scratch.wire.call("SELECT", db)
        for keys in scan(scratch.wire, ctx.cancel):
            for key in keys:
                found.back[db, prefix_of(key, raw_rules)] += 1
                entry = classes.of(key)
                if entry is not None and entry.sessions:
                    found.revived[entry.name] += 1
    return found


def describe(found: Comparison, applied: Applied, classes: Classes) -> list[Effect]:
    """Counts of keys, per database and prefix or class."""
    why = {c.name: c.why for c in classes.known}
    effects = _counted("lost", found.lost, {which: f"no key of class {name} is restored" for which, name in found.left_out.items()})
    effects += _counted("back", found.back, {})
    per_database: Counter[int] = Counter()
    for (db, _), n in found.both.items():
        per_database[db] += n
    for db, n in sorted(per_database.items()):
        effects.append(
            Effect(
                kind="note",
                what=f"database {db}, keys in both",
                count=n,
                detail="the set's value replaces the live one, which may be newer",
            )
        )
    for (name, db), n in sorted(applied.dropped.items()):
        effects.append(Effect(kind="dropped", what=f"database {db}, the set's keys of class {name}", count=n, detail=why[name]))
    for (name, db), n in sorted(applied.parked.items()):
        what = f"database {db}, keys of class {name}, as parked:<restore's id>:<name>"
        effects.append(Effect(kind="parked", what=what, count=n, detail=why[name]))
    for name, n in sorted(found.revived.items()):
        effects.append(
            Effect(kind="revived", what=f"{name} of the set that the live store does not have", count=n, detail="signed out or ended since")
        )
    return effects


def _counted(kind: EffectKind, counts: Counts, details: Mapping[tuple[int, str], str]) -> list[Effect]:
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    effects = [
        Effect(kind=kind, what=f"database {db}, {prefix}", count=n, detail=details.get((db, prefix), ""))
        for (db, prefix), n in ordered[:_SHOWN]
    ]
    if rest := ordered[_SHOWN:]:
        what = f"keys of {len(rest)} further prefixes"
        effects.append(Effect(kind=kind, what=what, count=sum(n for _, n in rest)))
    return effects


def describe_tasks(queued: Sequence[QueuedTask], live: Sequence[QueuedTask], classes: Classes) -> list[Effect]:
    """The tasks that wait in the set, and those that wait now and will not run."""
    effects = []
    if queued:
        actions = {classes.actions[c.name] for c in classes.known if c.tasks}
        kind: EffectKind = "parked" if "park" in actions else "dropped" if "drop" in actions else "back"
        effects.append(Effect(kind=kind, what="tasks in the set's queues", count=len(queued), detail=_sample(queued)))
    if live:
        detail = f"they stay in what is kept for undo: {_sample(live)}"
        effects.append(Effect(kind="lost", what="tasks that wait now and will not run", count=len(live), detail=detail))
    return effects


def _sample(tasks: Sequence[QueuedTask]) -> str:
    shown = "; ".join(f"{t.name}({_short(t.args)})" if t.name != UNREADABLE else UNREADABLE for t in tasks[:_NAMED_TASKS])
    return shown + (f"; and {len(tasks) - _NAMED_TASKS:,} more" if len(tasks) > _NAMED_TASKS else "")


def _short(text: str, limit: int = 40) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def describe_names(live: Wire, evidence: RedisEvidence, functions_now: Mapping[str, str]) -> list[Effect]:
    """Functions that change, and ACL users that no RDB holds."""
    effects = []
    then = {f.name: f.sha256 for f in evidence.functions}
    for name in sorted(then.keys() | functions_now.keys()):
        if name not in then:
            effects.append(Effect(kind="lost", what=f"function library {name}"))
        elif name not in functions_now:
            effects.append(Effect(kind="back", what=f"function library {name}"))
        elif then[name] != functions_now[name]:
            effects.append(Effect(kind="changed", what=f"function library {name}", detail="as it was in the set"))
    users = acl_users(live)
    missing = sorted(set(evidence.acl_users_not_kept or ()) - set(users or ()))
    if evidence.acl_users_not_kept is None:
        effects.append(Effect(kind="note", what="ACL users", detail="the backup could not name them; the live server's stay as they are"))
    elif missing:
        what = f"ACL users {', '.join(missing)}"
        detail = "the source had them, no RDB holds them: they are not restored" + (
            "" if users is not None else " (the live server's could not be listed)"
        )
        effects.append(Effect(kind="note", what=what, count=len(missing), detail=detail))
    return effects
