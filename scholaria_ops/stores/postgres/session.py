"""Connections to a server: pinned settings, errors in our own words, and an end that leaves no backend behind."""

from __future__ import annotations

import contextlib
import os
import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, LiteralString

from scholaria_ops.cancel import CancelToken
from scholaria_ops.connections import PostgresConnection
from scholaria_ops.errors import AuthenticationFailed, OpsError, Refused, StoreError, StoreUnavailable
from scholaria_ops.process import redact

if TYPE_CHECKING:
    import psycopg
    from psycopg.sql import Composed

APPLICATION_NAME = "scholaria-ops"
_CONNECT_TIMEOUT_S = 10
_CANCEL_TIMEOUT_S = 3.0
#: A pooler of two sessions that takes turns shows both of them within two looks.
_POOLER_LOOKS = 2

#: Everything that decides how a value is printed, plus the timeouts that would end a long dump, plus two guards:
#: an empty search path (no function of a user can slip in) and an error instead of rows hidden by row-level security.
PINNED: Mapping[str, str] = {
    "TimeZone": "UTC",
    "DateStyle": "ISO, YMD",
    "IntervalStyle": "postgres",
    "bytea_output": "hex",
    "extra_float_digits": "1",
    "lc_monetary": "C",
    "quote_all_identifiers": "off",
    "search_path": "",
    "row_security": "off",
    "statement_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "idle_session_timeout": "0",
    "jit": "off",
}

_REFUSED_LOGIN = re.compile(
    r"password authentication failed|no password supplied|no pg_hba\.conf entry|authentication failed"
    r"|role \".*\" (does not exist|is not permitted to log in)|permission denied for database|certificate",
    re.IGNORECASE,
)
_NO_DATABASE = re.compile(r"database \".*\" does not exist")


class LockNotGranted(StoreError):
    """Somebody held a table for longer than we are willing to wait."""

    retryable = True


class Session:
    """A connection with pinned settings. Not thread-safe, except :meth:`abort`."""

    def __init__(self, connection: psycopg.Connection[tuple[Any, ...]], where: str, cancel: CancelToken | None = None) -> None:
        self.connection = connection
        self.where = where
        self._cancel = cancel
        self.version_num = connection.info.server_version

    @property
    def major(self) -> int:
        return self.version_num // 10000

    @property
    def version(self) -> str:
        """``16.15``, without the packager's addition."""
        return f"{self.version_num // 10000}.{self.version_num % 10000}"

    def rows(self, query: LiteralString | Composed, parameters: Sequence[object] | None = None) -> list[tuple[Any, ...]]:
        """All rows of a query; for catalogues and single values, never for a table's content."""
        with self.told():
            return self.connection.execute(query, parameters).fetchall()

    def one(self, query: LiteralString | Composed, parameters: Sequence[object] | None = None) -> tuple[Any, ...]:
        """The only row of a query."""
        return self.rows(query, parameters)[0]

    def execute(self, query: LiteralString | Composed) -> None:
        """Run a statement for its effect."""
        with self.told():
            self.connection.execute(query)

    def told(self, *, passing: type[psycopg.Error] | None = None) -> contextlib.AbstractContextManager[None]:
        """See :func:`told`."""
        return told(self.where, self._cancel, passing=passing)

    def check_cancelled(self) -> None:
        """Raise ``Cancelled`` if it was we who broke the connection."""
        if self._cancel:
            self._cancel.check()

    def abort(self) -> None:
        """End the running statement on the server and break the connection; may be called from any thread.

        Both are needed: a server in the middle of a long aggregate does not look at its socket.
        """
        import psycopg

        with contextlib.suppress(psycopg.Error, OSError, ValueError):
            self.connection.cancel_safe(timeout=_CANCEL_TIMEOUT_S)
        with (
            contextlib.suppress(psycopg.Error, OSError, ValueError),
            socket.socket(fileno=os.dup(self.connection.fileno())) as handle,
        ):
            handle.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def open_session(target: PostgresConnection, *, cancel: CancelToken | None = None, lock_timeout_s: float = 30.0) -> Iterator[Session]:
    """Connect (autocommit) and pin the settings; leaving the block closes the connection.

    With a ``cancel`` token the running statement is ended on the server when the token is cancelled, and whoever waits
    for it gets ``Cancelled``.

    Raises:
        AuthenticationFailed: the server is there, but not for this role, password, database or address.
        Refused: the database does not exist, or a pooler gives each statement to another session.
        StoreUnavailable: no server answers, or not now.
    """
    if cancel:
        cancel.check()
    connection = _connect(target)
    session = Session(connection, target.where, cancel)
    guard = cancel.on_cancel(session.abort) if cancel else contextlib.nullcontext()
    try:
        with guard:
            with told(target.where, cancel):
                _refuse_pooler(connection, target)
                _pin(session, lock_timeout_s)
            yield session
    finally:
        connection.close()


def _connect(target: PostgresConnection) -> psycopg.Connection[tuple[Any, ...]]:
    import psycopg

    tls = {"sslrootcert": target.sslrootcert, "sslcert": target.sslcert, "sslkey": target.sslkey}
    optional: dict[str, Any] = {name: str(value) for name, value in tls.items() if value is not None}
    try:
        return psycopg.connect(
            host=target.host,
            port=target.port,
            dbname=target.dbname,
            user=target.user,
            password=target.password.get_secret_value() or None,
            sslmode=target.sslmode,
            connect_timeout=_CONNECT_TIMEOUT_S,
            application_name=APPLICATION_NAME,
            client_encoding="UTF8",
            keepalives_idle=30,
            keepalives_interval=10,
            autocommit=True,
            prepare_threshold=None,  # few statements come twice, and poolers in front of a server dislike prepared ones
            **optional,
        )
    except psycopg.OperationalError as exc:
        raise _not_connected(target, exc) from None


def _not_connected(target: PostgresConnection, exc: psycopg.OperationalError) -> OpsError:
    text = redact(" ".join(str(exc).split()), [target.password.get_secret_value()])
    failed = exc.pgconn
    needs_password = failed is not None and failed.needs_password
    if needs_password or _REFUSED_LOGIN.search(text):
        return AuthenticationFailed(
            f"PostgreSQL at {target.where} does not let {target.user} in: {text}",
            hint="Check DB_USER, DB_PASSWORD and the server's pg_hba.conf.",
            store="postgres",
        )
    if _NO_DATABASE.search(text):
        return Refused(
            f"PostgreSQL at {target.where} has no database {target.dbname!r}",
            hint="On a new, empty server there is nothing to back up yet: a restore makes the database (`scholaria-ops restore latest`), "
            "or the application does. If it should be there, check DB_HOST, DB_PORT and DB_NAME.",
            store="postgres",
        )
    return StoreUnavailable(
        f"PostgreSQL at {target.where} cannot be reached: {text}",
        hint="Is it running, and are DB_HOST and DB_PORT right?",
        store="postgres",
    )


def _refuse_pooler(connection: psycopg.Connection[tuple[Any, ...]], target: PostgresConnection) -> None:
    """See that the session on the server is ours alone, before anything is set in it that others would find there.

    A server says its process id when it lets us in. A pooler says a number of its own, and in session mode all is well; in
    transaction mode two of its clients meet in one session sooner or later, or one of them changes it.
    """
    pid = _process(connection)
    if pid == connection.info.backend_pid:
        return
    other = _connect(target)
    try:
        theirs = {_process(other)}
        ours = {pid, *(_process(connection) for _ in range(_POOLER_LOOKS))}
        theirs |= {_process(other) for _ in range(_POOLER_LOOKS)}
    finally:
        other.close()
    if len(ours) > 1 or len(theirs) > 1 or ours == theirs:
        raise Refused(
            f"PostgreSQL at {target.where} is reached through a connection pooler that gives each transaction to another session of the"
            " server (PgBouncer in transaction mode, for example): locks and settings do not hold there",
            hint="Point DB_HOST and DB_PORT at the server itself, or at a pool in session mode.",
            store="postgres",
        )


def _process(connection: psycopg.Connection[tuple[Any, ...]]) -> int:
    row = connection.execute("SELECT pg_catalog.pg_backend_pid()").fetchone()
    return int(row[0]) if row else 0


def _pin(session: Session, lock_timeout_s: float) -> None:
    import psycopg

    _set(session, {**PINNED, "lock_timeout": f"{int(lock_timeout_s * 1000)}ms", "transaction_timeout": "0"})
    # Without it the backend of a killed client computes on to the end of its query. Not every platform can watch a closed socket.
    with contextlib.suppress(psycopg.errors.InvalidParameterValue):
        _set(session, {"client_connection_check_interval": "10s"})


def _set(session: Session, settings: Mapping[str, str]) -> None:
    """Set what this server knows of ``settings``, in one round trip."""
    session.connection.execute(
        "SELECT pg_catalog.set_config(s.name, w.value, false) FROM pg_catalog.pg_settings s"
        " JOIN unnest(%s::text[], %s::text[]) AS w(name, value) ON w.name OPERATOR(pg_catalog.=) s.name",
        (list(settings), list(settings.values())),
    )


@contextlib.contextmanager
def told(where: str, cancel: CancelToken | None = None, *, passing: type[psycopg.Error] | None = None) -> Iterator[None]:
    """Turn a server's error into one of ours, with its own words; into ``Cancelled`` if it is our own doing.

    Errors of the class ``passing`` are left as they are.
    """
    import psycopg

    try:
        yield
    except psycopg.Error as exc:
        if passing and isinstance(exc, passing):
            raise
        if cancel:
            cancel.check()
        raise _ours(exc, where) from None


def _ours(exc: psycopg.Error, where: str) -> OpsError:
    import psycopg

    if isinstance(exc, psycopg.errors.LockNotAvailable):
        return LockNotGranted(
            f"PostgreSQL at {where}: a lock was not granted in time: {_words(exc)}",
            hint="Let the migration or maintenance that holds the table finish, then run again.",
            store="postgres",
        )
    if isinstance(exc, psycopg.errors.InsufficientPrivilege):
        return Refused(f"PostgreSQL at {where}: {_words(exc)}", hint="Grant it, or use a role with pg_read_all_data.", store="postgres")
    broken = isinstance(exc, psycopg.OperationalError | psycopg.InterfaceError) and exc.sqlstate not in _PERMANENT
    if broken:
        return StoreUnavailable(f"PostgreSQL at {where} broke off: {_words(exc)}", hint="Run again.", store="postgres")
    return StoreError(f"PostgreSQL at {where}: {_words(exc)}", store="postgres")


#: Operational errors that no repetition cures: out of disk, out of memory, a configured limit, a file that is gone or unreadable.
_PERMANENT = {"53100", "53200", "53400", "58030", "58P01"}


def _words(exc: psycopg.Error) -> str:
    detail = exc.diag.message_primary or str(exc)
    extra = exc.diag.message_detail or exc.diag.context or ""
    return " ".join(f"{detail} {extra}".split())[:500]
