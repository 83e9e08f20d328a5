"""The saga: all or nothing over three stores, and writers that are always started again."""

from __future__ import annotations

import dataclasses
import shlex
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from scholaria_ops import hashed
from scholaria_ops.catalogue.evidence.base import STORE_NAMES, StoreName
from scholaria_ops.catalogue.layout import SUMS
from scholaria_ops.catalogue.sets import BackupSet
from scholaria_ops.errors import Busy, DiskFull, Refused, UsageError, VerificationFailed
from scholaria_ops.files import Written, hash_file, replace_durably
from scholaria_ops.operations.restore import journal as journal_module
from scholaria_ops.operations.restore.after import HookFailed
from scholaria_ops.operations.restore.fence import FenceFailed, fence_of
from scholaria_ops.operations.restore.options import RestoreOptions
from scholaria_ops.operations.restore.plan import Plans, plan_restore
from scholaria_ops.operations.restore.recover import NotTakenBack, recover_now
from scholaria_ops.operations.restore.report import steps_of
from scholaria_ops.operations.restore.saga import RestoreFailed, execute
from scholaria_ops.operations.restore.undo import plan_undo
from scholaria_ops.stores.live import Objection
from scholaria_ops_tests.catalogue.holder import Heard, holder_process
from scholaria_ops_tests.operations.conftest import ServicesFactory
from scholaria_ops_tests.operations.restore.bench import BenchFactory
from scholaria_ops_tests.operations.restore.stand_in import StandIn, unavailable
from scholaria_ops_tests.operations.support import flip

OPTIONS = RestoreOptions(safety=False)


def test_a_restore_stages_all_then_switches_all_and_qdrant_last(bench: BenchFactory) -> None:
    here = bench()
    report = here.execute()
    assert here.served == [here.set_id] * 3
    assert sorted(here.steps[:3]) == ["postgres stage", "qdrant stage", "redis stage"]
    ready = [f"{n} ready" for n in STORE_NAMES]
    assert here.steps[3:12] == [*ready, *ready, *(f"{n} switch" for n in STORE_NAMES)], "before the writers are stopped, and after"
    assert sorted(here.steps[12:]) == sorted(f"{n} finish" for n in STORE_NAMES)
    assert here.writers == "running"
    assert report.journal.kept == ("old of postgres", "old of redis", "old of qdrant")
    assert report.journal.seconds["fenced"] > 0
    assert here.journals.undoable() is not None


def test_a_store_that_is_not_ready_keeps_the_others_from_being_switched_and_the_writers_at_work(bench: BenchFactory) -> None:
    here = bench(stop="echo stopped >> {}", start="echo started >> {}")
    here.fails["qdrant"] = {"ready": unavailable("it cannot be copied")}
    with pytest.raises(RestoreFailed, match=r"was taken back.*it cannot be copied"):
        here.execute()
    assert not [step for step in here.steps if "switch" in step]
    assert here.writers == "running"


@pytest.mark.parametrize("store", STORE_NAMES)
@pytest.mark.parametrize("step", ["stage", "ready", "switch", "switch late"])
def test_a_failure_takes_every_store_back_and_starts_the_writers(bench: BenchFactory, store: StoreName, step: str) -> None:
    here = bench()
    here.fails[store] = {step: unavailable("it broke")}
    with pytest.raises(RestoreFailed, match=r"was taken back.*it broke") as caught:
        here.execute()
    assert caught.value.taken_back
    assert here.served == ["old"] * 3
    assert all("beside" not in s for s in here.states())
    assert here.writers == "running"
    assert here.journals.unfinished() == []
    with pytest.raises(UsageError, match="no restore that can be undone"):
        plan_undo(here.services, here.live)


def test_what_cannot_be_taken_back_is_said_and_tried_again_by_the_next_command(bench: BenchFactory) -> None:
    here = bench()
    here.fails["qdrant"] = {"switch": unavailable("it broke")}
    here.fails["redis"] = {"roll_back": unavailable("it is down")}
    with pytest.raises(RestoreFailed, match="not everything could be taken back: redis: it is down") as caught:
        here.execute()
    assert not caught.value.taken_back
    assert caught.value.hint.count("restore --recover") == 1
    assert here.served == ["old", here.set_id, "old"]
    with pytest.raises(NotTakenBack, match="it is down"):
        recover_now(here.services, here.live)
    here.fails.clear()
    assert "redis is back" in recover_now(here.services, here.live)
    assert here.served == ["old"] * 3
    assert recover_now(here.services, here.live) == []


def test_a_fence_whose_program_is_not_here_is_an_objection_and_has_stopped_nobody(bench: BenchFactory, tmp_path: Path) -> None:
    program = tmp_path / "docker"
    program.write_text("#!/bin/sh\n")
    here = bench()
    settings = here.services.settings
    fenced = {"fence_stop": f"{program} stop", "fence_start": f"{program} start"}
    here.services = replace(here.services, settings=settings.model_copy(update=fenced))
    (found,) = here.plan().objections
    assert f"{program}, which stops and starts the writers, cannot be run on this host" in found.message
    program.chmod(0o700)
    plan = here.plan()
    assert plan.objections == ()
    program.unlink()  # between the plan and the switch
    with pytest.raises(RestoreFailed, match=r"was taken back.*cannot be run on this host") as caught:
        execute(here.services, here.live, plan)
    assert caught.value.taken_back
    assert "application is down" not in str(caught.value)
    assert here.journals.unfinished() == []
    assert not [step for step in here.steps if "switch" in step]


def test_a_fence_whose_program_cannot_be_started_has_stopped_nobody(bench: BenchFactory, tmp_path: Path) -> None:
    program = tmp_path / "docker"
    program.write_text(f"#!{tmp_path}/no-interpreter\n")
    program.chmod(0o700)  # nothing is wrong with it until it is run
    here = bench()
    fenced = {"fence_stop": f"{program} stop", "fence_start": f"{program} start"}
    here.services = replace(here.services, settings=here.services.settings.model_copy(update=fenced))
    with pytest.raises(RestoreFailed, match=r"was taken back.*could not be stopped, and nobody was: cannot start") as caught:
        here.execute()
    assert caught.value.taken_back
    assert "application is down" not in str(caught.value)
    assert here.journals.unfinished() == []
    assert not [step for step in here.steps if "switch" in step]


def test_a_compose_file_that_is_gone_by_the_switch_has_stopped_nobody(
    bench: BenchFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, file, ran = tmp_path / "docker", tmp_path / "compose.yml", tmp_path / "ran"
    program.write_text(f"#!/bin/sh\ntouch {ran}\n")
    program.chmod(0o700)
    file.touch()
    here = bench()
    fenced = {"fence": "compose", "fence_docker": str(program), "fence_compose_file": file, "fence_services": "web"}
    here.services = replace(here.services, settings=here.services.settings.model_copy(update=fenced))
    plan = here.plan()
    assert plan.objections == ()
    monkeypatch.setattr(StandIn, "ready", lambda *_: file.unlink(missing_ok=True))
    with pytest.raises(RestoreFailed, match=r"was taken back.*Compose file .*compose.yml, .* is not there") as caught:
        execute(here.services, here.live, plan)
    assert caught.value.taken_back
    assert here.journals.unfinished() == []
    assert not ran.exists()


def test_a_fence_that_does_not_stop_the_writers_aborts_before_anything_is_switched(bench: BenchFactory) -> None:
    here = bench(stop="echo half > {}; exit 3")
    with pytest.raises(RestoreFailed, match="could not be stopped") as caught:
        here.execute()
    assert str(caught.value).count("Run the command by hand to see what it says.") == 1
    assert not [s for s in here.steps if "switch" in s]
    assert here.served == ["old"] * 3
    assert here.writers == "running", "whoever was stopped was started again"


def test_writers_that_do_not_start_are_told_and_the_rest_is_finished_by_recover(bench: BenchFactory, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.touch()
    here = bench(start=f"test ! -e {broken} && echo running > {{}}")
    with pytest.raises(RestoreFailed, match="is served, but the writers could not be started again") as caught:
        here.execute()
    command = shlex.join(fence_of(here.services.settings).start_argv)
    told = f"The application is down until somebody runs `{command}`. Then `scholaria-ops restore --recover` finishes the rest."
    assert caught.value.hint == told
    assert here.served == [here.set_id] * 3
    with pytest.raises(FenceFailed):
        recover_now(here.services, here.live)
    broken.unlink()
    assert "the writers were started again" in recover_now(here.services, here.live)
    assert (here.writers, here.served) == ("running", [here.set_id] * 3)
    assert here.journals.undoable() is not None


def test_the_hook_runs_before_the_writers_start(bench: BenchFactory, tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    here = bench(hook=f"sh -c 'cp {tmp_path}/writers {seen}'")
    here.execute()
    assert seen.read_text() == "stopped\n"


def test_a_hook_has_a_time_of_its_own(bench: BenchFactory) -> None:
    """A migration takes longer than stopping the writers, and not for ever."""
    here = bench(hook="sleep 3")
    short = here.services.settings.model_copy(update={"fence_timeout_s": 2.0})
    here.services = replace(here.services, settings=short)
    here.execute()
    here.services = replace(here.services, settings=short.model_copy(update={"restore_hook_timeout_s": 0.5}))
    with pytest.raises(RestoreFailed, match=r"was taken back.*the command after the switch failed") as caught:
        here.execute()
    assert caught.value.taken_back


def test_a_hook_that_fails_takes_every_store_back(bench: BenchFactory) -> None:
    here = bench(hook="sh -c 'echo migration is stuck >&2; exit 7'")
    with pytest.raises(RestoreFailed, match="migration is stuck") as caught:
        here.execute()
    assert isinstance(caught.value.__cause__, HookFailed)
    assert str(caught.value).count("BACKUP_RESTORE_HOOK names it; run it by hand to see more.") == 1
    assert here.served == ["old"] * 3
    assert here.writers == "running"


def test_a_full_disk_here_keeps_neither_the_stores_nor_the_writers_from_going_back(
    bench: BenchFactory, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    here = bench(hook=f"sh -c 'touch {tmp_path}/full; exit 1'")

    def full(path: Path, data: bytes, *, mode: int = 0o600) -> None:
        if (tmp_path / "full").exists():
            raise DiskFull(f"no space left while writing {path.name}")
        replace_durably(path, data, mode=mode)

    monkeypatch.setattr(journal_module, "replace_durably", full)
    with pytest.raises(RestoreFailed, match="not everything could be taken back: no space left") as caught:
        here.execute()
    assert not caught.value.taken_back
    assert here.served == ["old"] * 3
    assert here.writers == "running"
    (tmp_path / "full").unlink()
    recover_now(here.services, here.live)
    assert here.journals.unfinished() == []


def test_an_unexpected_error_of_one_store_keeps_neither_the_others_nor_the_writers(bench: BenchFactory) -> None:
    here = bench()
    here.fails["qdrant"] = {"switch": unavailable("it broke"), "roll_back": OSError("input/output error")}
    with pytest.raises(RestoreFailed, match="qdrant: OSError: input/output error"):
        here.execute()
    assert here.served == ["old"] * 3
    assert here.writers == "running"


def test_what_fails_after_the_switch_is_not_told_as_a_restore_that_failed(bench: BenchFactory) -> None:
    here = bench()
    here.fails["redis"] = {"finish": unavailable("the way back cannot be written")}
    with pytest.raises(RestoreFailed, match=f"the set {here.set_id} is served, but .* the way back cannot be written") as caught:
        here.execute()
    assert not caught.value.taken_back
    assert "restore --recover" in caught.value.hint
    here.fails.clear()
    recover_now(here.services, here.live)
    assert here.journals.undoable() is not None


def test_a_plan_is_not_executed_with_other_settings_than_it_shows(bench: BenchFactory, services_factory: ServicesFactory) -> None:
    here = bench()
    plan = here.plan()
    for services, shown in ((services_factory(BACKUP_FENCE="none"), plan), (here.services, plan.model_copy(update={"after": ()}))):
        with pytest.raises(Refused, match="set otherwise than when the plan was made"):
            execute(services, here.live, shown)
    assert here.steps == []


def test_a_plan_is_executed_only_while_it_is_true(bench: BenchFactory, tmp_path: Path) -> None:
    here = bench()
    plan = here.plan()
    with pytest.raises(Refused, match="has expired"):
        execute(here.services, here.live, plan.model_copy(update={"valid_until": plan.made_at - timedelta(seconds=1)}))
    with pytest.raises(Refused, match="not the one that was planned"):
        execute(here.services, here.live, plan.model_copy(update={"sums_sha256": "0" * 64}))
    against = plan.model_copy(update={"objections": (Objection(message="it is Friday", hint="Wait."),)})
    with pytest.raises(Refused, match="it is Friday"):
        execute(here.services, here.live, against)
    assert here.steps == []
    plans = Plans(here.services.catalogue)
    plans.show(plan)
    assert plans.shown(plan.digest[:12], here.services.now()) == plan
    with pytest.raises(UsageError, match="not the digest"):
        plans.shown("0" * 64, here.services.now())
    with pytest.raises(Refused, match="expired"):
        plans.shown(plan.digest, plan.valid_until + timedelta(seconds=1))


def test_a_damaged_set_is_refused_and_the_next_older_sound_one_named(
    bench: BenchFactory, pristine: BackupSet, services_factory: ServicesFactory
) -> None:
    here = bench()
    catalogue = here.services.catalogue
    catalogue.records.append(here.set_id, "verified", passed=True, level="hash")
    from scholaria_ops_tests.operations.support import take

    newer = take(here.services)
    flip(newer.directory / newer.manifest.artifacts[0].path)
    with pytest.raises(VerificationFailed) as caught:
        plan_restore(here.services, here.live, newer.id, OPTIONS)
    assert f"scholaria-ops restore {here.set_id}" in caught.value.hint
    flip(catalogue.layout.sealed(here.set_id) / SUMS)
    with pytest.raises(VerificationFailed) as caught:
        plan_restore(here.services, here.live, newer.id, OPTIONS)
    assert "No older set here is sound" in caught.value.hint


def test_a_restore_and_a_backup_exclude_each_other(bench: BenchFactory) -> None:
    here = bench()
    plan = here.plan()
    with here.services.locked("backup 20260101_000000"), pytest.raises(Busy, match="backup 20260101_000000"):
        execute(here.services, here.live, plan)
    assert here.steps == []


def test_what_was_waited_for_the_lock_is_no_part_of_the_restores_time(bench: BenchFactory) -> None:
    here = bench()
    plan = here.plan()
    daemon = holder_process(here.services.catalogue.layout.lock)
    heard = Heard(then=lambda: threading.Timer(3, daemon.stop, kwargs={"grace_s": 0}).start())
    began = time.monotonic()
    done = execute(dataclasses.replace(here.services, lock_wait_s=600, waits=heard), here.live, plan).journal
    ((waited, got),) = heard.ended
    assert got
    assert waited >= 3
    assert done.seconds["total"] <= time.monotonic() - began - waited + 0.1


def test_a_restore_is_not_waited_for_longer_than_its_plan_is_valid(bench: BenchFactory) -> None:
    here = bench()
    plan = here.plan().model_copy(update={"valid_until": datetime.now(UTC) + timedelta(seconds=3)})
    services = dataclasses.replace(here.services, lock_wait_s=600)
    began = time.monotonic()
    with here.services.locked("backup 20260101_000000"), pytest.raises(Busy, match=r"backup 20260101_000000 .+; it was waited for"):
        execute(services, here.live, plan)
    assert time.monotonic() - began < 60
    assert here.steps == []


def test_a_safety_set_of_the_real_stores_is_taken_first_and_says_so(bench: BenchFactory) -> None:
    here = bench()
    report = here.execute(safety=True, components=("redis",))
    safety = here.services.catalogue.find(report.journal.safety_set)
    assert safety.set is not None
    assert safety.set.manifest.tier == "pre_restore"
    assert [n for n, _ in safety.set.manifest.parts()] == ["redis"]
    assert safety.set.manifest.missing["postgres"] == "not asked for"
    assert here.served == ["old", here.set_id, "old"]


def test_what_cannot_be_saved_is_in_the_plan_and_in_the_journal(bench: BenchFactory, services_factory: ServicesFactory) -> None:
    here = bench()
    here.services = services_factory(REDIS_USERNAME="nobody", REDIS_PASSWORD="wrong")
    plan = here.plan(safety=True, components=("redis", "qdrant"))
    assert list(plan.unsaved) == ["redis"]
    steps = list(steps_of(plan))
    assert steps[0] == "take a pre_restore set of Qdrant as they are now"
    assert steps[1].startswith("Redis cannot be saved before it is replaced: ")

    def never(_why: str) -> bool:
        pytest.fail("something was saved: that is what was agreed to")

    journal = execute(here.services, here.live, plan, confirm=never).journal
    assert journal.safety_set
    assert journal.warnings[0].startswith("redis could not be saved before the restore: ")


def test_where_nothing_can_be_saved_it_is_asked_once_more_and_said_at_the_end(
    bench: BenchFactory, services_factory: ServicesFactory
) -> None:
    here = bench()
    here.services = services_factory(REDIS_USERNAME="nobody", REDIS_PASSWORD="wrong")
    plan = here.plan(safety=True, components=("redis",))
    assert next(iter(steps_of(plan))) == "take NO safety set of what is replaced"
    asked: list[str] = []

    def refusing(why: str) -> bool:
        asked.append(why)
        return False

    with pytest.raises(Refused, match="nothing of what would be replaced can be saved"):
        execute(here.services, here.live, plan, confirm=refusing)
    assert "there is no safety set: nothing of what is replaced could be saved; redis could not be saved" in asked[0]
    assert (here.steps, here.journals.all()) == ([], [])
    for confirm in (lambda _: True, None):
        plan = here.plan(safety=True, components=("redis",))
        journal = execute(here.services, here.live, plan, confirm=confirm).journal
        assert journal.safety_set == ""
        assert journal.warnings[0] == "there is no safety set: nothing of what is replaced could be saved"
        assert journal.warnings[1].startswith("redis could not be saved before the restore: ")
    here.fails["redis"] = {"switch": unavailable("it broke")}
    with pytest.raises(RestoreFailed):
        here.execute(safety=True, components=("redis",))
    assert here.journals.all()[-1].warnings[0].startswith("there is no safety set"), "also where the restore fails"


def test_what_a_plan_has_hashed_is_not_read_again_unless_it_was_touched(bench: BenchFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    here = bench()
    directory = here.services.catalogue.find(here.set_id).directory
    monkeypatch.setattr(hashed, "SETTLED_S", 0.0)
    read: list[str] = []

    def reading(path: Path, **options: Any) -> Written:
        read.append(path.name)
        return hash_file(path, **options)

    monkeypatch.setattr(hashed, "hash_file", reading)
    plan = here.plan()
    assert sorted(read) == sorted(p.name for p in directory.rglob("*") if p.is_file() and p.name != SUMS)
    read.clear()
    dump = next(directory.glob("postgres_*.sql.custom"))
    flip(dump)
    with pytest.raises(VerificationFailed, match="is not what was sealed"):
        execute(here.services, here.live, plan)
    assert read == [dump.name]
