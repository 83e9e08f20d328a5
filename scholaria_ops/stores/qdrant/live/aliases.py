"""Re-pointing aliases: always one request, which the server applies as one step."""

from __future__ import annotations

from collections.abc import Mapping

from scholaria_ops.stores.qdrant.measure import aliases_of
from scholaria_ops.stores.qdrant.rest import Rest

_TIMEOUT_S = 60.0


def repoint(rest: Rest, wanted: Mapping[str, str | None]) -> list[str]:
    """Have every alias lead where it is wanted (None: nowhere); returns a line per alias that was changed.

    ``create_alias`` moves an alias that exists, so that no moment is without it.
    """
    now = aliases_of(rest)
    actions: list[dict[str, dict[str, str]]] = []
    lines = []
    for alias, target in sorted(wanted.items()):
        if now.get(alias) == target:
            continue
        if target is None:
            actions.append({"delete_alias": {"alias_name": alias}})
            lines.append(f"alias {alias} removed (it led to {now[alias]})")
        else:
            actions.append({"create_alias": {"alias_name": alias, "collection_name": target}})
            lines.append(f"alias {alias} → {target}" + (f" (was {now[alias]})" if alias in now else ""))
    if actions:
        rest.post("/collections/aliases", {"actions": actions}, timeout_s=_TIMEOUT_S)
    return lines
