"""How the application reaches what a set holds, and under which names it will reach the restored data. Pure functions.

A collection cannot be renamed, so restored data stand in a collection of a new name, ``<base>__<restore id>``, and an
alias leads there. What a later set holds is therefore ``<base>__<an earlier id>`` with aliases: its base is taken again, so
that names do not grow however often one restores.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from scholaria_ops.catalogue.evidence.base import Model
from scholaria_ops.catalogue.evidence.qdrant import QdrantEvidence

#: ``alias``: only aliases lead there; ``plain``: the application says the collection's own name, which becomes an alias;
#: ``in_place``: the same, and the collection keeps its name; ``absent``: there is nothing to take the place of, and it comes
#: under its own name at once (only where that was asked for: an application may be writing).
Case = Literal["alias", "plain", "in_place", "absent"]

_OURS = re.compile(r"^(?P<base>.+?)(?:__(?:before_|after_)?\d{8}_\d{6}(?:_\d+)?)+$", re.DOTALL)
#: Qdrant takes names of up to 255 bytes; ours add at most this many.
LONGEST_NAME = 255
_ADDED = len("__original_20241001_020000_99")


class Item(Model):
    """One collection of the set, and what it takes the place of on the live server."""

    #: Its name in the set.
    collection: str
    #: That name without what earlier restores added.
    base: str
    case: Case
    #: The live collection that the application calls by its own name and that gives way; empty if there is none.
    plain: str = ""
    #: Every alias that leads to the restored data afterwards.
    aliases: tuple[str, ...] = ()
    #: Live collections that are served now and will not be afterwards (they are kept).
    replaces: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Layout:
    """Everything that a restore touches. ``problems``: why it cannot be told apart."""

    items: tuple[Item, ...]
    #: The touched aliases as they are now; one that does not exist is not in it.
    aliases: Mapping[str, str]
    #: Live collections that nothing happens to.
    untouched: tuple[str, ...]
    problems: tuple[str, ...] = ()


def base_of(name: str) -> str:
    """``scholaria_documents`` of ``scholaria_documents__20241001_020000`` and of every other name that a restore made of it."""
    found = _OURS.match(name)
    return found["base"] if found else name


def word_of(name: str, restore_id: str) -> str | None:
    """What stands before a restore's id in a name that it made (empty for the data themselves), by its look; None if it is none."""
    found = re.search(rf"__(?:(before|after|original|meanwhile)_)?{re.escape(restore_id)}(?:_\d+)?\Z", name)
    return (found[1] or "") if found else None


def layout(
    evidence: QdrantEvidence, live: Collection[str], aliases: Mapping[str, str], *, by_own_name: Collection[str], in_place: bool
) -> Layout:
    """What restoring ``evidence`` into a server with these collections and aliases would touch.

    A collection that aliases lead to is taken to be reached through them, and any other one by its own name;
    ``by_own_name`` names those that the application calls by their own names although there are aliases.
    """
    items: list[Item] = []
    problems: list[str] = []
    claimed = set(evidence.aliases)
    for name in sorted(evidence.collections):
        known = sorted(alias for alias, target in evidence.aliases.items() if target == name)
        plains = [*([name] if _by_own_name(name, known, live, aliases, by_own_name) else []), *(a for a in known if a in live)]
        if len(plains) > 1:
            problems.append(
                f"collection {name!r} of the set has the names {', '.join(plains)}: on the live server each is a collection of its own"
            )
        reached = {*known, *plains, *_leading_to(name, aliases), *({name} & aliases.keys())}
        replaced = {*plains, *(aliases[a] for a in reached if a in aliases)}
        for old in replaced:
            if old in plains or base_of(old) == base_of(name):
                reached |= {a for a in _leading_to(old, aliases) if a in known or a not in claimed}
        absent = not plains and not replaced
        if absent and not in_place and base_of(name) not in live:
            # An application that goes on writing would write into a half-proven collection of its own name: an alias
            # leads to it once it is proven.
            reached |= {base_of(name)} - claimed
        claimed |= reached
        case: Case = ("in_place" if in_place else "plain") if plains else "absent" if absent and (in_place or not reached) else "alias"
        items.append(
            Item(
                collection=name,
                base=base_of(name),
                case=case,
                plain=plains[0] if plains else "",
                aliases=tuple(sorted(reached - set(plains if case == "in_place" else ()))),
                replaces=tuple(sorted(replaced)),
            )
        )
    touched = {alias for item in items for alias in item.aliases}
    gone = {old for item in items for old in item.replaces}
    long = [item.base for item in items if len(item.base.encode()) + _ADDED > LONGEST_NAME]
    problems.extend(f"the name {name!r} is too long to stand beside itself" for name in long)
    return Layout(
        tuple(items),
        {alias: aliases[alias] for alias in sorted(touched) if alias in aliases},
        tuple(sorted(set(live) - gone)),
        tuple(problems),
    )


def _by_own_name(name: str, known: Iterable[str], live: Collection[str], aliases: Mapping[str, str], by_own_name: Collection[str]) -> bool:
    """Whether the live collection ``name`` is what the application says when it means this collection of the set."""
    if name not in live:
        return False
    led = _leading_to(name, aliases)
    if base_of(name) != name and (led or any(known)):
        return False  # a name that a restore made: no application knows it
    elsewhere = [alias for alias in known if aliases.get(alias, name) != name]
    return name in by_own_name or not (led or elsewhere)


def _leading_to(name: str, aliases: Mapping[str, str]) -> list[str]:
    return sorted(alias for alias, target in aliases.items() if target == name)


def side_names(items: Iterable[Item], restore_id: str) -> dict[str, str]:
    """Collection of the set → the name under which it is brought in."""
    given: dict[str, str] = {}
    for item in items:
        wanted = item.collection if item.case == "absent" else f"{item.base}__{restore_id}"
        name, number = wanted, 1
        while name in given.values():
            number += 1
            name = f"{wanted}_{number}"
        given[item.collection] = name
    return given
