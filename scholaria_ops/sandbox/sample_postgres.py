"""The PostgreSQL part of the sample: database, roles, grants, schema and rows, as the application would have left them."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from importlib.resources import files
from typing import Any

import psycopg
from psycopg import sql
from pydantic import SecretStr

from scholaria_ops.connections import PostgresConnection
from scholaria_ops.errors import SandboxError
from scholaria_ops.sandbox.postgres import PostgresServer
from scholaria_ops.sandbox.sample_text import EPOCH, Chunk, chunks, context_type

DATABASE = "scholaria"
OWNER = "scholaria"
READER = "scholaria_readonly"
REVISION = "9f3c1d7a2b64"
_CONTEXT_STATUS = ("COMPLETED", "COMPLETED", "COMPLETED", "COMPLETED", "FAILED", "PENDING")
_FLUSH_BYTES = 1 << 18


@dataclass(frozen=True, slots=True)
class PostgresSample:
    """What was made. ``owner`` is the application's connection, ``admin`` the superuser on the same database."""

    owner: PostgresConnection
    reader: PostgresConnection
    admin: PostgresConnection
    #: Table → exact number of rows.
    rows: dict[str, int]


@dataclass(frozen=True, slots=True)
class PostgresScale:
    """How many rows of each kind."""

    chunks: int
    contexts: int
    topics: int
    users: int
    questions: int
    chunk_bytes: int
    seed: int


def seed_postgres(server: PostgresServer, scale: PostgresScale) -> PostgresSample:
    """Make database ``scholaria`` with its roles and fill it. The server must not have that database yet."""
    passwords = {OWNER: secrets.token_hex(12), READER: secrets.token_hex(12)}
    with server.connect() as admin:
        if admin.execute("SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE]).fetchone():
            raise SandboxError(f"the sample is already in {server.name}", hint="Seed a fresh server.")
        for role, password in passwords.items():
            _make_role(admin, role, password)
        admin.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(sql.Identifier(DATABASE), sql.Identifier(OWNER)))
        for statement in _DATABASE_LEVEL:
            admin.execute(statement)
    with server.connect(DATABASE) as admin:
        for statement in _EXTENSIONS_AND_GRANTS:
            admin.execute(statement)
    to = server.connection.with_db(DATABASE)
    owner = to.model_copy(update={"user": OWNER, "password": SecretStr(passwords[OWNER])})
    reader = to.model_copy(update={"user": READER, "password": SecretStr(passwords[READER])})
    with _connect(owner) as connection:
        rows = _fill(connection, scale)
    with server.connect(DATABASE) as admin:
        admin.execute("ANALYZE")
    return PostgresSample(owner, reader, to, rows)


_DATABASE_LEVEL = (
    "ALTER DATABASE scholaria SET timezone TO 'Asia/Seoul'",
    "ALTER DATABASE scholaria SET statement_timeout TO '5min'",
    "ALTER ROLE scholaria_readonly IN DATABASE scholaria SET default_transaction_read_only TO 'on'",
    "ALTER ROLE scholaria_readonly CONNECTION LIMIT 20",
    "REVOKE ALL ON DATABASE scholaria FROM PUBLIC",
    "GRANT CONNECT ON DATABASE scholaria TO scholaria_readonly",
    "COMMENT ON DATABASE scholaria IS 'Scholaria: 질의응답 서비스'",
)
_EXTENSIONS_AND_GRANTS = (
    'CREATE EXTENSION "uuid-ossp"',
    "CREATE EXTENSION pg_trgm",
    "REVOKE CREATE ON SCHEMA public FROM PUBLIC",
    "GRANT USAGE, CREATE ON SCHEMA public TO scholaria",
    "GRANT USAGE ON SCHEMA public TO scholaria_readonly",
    "ALTER DEFAULT PRIVILEGES FOR ROLE scholaria IN SCHEMA public GRANT SELECT ON TABLES TO scholaria_readonly",
    "ALTER DEFAULT PRIVILEGES FOR ROLE scholaria IN SCHEMA public GRANT SELECT ON SEQUENCES TO scholaria_readonly",
)


def _make_role(admin: psycopg.Connection[Any], role: str, password: str) -> None:
    """The server gets the SCRAM verifier, never the password: statements end up in logs."""
    verifier = admin.pgconn.encrypt_password(password.encode(), role.encode(), b"scram-sha-256").decode()
    admin.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(sql.Identifier(role), sql.Literal(verifier)))


def _connect(to: PostgresConnection) -> psycopg.Connection[tuple[Any, ...]]:
    return psycopg.connect(
        host=to.host, port=to.port, dbname=to.dbname, user=to.user, password=to.password.get_secret_value(), sslmode="disable"
    )


def _fill(connection: psycopg.Connection[Any], scale: PostgresScale) -> dict[str, int]:
    """Tables, rows and indexes in one transaction: PostgreSQL may then skip the write-ahead log for the rows."""
    connection.execute("SET statement_timeout = 0")
    connection.execute(_script("sample_schema.sql"))
    rows = {table: _copy(connection, table, columns, lines) for table, columns, lines in _tables(scale)}
    connection.execute(_script("sample_indexes.sql"))
    for table in rows:
        if table != "alembic_version":
            connection.execute(
                sql.SQL("SELECT setval(pg_get_serial_sequence({}, 'id'), greatest(1, (SELECT max(id) FROM {})))").format(
                    sql.Literal(table), sql.Identifier(table)
                )
            )
    connection.commit()
    return rows


def _script(name: str) -> bytes:
    return (files(__package__ or "scholaria_ops.sandbox") / name).read_bytes()


def _copy(connection: psycopg.Connection[Any], table: str, columns: str, lines: Iterable[str]) -> int:
    """COPY rows (already in COPY's text format) in, buffered; returns how many."""
    count = 0
    with connection.cursor() as cursor, cursor.copy(f"COPY {table} ({columns}) FROM STDIN".encode()) as copy:
        buffer: list[str] = []
        size = 0
        for line in lines:
            buffer.append(line)
            count += 1
            size += len(line)
            if size > _FLUSH_BYTES:
                copy.write("".join(buffer).encode())
                buffer.clear()
                size = 0
        copy.write("".join(buffer).encode())
    return count


def _tables(scale: PostgresScale) -> Iterator[tuple[str, str, Iterable[str]]]:
    yield "alembic_version", "version_num", [_row(REVISION)]
    yield "auth_user", "id, username, email, password, first_name, is_staff, is_superuser, date_joined, last_login", _users(scale)
    yield "rag_topic", "id, name, slug, description, system_prompt, created_at, updated_at", _topics(scale)
    yield (
        "rag_context",
        "id, name, description, context_type, original_content, uploaded_file, processing_status, chunk_count, created_at, updated_at",
        _contexts(scale),
    )
    yield "rag_topic_contexts", "id, topic_id, context_id", _topic_contexts(scale)
    yield (
        "rag_contextitem",
        "id, title, content, context_id, file_path, uploaded_file, metadata, created_at, updated_at",
        (_item(chunk) for block in chunks(scale.chunks, scale.contexts, scale.seed, bytes_each=scale.chunk_bytes) for chunk in block),
    )
    yield (
        "rag_questionhistory",
        "id, public_id, topic_id, user_id, session_id, question, answer, feedback_score, feedback_comment, latency_ms, cost, created_at",
        _questions(scale),
    )


def _row(*values: object) -> str:
    return "\t".join([_field(value) for value in values]) + "\n"


def _field(value: object) -> str:
    if value is None:
        return "\\N"
    if isinstance(value, str):
        return value.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")
    if isinstance(value, datetime):
        return value.isoformat()
    return str(value)


def _users(scale: PostgresScale) -> Iterator[str]:
    for n in range(1, scale.users + 1):
        joined = EPOCH + timedelta(hours=n)
        name = "김" if n % 3 else "O'Brien"
        hashed = f"pbkdf2_sha256$600000${n:022x}${n * 7919:043x}="
        yield _row(n, f"user{n:04}", f"user{n:04}@example.org", hashed, name, n <= 2, n == 1, joined, joined if n % 4 else None)


def _topics(scale: PostgresScale) -> Iterator[str]:
    for n in range(1, scale.topics + 1):
        at = EPOCH + timedelta(days=n)
        name = f"데이터 과학 입문 {n}" if n % 2 else f"Introduction to topic {n}"
        yield _row(n, name, f"topic-{n}", f"주제 {n}의 설명", "Answer from the passages only. 근거가 없으면 모른다고 답하라.", at, at)


def _contexts(scale: PostgresScale) -> Iterator[str]:
    for n in range(1, scale.contexts + 1):
        at = EPOCH + timedelta(hours=3 * n)
        kind = context_type(n)
        upload = f"uploads/{n:05}/강의자료 {n}.pdf" if kind == "PDF" else None
        original = f"# 문서 {n}\n\n본문은 조각으로 나뉘어 있다.\n" if kind == "MARKDOWN" else None
        count = scale.chunks // scale.contexts + (n <= scale.chunks % scale.contexts)
        status = "COMPLETED" if count else _CONTEXT_STATUS[n % len(_CONTEXT_STATUS)]
        yield _row(n, f"자료 {n}", "", kind, original, upload, status, count, at, at)


def _topic_contexts(scale: PostgresScale) -> Iterator[str]:
    pairs = sorted({(c % scale.topics + 1, c) for c in range(1, scale.contexts + 1)} | {(1, c) for c in range(1, scale.contexts + 1, 7)})
    return (_row(n, topic, context) for n, (topic, context) in enumerate(pairs, 1))


def _item(chunk: Chunk) -> str:
    file = f"uploads/{chunk.context_id:05}/{chunk.page}.pdf" if chunk.context_type == "PDF" else None
    about = json.dumps({"page": chunk.page, "lang": "ko" if chunk.context_id % 5 else "en", "tags": [chunk.context_type.lower()]})
    return _row(chunk.id, chunk.title, chunk.content, chunk.context_id, file, file, about, chunk.created_at, chunk.created_at)


def _questions(scale: PostgresScale) -> Iterator[str]:
    for n in range(1, scale.questions + 1):
        at = EPOCH + timedelta(days=30, minutes=n)
        score = (None, 1, None, -1, 0)[n % 5]
        comment = "도움이 되었어요 👍" if score == 1 else None
        public = f"{n:08x}-0000-4000-8000-{n * 104729 % (1 << 48):012x}"
        user = n % scale.users + 1 if n % 3 else None
        question = f"질문 {n}: 회귀 분석과 상관관계는 어떻게 다른가?" if n % 2 else f"Question {n}: what's the difference?"
        answer = f"답변 {n}: " + "근거가 되는 문단을 요약하면 다음과 같다. " * 6
        yield _row(
            n,
            public,
            n % scale.topics + 1,
            user,
            f"sess-{n % 97:04}",
            question,
            answer,
            score,
            comment,
            120 + n % 900 / 7,
            n % 1000 / 1e6,
            at,
        )
