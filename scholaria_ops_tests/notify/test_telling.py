"""What is told, how often, and what becomes of it when a channel is down."""

from __future__ import annotations

import dataclasses
import multiprocessing
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from scholaria_ops.operations.alerts import Level, alerts_of
from scholaria_ops.operations.notify import delivery
from scholaria_ops.operations.notify.delivery import announce, deliver, store_of
from scholaria_ops.operations.notify.events import Event, Message, cause_of, compose
from scholaria_ops.operations.notify.runs import RunFacts, events_of, heartbeat_event
from scholaria_ops.operations.notify.state import GIVE_UP_AFTER, State, consider
from scholaria_ops.operations.services import Services
from scholaria_ops_tests.notify.conftest import Telling
from scholaria_ops_tests.notify.receivers import Receiver

NOW = datetime(2026, 3, 1, 2, tzinfo=UTC)
HOUR = timedelta(hours=1)
ALL = frozenset({"failure", "warning", "success"})


def made(event: Event, level: Level, since: datetime | None, count: int) -> Message:
    return compose(event, level=level, ui_url="http://ui:3000/", place="ops@vm:/b", since=since, count=count, zone=UTC)


def trouble(hours: float, cause: str = "store_unavailable", level: str = "failure") -> Event:
    return Event.model_validate(
        {
            "key": "backup",
            "level": level,
            "cause": cause,
            "subject": "Backup failed",
            "what": "qdrant is gone",
            "at": NOW + hours * HOUR,
            "numbers": {"Newest verified set": "20260228_020000, 24 h old"},
            "next_step": "Start Qdrant.",
            "run_id": "r-1",
            "how": "schedule daily_backup",
        }
    )


def well(hours: float) -> Event:
    return Event(key="backup", level="success", subject="Backup is well", what="It went well.", at=NOW + hours * HOUR)


def told(events: list[Event], levels: frozenset[str] = ALL - {"success"}) -> list[str]:
    state, subjects = State(), []
    for event in events:
        found = consider(state, event, levels=levels, repeat=24 * HOUR, compose=made)
        subjects += [f"{m.level} {(event.at - NOW) / HOUR:.0f}" for m in found]
    return subjects


def test_a_trouble_that_goes_on_is_folded_and_its_end_is_told_once() -> None:
    assert told([trouble(0), trouble(1), trouble(2), well(3), well(4)]) == ["failure 0", "recovery 3"]


def test_another_cause_or_level_is_told_at_once() -> None:
    assert told([trouble(0), trouble(1, "disk_full"), trouble(2, "disk_full", "warning")]) == ["failure 0", "failure 1", "warning 2"]


def test_a_trouble_that_goes_on_is_told_again_after_a_day() -> None:
    assert told([trouble(h) for h in range(0, 60, 6)]) == ["failure 0", "failure 24", "failure 48"]


def test_levels_that_nobody_wants_are_not_told_and_neither_is_their_end() -> None:
    assert told([trouble(0, level="warning"), well(1)], frozenset({"failure"})) == []
    assert told([well(0), well(1)], ALL) == ["success 0", "success 1"]


def test_a_failure_that_is_only_seen_after_a_later_success_is_no_news() -> None:
    assert told([well(5), trouble(1), well(6)]) == []
    assert told([trouble(5), well(1), trouble(6), well(7)]) == ["failure 5", "recovery 7"]


def test_a_message_says_what_since_when_the_numbers_the_next_step_and_where_to_look() -> None:
    state = State()
    consider(state, trouble(0), levels=ALL, repeat=HOUR, compose=made)
    (again,) = consider(state, trouble(2), levels=ALL, repeat=HOUR, compose=made)
    assert again.subject == "[FAILED] Backup failed"
    assert again.body.splitlines() == [
        "qdrant is gone",
        "Since: 2026-03-01 02:00:00 UTC, 2 times",
        "At: 2026-03-01 04:00:00 UTC",
        "Newest verified set: 20260228_020000, 24 h old",
        "Next: Start Qdrant.",
        "Run: http://ui:3000/runs/r-1 (schedule daily_backup)",
        "From: ops@vm:/b",
    ]


def test_the_same_reason_with_other_numbers_is_the_same_cause() -> None:
    first = cause_of("verification", "the set 20260301_020000 does not verify: 12 rows (SHA-256 77faed61203e…)")
    assert first == cause_of("verification", "the set 20260302_020000 does not verify: 4 rows (SHA-256 e386739826c2…)")
    assert first != cause_of("verification", "the set 20260302_020000 does not open")


# -- what a run is worth ------------------------------------------------------------------------------------------------------------

FAILED = RunFacts(
    run_id="r-9", job="backup", ended="failure", at=NOW, how="schedule daily_backup", set_id="20260301_020000", tier="daily",
    code="backup_incomplete", message="qdrant could not be backed up: refused\nkept as a partial set",
    next_step="Mend it.", step="take_backup",
)  # fmt: skip


def one(run: RunFacts) -> Event:
    (event,) = events_of(run, None, "there is none")
    return event


def test_a_failed_backup_is_a_failure_with_its_own_words() -> None:
    event = one(FAILED)
    assert (event.level, event.key, event.next_step) == ("failure", "backup", "Mend it.")
    assert event.subject == "Backup of daily set 20260301_020000 failed: qdrant could not be backed up: refused"
    listing = one(dataclasses.replace(FAILED, message="the set does not verify:\n  set: checksums"))
    assert listing.subject.endswith("failed: the set does not verify")


def test_a_killed_worker_leaves_no_word_and_is_told_all_the_same() -> None:
    event = one(dataclasses.replace(FAILED, code="", message="", next_step="", step=""))
    assert event.level == "failure"
    assert "was killed" in event.what


def test_a_set_that_did_not_get_offsite_says_that_it_stands_here() -> None:
    event = one(dataclasses.replace(FAILED, step="ship_offsite", code="offsite_unavailable", message="the bucket is away"))
    assert event.subject.startswith("Backup of daily set 20260301_020000 stands here and verified, but not offsite: the bucket")


@pytest.mark.parametrize(
    ("job", "code", "level"),
    [("retention", "refused", "warning"), ("retention", "offsite", "failure"), ("rehearsal", "rehearsal_unproven", "warning"),
     ("rehearsal", "rehearsal_failed", "failure"), ("health", "refused", "failure"), ("backup", "busy", "warning")],
)  # fmt: skip
def test_refusals_that_harm_nothing_are_warnings(job: str, code: str, level: str) -> None:
    assert one(dataclasses.replace(FAILED, job=job, code=code)).level == level


def test_what_a_person_at_a_shell_sees_is_not_told() -> None:
    at_a_shell = dataclasses.replace(FAILED, how="command line")
    assert events_of(dataclasses.replace(at_a_shell, code="usage"), None, "") == []
    assert events_of(dataclasses.replace(at_a_shell, ended="cancelled", code=""), None, "") == []
    assert one(at_a_shell).level == "failure"
    assert one(dataclasses.replace(FAILED, ended="cancelled")).level == "warning"


def test_warnings_of_a_good_backup_are_a_trouble_of_their_own() -> None:
    good = dataclasses.replace(FAILED, ended="success", code="", message="", warnings=("the endpoint keeps no checksums",))
    ended, warned = events_of(good, None, "")
    assert (ended.level, ended.key) == ("success", "backup")
    assert (warned.level, warned.key) == ("warning", "warnings of backup")
    assert "the endpoint keeps no checksums" in warned.subject
    state = State()
    for event in events_of(good, None, ""):
        consider(state, event, levels=ALL, repeat=HOUR, compose=made)
    quiet = dataclasses.replace(good, warnings=(), at=NOW + HOUR)
    assert [
        m.level for e in events_of(quiet, None, "") for m in consider(state, e, levels=ALL - {"success"}, repeat=HOUR, compose=made)
    ] == ["recovery"]


def test_only_backups_have_a_heartbeat() -> None:
    beat = heartbeat_event(FAILED)
    assert beat
    assert beat.level == "failure"
    assert heartbeat_event(dataclasses.replace(FAILED, job="verify")) is None
    assert heartbeat_event(dataclasses.replace(FAILED, ended="cancelled")) is None


# -- delivery -----------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def services(telling: Telling, web: Receiver) -> Services:
    return telling(BACKUP_NOTIFY_WEBHOOK=f"{web.url}/hook/s3cr3tPath", BACKUP_HEARTBEAT_URL=f"{web.url}/ping/s3cr3tUuid")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[datetime]:
    """What the services take for now; change it to let time pass."""
    now = [NOW]
    monkeypatch.setattr(Services, "now", lambda _: now[0])
    return now


def test_f82_a_channel_that_is_down_is_recorded_shown_and_tried_again(services: Services, web: Receiver, clock: list[datetime]) -> None:
    web.answer = 500
    announce(services, "r-1", [trouble(0)])
    assert list(deliver(services).failed) == [f"json 127.0.0.1:{web.port}"]
    assert deliver(services).left == 1, "not before its time"
    seen = alerts_of(services.catalogue.layout).summary()
    assert seen.last_delivered is None
    (failing,) = seen.failing.values()
    assert "500" in failing.error
    clock[0] += timedelta(seconds=31)
    assert deliver(services).failed
    web.answer = 200
    clock[0] += timedelta(seconds=61)
    assert deliver(services).delivered == [f"json 127.0.0.1:{web.port}"]
    assert [a.attempt for a in alerts_of(services.catalogue.layout).attempts()] == [1, 2, 3]
    assert alerts_of(services.catalogue.layout).summary().failing == {}
    assert store_of(services).read().items == []
    everything = "".join(p.read_text() for p in services.catalogue.layout.state.rglob("*") if p.is_file())
    assert "s3cr3t" not in everything


def test_a_message_that_nobody_takes_is_given_up_after_a_day(services: Services, web: Receiver, clock: list[datetime]) -> None:
    web.answer = 503
    announce(services, "r-1", [trouble(0)])
    rounds = 0
    while store_of(services).read().items:
        deliver(services)
        clock[0] += HOUR + timedelta(seconds=1)
        rounds += 1
        assert rounds < 40
    attempts = alerts_of(services.catalogue.layout).attempts()
    assert attempts[-1].given_up
    assert not attempts[-2].given_up
    assert clock[0] - NOW > GIVE_UP_AFTER


def test_a_run_is_told_once_whoever_looks_first(services: Services, web: Receiver) -> None:
    assert len(announce(services, "r-1", [trouble(0)])) == 1
    assert announce(services, "r-1", [trouble(0)]) == []
    deliver(services)
    deliver(services)
    assert len(web.seen) == 1


def test_the_heartbeat_is_sent_once_with_its_own_record(services: Services, web: Receiver) -> None:
    good = dataclasses.replace(FAILED, ended="success", message="")
    announce(services, "r-1", [], heartbeat=heartbeat_event(good))
    announce(services, "r-2", [], heartbeat=heartbeat_event(FAILED))
    assert deliver(services).delivered == [f"heartbeat 127.0.0.1:{web.port}"], "a newer one replaces one that is on its way"
    assert [s.path for s in web.seen] == ["/ping/s3cr3tUuid/fail"]
    web.answer = 500
    announce(services, "r-3", [], heartbeat=heartbeat_event(good))
    assert deliver(services).failed
    assert alerts_of(services.catalogue.layout).attempts()[-1].level == "heartbeat"


def test_a_target_that_is_not_set_any_more_is_forgotten(services: Services, telling: Telling, web: Receiver) -> None:
    announce(services, "r-1", [trouble(0)])
    elsewhere = telling(BACKUP_NOTIFY_WEBHOOK="http://127.0.0.1:1/x")
    deliver(elsewhere)
    assert store_of(services).read().items == []
    assert web.seen == []


def test_f23_secrets_of_stores_do_not_get_into_messages(telling: Telling, web: Receiver) -> None:
    services = telling(BACKUP_NOTIFY_WEBHOOK=f"{web.url}/hook", DB_PASSWORD="s3cr3t-db")
    event = trouble(0).model_copy(update={"what": "login with s3cr3t-db failed", "subject": "s3cr3t-db"})
    announce(services, "r-1", [event])
    deliver(services)
    assert "s3cr3t" not in str(web.seen)
    assert "login with *** failed" in web.seen[0].body["message"]


def test_a_message_names_the_head_of_the_audit_log(services: Services, web: Receiver) -> None:
    services.audit("hold", "20260301_020000", "done")
    announce(services, "r-1", [trouble(0)])
    deliver(services)
    assert f"Audit log: entry 1, {services.audit_log.head().sha256[:16]}" in web.seen[0].body["message"]


def test_a_state_that_cannot_be_read_is_put_aside_and_troubles_are_told_again(services: Services) -> None:
    announce(services, "r-1", [trouble(0)])
    store_of(services).path.write_text("{")
    assert len(announce(services, "r-2", [trouble(1)])) == 1
    assert len(list(services.catalogue.layout.state.glob("notify-unreadable-*"))) == 1


def _race(settings: dict[str, str], run_ids: list[str]) -> None:
    from scholaria_ops.operations.services import make_services
    from scholaria_ops.settings import load_settings

    mine = make_services(load_settings(settings))
    for run_id in run_ids:
        announce(mine, run_id, [trouble(0, cause=run_id)])
        delivery.deliver(mine)


def test_two_processes_tell_every_run_exactly_once(services: Services, web: Receiver) -> None:
    settings = {"BACKUP_DIR": str(services.catalogue.layout.root), "BACKUP_NOTIFY_WEBHOOK": f"{web.url}/hook"}
    runs = [f"run-{n}" for n in range(10)]
    spawn = multiprocessing.get_context("spawn")
    workers: list[Any] = [spawn.Process(target=_race, args=(settings, order)) for order in (runs, runs[::-1])]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(150)
    assert [w.exitcode for w in workers] == [0, 0]
    deliver(services)
    assert sorted(s.body["run_id"] for s in web.seen) == ["r-1"] * 10
