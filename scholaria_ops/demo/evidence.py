"""The demo's closing words: what was taken, what was checked, how fast it comes back."""

from __future__ import annotations

from scholaria_ops.catalogue.sets import Entry
from scholaria_ops.cli.catalogue import describe
from scholaria_ops.cli.output import out
from scholaria_ops.cli.rehearse import print_proof
from scholaria_ops.humane import human_bytes


def print_evidence(entry: Entry) -> None:
    """Evidence of one set, from the set and its records."""
    out.print("")
    describe(entry)
    shipped = entry.last("shipped")
    if shipped:
        detail = shipped.detail
        how = f"{human_bytes(detail['bytes'])} in {detail['seconds']:.1f} s to {detail['where']}"
        out.print(f"shipped  {how}, confirmed by {detail['confirmed_by']}", markup=False)
    out.print("")
    rehearsed = entry.last("rehearsed")
    if rehearsed:
        print_proof(entry.id or entry.name, rehearsed)
