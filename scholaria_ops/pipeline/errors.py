"""Our errors as Dagster shows them: the message first, the next step as metadata, retries only where they may help."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import dagster as dg

from scholaria_ops.errors import OpsError


@contextlib.contextmanager
def as_failure(shown: Mapping[str, Any] | None = None) -> Iterator[None]:
    """Turn an :class:`OpsError` inside the block into a ``dagster.Failure`` that keeps its text, code and hint.

    ``shown`` is further metadata, for example the numbers of a report that did not turn out well.
    """
    try:
        yield
    except OpsError as exc:
        metadata: dict[str, Any] = {"code": exc.code, **(shown or {})}
        if exc.store:
            metadata["store"] = exc.store
        if exc.hint:
            metadata["next step"] = exc.hint
        raise dg.Failure(description=exc.message, metadata=metadata, allow_retries=False) from exc
