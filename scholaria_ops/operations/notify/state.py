"""What was told already, and what waits to be delivered: ``BACKUP_DIR/.state/notify.json``.

Deciding is pure (:func:`consider`); the file is read and replaced whole under a lock, so that the daemon's sensors and a command line
that finds no daemon never tell the same thing twice.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import uuid
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path

from pydantic import AwareDatetime, BaseModel, Field, ValidationError

from scholaria_ops.files import make_private_dir, rename_durably, write_private
from scholaria_ops.operations.alerts import Level
from scholaria_ops.operations.notify.events import Event, Message

#: Runs whose end was looked at; a run is looked at once, whoever comes first.
_REMEMBERED = 1000
#: A message that could not be delivered for so long is given up.
GIVE_UP_AFTER = timedelta(hours=24)
#: Messages waiting at most; more than that means that nobody reads them anyway.
_MOST_WAITING = 200
_FIRST_RETRY_S, _LAST_RETRY_S = 30, 3600


class Trouble(BaseModel):
    """Something that goes on being wrong."""

    cause: str
    level: Level
    since: AwareDatetime
    last_at: AwareDatetime
    count: int = 1
    #: When it was told last; None if the settings did not want it told.
    told_at: AwareDatetime | None = None


class Waiting(BaseModel):
    """A target that has not taken a message yet."""

    attempts: int = 0
    next_at: AwareDatetime | None = None


class Item(BaseModel):
    """A message on its way."""

    id: str
    message: Message
    created_at: AwareDatetime
    waiting: dict[str, Waiting]


class State(BaseModel):
    """Everything that is remembered between two looks."""

    handled: list[str] = Field(default_factory=list)
    troubles: dict[str, Trouble] = Field(default_factory=dict)
    #: Key → when it went well last: a failure that ended earlier and is only seen now is no news.
    well_at: dict[str, AwareDatetime] = Field(default_factory=dict)
    items: list[Item] = Field(default_factory=list)

    def handle(self, run_id: str) -> bool:
        """Whether the end of this run is new; it is not from now on."""
        if run_id in self.handled:
            return False
        self.handled = [*self.handled, run_id][-_REMEMBERED:]
        return True

    def put(self, message: Message, targets: list[str], now: datetime) -> str:
        """Have a message delivered to these targets. A heartbeat replaces an older one that is still on its way."""
        if message.level == "heartbeat":
            self.items = [i for i in self.items if i.message.level != "heartbeat"]
        item = Item(id=uuid.uuid4().hex[:12], message=message, created_at=now, waiting={name: Waiting() for name in targets})
        if targets:
            self.items = [*self.items, item][-_MOST_WAITING:]
        return item.id


Compose = Callable[[Event, Level, datetime | None, int], Message]


def consider(state: State, event: Event, *, levels: frozenset[str], repeat: timedelta, compose: Compose) -> list[Message]:
    """What to tell of an event, given what was told before; remembers it in ``state``.

    * A trouble is told when it begins, when its cause or level changes, and again after ``repeat``; in between it is only counted.
    * A success tells that a trouble which was told is over, once.
    """
    if event.level == "success":
        return _went_well(state, event, levels, compose)
    well = state.well_at.get(event.key)
    if well is not None and event.at <= well:
        return []
    old = state.troubles.get(event.key)
    since, count = (old.since, old.count + 1) if old else (event.at, 1)
    goes_on = old is not None and (old.cause, old.level) == (event.cause, event.level)
    wanted = event.level in levels
    due = not goes_on or old is None or old.told_at is None or event.at - old.told_at >= repeat
    told_at = event.at if wanted and due else (old.told_at if old else None)
    state.troubles[event.key] = Trouble(cause=event.cause, level=event.level, since=since, last_at=event.at, count=count, told_at=told_at)
    return [compose(event, event.level, since, count)] if wanted and due else []


def _went_well(state: State, event: Event, levels: frozenset[str], compose: Compose) -> list[Message]:
    known = state.well_at.get(event.key)
    state.well_at[event.key] = max(known, event.at) if known else event.at
    old = state.troubles.get(event.key)
    if old is not None and old.last_at <= event.at:
        del state.troubles[event.key]
        if old.told_at is not None:
            return [compose(event, "recovery", old.since, old.count)]
    return [compose(event, "success", None, 1)] if "success" in levels and event.subject else []


def retry_at(attempts: int, now: datetime) -> datetime:
    """When to try again after so many attempts."""
    return now + timedelta(seconds=min(_FIRST_RETRY_S * 2 ** (attempts - 1), _LAST_RETRY_S))


class Store:
    """The file, and two locks: one for reading and replacing it, one for whoever delivers."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.path = directory / "notify.json"

    @contextlib.contextmanager
    def change(self) -> Iterator[State]:
        """Read the state, and replace it when the block ends well."""
        with self._lock("notify.lock") as _:
            state = self._read()
            yield state
            fresh = self._directory / f".notify-{os.getpid()}-{uuid.uuid4().hex[:8]}.json"
            write_private(fresh, state.model_dump_json(indent=1).encode() + b"\n")
            rename_durably(fresh, self.path)

    def read(self) -> State:
        with self._lock("notify.lock"):
            return self._read()

    @contextlib.contextmanager
    def delivering(self) -> Iterator[bool]:
        """Whether we are the one who delivers now; somebody else may be at it."""
        with self._lock("notify-delivery.lock", wait=False) as ours:
            yield ours

    def _read(self) -> State:
        if not self.path.exists():
            return State()
        try:
            return State.model_validate_json(self.path.read_bytes())
        except ValidationError:
            # Telling a trouble once more is better than telling none at all any more. The file is kept to be looked at.
            rename_durably(self.path, self._directory / f"notify-unreadable-{uuid.uuid4().hex[:8]}.json")
            return State()

    @contextlib.contextmanager
    def _lock(self, name: str, *, wait: bool = True) -> Iterator[bool]:
        make_private_dir(self._directory, exist_ok=True)
        fd = os.open(self._directory / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield True
        finally:
            os.close(fd)
