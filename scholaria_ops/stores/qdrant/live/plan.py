"""The plan: what a restore of a live Qdrant would do, and what that would mean. Changes nothing."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Literal

from scholaria_ops.catalogue.artifacts import Artifact
from scholaria_ops.catalogue.evidence.qdrant import QdrantEvidence
from scholaria_ops.connections import QdrantConnection
from scholaria_ops.errors import Refused
from scholaria_ops.stores.base import Context
from scholaria_ops.stores.live import Effect, Need, Objection, Source, StorePlan
from scholaria_ops.stores.qdrant.compare import config_differences
from scholaria_ops.stores.qdrant.live.damage import no_way_back, silent
from scholaria_ops.stores.qdrant.live.effects import SetPoints, points_effects
from scholaria_ops.stores.qdrant.live.layout import Item, Layout, base_of, layout
from scholaria_ops.stores.qdrant.load import require_fitting_version
from scholaria_ops.stores.qdrant.measure import aliases_of, collections_of
from scholaria_ops.stores.qdrant.preflight import live_bytes, require_ready, require_rights
from scholaria_ops.stores.qdrant.rest import Rest, at

#: A collection is recovered from a file that stands beside it, unpacked, until it serves.
_DISK_COPIES = 3
_MEMORY_COPIES = 2
#: Measured (40,000 × 1,536 with payload, 380 MB, loopback): snapshot and download 2.1 s, recovery 1.5 s; reading points back.
_COPY_BYTES_PER_S = 180e6
_RECOVER_BYTES_PER_S = 250e6
_PROVE_POINTS_PER_S = 15_000
#: Measured: one alias request, and deleting a collection plus making an alias of its name.
_ALIAS_S = 0.02
_PLAIN_S = 0.1


class QdrantPlan(StorePlan):
    """What would be done to a live Qdrant."""

    store: Literal["qdrant"] = "qdrant"
    items: tuple[Item, ...]
    #: The touched aliases as they were when this was planned; one that did not exist is not in it.
    aliases: Mapping[str, str]
    #: Collections of the live server that nothing happens to.
    untouched: tuple[str, ...]
    #: Collections that would be replaced and do not answer now → what the server said. Nothing could be learnt of them.
    damaged: Mapping[str, str] = {}

    @property
    def layout(self) -> Layout:
        return Layout(self.items, self.aliases, self.untouched)


def make_plan(
    connection: QdrantConnection,
    source: Source[QdrantEvidence],
    ctx: Context,
    *,
    in_place: bool,
    by_own_name: Collection[str],
) -> QdrantPlan:
    """See :meth:`scholaria_ops.stores.live.LiveStore.plan`."""
    with Rest(connection, cancel=ctx.cancel) as rest:
        live = collections_of(rest)
        require_ready(rest)
        require_rights(rest, live, ctx)
        evidence = source.evidence
        found = layout(evidence, live, aliases_of(rest), by_own_name=by_own_name, in_place=in_place)
        sizes = {a.subject: a.raw_size_bytes or a.size_bytes for a in source.artifacts if a.kind == "snapshot"}
        damaged = silent(rest, [old for item in found.items for old in item.replaces])
        plains = {item.plain: live_bytes(rest, item.plain) for item in found.items if item.plain and item.plain not in damaged}
        effects: list[Effect] = []
        with SetPoints(source, ctx) as in_set:
            for item in found.items:
                effects.extend(points_effects(rest, item, evidence, in_set, damaged))
                effects.extend(_configuration(rest, item, evidence, damaged))
                effects.extend(_names(item, found.aliases))
        if found.untouched:
            effects.append(
                Effect(kind="note", what="collections that are not touched", count=len(found.untouched), detail=", ".join(found.untouched))
            )
        return QdrantPlan(
            artifacts=tuple(a.path for a in source.artifacts),
            target=rest.where,
            identity="",
            steps=tuple(_steps(found, source.artifacts)),
            effects=tuple(effects),
            needs=tuple(needs(rest, sizes, plains, ctx)),
            objections=(*_objections(rest, source, found, in_place=in_place), *no_way_back(rest, found, damaged)),
            warnings=tuple(_warnings(rest, found, evidence, by_own_name)),
            expected_s=_expected_s(sizes, plains, evidence),
            expected_lockout_s=_expected_lockout_s(found, sizes),
            items=found.items,
            aliases=dict(found.aliases),
            untouched=found.untouched,
            damaged=damaged,
        )


def _steps(found: Layout, artifacts: Any) -> Iterator[str]:
    files = {a.subject: a.path.rpartition("/")[2] for a in artifacts}
    for item in found.items:
        beside = "under its own name, which nothing has" if item.case == "absent" else f"beside, as {item.base}__<restore id>"
        yield f"Recover collection {item.collection} from {files.get(item.collection, '?')} {beside}; compare it with its evidence"
        if item.plain:
            yield f"Copy the live collection {item.plain} beside, as {item.base}__before_<restore id>: the way back"
    moved = sorted(alias for item in found.items for alias in item.aliases if alias != item.plain)
    if moved:
        yield f"In one request: have {_listed('alias', moved)} lead to the restored data"
    for item in found.items:
        if item.case == "plain":
            yield f"Delete collection {item.plain} and make an alias of that name in its place"
        elif item.case == "in_place":
            yield f"Recover into collection {item.plain} in place from the file that was proven beside, checksum sent"
    kept = sorted({old for item in found.items for old in item.replaces if old != item.plain})
    if kept:
        yield f"Keep {_listed('collection', kept)} as it was, for going back"


def _names(item: Item, aliases: Mapping[str, str]) -> Iterator[Effect]:
    side = f"{item.base}__<restore id>"
    for alias in item.aliases:
        if alias == item.plain:
            continue
        to = item.plain if item.case == "in_place" else item.collection if item.case == "absent" else side
        now = aliases.get(alias)
        if now is None:
            yield Effect(kind="back", what=f"alias {alias}", detail=f"it will lead to {to}")
        elif now != to:
            yield Effect(kind="changed", what=f"alias {alias}", detail=f"it leads to {now}, and will lead to {to}")
    if item.case == "plain":
        yield Effect(
            kind="changed",
            what=f"collection {item.plain} becomes an alias",
            detail=f"the name will stand for {side}: reading, writing and creating behave as before, but the server's list of "
            "collections no longer shows the name, deleting a collection of that name does nothing, and deleting the alias loses no data",
        )
    elif item.case == "in_place":
        yield Effect(kind="changed", what=f"collection {item.plain}", detail="requests to it fail while it is recovered in place")


def _configuration(rest: Rest, item: Item, evidence: QdrantEvidence, damaged: Collection[str]) -> Iterator[Effect]:
    known = evidence.collections[item.collection]
    for old in item.replaces:
        if old in damaged:
            continue
        now = rest.get(at(old))
        for path, ours, theirs in config_differences(known.config, now["config"]):
            yield Effect(kind="changed", what=f"collection {old}: configuration {path}", detail=f"it is {theirs}, and will be {ours}")
        indexes = now.get("payload_schema") or {}
        for name in sorted(known.indexes.keys() - indexes.keys()):
            yield Effect(kind="back", what=f"collection {old}: payload index {name}")
        for name in sorted(indexes.keys() - known.indexes.keys()):
            yield Effect(
                kind="lost",
                what=f"collection {old}: payload index {name}",
                detail="the set has none; searches that filter by it get slower",
            )


def needs(rest: Rest, sizes: Mapping[str, int], plains: Mapping[str, int], ctx: Context) -> Iterator[Need]:
    """Room for collections of these bytes that are recovered (``sizes``), and for live ones that are copied (``plains``)."""
    beside = sum(sizes.values()) + sum(plains.values())
    largest = max([*sizes.values(), *plains.values()], default=0)
    yield Need(what="disk of the Qdrant server (it does not tell how much is free)", needed_bytes=beside + (_DISK_COPIES - 1) * largest)
    yield Need(what="memory of the Qdrant server", needed_bytes=_MEMORY_COPIES * beside, free_bytes=_most_free_memory(rest))
    if plains:
        largest_copy = max(plains.values())
        yield Need(
            what=f"disk here, in {ctx.scratch}, for the copy of a collection",
            needed_bytes=largest_copy,
            free_bytes=shutil.disk_usage(ctx.scratch).free,
        )


def _most_free_memory(rest: Rest) -> int | None:
    """At most so much memory is free on the server's host, by its own account; None if it tells nothing."""
    told = rest.get("/telemetry", details_level="2")
    ram = ((told.get("app") or {}).get("system") or {}).get("ram_size")
    used = (told.get("memory") or {}).get("resident_bytes")
    return int(ram) * 1024 - int(used) if isinstance(ram, int) and isinstance(used, int) else None


def _objections(rest: Rest, source: Source[QdrantEvidence], found: Layout, *, in_place: bool) -> Iterator[Objection]:
    try:
        require_fitting_version(source.evidence.server_version, rest.version, rest.where)
    except Refused as exc:
        yield Objection(message=exc.message, hint=exc.hint)
    peers = peers_of(rest)
    if peers > 1:
        yield Objection(
            message=f"Qdrant at {rest.where} runs in cluster mode with {peers} peers; a snapshot brings back only the shards of one node",
            hint="Restore into a single node, and let the cluster replicate from there.",
        )
    for problem in found.problems:
        yield Objection(message=problem, hint="Remove or rename what is in the way, then plan again.")
    if in_place and not rest.takes_checksum and any(item.case == "in_place" for item in found.items):
        yield Objection(
            message=f"Qdrant at {rest.where} is {rest.version}: it compares no checksums, so nothing may be recovered in place there",
            hint="Leave out the in-place option.",
        )
    held = {a.subject for a in source.artifacts if a.kind == "snapshot"}
    for name in sorted(source.evidence.collections.keys() ^ held):
        yield Objection(
            message=f"the set's snapshots and its evidence do not agree on collection {name!r}",
            hint="Its Qdrant part is not whole; use another set.",
        )


def peers_of(rest: Rest) -> int:
    """Peers in cluster mode; 0 outside it."""
    told = rest.get("/cluster")
    return len(told.get("peers") or {}) if told.get("status") == "enabled" else 0


def _warnings(rest: Rest, found: Layout, evidence: QdrantEvidence, by_own_name: Collection[str]) -> Iterator[str]:
    for item in found.items:
        called = [old for old in item.replaces if old != item.plain and base_of(old) == old and old not in by_own_name]
        if item.case == "alias" and called:
            yield (
                f"{_listed('collection', called)} is taken to be reached by {_listed('alias', item.aliases)} only: "
                "whoever calls it by its own name goes on with the old data"
            )
    if not evidence.exact:
        yield "the set was measured on the live server while points were being written: its counts may be a moment apart from its files"
    if not rest.takes_checksum:
        yield f"Qdrant at {rest.where} is {rest.version}: it does not compare checksums of uploads"
    absent = [item.collection for item in found.items if item.case == "absent"]
    if absent:
        yield f"{_listed('collection', absent)} is served as soon as it is recovered, before the other stores are switched"


def _expected_s(sizes: Mapping[str, int], plains: Mapping[str, int], evidence: QdrantEvidence) -> float:
    recover = (sum(sizes.values()) + sum(plains.values())) / _RECOVER_BYTES_PER_S
    copies = 2 * sum(plains.values()) / _COPY_BYTES_PER_S
    prove = sum(c.points for c in evidence.collections.values()) / _PROVE_POINTS_PER_S
    return round(recover + copies + prove + 0.2 * len(sizes), 2)


def _expected_lockout_s(found: Layout, sizes: Mapping[str, int]) -> float:
    seconds = _ALIAS_S if any(item.case == "alias" for item in found.items) else 0.0
    seconds += _PLAIN_S * sum(item.case == "plain" for item in found.items)
    seconds += sum(sizes.get(item.collection, 0) / _RECOVER_BYTES_PER_S for item in found.items if item.case == "in_place")
    return round(seconds, 3)


def _listed(noun: str, names: Collection[str]) -> str:
    return f"{noun} {', '.join(names)}"


def only(artifacts: Collection[Artifact], collection: str) -> Artifact:
    """The snapshot of one collection. Raises Refused if the set has none."""
    for artifact in artifacts:
        if artifact.kind == "snapshot" and artifact.subject == collection:
            return artifact
    raise Refused(
        f"the set has no snapshot of collection {collection!r}", hint="Its Qdrant part is not whole; use another set.", store="qdrant"
    )
