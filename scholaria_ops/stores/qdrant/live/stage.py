"""Bringing a set's collections beside what is served, and proving them there."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace

from scholaria_ops.cancel import CancelToken
from scholaria_ops.catalogue.evidence.base import Difference
from scholaria_ops.catalogue.evidence.qdrant import CollectionEvidence, QdrantEvidence
from scholaria_ops.connections import QdrantConnection
from scholaria_ops.errors import OpsError, Refused, VerificationFailed
from scholaria_ops.stores.base import Context
from scholaria_ops.stores.live import Notebook, Source, Staged
from scholaria_ops.stores.qdrant.compare import compare, losses
from scholaria_ops.stores.qdrant.live import facts, wayback
from scholaria_ops.stores.qdrant.live.back import roll_back
from scholaria_ops.stores.qdrant.live.facts import Begun, Placed
from scholaria_ops.stores.qdrant.live.layout import layout
from scholaria_ops.stores.qdrant.live.marks import Noting, marks_file, save
from scholaria_ops.stores.qdrant.live.plan import QdrantPlan, only, peers_of
from scholaria_ops.stores.qdrant.load import recover_as, require_fitting_version
from scholaria_ops.stores.qdrant.measure import Limits, Look, aliases_of, collections_of, measure_collection
from scholaria_ops.stores.qdrant.points import source_of
from scholaria_ops.stores.qdrant.rest import Rest


@dataclass(slots=True)
class _Told:
    seconds: dict[str, float] = field(default_factory=dict)
    notes: list[Difference] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def stage(
    connection: QdrantConnection,
    plan: QdrantPlan,
    source: Source[QdrantEvidence],
    notebook: Notebook,
    ctx: Context,
    *,
    limits: Limits,
    timeout_s: float,
) -> Staged:
    """See :meth:`scholaria_ops.stores.live.LiveStore.stage`."""
    begun = facts.read(notebook.read())
    if begun.state == "staged":
        raise Refused("this restore is staged already", hint="Switch, or roll back first.", store="qdrant")
    facts.require(begun, {"", "staging", "rolling_back", "rolled_back"}, "staging")
    if begun.state:
        roll_back(connection, notebook, ctx)
    try:
        with Rest(connection, cancel=ctx.cancel) as rest:
            return _stage(rest, plan, source, notebook, ctx, limits=limits, timeout_s=timeout_s)
    except BaseException as exc:
        _take_back(connection, notebook, ctx, exc)
        raise


def _stage(
    rest: Rest, plan: QdrantPlan, source: Source[QdrantEvidence], notebook: Notebook, ctx: Context, *, limits: Limits, timeout_s: float
) -> Staged:
    placed = facts.place(plan.layout, notebook.restore_id)
    _require_planned(rest, plan, source.evidence, placed)
    begun = facts.write(
        notebook,
        Begun(),
        state="staging",
        placed=placed,
        aliases_before=dict(plan.aliases),
        made=(),
        deleting=(),
        pouring=(),
        copied=(),
        writes={},
        marks={},
        damaged=tuple(plan.damaged),
        shelf={},
    )
    told = _Told()
    for one in placed:
        begun = _bring(rest, begun, one, source, notebook, ctx, told, limits=limits, timeout_s=timeout_s)
    for one in placed:
        if one.item.plain:
            began = time.monotonic()
            begun = wayback.copy_beside(rest, begun, one, notebook, ctx, timeout_s=timeout_s)
            told.seconds[f"copy {one.item.plain}"] = time.monotonic() - began
    facts.write(notebook, begun, state="staged", warnings=tuple(told.warnings))
    return Staged(told.seconds, tuple(told.notes), told.counts, tuple(told.warnings))


def _require_planned(rest: Rest, plan: QdrantPlan, evidence: QdrantEvidence, placed: tuple[Placed, ...]) -> None:
    """The server is still as it was planned for, and takes these files. Raises Refused."""
    if plan.objections:
        raise Refused(plan.objections[0].message, hint=plan.objections[0].hint, store="qdrant")
    if plan.target != rest.where:
        raise Refused(f"the plan is for {plan.target}, not for {rest.where}", hint="Plan again.", store="qdrant")
    require_fitting_version(evidence.server_version, rest.version, rest.where)
    if peers_of(rest) > 1:
        raise Refused(f"Qdrant at {rest.where} runs in cluster mode", hint="Restore into a single node.", store="qdrant")
    live, aliases = collections_of(rest), aliases_of(rest)
    by_own_name = {one.item.plain for one in placed if one.item.plain}
    cases = {one.item.case for one in placed}
    in_place = "in_place" in cases or ("absent" in cases and "plain" not in cases)
    now = layout(evidence, live, aliases, by_own_name=by_own_name, in_place=in_place)
    if now.items != plan.items or dict(now.aliases) != dict(plan.aliases):
        raise Refused(
            f"collections or aliases of {rest.where} have changed since the restore was planned", hint="Plan again.", store="qdrant"
        )
    taken = sorted({name for one in placed for name in (*one.names, one.marker)} & {*live, *aliases})
    if taken:
        raise Refused(
            f"{rest.where} already has {', '.join(taken)}", hint="Discard or undo the earlier restore that made them first.", store="qdrant"
        )


def _bring(
    rest: Rest,
    begun: Begun,
    one: Placed,
    source: Source[QdrantEvidence],
    notebook: Notebook,
    ctx: Context,
    told: _Told,
    *,
    limits: Limits,
    timeout_s: float,
) -> Begun:
    """Recover one collection beside and compare it with its evidence."""
    known = source.evidence.collections[one.item.collection]
    artifact = only(source.artifacts, one.item.collection)
    task = f"qdrant: {one.item.collection}"
    ctx.progress.start(task, total=known.points)
    begun = facts.write(notebook, begun, made=(*begun.made, one.side))
    done = recover_as(
        rest,
        source.directory / artifact.path,
        artifact,
        one.side,
        expected_points=known.points if source.evidence.exact else None,
        ctx=ctx,
        timeout_s=timeout_s,
    )
    told.seconds[f"recover {one.item.collection}"] = done.seconds
    told.warnings.extend(done.notes)
    began = time.monotonic()
    reading = Noting(source_of(rest, moving=False))
    found = measure_collection(rest, reading, one.side, Look.again(source.evidence, one.item.collection), limits)
    differences = _compared(source.evidence, known, found, rest.version)
    if losses(differences):
        raise VerificationFailed(
            f"collection {one.item.collection} was recovered on {rest.where}, and is not what its evidence says: "
            + "; ".join(str(d) for d in losses(differences)[:3]),
            hint="What was recovered is removed; what is served was not touched. Verify the set, or use another one.",
            store="qdrant",
        )
    told.notes.extend(differences)
    told.counts[one.item.collection] = found.points
    mark = save(reading.noted, marks_file(notebook, one.served))
    told.seconds[f"compare {one.item.collection}"] = time.monotonic() - began
    ctx.progress.finish(task, f"{found.points:,} points")
    return facts.write(notebook, begun, marks={**begun.marks, one.side: mark})


def _compared(evidence: QdrantEvidence, known: CollectionEvidence, found: CollectionEvidence, version: str) -> list[Difference]:
    """Differences of one collection, under the name that it has in the set."""
    left = evidence.model_copy(update={"collections": {known.name: known}, "aliases": {}})
    renamed = found.model_copy(update={"name": known.name})
    right = left.model_copy(update={"collections": {known.name: renamed}, "measured_on": "live", "measured_by": version})
    return compare(left, right)


def _take_back(connection: QdrantConnection, notebook: Notebook, ctx: Context, error: BaseException) -> None:
    """On the way out of a failure: remove what was made. What cannot be removed now is removed by the next roll-back."""
    try:
        roll_back(connection, notebook, replace(ctx, cancel=CancelToken()))
    except OpsError as exc:
        ctx.log.warning("cannot remove what was staged on %s now: %s", connection.where, exc)
        if isinstance(error, OpsError):
            error.hint = f"{error.hint} Something is left on the server; roll back to remove it: {exc.message}.".strip()
