"""What stands on the live servers for a restore's sake only, and is no part of a backup."""

from __future__ import annotations

from scholaria_ops.catalogue.layout import Layout
from scholaria_ops.operations.restore.journal import Journals
from scholaria_ops.stores.qdrant.live import kept_collections

#: Ends after which nothing is kept any more.
_OVER = {"rolled_back", "discarded"}


def kept_on_qdrant(layout: Layout) -> frozenset[str]:
    """Collections that restores keep for going back, or are staging now.

    Raises:
        Refused: a journal cannot be understood: what is kept cannot be told from what is served.
    """
    journals = Journals(layout)
    names: set[str] = set()
    for journal in journals.all():
        if journal.phase not in _OVER and "qdrant" in journal.stores:
            names |= kept_collections(journals.notebook(journal.id, "qdrant").read())
    return frozenset(names)
