"""Load a dataset into databases of a running server: the same code for rehearsals and for production.

A scratch server writes the dataset as plain commands, and those very bytes are sent to the target, into databases that
were empty. No command is parsed or built here; renumbering databases is done by the scratch server (``SWAPDB``) before
it writes. Expiries are absolute. Afterwards the staged databases can be swapped with the served ones at one instant.
Commands go through the target's append-only file like anybody's, so a restart serves what was restored.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import select
import ssl
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from scholaria_ops.cancel import CancelToken
from scholaria_ops.connections import RedisConnection
from scholaria_ops.errors import Refused, StoreError, StoreUnavailable
from scholaria_ops.stores.base import Context
from scholaria_ops.stores.redis.info import look, version_tuple
from scholaria_ops.stores.redis.scratch import CommandFile, Scratch
from scholaria_ops.stores.redis.wire import READ_BLOCK, ServerError, Wire, connect

_TASK = "redis: load"
#: Payloads above this size (bytes) are not sent as one RESTORE: the default proto-max-bulk-len is 512 MB.
_MAX_PAYLOAD = 256 << 20
#: Names that the scratch server looks at at once: it serves nobody else.
_NAMES = 20_000


@dataclass(frozen=True, slots=True)
class Staged:
    """What :func:`stage_into` sent. ``keys`` counts expired ones too; the target drops those."""

    keys: int
    bytes: int
    seconds: Mapping[str, float]
    warnings: tuple[str, ...] = ()


def stage_into(
    connection: RedisConnection,
    scratch: Scratch,
    mapping: Mapping[int, int],
    ctx: Context,
    *,
    timeout_s: float,
    streams_in: Iterable[int] = (),
) -> Staged:
    """Send what ``scratch`` holds into empty databases of a running server; functions are left alone.

    Args:
        scratch: a scratch server that has loaded the RDB. It is used up: afterwards its databases have other numbers.
        mapping: database in the RDB → database of the target. Every database with keys must be in it.
        streams_in: databases of the RDB that hold streams. These are sent once more as exact payloads, because plain
            commands cannot express pending entries of messages that were deleted or trimmed away.

    Raises:
        Refused: a database of the target is not empty, or ``mapping`` does not fit. Nothing was sent.
        StoreError: the target refused a command. What was staged so far stays in those databases: flush them.
    """
    seconds: dict[str, float] = {}
    warnings: list[str] = []
    with connect(connection, timeout_s=timeout_s, cancel=ctx.cancel) as wire:
        held = scratch.keyspace()
        _refuse_bad_mapping(wire, held, mapping)
        _move(scratch, {db: mapping[db] for db in held})
        scratch.wire.call("FUNCTION", "FLUSH")
        began = time.monotonic()
        ctx.progress.start(_TASK)
        with scratch.commands() as file:
            sent = _Stream(wire, file, ctx).run()
        seconds["stage"] = time.monotonic() - began
        began = time.monotonic()
        moved = [mapping[db] for db in streams_in if db in held]
        if moved:
            warnings += _exact_streams(scratch, wire, moved, ctx.cancel)
            seconds["streams"] = time.monotonic() - began
        ctx.progress.finish(_TASK, f"{sum(held.values()):,} keys")
    return Staged(sum(held.values()), sent, seconds, tuple(warnings))


def _refuse_bad_mapping(wire: Wire, held: Mapping[int, int], mapping: Mapping[int, int]) -> None:
    missing = sorted(held.keys() - mapping.keys())
    if missing or len(set(mapping.values())) != len(mapping):
        raise Refused(f"no database of the target was named for database(s) {missing or 'more than once'}", store="redis")
    filled = look(wire, config=False).keyspace
    taken = sorted(set(mapping.values()) & filled.keys())
    if taken:
        counts = ", ".join(f"{db}: {filled[db]:,} keys" for db in taken)
        raise Refused(
            f"database(s) of Redis at {wire.where} are not empty ({counts})", store="redis", hint="Restore into databases without keys."
        )


def _move(scratch: Scratch, mapping: Mapping[int, int]) -> None:
    """Renumber by swapping one after the other, following where each database lies by now."""
    lies = {db: db for db in mapping}
    for db, wanted in mapping.items():
        at = lies[db]
        if at != wanted:
            scratch.wire.call("SWAPDB", at, wanted)
            for other, place in lies.items():
                if place == wanted:
                    lies[other] = at
            lies[db] = wanted


class _Stream:
    """Sends a file of commands as fast as the target takes it, reading its replies at the same time.

    One thread and no blocking call: a target that answers while we send must be read, or both sides would wait for
    ever. Replies are only looked through for errors: among them nothing but an error begins a line with ``-``, since
    the only strings that come back are identifiers of stream entries.
    """

    def __init__(self, wire: Wire, file: CommandFile, ctx: Context) -> None:
        self._wire = wire
        self._file = file
        self._ctx = ctx
        self._socket = wire.socket
        self._sent = 0
        self._end: bytes | None = None
        self._last = b"\r\n"
        self._reported = 0
        self._patience = self._socket.gettimeout() or 60.0
        self._nonce = secrets.token_hex(16).encode()
        self._tls = isinstance(self._socket, ssl.SSLSocket)
        self._tail_only = False
        self._tail = b"*2\r\n$4\r\nECHO\r\n$32\r\n%b\r\n" % self._nonce

    def run(self) -> int:
        """Returns the number of bytes sent, once the target has executed all of them."""
        self._socket.setblocking(False)
        try:
            poll = select.poll()
            poll.register(self._socket, select.POLLIN | select.POLLOUT)
            self._exchange(poll)
        finally:
            with contextlib.suppress(OSError):
                self._socket.settimeout(self._patience)
        return self._sent

    def _exchange(self, poll: select.poll) -> None:
        more = True
        while True:
            ready = poll.poll(self._patience * 1000)
            if not ready:
                raise self._wire.broken(f"no answer within {self._patience:.0f} s")
            self._ctx.cancel.check()
            with self._wire.errors():
                if ready[0][1] & ~select.POLLOUT and self._receive():
                    return
                if more and ready[0][1] & select.POLLOUT:
                    more = self._send()
                    if not more:
                        poll.modify(self._socket, select.POLLIN)

    def _send(self) -> bool:
        """Send some; False once everything is sent."""
        available = self._file.available(self._sent) if not self._tail_only else 0
        try:
            if available:
                self._sent += self._send_file(min(available, 1 << 20))
                if self._sent - self._reported >= 1 << 20:
                    self._ctx.progress.advance(_TASK, self._sent - self._reported)
                    self._reported = self._sent
                return True
            self._tail_only = True
            self._tail = self._tail[self._socket.send(self._tail) :]
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return True
        return bool(self._tail)

    def _send_file(self, size: int) -> int:
        if not self._tls:
            return os.sendfile(self._socket.fileno(), self._file.fd, self._sent, size)
        return self._socket.send(os.pread(self._file.fd, min(size, 1 << 16), self._sent))

    def _receive(self) -> bool:
        """Read replies; True when the last one has come."""
        while True:
            try:
                block = self._socket.recv(READ_BLOCK)
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                return False
            if not block:
                raise self._wire.broken("the server closed the connection")
            text = self._last + block
            at = text.find(b"\r\n-")
            if at >= 0:
                line = text[at + 3 :].split(b"\r\n", 1)[0].decode("utf-8", "replace")
                raise StoreError(
                    f"Redis at {self._wire.where} refused a command of the restore: {line}",
                    store="redis",
                    hint="What was loaded so far is incomplete: flush those databases. Check maxmemory, disk and permissions.",
                )
            if text.endswith(self._nonce + b"\r\n"):
                return True
            self._last = text[-64:]


def _exact_streams(scratch: Scratch, wire: Wire, databases: Iterable[int], cancel: CancelToken) -> list[str]:
    """Replace staged streams by exact copies; returns a warning per stream that had to stay as commands made it."""
    warnings = []
    for db in databases:
        scratch.wire.call("SELECT", db)
        wire.call("SELECT", db)
        cursor = b"0"
        while True:
            cancel.check()
            cursor, keys = scratch.wire.call("SCAN", cursor, "COUNT", _NAMES, "TYPE", "stream")
            for key in keys:
                warnings += _exact_stream(scratch, wire, key)
            if cursor == b"0":
                break
    return warnings


def _exact_stream(scratch: Scratch, wire: Wire, key: bytes) -> list[str]:
    expiry, payload = scratch.wire.batch([("PEXPIRETIME", key), ("DUMP", key)])
    if payload is None or isinstance(payload, ServerError):
        return []  # expired by now
    name = key.decode("utf-8", "backslashreplace")[:80]
    if len(payload) > _MAX_PAYLOAD:
        return [f"stream {name} is too large for an exact copy: pending entries of deleted messages, if any, are missing"]
    (reply,) = wire.batch([("RESTORE", key, max(expiry, 0), payload, "REPLACE", "ABSTTL")])
    if isinstance(reply, ServerError):
        return [
            f"stream {name} came by commands, which cannot express pending entries of deleted messages; its exact form was refused: {reply}"
        ]
    return []


def restore_functions(connection: RedisConnection, libraries: Iterable[bytes], ctx: Context, *, timeout_s: float) -> None:
    """Make the target's function libraries exactly these (by their code, which any version from 7.0 takes)."""
    with connect(connection, timeout_s=timeout_s, cancel=ctx.cancel) as wire:
        commands: list[tuple[bytes | str, ...]] = [("MULTI",), ("FUNCTION", "FLUSH")]
        commands += [("FUNCTION", "LOAD", "REPLACE", code) for code in libraries]
        *_, outcome = wire.batch([*commands, ("EXEC",)])
        problems = [outcome] if isinstance(outcome, ServerError) else [r for r in outcome if isinstance(r, Exception)]
        if problems:
            raise StoreError(f"Redis at {wire.where} does not take the functions: {problems[0]}", store="redis")


def libraries(scratch: Scratch) -> list[bytes]:
    """The code of every function library that the scratch server has loaded."""
    found = []
    for entry in scratch.wire.call("FUNCTION", "LIST", "WITHCODE"):
        fields = dict(zip(entry[::2], entry[1::2], strict=True))
        found.append(bytes(fields[b"library_code"]))
    return found


def swap_in(connection: RedisConnection, mapping: Mapping[int, int], ctx: Context, *, timeout_s: float) -> float:
    """Exchange served and staged databases at one instant; returns the seconds it took. Measured: below 1 ms."""
    pairs = [(served, staged) for served, staged in mapping.items() if served != staged]
    with connect(connection, timeout_s=timeout_s, cancel=ctx.cancel) as wire:
        began = time.monotonic()
        *_, outcome = wire.batch([("MULTI",), *(("SWAPDB", a, b) for a, b in pairs), ("EXEC",)])
        seconds = time.monotonic() - began
        if isinstance(outcome, ServerError) or any(isinstance(r, ServerError) for r in outcome):
            raise StoreError(f"Redis at {wire.where} did not swap databases: {outcome}", store="redis")
    return seconds


def make_durable(connection: RedisConnection, ctx: Context, *, timeout_s: float) -> tuple[float, tuple[str, ...]]:
    """Wait until a restart of the target would serve what it holds now; returns seconds and warnings.

    With an append-only file: until it is on the disk. With save points: until a BGSAVE has succeeded. A server with
    neither keeps nothing, which is said.
    """
    began = time.monotonic()
    with connect(connection, timeout_s=timeout_s, cancel=ctx.cancel) as wire:
        info = look(wire)
        if info.aof and version_tuple(info.info.get("redis_version", "")) >= (7, 2):
            _wait_for_aof(wire, timeout_s)
        elif info.aof:
            _background(wire, ("BGREWRITEAOF",), "aof_rewrite", "aof_last_bgrewrite_status", ctx.cancel)
        elif info.setting("save"):
            _background(wire, ("BGSAVE",), "rdb_bgsave", "rdb_last_bgsave_status", ctx.cancel)
        else:
            return 0.0, (f"Redis at {wire.where} has neither an append-only file nor save points: a restart loses everything",)
    return time.monotonic() - began, ()


def _wait_for_aof(wire: Wire, timeout_s: float) -> None:
    # WAITAOF waits for the offset that the connection's last command saw: a fresh PING saw everybody's writes.
    _, outcome = wire.batch([("PING",), ("WAITAOF", 1, 0, int(timeout_s * 1000))])
    if isinstance(outcome, ServerError) or outcome[0] < 1:
        raise StoreUnavailable(
            f"the append-only file of Redis at {wire.where} was not flushed within {timeout_s:.0f} s",
            store="redis",
            hint="Look at its disk.",
        )


def _background(wire: Wire, command: tuple[str, ...], running: str, status: str, cancel: CancelToken) -> None:
    while look(wire, config=False).child_at_work:
        cancel.wait(0.05)
    wire.call(*command)
    while (info := look(wire, config=False)).flag(f"{running}_in_progress") or info.flag(f"{running}_scheduled"):
        cancel.wait(0.02)
    if info.info.get(status) != "ok":
        raise StoreError(f"{command[0]} failed on Redis at {wire.where}", store="redis", hint="See its log: most often its disk is full.")
