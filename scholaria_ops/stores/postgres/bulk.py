"""What the sessions that load an archive set for themselves. The server's configuration is not touched, and no row differs for it."""

from __future__ import annotations

from scholaria_ops.catalogue.evidence.postgres import PostgresEvidence
from scholaria_ops.stores.postgres.session import Session

_TOAST = "default_toast_compression"


def session_settings(session: Session, evidence: PostgresEvidence) -> dict[str, str]:
    """Settings for ``pg_restore``'s sessions on the server of ``session``.

    * Commits do not wait for the disk each. Whatever is loaded is on disk with the first later commit that waits, because
      the log is flushed from its beginning: at the latest with the one that closes a staged database.
    * Long values are compressed with lz4 where the server can and nobody has chosen a method: PostgreSQL's built-in default
      takes half of all the processor time of a load (120,000 chunks, 380 MB: 9.0 s, with lz4 4.1 s). A method that a
      column, the database, the role or the server's configuration names is kept.
    """
    return {"synchronous_commit": "off", **_toast(session, evidence)}


def describe(session: Session, evidence: PostgresEvidence) -> str:
    """What of it is worth knowing before, as part of a sentence; empty if nothing is."""
    return f", long values compressed with {method}" if (method := _toast(session, evidence).get(_TOAST)) else ""


def _toast(session: Session, evidence: PostgresEvidence) -> dict[str, str]:
    if chosen := evidence.database.settings.get(_TOAST):  # is given to the new database when its data are there
        return {_TOAST: chosen} if _offers(session, chosen) else {}
    rows = session.rows("SELECT source FROM pg_settings WHERE name = %s", (_TOAST,))
    return {_TOAST: "lz4"} if rows == [("default",)] and _offers(session, "lz4") else {}


def _offers(session: Session, method: str) -> bool:
    return bool(session.rows("SELECT 1 FROM pg_settings WHERE name = %s AND %s = ANY (enumvals)", (_TOAST, method)))
