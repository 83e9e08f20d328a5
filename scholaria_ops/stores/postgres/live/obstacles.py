"""Reasons against a restore of a live PostgreSQL server, and what is known of its room."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from scholaria_ops.catalogue.evidence.postgres import PostgresEvidence
from scholaria_ops.errors import Refused
from scholaria_ops.stores.base import Context
from scholaria_ops.stores.live import Objection
from scholaria_ops.stores.postgres.inventory import replication
from scholaria_ops.stores.postgres.live.names import being_restored
from scholaria_ops.stores.postgres.live.server import Database, prepared_transactions
from scholaria_ops.stores.postgres.load import check_target
from scholaria_ops.stores.postgres.names import ident
from scholaria_ops.stores.postgres.programs import Programs
from scholaria_ops.stores.postgres.session import Session

ACCEPT_REPLICATION = "--accept-replication"
_NAMED_AT_MOST = 12


@dataclass(frozen=True, slots=True)
class Situation:
    """What the obstacles are looked for in. ``inside``: a session in the live database, None if there is none."""

    session: Session
    inside: Session | None
    evidence: PostgresEvidence
    dbname: str
    existing: dict[int, Database]
    live: Database | None
    missing_roles: Sequence[str]


def objections(found: Situation, ctx: Context, *, accept_replication: bool) -> Iterator[Objection]:
    """Why the restore must not be carried out, each with the next step."""
    session = found.session
    if session.one("SELECT pg_is_in_recovery()")[0]:
        yield Objection(
            message=f"PostgreSQL at {session.where} is a replica: nothing can be written to it",
            hint="Point DB_HOST and DB_PORT at the primary.",
        )
    try:
        check_target(session, found.evidence, Programs(ctx.tools, ctx.cancel))
    except Refused as exc:  # a missing tool is one, too
        yield Objection(message=exc.message, hint=exc.hint)
    yield from _rights(found)
    if others := being_restored(found.dbname, (d.name for d in found.existing.values())):
        yield Objection(
            message=f"another restore of {found.dbname} has not ended: the server holds {', '.join(others)}",
            hint="Let it end or take it back; if it was given up, or made elsewhere and is forgotten, drop that database by hand.",
        )
    if found.live and (prepared := prepared_transactions(session, found.live.name)):
        yield Objection(
            message=f"{found.live.name} has prepared transactions ({', '.join(prepared[:5])}): PostgreSQL will not rename it",
            hint="COMMIT PREPARED or ROLLBACK PREPARED them.",
        )
    if not accept_replication and (bound := list(replicated(found))):
        yield Objection(
            message="replication is bound to this database: " + "; ".join(bound),
            hint=f"Plan what becomes of it, then say {ACCEPT_REPLICATION}. Slots stay with the database that is set aside.",
            option=ACCEPT_REPLICATION,
        )


def replicated(found: Situation) -> Iterator[str]:
    """Slots, publications, subscriptions and standbys, a sentence per kind."""
    bound = replication(found.inside) if found.inside else None
    if bound and bound.slots:
        yield f"logical slots ({', '.join(bound.slots)}) stay with the former database, and their readers see nothing of the restored one"
    if bound and bound.publications:
        yield f"publications ({', '.join(bound.publications)}): subscribers keep the rows that they have"
    subscriptions = sorted({*(bound.subscriptions if bound else ()), *found.evidence.replication.subscriptions})
    if subscriptions:
        yield f"subscriptions ({', '.join(subscriptions)}) come back disabled"
    standbys = [
        name
        for (name,) in found.session.rows(
            "SELECT application_name FROM pg_stat_replication UNION SELECT slot_name::text FROM pg_replication_slots"
            " WHERE slot_type = 'physical' ORDER BY 1"
        )
    ]
    if standbys:
        yield f"standbys ({', '.join(standbys)}) replay the whole load, and need the same room"


def _rights(found: Situation) -> Iterator[Objection]:
    session = found.session
    user, superuser, creates_databases, creates_roles, signals = session.one(
        "SELECT rolname::text, rolsuper, rolcreatedb, rolcreaterole, pg_has_role('pg_signal_backend', 'USAGE') FROM pg_roles"
        " WHERE rolname = current_user"
    )
    if superuser:
        return
    lacking = [] if creates_databases else ["create databases"]
    if found.live and not session.one("SELECT pg_has_role(datdba, 'USAGE') FROM pg_database WHERE oid = %s::oid", (found.live.oid,))[0]:
        lacking.append(f"rename {found.live.name}, which it does not own")
    if found.missing_roles and not creates_roles:
        lacking.append(f"create the roles {_list(found.missing_roles)}")
    owners = {o.owner for o in found.evidence.objects.values()} | {found.evidence.database.owner}
    owners = {name for name in owners if name and not name.startswith("pg_")}  # the database's owner owns its schema public
    foreign = [
        name
        for (name,) in session.rows(
            "SELECT rolname::text FROM pg_roles WHERE rolname = ANY (%s) AND NOT pg_has_role(oid, 'USAGE')", (sorted(owners),)
        )
    ]
    if foreign:
        lacking.append(f"make what belongs to {_list(sorted(foreign))}")
    if not signals:
        lacking.append("end the sessions of others")
    if found.live:
        stubborn = session.rows(
            "SELECT DISTINCT r.rolname::text FROM pg_stat_activity a JOIN pg_roles r ON r.oid = a.usesysid"
            " WHERE a.datid = %s::oid AND r.rolsuper ORDER BY 1",
            (found.live.oid,),
        )
        if stubborn:
            lacking.append(f"end the sessions of the superusers {_list([name for (name,) in stubborn])}")
    if lacking:
        yield Objection(
            message=f"role {user} at {session.where} may not {'; nor '.join(lacking)}",
            hint=f"Set DB_RESTORE_USER and DB_RESTORE_PASSWORD to a superuser's, or grant {ident(user)} what is missing.",
        )


def free_bytes(session: Session, identity: str) -> int | None:
    """Free bytes where the server keeps its data; None unless that directory can be looked at from here.

    A path of that name may belong to another server (a container's, seen from its host): the control file in it says
    whose it is.
    """
    import psycopg

    with session.told(passing=psycopg.errors.InsufficientPrivilege):
        try:
            (path,) = session.connection.execute("SELECT current_setting('data_directory')").fetchone() or ("",)
        except psycopg.errors.InsufficientPrivilege:
            return None
    directory = Path(path)
    try:
        with (directory / "global" / "pg_control").open("rb") as control:
            if str(int.from_bytes(control.read(8), "little")) != identity:
                return None
        stat = os.statvfs(directory / "base")
    except OSError:
        return None
    return stat.f_bavail * stat.f_frsize


def _list(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_NAMED_AT_MOST])
    return shown if len(names) <= _NAMED_AT_MOST else f"{shown} and {len(names) - _NAMED_AT_MOST} more"
