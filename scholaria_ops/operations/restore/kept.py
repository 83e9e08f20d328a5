"""What stands on the live servers for a restore's sake only, and is no part of a backup."""

from __future__ import annotations

import contextlib

from scholaria_ops.catalogue.layout import Layout
from scholaria_ops.errors import Refused
from scholaria_ops.operations.restore.journal import Journals, NotUnderstood
from scholaria_ops.stores.qdrant.live import kept_collections

#: Ends after which nothing is kept any more.
_OVER = {"rolled_back", "discarded"}


def kept_on_qdrant(layout: Layout) -> frozenset[str]:
    """Collections that restores keep for going back, or are staging now.

    Qdrant's notebook tells them, also where the journal beside it cannot be understood: backups go on. Of a restore that
    was given up without a notebook nothing is known to be kept, so that a backup holds it.

    Raises:
        Refused: a notebook cannot be understood: what is kept cannot be told from what is served.
    """
    journals = Journals(layout)
    names: set[str] = set()
    for restore_id in journals.ids():
        given_up = False
        with contextlib.suppress(NotUnderstood):
            journal = journals.read(restore_id)
            if journal is None or journal.phase in _OVER or "qdrant" not in journal.stores:
                continue
            given_up = journal.phase == "given_up"
        try:
            names |= kept_collections(journals.notebook(restore_id, "qdrant").read())
        except Refused:
            if not given_up:
                raise
    return frozenset(names)
