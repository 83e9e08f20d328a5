"""A plan in words, the same at the terminal and in Dagster."""

from __future__ import annotations

from collections.abc import Iterator

from scholaria_ops.operations.restore.plan import RestorePlan

TITLES = {"postgres": "PostgreSQL", "redis": "Redis", "qdrant": "Qdrant"}


def steps_of(plan: RestorePlan) -> Iterator[str]:
    """Everything that would happen, in order."""
    if saved := [TITLES[n] for n in plan.components if n not in plan.unsaved and plan.options.safety]:
        yield f"take a pre_restore set of {', '.join(saved)} as they are now"
    else:
        yield "take NO safety set of what is replaced"
    yield from (f"{TITLES[name]} cannot be saved before it is replaced: {why}" for name, why in plan.unsaved.items())
    for name, store in plan.store_plans().items():
        for step in store.steps:
            yield f"{TITLES[name]}: {step[:1].lower()}{step[1:]}"
    yield from (f"writers: {line}" for line in plan.fence)
    yield from (f"then: {line}" for line in plan.after)
