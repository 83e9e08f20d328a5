"""Pruning real directories and a real bucket: exactly the plan, under the lock, finished after a kill."""

from __future__ import annotations

import dataclasses
import os
import signal
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from scholaria_ops.catalogue.layout import MANIFEST
from scholaria_ops.catalogue.lock import estate_lock
from scholaria_ops.catalogue.manifest import Tier
from scholaria_ops.catalogue.retention import Plan, Rule
from scholaria_ops.catalogue.sets import BackupSet
from scholaria_ops.errors import Busy, Refused, UsageError
from scholaria_ops.operations.hold import hold, release
from scholaria_ops.operations.offsite import offsite_sets, ship
from scholaria_ops.operations.prune import Outcome, accept_missing, execute, plan_prune
from scholaria_ops.operations.prune_state import PruneState
from scholaria_ops.operations.services import Services, make_services
from scholaria_ops.progress import Silent
from scholaria_ops.sandbox.s3 import S3Server
from scholaria_ops.sandbox.sandbox import Sandbox
from scholaria_ops.settings import load_settings
from scholaria_ops_tests.catalogue.factory import make_set

DAY = timedelta(days=1)


@pytest.fixture
def services(tmp_path: Path) -> Services:
    """Services whose stores are never asked: pruning knows the catalogue and the bucket only."""
    return make_services(load_settings({"BACKUP_DIR": str(tmp_path / "backups")}))


@pytest.fixture(scope="module")
def endpoint(sandbox: Sandbox) -> Iterator[S3Server]:
    server = sandbox.s3(name="prune-s3")
    yield server
    server.stop()


@pytest.fixture
def with_bucket(endpoint: S3Server, tmp_path: Path, request: pytest.FixtureRequest) -> Services:
    bucket = f"b{abs(hash(request.node.name)) % 10**12}"
    endpoint.create_bucket(bucket)
    return make_services(
        load_settings(
            {
                "BACKUP_DIR": str(tmp_path / "backups"),
                "BACKUP_S3_BUCKET": bucket,
                "BACKUP_S3_PREFIX": "house",
                "BACKUP_S3_ENDPOINT_URL": endpoint.endpoint_url,
                "AWS_ACCESS_KEY_ID": endpoint.access_key,
                "AWS_SECRET_ACCESS_KEY": endpoint.secret_key,
                "AWS_REGION": endpoint.region,
            }
        )
    )


def add(services: Services, age: float, tier: Tier = "daily", *, verified: bool = True, size: int = 1000) -> BackupSet:
    return make_set(services.catalogue, datetime.now(UTC) - age * DAY, tier=tier, verified=verified, size=size)


def fill(services: Services, days: int = 10, *, shipped: bool = False) -> list[BackupSet]:
    """One verified daily set a day, newest first."""
    made = [add(services, 0.99 * n) for n in range(days)]  # the eighth is just within seven days
    for one in made if shipped else ():
        ship(services, services.catalogue.find(one.id))
    return made


def apply(services: Services, plan: Plan | None = None) -> Outcome:
    return execute(services, plan or plan_prune(services, {}), dict)


def names(services: Services) -> set[str]:
    return {p.name for p in services.catalogue.layout.root.iterdir() if not p.name.startswith(".")}


def test_a_plan_changes_nothing_and_its_execution_removes_exactly_what_it_says(services: Services) -> None:
    made = fill(services)
    before = {p: p.stat().st_mtime_ns for p in services.catalogue.layout.root.rglob("*")}
    plan = plan_prune(services, {})
    assert {p: p.stat().st_mtime_ns for p in services.catalogue.layout.root.rglob("*")} == before
    assert {line.id for line in plan.removals} == {made[8].id, made[9].id}
    outcome = apply(services, plan)
    assert names(services) == {s.directory.name for s in made[:8]}
    assert sorted(outcome.gone) == sorted([made[8].id, made[9].id])
    record = services.catalogue.records.last(made[9].id, "deleted")
    assert record
    assert (record.detail["place"], record.detail["rule"], record.detail["plan"]) == ("here", str(Rule.EXPIRED), plan.digest[:12])
    assert not list(services.catalogue.layout.trash.iterdir())
    assert PruneState(services.catalogue.layout).journal() is None
    assert not apply(services).removed
    assert made[9].id in services.catalogue.used_ids(), "an id is never given out again"


def test_offsite_copies_are_pruned_by_the_same_rules_and_remembered_as_deleted(with_bucket: Services) -> None:
    made = fill(with_bucket, shipped=True)
    plan = plan_prune(with_bucket, {})
    assert [(line.place, line.id) for line in plan.removals] == [(p, s.id) for p in ("here", "offsite") for s in (made[9], made[8])]
    outcome = apply(with_bucket, plan)
    assert {s.id for s in offsite_sets(with_bucket)} == {s.id for s in made[:8]}
    assert sorted(outcome.gone) == sorted([made[8].id, made[9].id])
    places = [r.detail["place"] for r in with_bucket.catalogue.records.of(made[9].id) if r.event == "deleted"]
    assert places == ["here", "offsite"]
    assert not plan_prune(with_bucket, {}).refusals, "what we removed ourselves is not missed"


def test_a_copy_that_stands_only_offsite_is_judged_by_its_own_manifest(with_bucket: Services) -> None:
    made = fill(with_bucket, shipped=True)
    for path in (with_bucket.catalogue.layout.root, with_bucket.catalogue.layout.records, with_bucket.catalogue.layout.state):
        path.rename(path.with_name(path.name + ".lost")) if path.exists() else None
    empty = plan_prune(with_bucket, {})
    assert [r.code for r in empty.refusals] == ["shrunk"], "an unmounted disk looks like this"
    add(with_bucket, 0.01)
    plan = plan_prune(with_bucket, {})
    assert {(line.place, line.id) for line in plan.removals} == {("offsite", made[8].id), ("offsite", made[9].id)}
    apply(with_bucket, plan)
    history = [r.event for r in with_bucket.catalogue.records.of(made[9].id)]
    assert history == ["sealed", "verified", "shipped", "deleted"], "the records that lay offsite were taken over first"


def test_here_only_leaves_the_bucket_alone(with_bucket: Services) -> None:
    made = fill(with_bucket, shipped=True)
    outcome = apply(with_bucket, plan_prune(with_bucket, {}, offsite=False))
    assert {line.place for line in outcome.removed} == {"here"}
    assert len(offsite_sets(with_bucket)) == len(made)


def test_f62_an_unreachable_bucket_stops_the_plan(with_bucket: Services, endpoint: S3Server) -> None:
    from scholaria_ops.errors import OpsError

    fill(with_bucket)
    wrong = make_services(with_bucket.settings.model_copy(update={"s3_bucket": "there-is-no-such-bucket"}))
    with pytest.raises(OpsError):
        plan_prune(wrong, {})
    assert plan_prune(wrong, {}, offsite=False).removals


def test_f62_a_listing_that_shrank_stops_everything_until_it_is_accepted(with_bucket: Services) -> None:
    made = fill(with_bucket, 9, shipped=True)
    assert with_bucket.offsite
    with_bucket.offsite.delete_set(made[3].directory.name, cancel=with_bucket.cancel)
    plan = plan_prune(with_bucket, {})
    assert [r.code for r in plan.refusals] == ["shrunk"]
    assert made[3].directory.name in plan.refusals[0].message
    with pytest.raises(Refused, match="are gone, and not by us"):
        apply(with_bucket, plan)
    assert len(names(with_bucket)) == 9
    assert accept_missing(with_bucket, "emptied by hand") == [f"offsite: {made[3].directory.name}"]
    assert apply(with_bucket).removed


def test_f62_sets_that_vanished_from_the_disk_stop_everything(services: Services) -> None:
    made = fill(services, 8)
    apply(services)
    add(services, 8.5)
    made[2].directory.rename(services.catalogue.layout.root.parent / "elsewhere")
    plan = plan_prune(services, {})
    assert [r.code for r in plan.refusals] == ["shrunk"]
    assert not plan.removals
    accept_missing(services, "moved by hand")
    assert apply(services).removed


@pytest.mark.parametrize("what", [MANIFEST, ".records"])
def test_f62_a_set_or_record_that_cannot_be_read_stops_everything(services: Services, what: str) -> None:
    made = fill(services)
    target = made[5].directory / MANIFEST if what == MANIFEST else services.catalogue.layout.record(made[5].id)
    target.unlink()
    target.mkdir()  # reading it is an error for everybody, root included
    plan = plan_prune(services, {})
    assert [r.code for r in plan.refusals] == ["unreadable"]
    assert made[5].directory.name in plan.refusals[0].message
    assert not plan.removals
    assert len(names(services)) == 10


def test_f67_damaged_stray_and_old_style_directories_survive(services: Services) -> None:
    made = fill(services)
    (made[9].directory / MANIFEST).unlink()
    (services.catalogue.layout.root / "scholaria_backup_20200101_000000").mkdir()
    (services.catalogue.layout.root / "notes").mkdir()
    plan = plan_prune(services, {})
    untouched = {line.name: line.reason for line in plan.lines if line.rule is Rule.UNTOUCHED}
    assert untouched.keys() == {made[9].directory.name, "scholaria_backup_20200101_000000", "notes"}
    apply(services, plan)
    assert untouched.keys() <= names(services)
    assert made[8].directory.name not in names(services)


def test_a_line_in_the_records_that_nobody_understands_keeps_its_set(services: Services) -> None:
    made = fill(services)
    path = services.catalogue.layout.record(made[9].id)
    path.write_bytes(path.read_bytes() + b'{"at": "2031-01-01T00:00:00Z", "event": "sealed-for-ever", "by": "x"}\n')
    path = services.catalogue.layout.record(made[8].id)
    path.write_bytes(path.read_bytes() + b'{"at": "2031-01-01T00:00:00Z", "ev')
    assert [line.id for line in plan_prune(services, {}).removals] == [made[8].id], "a torn line was never confirmed to anybody"


def test_an_anomalously_small_newest_set_is_an_error(services: Services) -> None:
    for n in range(1, 11):
        add(services, n)
    add(services, 0, size=100)
    with pytest.raises(Refused, match="far smaller than the sets before it"):
        apply(services)
    assert len(names(services)) == 11


def test_a_held_set_stays_here_and_offsite_until_it_is_released(with_bucket: Services) -> None:
    made = fill(with_bucket, shipped=True)
    hold(with_bucket, made[9].id, "  audit of 2026 ")
    lines = [line for line in plan_prune(with_bucket, {}).lines if line.id == made[9].id]
    assert {(line.place, line.rule) for line in lines} == {("here", Rule.HELD), ("offsite", Rule.HELD)}
    assert "audit of 2026" in lines[0].reason
    assert {line.id for line in apply(with_bucket).removed} == {made[8].id}
    # Another machine knows nothing but the bucket.
    (with_bucket.catalogue.layout.records).rename(with_bucket.catalogue.layout.root / ".was")
    assert with_bucket.catalogue.find(made[9].id).held == ""
    assert next(line.rule for line in plan_prune(with_bucket, {}).lines if line.id == made[9].id) is Rule.HELD
    (with_bucket.catalogue.layout.root / ".was").rename(with_bucket.catalogue.layout.records)
    release(with_bucket, made[9].id, "audit is over")
    assert {line.id for line in apply(with_bucket).removed} == {made[9].id}
    with pytest.raises(UsageError):
        hold(with_bucket, made[9].id, "too late")


def test_holding_a_set_that_stands_only_offsite_keeps_its_history(with_bucket: Services) -> None:
    made = fill(with_bucket, 2, shipped=True)
    with_bucket.catalogue.layout.root.rename(with_bucket.catalogue.layout.root.with_name("lost"))
    with_bucket.check_directory()
    hold(with_bucket, made[1].id, "the last of its kind")
    assert with_bucket.offsite
    remote = next(s for s in offsite_sets(with_bucket) if s.id == made[1].id)
    assert [r.event for r in remote.records] == ["sealed", "verified", "shipped", "held"]


def test_hold_and_release_want_a_reason_and_a_set(services: Services) -> None:
    (one,) = fill(services, 1)
    for call in (hold, release):
        with pytest.raises(UsageError):
            call(services, "20200101_000000", "why")
    with pytest.raises(UsageError, match="reason"):
        hold(services, one.id, "  ")
    with pytest.raises(UsageError, match="not held"):
        release(services, one.id, "why")
    hold(services, one.id, "x")
    assert services.catalogue.find(one.id).held.startswith("x (")
    release(services, one.id, "y")
    assert not services.catalogue.find(one.id).held


def test_f73_prune_is_refused_while_a_backup_runs(services: Services) -> None:
    fill(services)
    plan = plan_prune(services, {})
    with estate_lock(services.catalogue.layout.lock, "backup 20260101_020000"), pytest.raises(Busy, match="backup 20260101_020000"):
        apply(services, plan)
    assert len(names(services)) == 10


def test_a_prune_is_not_waited_for_longer_than_its_plan_is_valid(services: Services) -> None:
    fill(services)
    plan = plan_prune(services, {})
    old = plan.model_copy(update={"made_at": plan.made_at - plan.safety.plan_valid + timedelta(seconds=3)})
    patient = dataclasses.replace(services, lock_wait_s=600)
    with estate_lock(services.catalogue.layout.lock, "backup 20260101_020000"), pytest.raises(Busy, match="it was waited for"):
        apply(patient, old)
    assert len(names(services)) == 10


def test_f73_a_set_with_a_run_in_flight_stays_even_if_the_run_began_after_the_plan(services: Services) -> None:
    made = fill(services)
    assert made[9].id not in {line.id for line in plan_prune(services, {made[9].id: "run 7 of the job rehearsal"}).removals}
    plan = plan_prune(services, {})
    with pytest.raises(Refused, match="changed since the plan"):
        execute(services, plan, lambda: {made[9].id: "run 7 of the job rehearsal"})
    assert len(names(services)) == 10


@pytest.mark.parametrize("change", ["hold", "new set", "failed verification"])
def test_a_plan_that_no_longer_holds_removes_nothing(services: Services, change: str) -> None:
    made = fill(services)
    plan = plan_prune(services, {})
    if change == "hold":
        hold(services, made[8].id, "wait")
    elif change == "new set":
        add(services, 0.2)
    else:
        services.catalogue.records.append(made[0].id, "verified", level="hash", passed=False)
    with pytest.raises(Refused, match="changed since the plan"):
        apply(services, plan)
    assert {s.directory.name for s in made} <= names(services)


def test_an_expired_plan_is_refused(services: Services) -> None:
    fill(services)
    for shift in (timedelta(hours=2), -timedelta(hours=2)):
        plan = plan_prune(services, {})
        with pytest.raises(Refused, match="expired"):
            apply(services, plan.model_copy(update={"made_at": plan.made_at - shift}))


def test_only_the_plan_shown_last_is_found_by_its_digest(services: Services) -> None:
    fill(services)
    state, plan = PruneState(services.catalogue.layout), plan_prune(services, {})
    with pytest.raises(UsageError):
        state.shown(plan.digest)
    state.show(plan)
    assert state.shown(plan.digest[:12]) == plan
    for wrong in ("", plan.digest[:11], "0" * 64):
        with pytest.raises(UsageError):
            state.shown(wrong)


class _Killer(Silent):
    """Ends its own process, as ``kill -9`` does, after the given number of removals: before they are written down."""

    def __init__(self, after: int) -> None:
        self._left = after

    def say(self, text: str) -> None:
        self._left -= "removed scholaria" in text
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def killed(services: Services, act: Callable[[Services], object], after: int) -> None:
    """Run ``act`` in a child process that is killed at that point."""
    child = os.fork()
    if child == 0:
        try:
            act(dataclasses.replace(services, progress=_Killer(after)))
        finally:
            os._exit(99)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("after", [1, 2])
def test_f75_a_killed_prune_is_finished_by_the_next(services: Services, after: int) -> None:
    made = fill(services, 12)
    plan = plan_prune(services, {})
    assert len(plan.removals) == 4
    killed(services, lambda s: apply(s, plan), after)
    assert len(names(services)) == 12 - after
    dry = plan_prune(services, {})
    assert not dry.refusals, "what a prune of ours began to remove is not missed"
    assert {line.id for line in dry.removals} == {s.id for s in made[8:]} - {line.id for line in plan.removals[:after]}
    outcome = apply(services)
    assert names(services) == {s.directory.name for s in made[:8]}
    assert len(outcome.finished) == 1, "the last removal before the kill had not been written down"
    for gone in made[8:]:
        assert [r.event for r in services.catalogue.records.of(gone.id)].count("deleted") == 1
    assert PruneState(services.catalogue.layout).journal() is None


def test_f75_what_was_held_after_the_kill_is_spared(services: Services) -> None:
    made = fill(services, 12)
    killed(services, apply, 1)
    hold(services, made[9].id, "stop")
    apply(services)
    assert names(services) == {s.directory.name for s in [*made[:8], made[9]]}


def test_f75_a_half_removed_copy_offsite_is_finished(with_bucket: Services) -> None:
    made = fill(with_bucket, shipped=True)
    plan = plan_prune(with_bucket, {})
    killed(with_bucket, lambda s: apply(s, plan), 2)  # both are gone here; nothing offsite yet
    _remove_marker(with_bucket, made[9].directory.name)  # what a kill in the midst of a removal leaves: the marker goes first
    fresh = make_services(with_bucket.settings)
    dry = plan_prune(fresh, {})
    assert not dry.refusals
    apply(fresh, dry)
    assert fresh.offsite
    assert {s.name for s in fresh.offsite.list_sets(cancel=fresh.cancel)} == {s.directory.name for s in made[:8]}
    for one in made[8:]:
        places = [r.detail["place"] for r in fresh.catalogue.records.of(one.id) if r.event == "deleted"]
        assert sorted(places) == ["here", "offsite"]


def _remove_marker(services: Services, name: str) -> None:
    import boto3

    settings = services.settings
    assert settings.aws_access_key_id
    assert settings.aws_secret_access_key
    client = boto3.client(
        "s3",
        endpoint_url=settings.s3_endpoint_url,
        aws_access_key_id=settings.aws_access_key_id.get_secret_value(),
        aws_secret_access_key=settings.aws_secret_access_key.get_secret_value(),
        region_name=settings.aws_region,
    )
    client.delete_object(Bucket=str(settings.s3_bucket), Key=f"{settings.s3_prefix}/{name}/{MANIFEST}")


def test_a_memory_that_cannot_be_read_stops_everything(services: Services) -> None:
    fill(services)
    apply(services)
    (services.catalogue.layout.state / "retention-seen.json").write_text("{")
    with pytest.raises(Refused, match="cannot be understood"):
        plan_prune(services, {})
