"""RESTORE.txt: how to bring a set back by hand, with the stores' standard tools and without this product."""

from __future__ import annotations

from collections.abc import Mapping

from scholaria_ops.catalogue.evidence.base import StoreName
from scholaria_ops.catalogue.layout import SUMS
from scholaria_ops.catalogue.manifest import Manifest

_TITLES: Mapping[StoreName, str] = {"postgres": "PostgreSQL", "redis": "Redis", "qdrant": "Qdrant"}


def restore_text(manifest: Manifest, sections: Mapping[StoreName, str]) -> str:
    """The text of RESTORE.txt for a set. ``sections`` holds each store's own commands."""
    lines = [
        f"How to restore the backup set {manifest.id} by hand",
        "=" * 60,
        "",
        f"Taken {manifest.cut_at.isoformat(timespec='seconds')} by {manifest.origin.product} on {manifest.origin.host}.",
        "It needs nothing but the stores' own tools. Run the commands in the directory of this file.",
        "They load into servers of your choice: set the variables of each section first, and never aim at a",
        "live service before you have looked at the result beside it.",
        "",
        "0. Is every byte still what was written?",
        "",
        f"    sha256sum -c {SUMS}",
        "",
    ]
    for number, (name, text) in enumerate(sections.items(), 1):
        part = manifest.part(name)
        version = part.evidence.server_version if part else "?"
        title = f"{number}. {_TITLES[name]} (taken from version {version})"
        lines += [title, "-" * len(title), "", _without_title(text), ""]
    for name, reason in manifest.missing.items():
        lines += [f"{_TITLES[name]} is NOT in this set: {reason.splitlines()[0]}", ""]
    return "\n".join(lines)


def _without_title(text: str) -> str:
    """A store's section without a heading of its own: this text numbers and titles the sections."""
    lines = text.strip("\n").split("\n")
    if len(lines) > 1 and lines[1] and not lines[1].strip("=-"):
        lines = lines[2:]
    return "\n".join(lines).strip("\n")
