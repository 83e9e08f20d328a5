"""Look at a live PostgreSQL server and say what a restore of a set would do to it. Changes nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Literal, Protocol

from scholaria_ops.catalogue.evidence.postgres import PostgresEvidence, TableEvidence
from scholaria_ops.connections import PostgresConnection
from scholaria_ops.errors import AuthenticationFailed, OpsError, Refused, StoreError, StoreUnavailable
from scholaria_ops.stores.base import Context
from scholaria_ops.stores.live import Effect, Need, Objection, Source, StorePlan
from scholaria_ops.stores.postgres import bulk, inventory
from scholaria_ops.stores.postgres.globals_file import plan as plan_roles
from scholaria_ops.stores.postgres.inspect import require
from scholaria_ops.stores.postgres.live.effects import comparable_mark, effects
from scholaria_ops.stores.postgres.live.names import beside
from scholaria_ops.stores.postgres.live.obstacles import Situation, free_bytes, objections, replicated
from scholaria_ops.stores.postgres.live.server import Database, databases, maintenance, named
from scholaria_ops.stores.postgres.live.writes import tables, unreadable, within_reach
from scholaria_ops.stores.postgres.measure import system_identifier
from scholaria_ops.stores.postgres.session import Session, open_session
from scholaria_ops.stores.postgres.store import measure_database

#: Bytes of a database, indexes included, that two jobs of ``pg_restore`` bring back in a second, and that are then
#: fingerprinted in one. Measured with 413 MB of Korean and English text on two cores.
RESTORED_PER_S = 60e6
COMPARED_PER_S = 370e6
#: Creating roles and database, settings, statistics.
_OVERHEAD_S = 3.0
#: Measured with four superusers that connect again at once: 0.35 s in all. It does not grow with the size.
_LOCKOUT_S = 0.4
#: The data, and the log of writing them.
_ROOM = 2


class PostgresPlan(StorePlan):
    """What would be done to one PostgreSQL database."""

    store: Literal["postgres"] = "postgres"
    #: The live database's name, and its object id (None: there is none of that name).
    dbname: str
    live_oid: int | None
    #: Roles of the set that the server lacks.
    missing_roles: tuple[str, ...]
    accept_replication: bool = False


class Restored(Protocol):
    """Who knows earlier restores."""

    def __call__(self, *, identity: str, oid: int, set_id: str) -> int | None:
        """The transaction from which on rows of a database were written since it was put in its place as that very set.

        None if no restore that is known did that.
        """


def make_plan(
    connection: PostgresConnection,
    source: Source[PostgresEvidence],
    ctx: Context,
    *,
    jobs: int,
    accept_replication: bool,
    restored: Restored | None = None,
) -> PostgresPlan:
    """See :meth:`scholaria_ops.stores.live.LiveStore.plan`."""
    evidence = source.evidence
    with open_session(maintenance(connection), cancel=ctx.cancel) as session:
        existing = databases(session)
        live = named(existing, connection.dbname)
        identity = system_identifier(session)
        missing = _missing_roles(session, source)
        with _inside(connection, live, ctx) as (inside, trouble):
            found = Situation(session, inside, evidence, connection.dbname, existing, live, missing)
            against = [*_unidentified(session, identity), *_closed(live), *objections(found, ctx, accept_replication=accept_replication)]
            of_set = restored(identity=identity, oid=live.oid, set_id=source.set_id) if restored and identity and live else None
            consequences = [*_effects(connection, inside, trouble, source, ctx, of_set), *_notes(found)]
            warnings = tuple(_warnings(found))
        size = evidence.database.size_bytes
        need = Need(
            what=f"disk of PostgreSQL at {connection.where}",
            needed_bytes=_ROOM * size,
            free_bytes=free_bytes(session, identity) if identity else None,
        )
        return PostgresPlan(
            artifacts=tuple(require(source.artifacts, kind).path for kind in ("dump", "globals")),
            target=connection.where,
            identity=identity or "",
            steps=tuple(_steps(connection.dbname, live, missing, f"{jobs} jobs{bulk.describe(session, evidence)}")),
            effects=tuple(consequences),
            needs=(need,),
            objections=tuple(against),
            warnings=warnings,
            expected_s=round(_OVERHEAD_S + size / RESTORED_PER_S + size / COMPARED_PER_S, 1),
            expected_lockout_s=_LOCKOUT_S if live else 0.0,
            dbname=connection.dbname,
            live_oid=live.oid if live else None,
            missing_roles=missing,
            accept_replication=accept_replication,
        )


def _missing_roles(session: Session, source: Source[PostgresEvidence]) -> tuple[str, ...]:
    there = frozenset(name for (name,) in session.rows("SELECT rolname::text FROM pg_roles"))
    text = (source.directory / require(source.artifacts, "globals").path).read_text("utf-8")
    return plan_roles(text, there, source.evidence.bootstrap_role).created


@contextlib.contextmanager
def _inside(connection: PostgresConnection, live: Database | None, ctx: Context) -> Iterator[tuple[Session | None, OpsError | None]]:
    """A session in the live database, if there is one that can be looked at, or why it lets nobody in.

    The server itself answers (we have asked it): a database that is too damaged to connect to is all the more a case for
    a restore.
    """
    with contextlib.ExitStack() as stack:
        inside, trouble = None, None
        if live and live.open:
            try:
                inside = stack.enter_context(open_session(connection, cancel=ctx.cancel))
                for look in (inventory.database, inventory.replication, tables):
                    look(inside)  # what the plan reads of the catalogue
            except AuthenticationFailed:
                raise
            except (StoreError, Refused) as exc:
                inside, trouble = None, exc
        yield inside, trouble


def _unidentified(session: Session, identity: str | None) -> Iterator[Objection]:
    if identity is None:
        yield Objection(
            message=f"PostgreSQL at {session.where} does not say who it is: the role may not execute pg_control_system()",
            hint="GRANT EXECUTE ON FUNCTION pg_control_system() to it, or set DB_RESTORE_USER to a superuser.",
        )


def _closed(live: Database | None) -> Iterator[Objection]:
    if live and not live.open:
        yield Objection(
            message=f"the database {live.name} takes no connections, so what it holds cannot be compared",
            hint=f"If that is no restore under way: ALTER DATABASE {live.name} WITH ALLOW_CONNECTIONS true.",
        )


def _effects(
    connection: PostgresConnection,
    inside: Session | None,
    trouble: OpsError | None,
    source: Source[PostgresEvidence],
    ctx: Context,
    of_set: int | None,
) -> Iterator[Effect]:
    evidence = source.evidence
    if trouble:
        yield unreadable(f"everything in {connection.dbname}", trouble)
    if inside is None:
        yield Effect(kind="back", what="all rows", count=evidence.rows, detail=f"in {len(evidence.tables):,} tables")
        return
    mark = comparable_mark(inside, evidence)
    if mark is None and of_set is not None and within_reach(inside, of_set):
        mark = of_set  # it was this very set when it was put in its place: what is older came from it
    measured: Mapping[str, TableEvidence] = {}
    if mark is None:  # another database than that of the cut: only the content itself can tell
        try:
            measured = measure_database(connection, evidence, ctx).tables
        except StoreUnavailable:
            raise
        except StoreError as exc:
            yield unreadable(f"something in {connection.dbname}", exc)
    yield from effects(inside, evidence, mark, measured)


def _notes(found: Situation) -> Iterator[Effect]:
    for role in found.missing_roles:
        yield Effect(kind="back", what=f"role {role}", detail="is created")
    if found.live is None:
        return
    rows = found.session.rows(
        "SELECT coalesce(usename, backend_type)::text, coalesce(nullif(application_name, ''), 'no application name'), count(*)"
        " FROM pg_stat_activity WHERE datid = %s::oid AND application_name <> 'scholaria-ops' GROUP BY 1, 2 ORDER BY 3 DESC, 1, 2",
        (found.live.oid,),
    )
    for user, application, number in rows:
        yield Effect(kind="note", what=f"sessions of {user} ({application})", count=number, detail="connected now; ended at the switch")
    for sentence in replicated(found):
        yield Effect(kind="note", what="replication", detail=sentence)


def _steps(dbname: str, live: Database | None, missing: tuple[str, ...], means: str) -> Iterator[str]:
    side, before = (beside(dbname, word, "<id of the restore>") for word in ("restore", "before"))
    if missing:
        yield f"create the roles that are missing: {', '.join(missing)}"
    yield f"load the dump into a new database {side} with {means}, and collect its statistics"
    yield "compare it with the evidence of the set: every table's rows and content, sequences, definitions, grants, settings"
    if live:
        yield (f"let nobody into {dbname}, end its sessions, and in one transaction rename it to {before} and {side} to {dbname}")
        yield f"keep {before}, closed to everybody, until it is discarded"
    else:
        yield f"rename {side} to {dbname}; there is no database of that name now, so going back means that there is none again"


def _warnings(found: Situation) -> Iterator[str]:
    evidence = found.evidence
    yield from (f"of the set: {note}" for note in evidence.notes)
    if found.missing_roles and not evidence.password_hashes:
        yield "the set has no password hashes: give the created roles passwords"
    if found.inside:
        now, then = inventory.database(found.inside), evidence.database
        if (now.provider, now.locale or now.collate) != (then.provider, then.locale or then.collate):
            before, after = now.locale or now.collate, then.locale or then.collate
            yield f"the locale differs: {before} now, {after} in the set; text may sort differently"
