"""The tasks that wait in a Celery queue, as data: so that one can say which refer to rows that will not exist."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from scholaria_ops.cancel import CancelToken
from scholaria_ops.catalogue.evidence.base import Model
from scholaria_ops.stores.redis.live.classes import Classes
from scholaria_ops.stores.redis.wire import ServerError, Wire

_PAGE = 500
#: Of a task's arguments so much is kept for people.
_SHOWN = 200
UNREADABLE = "(unreadable)"


class QueuedTask(Model):
    """One message of a queue. ``mentions``: every whole number among its arguments, be it as text: perhaps a row's id."""

    db: int
    queue: str
    id: str
    name: str
    args: str
    mentions: tuple[int, ...] = ()
    #: The same numbers in their places: of each unnamed argument (none where it is no number), and by the argument's name.
    unnamed: tuple[int | None, ...] = ()
    named: Mapping[str, int] = {}


def queued_tasks(wire: Wire, databases: list[int], classes: Classes, cancel: CancelToken) -> list[QueuedTask]:
    """Every task in the queues (and among the unacknowledged ones) of these databases. Reads only."""
    entries = [entry for entry in classes.known if entry.tasks]
    found: list[QueuedTask] = []
    for db in sorted(databases):
        for members in classes.members(wire, db, entries, cancel):
            for keys in members.values():
                found += tasks_in(wire, db, keys, cancel)
    return found


def tasks_in(wire: Wire, db: int, keys: Iterable[bytes], cancel: CancelToken) -> list[QueuedTask]:
    """The tasks in these keys of the selected database ``db``."""
    return [decode(db, _text(key), message) for key in keys for message in _messages(wire, key, cancel)]


def _messages(wire: Wire, key: bytes, cancel: CancelToken) -> Iterator[bytes]:
    """Lists are queues; a hash holds what a worker has taken and not yet acknowledged. Anything else is bookkeeping."""
    kind = wire.call("TYPE", key)
    if kind == b"list":
        at = 0
        while page := wire.call("LRANGE", key, at, at + _PAGE - 1):
            cancel.check()
            yield from page
            at += len(page)
    elif kind == b"hash":
        cursor = b"0"
        while True:
            cancel.check()
            (reply,) = wire.batch([("HSCAN", key, cursor, "COUNT", _PAGE)])
            if isinstance(reply, ServerError):
                return
            cursor, pairs = reply
            yield from pairs[1::2]
            if cursor == b"0":
                return


def decode(db: int, queue: str, message: bytes) -> QueuedTask:
    """A message of Celery (protocol 1 and 2). What cannot be read is a task too, named so."""
    try:
        envelope = json.loads(message)
        if isinstance(envelope, list) and envelope:  # unacked: [message, exchange, routing key]
            envelope = envelope[0]
        headers = envelope.get("headers") or {}
        body = _body(envelope)
        old = body if isinstance(body, dict) else {}  # protocol 1: everything stands in the body
        args = old.get("args", body[0] if isinstance(body, list) and body else [])
        kwargs = old.get("kwargs", body[1] if isinstance(body, list) and len(body) > 1 else {})
        name = str(headers.get("task") or old.get("task") or UNREADABLE)
        task_id = str(headers.get("id") or old.get("id") or "")
    except (ValueError, AttributeError, TypeError, KeyError):
        return QueuedTask(db=db, queue=queue, id="", name=UNREADABLE, args=_text(message)[:_SHOWN])
    shown = _shown(args, kwargs)
    if not shown and headers.get("argsrepr"):
        shown = str(headers["argsrepr"])
    return QueuedTask(
        db=db,
        queue=queue,
        id=task_id,
        name=name,
        args=shown[:_SHOWN],
        mentions=tuple(sorted(set(_numbers([args, kwargs])))),
        unnamed=tuple(_number(a) for a in args) if isinstance(args, list) else (),
        named={str(k): n for k, v in kwargs.items() if (n := _number(v)) is not None} if isinstance(kwargs, dict) else {},
    )


def _shown(args: Any, kwargs: Any) -> str:
    positional = [repr(a) for a in args] if isinstance(args, list) else [repr(args)]
    named = [f"{k}={v!r}" for k, v in kwargs.items()] if isinstance(kwargs, dict) else []
    return ", ".join([*positional, *named])


def _body(envelope: dict[str, Any]) -> Any:
    body = envelope.get("body", "")
    if not isinstance(body, str):
        return body
    encoding = (envelope.get("properties") or {}).get("body_encoding")
    if encoding != "base64":
        try:
            return json.loads(body)
        except ValueError:
            if encoding is not None:
                raise
    # Some producers leave the encoding out; no JSON text of a body is base64.
    try:
        return json.loads(base64.b64decode(body, validate=True))
    except binascii.Error as exc:
        raise ValueError(str(exc)) from exc


def _number(value: Any) -> int | None:
    """A single whole number, be it as text."""
    return None if isinstance(value, (dict, list)) else next(_numbers(value), None)


def _numbers(value: Any) -> Iterator[int]:
    if isinstance(value, bool):
        return
    if isinstance(value, int):
        yield value
    elif isinstance(value, str):
        if value.isascii() and value.isdigit() and len(value) < 19:
            yield int(value)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _numbers(item)
    elif isinstance(value, list):
        for item in value:
            yield from _numbers(item)


def _text(value: bytes) -> str:
    return value.decode("utf-8", "backslashreplace")
