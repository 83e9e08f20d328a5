"""From events to delivered messages: decide what to tell, and bring what waits to its targets. Nothing here fails a backup."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from scholaria_ops.catalogue.records import whoami
from scholaria_ops.operations.alerts import Attempt, Level, alerts_of
from scholaria_ops.operations.notify.events import Event, Message, compose
from scholaria_ops.operations.notify.sending import NotDelivered, send
from scholaria_ops.operations.notify.state import GIVE_UP_AFTER, Item, Store, Waiting, consider, retry_at
from scholaria_ops.operations.notify.targets import Target, heartbeat_of, targets_of
from scholaria_ops.operations.services import Services
from scholaria_ops.process import redact

#: One round of deliveries begins nothing new after this long, in seconds: a sensor's evaluation has a minute.
_ROUND_S = 30.0


@dataclass
class Round:
    """What one round of deliveries did."""

    delivered: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    #: Somebody else is delivering at this moment.
    busy: bool = False
    left: int = 0


def store_of(services: Services) -> Store:
    """What was told already below this BACKUP_DIR."""
    return Store(services.catalogue.layout.state)


def announce(services: Services, run_id: str, events: Iterable[Event], *, heartbeat: Event | None = None) -> list[Message]:
    """Take note of the events of one run, once, whoever comes first, and put what is to be told on its way. Sends nothing yet.

    Args:
        heartbeat: of a backup that ended: well (``success``) or not.

    Raises:
        ConfigError: the targets that are set cannot be used.
    """
    settings, now = services.settings, services.now()
    names = [t.name for t in targets_of(settings)]
    beat = heartbeat_of(settings)
    place = f"{whoami()}:{services.catalogue.layout.root}"

    def made(event: Event, level: Level, since: datetime | None, count: int) -> Message:
        told = compose(
            _redacted(services, event), level=level, ui_url=settings.ui_url, place=place, since=since, count=count, zone=settings.timezone
        )
        head = services.audit_log.head()
        return told.model_copy(update={"body": f"{told.body}\nAudit log: entry {head.seq}, {head.sha256[:16]}"}) if head.seq else told

    messages: list[Message] = []
    with store_of(services).change() as state:
        if not state.handle(run_id):
            return []
        for event in events:
            repeat = timedelta(hours=settings.notify_repeat_h)
            messages += consider(state, event, levels=settings.notify_levels, repeat=repeat, compose=made)
        for message in messages:
            state.put(message, names, now)
        if beat and heartbeat and (heartbeat.level == "success" or settings.heartbeat_fail):
            ping = made(heartbeat, "success" if heartbeat.level == "success" else "failure", None, 1)
            state.put(ping.model_copy(update={"level": "heartbeat"}), [beat.name], now)
    return messages


def _redacted(services: Services, event: Event) -> Event:
    def clean(text: str) -> str:
        return redact(text, services.settings.secrets)

    numbers = {k: clean(v) for k, v in event.numbers.items()}
    changes = {"subject": clean(event.subject), "what": clean(event.what), "next_step": clean(event.next_step), "numbers": numbers}
    return event.model_copy(update=changes)


def deliver(services: Services) -> Round:
    """Bring what waits and is due to its targets. A failure is recorded and tried again later, up to a day."""
    store, done = store_of(services), Round()
    beat = heartbeat_of(services.settings)
    targets = {t.name: t for t in (*targets_of(services.settings), *([beat] if beat else []))}
    end = time.monotonic() + _ROUND_S
    with store.delivering() as ours:
        if not ours:
            done.busy = True
            return done
        for item in store.read().items:
            for name, waiting in item.waiting.items():
                due = waiting.next_at is None or waiting.next_at <= services.now()
                if not due or time.monotonic() > end:
                    done.left += 1
                    continue
                target = targets.get(name)
                error = _attempt(services, item, waiting, target) if target else ""
                _settle(services, store, item.id, name, error)
                if error:
                    done.failed[name] = error
                elif target:
                    done.delivered.append(name)
    return done


def _attempt(services: Services, item: Item, waiting: Waiting, target: Target) -> str:
    """Send and record; returns the error, or nothing if it arrived."""
    error = ""
    try:
        send(services.settings, target, item.message)
    except NotDelivered as exc:
        error = exc.message
    alerts_of(services.catalogue.layout).record(
        Attempt(
            at=services.now(),
            target=target.name,
            level=item.message.level,
            subject=item.message.subject,
            delivered=not error,
            error=error,
            attempt=waiting.attempts + 1,
            given_up=bool(error) and services.now() - item.created_at > GIVE_UP_AFTER,
            alert=item.id,
            run_id=item.message.run_id,
        )
    )
    return error


def _settle(services: Services, store: Store, item_id: str, name: str, error: str) -> None:
    """Cross a target off, or note when to try it again. A target that is not set any more is crossed off too."""
    with store.change() as state:
        for item in state.items:
            if item.id != item_id or name not in item.waiting:
                continue
            if not error or services.now() - item.created_at > GIVE_UP_AFTER:
                del item.waiting[name]
            else:
                attempts = item.waiting[name].attempts + 1
                item.waiting[name] = Waiting(attempts=attempts, next_at=retry_at(attempts, services.now()))
        state.items = [item for item in state.items if item.waiting]


def send_test(services: Services, target: Target) -> Attempt:
    """Send a test message to one target now, and record the attempt."""
    place = f"{whoami()}:{services.catalogue.layout.root}"
    body = f"This is a test. Alerts of the backups will look like this.\nFrom: {place}\nRuns: {services.settings.ui_url}"
    message = Message(level="test", subject="[TEST] scholaria-ops can reach you", body=body, at=services.now())
    error = ""
    try:
        send(services.settings, target, message)
    except NotDelivered as exc:
        error = exc.message
    attempt = Attempt(
        at=services.now(), target=target.name, level="test", subject=message.subject, delivered=not error, error=error, given_up=bool(error)
    )
    alerts_of(services.catalogue.layout).record(attempt)
    return attempt
