"""Killed at any step, the next object puts it right: by what stands on the server and in the notebook."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

from scholaria_ops.catalogue.evidence.postgres import PostgresEvidence
from scholaria_ops.connections import PostgresConnection
from scholaria_ops.sandbox.postgres import PostgresServer
from scholaria_ops.stores.base import Context
from scholaria_ops.stores.postgres import load as loading
from scholaria_ops.stores.postgres.live import PostgresLive, PostgresPlan, swap
from scholaria_ops.stores.postgres.store import PostgresStore
from scholaria_ops_tests.conftest import ContextFactory
from scholaria_ops_tests.stores.postgres_live.support import (
    NAME,
    SMALL,
    FileNotebook,
    die,
    different,
    evidence_now,
    killed_in_child,
    names,
    source_of,
    standing,
)
from scholaria_ops_tests.stores.postgres_support import MadeSet, database, emptied, execute, make_set

pytestmark = [pytest.mark.slow(4), pytest.mark.timeout(900)]


@dataclass
class Estate:
    """A live database that went on since its set was taken, and a role that the server has lost."""

    server: PostgresServer
    connection: PostgresConnection
    made: MadeSet
    ctx: Context
    plan: PostgresPlan
    before: PostgresEvidence
    held: set[tuple[object, ...]]

    @property
    def store(self) -> PostgresLive:
        """A fresh object, as the next process would have."""
        return PostgresLive(self.connection)

    def stage(self, notebook: FileNotebook) -> None:
        self.store.stage(self.plan, source_of(self.made), notebook, self.ctx)

    def carry_out(self, notebook: FileNotebook) -> None:
        self.stage(notebook)
        self.store.switch(self.plan, notebook, self.ctx)

    def require_as_before(self) -> None:
        assert standing(self.server) == self.held
        assert different(self.before, evidence_now(self.connection, self.ctx)) == []

    def require_restored(self) -> None:
        assert different(self.made.evidence, evidence_now(self.connection, self.ctx)) == []


@pytest.fixture
def estate(home: PostgresServer, tmp_path: Path, context_factory: ContextFactory) -> Iterator[Estate]:
    ctx = context_factory()
    with emptied(home), database(home, NAME, *SMALL) as connection:
        execute(home.connection, "CREATE ROLE team", "CREATE ROLE lost IN ROLE team")
        made, _ = make_set(PostgresStore(connection), tmp_path / "set", ctx)
        execute(home.connection, "DROP ROLE lost")
        execute(connection, "INSERT INTO topic (name) VALUES ('later')", "DELETE FROM chunk WHERE id = 1000")
        plan = PostgresLive(connection).plan(source_of(made), ctx)
        yield Estate(home, connection, made, ctx, plan, evidence_now(connection, ctx), standing(home))


def at(when: str, number: int) -> Callable[[str, int], None]:
    """A notebook's hook that ends the process at one of its writes."""
    return lambda w, n: die() if (w, n) == (when, number) else None


def moments() -> Iterator[tuple[str, int]]:
    return ((when, number) for number in itertools.count(1) for when in ("before", "after"))


def test_killed_around_every_note_of_stage_and_switch_and_taken_back(estate: Estate, tmp_path: Path) -> None:
    for when, number in moments():
        room = tmp_path / f"{number}-{when}"
        killed = killed_in_child(lambda w=when, n=number, r=room: estate.carry_out(FileNotebook(r, hook=at(w, n))))  # type: ignore[misc]
        estate.store.roll_back(FileNotebook(room), estate.ctx)
        estate.require_as_before()
        assert estate.store.roll_back(FileNotebook(room), estate.ctx).lines == []
        if not killed:
            break
    assert number > 4, "stage notes names, roles, proof; switch notes names and the lock-out"


def test_killed_around_every_note_and_carried_on(estate: Estate, tmp_path: Path) -> None:
    for when, number in moments():
        room = tmp_path / f"{number}-{when}"
        killed = killed_in_child(lambda w=when, n=number, r=room: estate.carry_out(FileNotebook(r, hook=at(w, n))))  # type: ignore[misc]
        notebook = FileNotebook(room)
        if names(estate.server).get(NAME) and len(names(estate.server)) > 1 and notebook.read().get("mark"):
            switched = estate.store.switch(estate.plan, notebook, estate.ctx)
        else:
            estate.stage(notebook)
            switched = estate.store.switch(estate.plan, notebook, estate.ctx)
        estate.require_restored()
        assert len(switched.kept) == 1
        estate.store.roll_back(notebook, estate.ctx)
        estate.require_as_before()
        if not killed:
            break


def put(name: str, replacement: Callable[..., object], module: ModuleType = swap) -> None:
    """Replace a function in the child's copy of a module."""
    setattr(module, name, replacement)


def _dying_after(name: str, *, to: bool) -> None:
    real = getattr(swap, name)

    def last(session: object, database: str, *, to: bool) -> None:
        real(session, database, to=to)
        if to == wanted:
            die()

    wanted = to
    put(name, last)


def _after_the_fence() -> None:
    _dying_after("set_open", to=False)


def _after_the_sessions_ended() -> None:
    put("_rename_both", lambda *_: die())


def _inside_the_transaction() -> None:
    """Both names are exchanged, and nothing is committed."""
    _dying_after("set_open", to=True)


def _after_the_commit() -> None:
    put("_wait_until_served", lambda *_: die())


SWAP_POINTS = {f.__name__.strip("_"): f for f in (_after_the_fence, _after_the_sessions_ended, _inside_the_transaction, _after_the_commit)}


@pytest.mark.parametrize("point", SWAP_POINTS)
def test_killed_inside_the_exchange_of_switch_roll_back_and_undo(estate: Estate, tmp_path: Path, point: str) -> None:
    def armed(action: Callable[[], object]) -> Callable[[], None]:
        def run() -> None:
            SWAP_POINTS[point]()
            action()

        return run

    notebook = FileNotebook(tmp_path)
    estate.stage(notebook)
    assert killed_in_child(armed(lambda: estate.store.switch(estate.plan, notebook, estate.ctx)))
    estate.store.switch(estate.plan, notebook, estate.ctx)
    estate.require_restored()
    assert killed_in_child(armed(lambda: estate.store.roll_back(notebook, estate.ctx)))
    estate.store.roll_back(notebook, estate.ctx)
    estate.require_as_before()

    estate.stage(notebook)
    assert killed_in_child(armed(lambda: estate.store.switch(estate.plan, notebook, estate.ctx)))
    estate.store.roll_back(notebook, estate.ctx)
    estate.require_as_before()

    estate.carry_out(notebook)
    assert killed_in_child(armed(lambda: estate.store.undo(notebook, estate.ctx)))
    estate.store.undo(notebook, estate.ctx)
    assert different(estate.before, evidence_now(estate.connection, estate.ctx)) in (
        [],
        ["postgres: other roles: expected none, found lost"],
    )
    assert estate.store.undo(notebook, estate.ctx).lockout_s == 0.0
    assert sorted(names(estate.server).values()) == [False, True]
    estate.store.discard(notebook, estate.ctx)
    assert names(estate.server) == {NAME: True}


def test_killed_around_every_note_of_an_undo(estate: Estate, tmp_path: Path) -> None:
    for when, number in moments():
        room = tmp_path / f"{number}-{when}"
        notebook = FileNotebook(room)
        estate.carry_out(notebook)
        killed = killed_in_child(lambda w=when, n=number, r=room: estate.store.undo(FileNotebook(r, hook=at(w, n)), estate.ctx))  # type: ignore[misc]
        estate.store.undo(FileNotebook(room), estate.ctx)
        assert names(estate.server)[NAME]
        assert estate.store.discard(FileNotebook(room), estate.ctx) != []
        execute(estate.server.connection, "DROP ROLE lost")
        estate.require_as_before()
        if not killed:
            break


@pytest.mark.parametrize("part", ["_create", "_pg_restore", "database_statements"])
def test_killed_between_the_steps_of_loading(estate: Estate, tmp_path: Path, part: str) -> None:
    """Right after the database was made, after it was filled, and before it gets its settings."""

    def action() -> None:
        real = getattr(loading, part)

        def last(*given: object) -> object:
            real(*given)
            die()
            return None

        put(part, last, loading)
        estate.stage(FileNotebook(tmp_path))

    assert killed_in_child(action)
    assert len(names(estate.server)) == 2
    lines = estate.store.roll_back(FileNotebook(tmp_path), estate.ctx).lines
    assert any(line.startswith(f"database {NAME}_restore_") for line in lines)
    estate.require_as_before()


@pytest.mark.parametrize("delay_s", [0.05, 0.2, 0.35, 0.5, 0.8, 1.2])
def test_killed_at_some_moment_of_its_own(estate: Estate, tmp_path: Path, delay_s: float) -> None:
    """Statements and programs are under way then, which nobody waits for any more."""
    if pid := os.fork():
        time.sleep(delay_s)
        os.kill(pid, 9)
        os.waitpid(pid, 0)
    else:
        try:
            estate.carry_out(FileNotebook(tmp_path))
        finally:
            os._exit(0)
    estate.store.roll_back(FileNotebook(tmp_path), estate.ctx)
    estate.require_as_before()


def test_a_database_made_by_a_killed_run_is_known_by_the_id_that_was_written_before(estate: Estate, tmp_path: Path) -> None:
    """Killed before its own was made; then somebody else takes the name: that one stays."""

    def action() -> None:
        put("_create", lambda *_: die(), loading)
        estate.stage(FileNotebook(tmp_path))

    assert killed_in_child(action)
    side = str(FileNotebook(tmp_path).read()["new_name"])
    execute(estate.server.connection, f"CREATE DATABASE {side}")
    estate.store.roll_back(FileNotebook(tmp_path), estate.ctx)
    assert set(names(estate.server)) == {NAME, side}
