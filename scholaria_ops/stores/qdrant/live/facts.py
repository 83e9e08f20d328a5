"""What is written into the notebook, and what follows from it: names on the server, aliases before and after, what is kept.

Names that are made: ``<base>__<id>`` (the set's data), ``<base>__before_<id>`` (a copy of what a plain-named collection
held: the way back), ``<base>__after_<id>`` (a copy of what was served when an ``undo`` put the old data in its place), and
for an instant the alias ``<base>__original_<id>``, which says that a collection about to be deleted is still the old one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from pydantic import ValidationError

from scholaria_ops.catalogue.evidence.base import Model
from scholaria_ops.errors import Refused
from scholaria_ops.stores.live import Fact, Notebook
from scholaria_ops.stores.qdrant.live.layout import Item, Layout, side_names

#: ``after``: the set's data are served; ``before``: what was served before is served again (``undo``).
State = Literal["", "staging", "staged", "switching", "after", "undoing", "before", "rolling_back", "rolled_back", "discarded"]


class Mark(Model):
    """What a collection held at one moment: exact count, fingerprint of the ids, and where each point's digest is written down."""

    points: int
    ids: str
    file: str = ""
    payloads: bool = True
    vectors: bool = True


class Placed(Model):
    """One collection of the set and the names that were given to it."""

    item: Item
    #: Where the set's data were brought in.
    side: str
    #: Copy of what the plain-named collection held.
    way_back: str = ""
    #: Copy of what was served when it was undone (where no alias tells the two apart).
    aside: str = ""
    #: The alias that stands for "this is still the old collection".
    marker: str = ""

    @property
    def served(self) -> str:
        """The collection that holds the restored data once they are served."""
        return self.item.plain if self.item.case == "in_place" else self.side

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for name in (self.side, self.way_back, self.aside) if name)


class Begun(Model):
    """Everything known of a restore that was begun."""

    state: State = ""
    placed: tuple[Placed, ...] = ()
    #: The touched aliases as they were.
    aliases_before: Mapping[str, str] = {}
    #: Collections whose making was begun: only these are ever removed.
    made: tuple[str, ...] = ()
    #: Plain-named collections whose deletion was begun.
    deleting: tuple[str, ...] = ()
    #: Collections that are being written over in place: what they hold is neither old nor new.
    pouring: tuple[str, ...] = ()
    #: Copies that are complete and were compared.
    copied: tuple[str, ...] = ()
    #: The server's count of writing requests right before each way back was copied.
    writes: Mapping[str, str] = {}
    marks: Mapping[str, Mark] = {}
    #: What did not answer when the restore was planned: it is kept, but nothing of it can be counted or compared.
    damaged: tuple[str, ...] = ()
    #: What is kept for going back → its points.
    shelf: Mapping[str, int] = {}
    #: Collections that the application had made anew under a deleted one's name, copied aside when the restore was taken back.
    meanwhile: tuple[str, ...] = ()
    #: Everything that takes long was done right before the first store was switched.
    ready: bool = False
    lockout_s: float = 0.0
    seconds: Mapping[str, float] = {}
    warnings: tuple[str, ...] = ()
    #: What ways back may lack, a line each.
    lacking: tuple[str, ...] = ()

    @property
    def aliases_after(self) -> dict[str, str]:
        return {alias: one.served for one in self.placed for alias in one.item.aliases}

    @property
    def aliases_back(self) -> dict[str, str]:
        """The touched aliases when the old data are served again, the plain-named collections being gone."""
        moved = {one.item.plain: one.way_back for one in self.placed if one.item.case == "plain"}
        return {**{alias: moved.get(target, target) for alias, target in self.aliases_before.items()}, **moved}

    @property
    def superseded(self) -> tuple[str, ...]:
        """What is served by nobody while the set's data are."""
        led = set(self.aliases_after.values())
        olds = {old for one in self.placed if one.item.case == "alias" for old in one.item.replaces}
        for one in self.placed:
            if one.item.case in {"plain", "in_place"}:
                olds |= {one.way_back, *(old for old in one.item.replaces if old != one.item.plain)}
        return tuple(sorted(olds - led))

    @property
    def restored(self) -> tuple[str, ...]:
        """What is served by nobody while the old data are."""
        return tuple(sorted(one.aside or one.side if one.item.case in {"absent", "in_place"} else one.side for one in self.placed))

    @property
    def spare(self) -> tuple[str, ...]:
        """What nothing needs any more, and may still be there after a kill."""
        kept = set(self.kept)
        found = {name for one in self.placed if one.item.case in {"in_place", "absent"} for name in one.names if name != one.served}
        return tuple(sorted((found & set(self.made)) - kept)) if self.state in {"after", "before"} else ()

    def finished(self, name: str) -> bool:
        """Whether a collection of ours was completely made, so that no uploaded file of it can be left."""
        return name in self.marks or name in self.copied

    @property
    def kept(self) -> tuple[str, ...]:
        """What only ``undo`` needs."""
        return self.superseded if self.state == "after" else self.restored if self.state == "before" else ()


_FIELDS = frozenset(Begun.model_fields)


def read(facts: Mapping[str, Fact]) -> Begun:
    """What is known.

    Raises:
        Refused: the notebook cannot be understood.
    """
    try:
        return Begun.model_validate({name: fact for name, fact in facts.items() if name in _FIELDS})
    except ValidationError as exc:
        wrong = ", ".join(sorted({str(error["loc"][0]) for error in exc.errors(include_input=False) if error["loc"]}))
        raise Refused(
            f"what a restore wrote down about Qdrant cannot be understood ({wrong})",
            hint="It was edited or is of another version. Look at the server's collections by hand; nothing was touched.",
            store="qdrant",
        ) from None


def write(notebook: Notebook, begun: Begun, **changes: Any) -> Begun:
    """Write what changes; on disk when this returns."""
    changed = begun.model_copy(update=changes)
    plain = changed.model_dump(mode="json", include=set(changes))
    notebook.write(**plain)
    return changed


def place(found: Layout, restore_id: str) -> tuple[Placed, ...]:
    """Give names to everything that this restore will make."""
    sides = side_names(found.items, restore_id)
    placed = []
    for number, item in enumerate(found.items):
        tail = f"{restore_id}_{number + 1}" if [i.base for i in found.items[:number]].count(item.base) else restore_id
        placed.append(
            Placed(
                item=item,
                side=sides[item.collection],
                way_back=f"{item.base}__before_{tail}" if item.case in {"plain", "in_place"} else "",
                aside=f"{item.base}__after_{tail}" if item.case in {"absent", "in_place"} else "",
                marker=f"{item.base}__original_{tail}" if item.case == "plain" else "",
            )
        )
    return tuple(placed)


def require(begun: Begun, states: Iterable[State], doing: str) -> None:
    if begun.state not in set(states):
        raise Refused(
            f"{doing} is not possible: this restore is {begun.state.replace('_', ' ') or 'not begun'}",
            hint="Look at the restore's state, and carry on from there.",
            store="qdrant",
        )


def kept_collections(facts: Mapping[str, Fact]) -> frozenset[str]:
    """Collections that stand on the live server for a restore's sake only, by its notebook: a backup leaves them out.

    While it is being switched nobody can tell, and nothing is left out. Whatever an alias leads to is not left out either
    (see :class:`~scholaria_ops.stores.qdrant.store.QdrantStore`).
    """
    begun = read(facts)
    if begun.state in {"staging", "staged"}:
        beside = {name for one in begun.placed for name in one.names if one.item.case != "absent"}
        return frozenset(beside & set(begun.made))
    return frozenset((*begun.kept, *begun.spare, *begun.meanwhile))
