"""The evidence sees everything: names, values, expiries, whatever the type; and time alone is never a loss."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scholaria_ops.catalogue.evidence.redis import RedisEvidence, RedisKeys
from scholaria_ops.errors import Refused
from scholaria_ops.sandbox.redis import RedisServer
from scholaria_ops.sandbox.sandbox import Sandbox
from scholaria_ops.sandbox.tools import Tools
from scholaria_ops.stores.base import Context
from scholaria_ops.stores.redis.compare import compare
from scholaria_ops.stores.redis.measure import EXPIRING_FIELDS, METHOD, NO_PREFIX, OTHER, Measure, prefix_of, prefixes_of
from scholaria_ops.stores.redis.take import measure_running
from scholaria_ops.stores.redis.windows import FAR, Windows
from scholaria_ops_tests.conftest import ContextFactory
from scholaria_ops_tests.stores.redis_support import DAY_MS, LIBRARY, commands, fields_expire, fill, take

Command = tuple[bytes | str | int, ...]


@pytest.fixture(scope="module")
def server(tools: Tools, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A server of this module's own: its snapshots start at once, and DEBUG is never asked of it."""
    with Sandbox(tmp_path_factory.mktemp("box"), tools) as box:
        yield box.redis(config={"repl-diskless-sync-delay": "0", "enable-debug-command": "no"})


@pytest.fixture(scope="module")
def before(server: RedisServer, tools: Tools, tmp_path_factory: pytest.TempPathFactory) -> RedisEvidence:
    fill(server)
    base = tmp_path_factory.mktemp("before")
    return take(server, _context(base, tools), base / "set").evidence


def _context(base: Path, tools: Tools) -> Context:
    from scholaria_ops.catalogue.ledger import Ledger

    scratch = base / f"scratch{time.monotonic_ns()}"
    scratch.mkdir(mode=0o700)
    return Context(scratch=scratch, ledger=Ledger(base / "ledger"), tools=tools)


def test_evidence_tells_keys_by_database_prefix_and_type(before: RedisEvidence, server: RedisServer) -> None:
    assert before.headline() == {"keys": 330, "databases": 2}
    assert before.per_database() == {0: 328, 3: 2}
    prefixes = before.per_prefix()
    assert prefixes[0, "rag_query"] == 300
    assert prefixes[0, "embedding_cache"] == 20
    assert prefixes[0, "celery-task-meta-*"] == 1
    hashes = {"hash": 1, EXPIRING_FIELDS: 1} if fields_expire(server) else {"hash": 2}
    assert before.per_type() == {**hashes, "list": 1, "set": 1, "zset": 1, "stream": 1, "string": 324}
    assert before.keys_with_ttl == 321 + fields_expire(server)
    assert [f.name for f in before.functions] == ["lib"]
    assert before.rdb_version >= 10
    assert before.rdb_checksum
    assert before.rdb_aux["redis-ver"] == before.server_version
    assert before.method == METHOD
    assert RedisEvidence.model_validate_json(before.model_dump_json()) == before


CHANGES: dict[str, tuple[Sequence[Command], Sequence[Command], str]] = {
    "one byte of a value": (
        [("SETRANGE", "embedding_cache:ns:7", 100, "#")],
        [("SETRANGE", "embedding_cache:ns:7", 100, "1")],
        "embedding",
    ),
    "expiry by one millisecond": (
        [
            (
                "EVAL",
                "local t = redis.call('PEXPIRETIME', KEYS[1]); return redis.call('PEXPIREAT', KEYS[1], t + 1)",
                1,
                "embedding_cache:ns:3",
            )
        ],
        [
            (
                "EVAL",
                "local t = redis.call('PEXPIRETIME', KEYS[1]); return redis.call('PEXPIREAT', KEYS[1], t - 1)",
                1,
                "embedding_cache:ns:3",
            )
        ],
        "embedding_cache",
    ),
    "expiry taken away": ([("PERSIST", "rag_query:9")], [], "rag_query"),
    "expiry given": ([("PEXPIREAT", "counter", 4102444800000)], [("PERSIST", "counter")], NO_PREFIX),
    "a key renamed": ([("RENAME", "topics", "topicz")], [("RENAME", "topicz", "topics")], NO_PREFIX),
    "a key moved to another database": ([("MOVE", "topics", 5)], [("SELECT", 5), ("MOVE", "topics", 0)], "database 5"),
    "a key deleted": ([("COPY", "counter", "kept", "DB", 9), ("DEL", "counter")], [("SELECT", 9), ("MOVE", "kept", 0)], NO_PREFIX),
    "order of a list": (
        [("RPOPLPUSH", "celery", "celery")],
        [("EVAL", "redis.call('RPUSH', 'celery', redis.call('LPOP', 'celery'))", 0)],
        "list",
    ),
    "a member of a set": ([("SMOVE", "topics", "other:set", "topic 3")], [("SMOVE", "other:set", "topics", "topic 3")], "(set)"),
    "a score": ([("ZINCRBY", "scores", "1e-9", "b")], [("ZADD", "scores", "0.1", "b")], "zset"),
    "a field": ([("HSET", "session:1", "seen", "today")], [("HSET", "session:1", "seen", "yesterday")], "session (hash)"),
    "expiry of a field": ([("HPEXPIREAT", "profile:1", 4102444800000, "FIELDS", 1, "b")], [], EXPIRING_FIELDS),
    "an entry of a stream": ([("SELECT", 3), ("XADD", "events", "3-1", "kind", "c")], [("SELECT", 3), ("XDEL", "events", "3-1")], "stream"),
    "a pending entry": ([("SELECT", 3), ("XACK", "events", "workers", "1-1")], [], "stream"),
    "a consumer group": ([("SELECT", 3), ("XGROUP", "SETID", "events", "workers", "0")], [], "stream"),
    "a type": (
        [("SET", "kept:counter", "42"), ("DEL", "counter"), ("SADD", "counter", "42")],
        [("DEL", "counter", "kept:counter")],
        NO_PREFIX,
    ),
    "a function": ([("FUNCTION", "LOAD", "REPLACE", LIBRARY.replace("1", "2"))], [("FUNCTION", "LOAD", "REPLACE", LIBRARY)], "library lib"),
    "an ordinary key more": ([("SET", "rag_query:new", "x")], [("DEL", "rag_query:new")], "rag_query"),
    "a value that looks like commands": ([("SET", "plain:x", b"*1\r\n$8\r\nFLUSHALL\r\n")], [("DEL", "plain:x")], "(other)"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_f32_any_change_of_content_shows_and_is_located(
    server: RedisServer, before: RedisEvidence, context_factory: ContextFactory, change: str
) -> None:
    if change == "expiry of a field" and not fields_expire(server):
        pytest.skip("needs Redis 7.4, since which fields of hashes can expire")
    there, back, where = CHANGES[change]
    reference = measure_running(server.connection, before, context_factory(), form="disk", timeout_s=20)
    commands(server, *there)
    try:
        found = measure_running(server.connection, before, context_factory(), form="disk", timeout_s=20)
    finally:
        commands(server, *back)
    differences = compare(reference, found)
    assert differences, f"{change} went unseen"
    assert any(where in d.what for d in differences), differences
    assert all(d.severity == "loss" for d in differences)
    assert len(differences) <= 3, differences


def test_nothing_changed_means_no_difference(server: RedisServer, before: RedisEvidence, context_factory: ContextFactory) -> None:
    first = measure_running(server.connection, before, context_factory(), form="disk", timeout_s=20)
    second = measure_running(server.connection, before, context_factory(), form="socket", timeout_s=20)
    assert compare(first, second) == []


def test_keys_that_are_past_their_expiry_are_in_the_evidence(tools: Tools, tmp_path: Path, context_factory: ContextFactory) -> None:
    with Sandbox(tmp_path / "box", tools) as box:
        server = box.redis(config={"repl-diskless-sync-delay": "0"})
        commands(server, ("DEBUG", "SET-ACTIVE-EXPIRE", "0"))
        commands(server, *(("SET", f"short:{i}", i, "PX", 30) for i in range(50)), ("SET", "long:1", 1, "PX", DAY_MS))
        time.sleep(0.05)
        backup = take(server, context_factory(), tmp_path / "set")
    assert backup.evidence.per_prefix() == {(0, "long"): 1, (0, "short"): 50}
    assert backup.evidence.expired_at_cut == 50
    time.sleep(0.1)
    assert all(check.passed for check in backup.check(context_factory()))


def test_f39_acl_users_are_named_as_not_kept_and_functions_are_kept(tools: Tools, tmp_path: Path, context_factory: ContextFactory) -> None:
    with Sandbox(tmp_path / "box", tools) as box:
        server = box.redis(config={"repl-diskless-sync-delay": "0"})
        fill(server)
        commands(server, ("ACL", "SETUSER", "celery", "on", ">secret", "~*", "+@all"))
        backup = take(server, context_factory(), tmp_path / "set")
        facts = backup.store.preflight(context_factory())
    assert backup.evidence.acl_users_not_kept == ("celery", "default")
    assert any("celery" in warning and "not part of an RDB" in warning for warning in facts.warnings)
    assert [f.name for f in backup.evidence.functions] == ["lib"]
    assert "ACL users" in backup.store.manual_restore(backup.dump.artifacts)


def test_databases_of_data_of_modules_are_refused() -> None:
    measure = Measure(Windows(0))
    with pytest.raises(Refused, match=r"only a module understands \(JSON.SET\)"):
        measure.read([memoryview(b"*3\r\n$8\r\nJSON.SET\r\n$1\r\nk\r\n$1\r\nv\r\n")])


# -- prefixes and windows --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "prefix"),
    [
        (b"embedding_cache:ns:abc", "embedding_cache"),
        (b"celery", NO_PREFIX),
        (b"celery-task-meta-3f2b8c1e-0000-4000-8000-123456789abc", "celery-task-meta-*"),
        (b"user1234", "user*"),
        (b"1234", NO_PREFIX),
        (b":x", NO_PREFIX),
        (b"\xff\xfe:x", "\\xff\\xfe"),
        (b"_kombu.binding.celery", NO_PREFIX),
    ],
)
def test_prefixes_are_discovered(key: bytes, prefix: str) -> None:
    assert prefix_of(key) == prefix


def test_rules_come_before_the_colon() -> None:
    assert prefix_of(b"a:b:c", [b"a:b:"]) == "a:b:"


def _stream(pairs: Sequence[tuple[bytes, int]]) -> list[memoryview]:
    def one(*words: bytes) -> bytes:
        return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(w), w) for w in words)

    out = one(b"SELECT", b"0")
    for key, expiry in pairs:
        out += one(b"SET", key, b"v") + (one(b"PEXPIREAT", key, b"%d" % expiry) if expiry else b"")
    return [memoryview(out[i : i + 7]) for i in range(0, len(out), 7)]


def test_a_million_prefixes_do_not_fill_the_manifest() -> None:
    pairs = [(b"p%d:x" % i, 0) for i in range(3000)] + [(b"big:%d" % i, 0) for i in range(50)]
    first = Measure(Windows(0))
    first.read(_stream(pairs))
    rows = first.rows()
    assert len(rows) <= 201
    assert sum(row.keys for row in rows) == 3050
    again = Measure(Windows(0), prefixes=prefixes_of(rows))
    again.read(_stream(pairs[::-1]))
    assert again.rows() == rows
    assert any(row.prefix == OTHER for row in rows)


@given(st.integers(0, 1 << 50), st.integers(0, (1 << 63) - 1))
def test_every_expiry_has_one_window_that_ends_after_it(origin: int, expiry_ms: int) -> None:
    from bisect import bisect_right

    windows = Windows(origin)
    end = windows.ends[bisect_right(windows.ends, expiry_ms // 1000)]
    assert windows.start(end) * 1000 <= expiry_ms < end * 1000 or end == FAR


def test_windows_are_narrow_where_it_matters() -> None:
    windows = Windows(1_000_000_200)
    widths = [(end - windows.start(end), windows.start(end) - 1_000_000_200) for end in windows.ends[1:-1]]
    assert all(width <= max(3600, distance) for width, distance in widths)
    assert len(windows.ends) < 400


# -- comparing -------------------------------------------------------------------------------------------------------


def _row(prefix: str, end: int | None, keys: int, fingerprint: str = "aa", kind: str = "string") -> RedisKeys:
    return RedisKeys(db=0, prefix=prefix, type=kind, expires_before=end, keys=keys, fingerprint=fingerprint)


ORIGIN = 1_700_000_100


def _at(seconds: float, base: RedisEvidence) -> Callable[..., RedisEvidence]:
    """Evidence of a running server, measured that many seconds after the cut."""

    def make(*rows: RedisKeys) -> RedisEvidence:
        until = datetime.fromtimestamp(ORIGIN, UTC) + timedelta(seconds=seconds)
        return base.model_copy(update={"keys": rows, "window_origin": ORIGIN, "expired_until": until})

    return make


def test_f37_keys_that_expired_meanwhile_are_a_note_and_everything_else_must_be_equal(before: RedisEvidence) -> None:
    near, far = ORIGIN + 300, ORIGIN + 86400
    expected = before.model_copy(
        update={"keys": (_row("rag_query", near, 10), _row("cache", far, 5), _row("x", None, 1)), "window_origin": ORIGIN}
    )
    kept = (_row("cache", far, 5), _row("x", None, 1))
    later = _at(400, before)
    assert compare(expected, later(*kept, _row("rag_query", near, 10))) == []
    for gone in (later(*kept), later(*kept, _row("rag_query", near, 3, "bb"))):
        (note,) = compare(expected, gone)
        assert note.severity == "note"
        assert "expired between" in note.what
    lost = {
        "a key of a window to come": later(_row("cache", far, 4, "bb"), kept[1]),
        "a value of a window to come": later(_row("cache", far, 5, "bb"), kept[1]),
        "a key without expiry": later(kept[0]),
        "more keys than there were": later(*kept, _row("rag_query", near, 11, "bb")),
        "an expired window changed without losing a key": later(*kept, _row("rag_query", near, 10, "bb")),
        "a new prefix": later(*kept, _row("new", None, 1)),
    }
    for what, found in lost.items():
        assert any(d.severity == "loss" for d in compare(expected, found)), what


def test_f37_nothing_may_be_missing_when_nothing_can_have_expired(before: RedisEvidence) -> None:
    near = ORIGIN + 300
    expected = before.model_copy(update={"keys": (_row("rag_query", near, 10),), "window_origin": ORIGIN})
    found = expected.model_copy(update={"keys": ()})
    assert [d.severity for d in compare(expected, found)] == ["loss"]
    assert [d.severity for d in compare(expected, _at(-10, before)())] == ["loss"]


def test_evidence_of_unlike_methods_is_never_compared(before: RedisEvidence) -> None:
    other = before.model_copy(update={"method": "something-else/1", "keys": ()})
    (difference,) = compare(before, other)
    assert "method of measuring" in difference.what
    assert difference.severity == "loss"


def test_expired_fields_of_hashes_are_a_note(before: RedisEvidence) -> None:
    near, far = ORIGIN + 300, ORIGIN + 86400
    expected = before.model_copy(update={"keys": (_row("p", near, 2, "aa", EXPIRING_FIELDS),), "window_origin": ORIGIN})
    found = _at(400, before)(_row("p", far, 2, "bb", EXPIRING_FIELDS))
    assert [d.severity for d in compare(expected, found)] == ["note"]
