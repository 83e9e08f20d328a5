"""Look at a live server before a dump: versions, privileges, hidden rows, locks, replicas. Changes nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from scholaria_ops.connections import PostgresConnection
from scholaria_ops.errors import Refused, ToolFailed, ToolMissing
from scholaria_ops.stores.base import Context, Facts
from scholaria_ops.stores.postgres import catalog_sql as sql
from scholaria_ops.stores.postgres.names import ident, qualified
from scholaria_ops.stores.postgres.programs import Programs
from scholaria_ops.stores.postgres.session import Session, open_session

#: The catalogue queries are written for this version on (pg_read_all_data, trimming of bytea).
OLDEST_SERVER = 14
_NAMED_AT_MOST = 12

#: Relations that pg_dump reads: everything with rows outside the system's schemas.
_DUMPED = "c.relkind IN ('r', 'p', 'm', 'S') AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'"

_UNREADABLE = (
    "SELECT n.nspname, c.relname, c.relkind::text, has_schema_privilege(n.oid, 'USAGE')"
    " FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE " + _DUMPED + ""
    " AND NOT (has_schema_privilege(n.oid, 'USAGE') AND CASE WHEN c.relkind = 'S' THEN has_sequence_privilege(c.oid, 'SELECT')"
    " ELSE has_table_privilege(c.oid, 'SELECT') END) ORDER BY 1, 2"
)
_HIDDEN_ROWS = (
    "SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
    " WHERE c.relrowsecurity AND row_security_active(c.oid) AND " + _DUMPED + " ORDER BY 1, 2"
)
#: Only their owner, a superuser and who was granted SELECT may read a large object; pg_read_all_data does not help.
_UNREADABLE_LARGE_OBJECTS = """
SELECT m.oid FROM pg_largeobject_metadata m
WHERE NOT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) AND NOT pg_has_role(m.lomowner, 'USAGE')
  AND current_setting('lo_compat_privileges') = 'off'
  AND NOT EXISTS (SELECT FROM aclexplode(m.lomacl) a
                  WHERE a.privilege_type = 'SELECT' AND (a.grantee = 0 OR pg_has_role(a.grantee, 'USAGE'))) ORDER BY 1
"""
_BLOCKERS = """
SELECT l.relation::regclass::text, l.pid, coalesce(a.application_name, ''), coalesce(a.usename, '')::text,
       extract(epoch FROM clock_timestamp() - a.xact_start)::int
FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid JOIN pg_class c ON c.oid = l.relation
JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE l.mode = 'AccessExclusiveLock' AND l.granted AND l.locktype = 'relation' AND l.pid IS DISTINCT FROM pg_backend_pid()
  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND n.nspname !~ '^pg_' AND c.relkind IN ('r', 'p', 'm', 'S') ORDER BY 1
"""
_REPLICA = """
SELECT CASE WHEN pg_last_wal_receive_lsn() = pg_last_wal_replay_lsn() THEN 0
            ELSE extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp()) END::float8, pg_is_wal_replay_paused()
"""


def preflight(connection: PostgresConnection, compression: str, replica_lag_limit_s: float, ctx: Context) -> Facts:
    """See :meth:`scholaria_ops.stores.base.Store.preflight`."""
    programs = Programs(ctx.tools, ctx.cancel)
    for name in ("pg_dumpall", "pg_restore"):
        programs.version(name)
    with open_session(connection, cancel=ctx.cancel) as session:
        check_program_version(programs, session)
        _check_privileges(session, connection)
        _check_hidden_rows(session, connection)
        lag = _check_replica(session, replica_lag_limit_s)
        method, warnings = usable_compression(programs, compression)
        warnings += tuple(_warnings(session, connection))
        database, size, tables, extensions = session.one(
            "SELECT current_database()::text, pg_database_size(current_database()), (SELECT count(*) FROM pg_class c"
            " JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind = 'r' AND " + _DUMPED + "),"
            " (SELECT string_agg(extname || ' ' || extversion, ', ' ORDER BY extname) FROM pg_extension)"
        )
        asked = time.time()
        (server_time,) = session.one("SELECT extract(epoch FROM clock_timestamp())::float8")
        return Facts(
            store="postgres",
            server_version=session.version,
            expected_bytes=size,
            details={
                "server": f"PostgreSQL {session.version} at {connection.where}",
                "database": f"{database}, {size / 1e6:,.0f} MB, {tables:,} tables",
                "role": connection.user,
                "extensions": extensions or "none",
                "pg_dump": f"{programs.version('pg_dump')}, compression {method}",
                **({"replica": lag} if lag else {}),
            },
            warnings=warnings,
            clock_ahead_s=server_time - asked,
        )


def check_program_version(programs: Programs, session: Session) -> None:
    """``pg_dump`` refuses servers newer than itself; say so before, with both versions."""
    program = programs.version("pg_dump")
    if session.major < OLDEST_SERVER:
        raise Refused(
            f"PostgreSQL at {session.where} is {session.version}; {OLDEST_SERVER} is the oldest version that is supported",
            hint="Upgrade the server: its own community supports no older one either.",
            store="postgres",
        )
    if program.major < session.major:
        raise ToolMissing(
            f"pg_dump is {program}, older than the server at {session.where}, which is {session.version}",
            hint=f"Install postgresql-client-{session.major} and point PG_BIN_DIR at its programs.",
            store="postgres",
        )


def usable_compression(programs: Programs, wanted: str) -> tuple[str, tuple[str, ...]]:
    """``wanted`` if this ``pg_dump`` was built with it, else gzip, with a warning.

    It says so before it connects to anything, so it is asked to connect to nowhere.
    """
    nowhere = PostgresConnection(host="/nonexistent", dbname="none", user="none")
    try:
        with programs.with_server("pg_dump", ["--format=custom", f"--compress={wanted}"], nowhere) as running:
            for _ in running.chunks():
                pass
            running.finish()
    except ToolFailed as exc:
        if "/nonexistent" in exc.stderr_tail:
            return wanted, ()
        reason = exc.stderr_tail.splitlines()[0] if exc.stderr_tail else exc.message
        if "does not support compression" not in reason:
            raise Refused(
                f"pg_dump does not take the compression {wanted!r}: {reason}", hint="Use zstd:1 or gzip:1.", store="postgres"
            ) from exc
        return "gzip:1", (f"this pg_dump was built without {wanted.partition(':')[0]}: gzip is used, which takes several times as long",)
    return wanted, ()


def can_read_password_hashes(session: Session) -> bool:
    return bool(session.one("SELECT has_table_privilege('pg_catalog.pg_authid', 'SELECT')")[0])


def blockers(session: Session) -> list[str]:
    """Who holds a table so that nobody can read it, one line per table."""
    return [
        f"{table} is locked exclusively by process {pid} ({user}, {application or 'no application name'}) for {seconds or 0} s"
        for table, pid, application, user, seconds in session.rows(_BLOCKERS)
    ]


def _check_privileges(session: Session, connection: PostgresConnection) -> None:
    unreadable = session.rows(_UNREADABLE)
    if unreadable:
        names = [qualified(schema, name) for schema, name, _, _ in unreadable]
        raise Refused(
            f"role {connection.user} may not read {_list(names)} in {connection.where}: the backup would not be whole",
            hint=f"As a superuser run: {' '.join(_grants(unreadable, connection.user))}",
            store="postgres",
        )
    objects = [oid for (oid,) in session.rows(_UNREADABLE_LARGE_OBJECTS)]
    if objects:
        listed = ", ".join(str(oid) for oid in objects[:_NAMED_AT_MOST])
        raise Refused(
            f"role {connection.user} may not read {len(objects)} large objects in {connection.where} ({_list([str(o) for o in objects])})",
            hint=f"As a superuser run: GRANT SELECT ON LARGE OBJECT {listed} TO {ident(connection.user)};"
            + (" and so on" if len(objects) > _NAMED_AT_MOST else "")
            + " (pg_read_all_data does not cover large objects).",
            store="postgres",
        )


def _grants(unreadable: Sequence[tuple[str, str, str, bool]], role: str) -> Iterator[str]:
    if len(unreadable) > _NAMED_AT_MOST:
        yield f"GRANT pg_read_all_data TO {ident(role)};"
        return
    for schema in sorted({schema for schema, _, _, usage in unreadable if not usage}):
        yield f"GRANT USAGE ON SCHEMA {ident(schema)} TO {ident(role)};"
    for schema, name, kind, _ in unreadable:
        yield f"GRANT SELECT ON {'SEQUENCE ' if kind == 'S' else ''}{qualified(schema, name)} TO {ident(role)};"


def _check_hidden_rows(session: Session, connection: PostgresConnection) -> None:
    hidden = [qualified(schema, name) for schema, name in session.rows(_HIDDEN_ROWS)]
    if hidden:
        raise Refused(
            f"row-level security may hide rows of {_list(hidden)} from role {connection.user}: the backup would not be whole",
            hint=f"As a superuser run: ALTER ROLE {ident(connection.user)} BYPASSRLS;",
            store="postgres",
        )


def _check_replica(session: Session, limit_s: float) -> str:
    """A sentence about the replica, empty on a primary; raises :class:`Refused` when it is too far behind."""
    if not session.one("SELECT pg_is_in_recovery()")[0]:
        return ""
    lag, paused = session.one(_REPLICA)
    if lag is None or lag > limit_s:
        behind = "has not replayed anything yet" if lag is None else f"is {lag:,.0f} s behind its primary"
        paused_too = " (replay is paused)" if paused else ""
        raise Refused(
            f"PostgreSQL at {session.where} is a replica that {behind}{paused_too}; {limit_s:,.0f} s are allowed",
            hint="Wait until it has caught up, or back up the primary.",
            store="postgres",
        )
    return f"in recovery, {lag:,.0f} s behind its primary"


def _warnings(session: Session, connection: PostgresConnection) -> Iterator[str]:
    yield from blockers(session)
    if not can_read_password_hashes(session):
        yield f"role {connection.user} may not read password hashes: roles are dumped without them"
    prepared = session.one("SELECT count(*) FROM pg_prepared_xacts WHERE database = current_database()")[0]
    if prepared:
        yield f"{prepared} prepared transactions are open: what they changed is not in a dump"
    for schema, name in session.rows(sql.INVALID_INDEXES):
        yield f"index {qualified(schema, name)} is invalid and will not be dumped: REINDEX or drop it"
    superuser = session.one("SELECT rolsuper FROM pg_roles WHERE rolname = current_user")[0]
    subscriptions = [name for (name,) in session.rows(sql.REPLICATION["subscriptions"])]
    if subscriptions and not superuser:
        yield f"subscriptions are dumped by a superuser only; these will be missing: {', '.join(subscriptions)}"
    slots = [name for (name,) in session.rows(sql.REPLICATION["slots"])]
    if slots:
        yield f"logical replication slots are never part of a dump: {', '.join(slots)}"


def _list(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_NAMED_AT_MOST])
    return shown if len(names) <= _NAMED_AT_MOST else f"{shown} and {len(names) - _NAMED_AT_MOST} more"
