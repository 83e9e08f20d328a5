"""Live collections that do not answer: the likeliest reason for a restore, so they must not stand in its way."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping

from scholaria_ops.errors import AuthenticationFailed, StoreError
from scholaria_ops.stores.live import Objection
from scholaria_ops.stores.qdrant.live.layout import Layout
from scholaria_ops.stores.qdrant.measure import collections_of, exact_count
from scholaria_ops.stores.qdrant.rest import Rest, at

_SHOWN = 200


def silent(rest: Rest, names: Iterable[str]) -> dict[str, str]:
    """Which of these collections do not describe themselves, count their points or give one → what the server said."""
    found: dict[str, str] = {}
    for name in dict.fromkeys(names):
        try:
            rest.get(at(name))
            exact_count(rest, name)
            rest.post(at(name, "points", "scroll"), {"limit": 1, "with_payload": True, "with_vector": True})
        except StoreError as exc:
            found[name] = why_silent(rest, exc)
    return found


def why_silent(rest: Rest, error: StoreError) -> str:
    """What the server said, provided that it is the collection alone that does not answer.

    Raises:
        StoreUnavailable: the server does not answer at all.
        AuthenticationFailed: it is our credentials.
    """
    if isinstance(error, AuthenticationFailed):
        raise error
    collections_of(rest)
    text = error.message.rpartition(" answered ")[2]
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def no_way_back(rest: Rest, found: Layout, damaged: Mapping[str, str]) -> Iterator[Objection]:
    """A collection that is called by its own name gives way only once a copy of it stands beside; of these none can be made."""
    for item in found.items:
        if item.plain in damaged:
            yield Objection(
                message=f"collection {item.plain} does not answer ({damaged[item.plain]}), so no copy of it can be made beside: "
                "there would be no way back to it",
                hint="If you may want to look into it later, copy its directory from the server's storage first. Then delete it, "
                f"curl -X DELETE {rest.where}{at(item.plain)}, and plan again: the set's collection takes its name.",
            )


def counted(rest: Rest, name: str, damaged: Collection[str] = ()) -> int | None:
    """Exact points of a kept collection; None for one that did not answer when it was replaced."""
    return None if name in damaged else exact_count(rest, name)
