"""A restore killed at any moment: the next one, knowing only the server and the notebook, makes it as it was or brings it to its end."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scholaria_ops.sandbox.redis import RedisServer
from scholaria_ops.sandbox.sandbox import Sandbox, reap
from scholaria_ops.stores.base import Context
from scholaria_ops.stores.redis import load
from scholaria_ops.stores.redis.live import RedisLive, staging, swap
from scholaria_ops.stores.redis.live import crossing as crossings
from scholaria_ops.stores.redis.live import keep as keeping
from scholaria_ops_tests.conftest import ContextFactory
from scholaria_ops_tests.stores.redis_live.support import DiskNotebook, MortalNotebook, content, die_in_child, grow, source_of
from scholaria_ops_tests.stores.redis_support import Backup, commands, fill, take

#: Writes into the notebook: two while staging, one for the switch, two for finishing, five for undo.
_STAGE, _SWITCH, _FINISH, _ALL = 2, 3, 5, 10


@pytest.fixture
def server(box: Sandbox) -> RedisServer:
    live = box.redis(name="live", config={"repl-diskless-sync-delay": "0", "maxmemory-policy": "allkeys-lru", "appendonly": "yes"})
    fill(live, small=30)
    return live


@pytest.fixture
def backup(server: RedisServer, tmp_path: Path, context_factory: ContextFactory) -> Backup:
    backup = take(server, context_factory(), tmp_path / "set")
    grow(server)
    return backup


def whole_restore(server: RedisServer, backup: Backup, notebook: DiskNotebook, ctx: Context) -> None:
    live = RedisLive(server.connection)
    plan = live.plan(source_of(backup), ctx)
    live.stage(plan, source_of(backup), notebook, ctx)
    live.switch(plan, notebook, ctx)
    live.finish(notebook, ctx)
    live.undo(notebook, ctx)


def killed(server: RedisServer, backup: Backup, notebook: DiskNotebook, ctx: Context) -> None:
    assert die_in_child(lambda: whole_restore(server, backup, notebook, ctx))
    reap(ctx.scratch)


@pytest.mark.slow(8)
@pytest.mark.timeout(600)
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_killed_at_any_write_of_the_notebook_everything_is_as_it_was_after_rolling_back(
    server: RedisServer, backup: Backup, tmp_path: Path, context_factory: ContextFactory, after: bool
) -> None:
    before = content(server)
    for at in range(1, _ALL + 1):
        place = tmp_path / f"notebook-{at}"
        killed(server, backup, MortalNotebook(place, at=at, after=after), context_factory())
        fresh = RedisLive(server.connection)
        fresh.roll_back(DiskNotebook(place), context_factory())
        assert content(server) == before, f"killed at write {at}"
        assert fresh.roll_back(DiskNotebook(place), context_factory()).lines == []


@pytest.mark.slow(8)
@pytest.mark.timeout(600)
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_killed_while_finishing_or_undoing_the_next_one_brings_it_to_its_end(
    server: RedisServer, backup: Backup, tmp_path: Path, context_factory: ContextFactory, after: bool
) -> None:
    before = content(server)
    for at in range(_SWITCH + 1, _ALL + 1):
        place = tmp_path / f"notebook-{at}"
        killed(server, backup, MortalNotebook(place, at=at, after=after), context_factory())
        fresh, notebook = RedisLive(server.connection), DiskNotebook(place)
        if at <= _FINISH:
            fresh.finish(notebook, context_factory())
            assert commands(server, ("SELECT", 0), ("GET", "counter"))[1] == b"42"
            assert content(server)["policy"] == b"allkeys-lru"
        fresh.undo(notebook, context_factory())
        assert content(server) == before, f"killed at write {at}"
        assert fresh.undo(notebook, context_factory()).lockout_s == 0
        fresh.discard(notebook, context_factory())
        assert list(notebook.directory.glob("*kept*")) == []


def _die(*_: Any, **__: Any) -> Any:
    os.kill(os.getpid(), 9)


def _die_after(function: Callable[..., Any]) -> Callable[..., Any]:
    def work(*arguments: Any, **options: Any) -> Any:
        function(*arguments, **options)
        _die()

    return work


#: Between two writes of the notebook: moments at which the server has changed and nobody has written that down.
MOMENTS: dict[str, tuple[Any, str, bool]] = {
    "marked, not yet without eviction": (staging, "forbid_eviction", False),
    "about to send": (load, "stage_into", False),
    "sent, not compared": (load, "stage_into", True),
    "compared": (staging, "compare_with_sent", True),
    "about to swap": (crossings, "exchange", False),
    "swapped, nothing written down": (crossings, "exchange", True),
    "read out, not loaded again": (keeping, "extract", True),
    "while keeping": (keeping, "_key_by_key", True),
    "kept, not written down": (crossings, "keep", True),
    "emptied": (crossings, "empty", True),
    "policy put back": (crossings, "put_policy_back", True),
    "memory still being freed": (swap, "transaction", True),
}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_between_the_server_s_change_and_the_notebook_s(
    server: RedisServer, backup: Backup, tmp_path: Path, context_factory: ContextFactory, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    before = content(server)
    room, name, afterwards = MOMENTS[moment]
    with monkeypatch.context() as patch:
        patch.setattr(room, name, _die_after(getattr(room, name)) if afterwards else _die)
        killed(server, backup, DiskNotebook(tmp_path / "notebook"), context_factory())
    fresh, notebook = RedisLive(server.connection), DiskNotebook(tmp_path / "notebook")
    fresh.roll_back(notebook, context_factory())
    assert content(server) == before
    assert fresh.roll_back(notebook, context_factory()).lines == []


@pytest.mark.timeout(300)
def test_killed_while_data_stream_in(
    server: RedisServer, backup: Backup, tmp_path: Path, context_factory: ContextFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = content(server)
    with monkeypatch.context() as patch:
        patch.setattr(load._Stream, "_receive", _die_after(load._Stream._receive))
        killed(server, backup, DiskNotebook(tmp_path / "notebook"), context_factory())
    plan_again = RedisLive(server.connection).plan(source_of(backup), context_factory())
    assert "left unfinished" in plan_again.objections[0].message
    RedisLive(server.connection).roll_back(DiskNotebook(tmp_path / "notebook"), context_factory())
    assert content(server) == before
    assert RedisLive(server.connection).plan(source_of(backup), context_factory()).objections == ()


@pytest.mark.timeout(300)
def test_killed_while_staging_the_same_restore_can_be_staged_again(
    server: RedisServer, backup: Backup, tmp_path: Path, context_factory: ContextFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    notebook = DiskNotebook(tmp_path / "notebook")
    live = RedisLive(server.connection)
    plan = live.plan(source_of(backup), context_factory())
    ctx = context_factory()
    with monkeypatch.context() as patch:
        patch.setattr(load, "stage_into", _die_after(load.stage_into))
        assert die_in_child(lambda: live.stage(plan, source_of(backup), notebook, ctx))
    reap(ctx.scratch)
    live.stage(plan, source_of(backup), notebook, context_factory())
    live.switch(plan, notebook, context_factory())
    live.finish(notebook, context_factory())
    assert commands(server, ("GET", "counter"))[0] == b"42"
    assert content(server)["policy"] == b"allkeys-lru"
