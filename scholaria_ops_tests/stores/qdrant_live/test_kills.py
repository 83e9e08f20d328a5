"""SIGKILL before every odd and after every even write of the notebook.

Whoever comes next takes it back, or carries on. The servers are real.
"""

from __future__ import annotations

import itertools
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from scholaria_ops.catalogue.evidence.qdrant import QdrantEvidence
from scholaria_ops.sandbox.qdrant import QdrantServer
from scholaria_ops.sandbox.sandbox import Sandbox
from scholaria_ops.stores.base import Context
from scholaria_ops.stores.live import Fact, Source
from scholaria_ops.stores.qdrant import QdrantStore
from scholaria_ops.stores.qdrant.live import QdrantLive, copies
from scholaria_ops_tests.stores.forked import in_a_child
from scholaria_ops_tests.stores.qdrant_live_support import (
    ALIAS,
    ALIASED,
    OTHER_ALIAS,
    PLAIN,
    FileNotebook,
    change,
    exactly,
    seed_two,
    served,
    taken,
)
from scholaria_ops_tests.stores.qdrant_support import Exchange, drop_everything, proxy, snapshots_left

SET_ID = "20241001_020000"
NAMES = (ALIAS, OTHER_ALIAS, PLAIN)


class Deadly(FileNotebook):
    """A notebook whose owner is killed at its n-th write: right before it, or right after."""

    def __init__(self, directory: Path, at: int, *, after: bool) -> None:
        super().__init__(directory)
        self._left = at
        self._after = after

    def write(self, **facts: Fact) -> None:
        self._left -= 1
        if self._left == 0 and not self._after:
            os.kill(os.getpid(), signal.SIGKILL)
        super().write(**facts)
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture(scope="module")
def server(box: Sandbox) -> QdrantServer:
    return box.qdrant(name="qdrant-live-kills")


@pytest.fixture
def source(server: QdrantServer, tmp_path: Path, ctx: Context) -> Iterator[Source[QdrantEvidence]]:
    drop_everything(server.connection)
    seed_two(server.connection, points=60)
    yield taken(server.connection, tmp_path / "set", SET_ID, ctx)
    drop_everything(server.connection)


@pytest.fixture
def killed_between_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the notebook no request is on its way: need not be waited for as long as otherwise."""
    monkeypatch.setattr(copies, "_ARRIVAL_S", 0.05)


def fresh(server: QdrantServer) -> None:
    drop_everything(server.connection)
    seed_two(server.connection, points=60)
    change(server.connection, new=5, changed=2, gone=1)


def nothing_is_left(server: QdrantServer, ctx: Context) -> None:
    QdrantStore(server.connection).reap(ctx)
    assert not snapshots_left(server.connection)
    assert not list((server.directory / "snapshots").rglob("*.snapshot"))


@pytest.mark.slow(4)
@pytest.mark.timeout(1200)
@pytest.mark.usefixtures("killed_between_requests")
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("in_place", [False, True], ids=["by alias", "in place"])
def test_killed_at_any_write_of_a_restore_it_is_rolled_back(
    server: QdrantServer, source: Source[QdrantEvidence], tmp_path: Path, ctx: Context, after: bool, in_place: bool
) -> None:
    store = QdrantLive(server.connection, in_place=in_place)

    for number in itertools.count(2 if after else 1, 2):
        fresh(server)
        before = exactly(server.connection)
        seen = served(server.connection)
        plan = store.plan(source, ctx)
        where = tmp_path / f"notebook-{number}"

        def work() -> None:
            notebook = Deadly(where, number, after=after)  # noqa: B023 - called in this round
            store.stage(plan, source, notebook, ctx)  # noqa: B023
            store.switch(plan, notebook, ctx)  # noqa: B023
            store.finish(notebook, ctx)

        code = in_a_child(work)
        assert code in {0, -signal.SIGKILL}
        notebook = FileNotebook(where)
        other = QdrantLive(server.connection)
        other.roll_back(notebook, ctx)
        now = served(server.connection)
        assert {name: now.of(name) for name in NAMES} == {name: seen.of(name) for name in NAMES}, f"write {number}"
        left = exactly(server.connection)
        if PLAIN in left.collections:
            assert left == before, f"write {number}"
        else:
            assert left.collections.keys() == {ALIASED, f"{PLAIN}__before_{notebook.restore_id}"}
        assert other.roll_back(notebook, ctx).lines == []
        nothing_is_left(server, ctx)
        if code == 0:
            break
    assert number > 10


@pytest.mark.slow(4)
@pytest.mark.timeout(1200)
@pytest.mark.usefixtures("killed_between_requests")
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("in_place", [False, True], ids=["by alias", "in place"])
def test_killed_at_any_write_of_a_switch_and_an_undo_they_are_carried_on(
    server: QdrantServer, source: Source[QdrantEvidence], tmp_path: Path, ctx: Context, after: bool, in_place: bool
) -> None:
    store = QdrantLive(server.connection, in_place=in_place)
    known = served(server.connection)
    for number in itertools.count(2 if after else 1, 2):
        fresh(server)
        newer = served(server.connection)
        plan = store.plan(source, ctx)
        where = tmp_path / f"notebook-{number}"
        store.stage(plan, source, FileNotebook(where), ctx)
        killed = in_a_child(lambda: store.switch(plan, Deadly(where, number, after=after), ctx))  # noqa: B023
        store.switch(plan, FileNotebook(where), ctx)
        now = served(server.connection)
        assert {name: now.of(name) for name in NAMES} == {name: known.of(name) for name in NAMES}, f"write {number} of the switch"
        change(server.connection, new=3, changed=0, gone=0)
        killed_too = in_a_child(lambda: store.undo(Deadly(where, number, after=after), ctx))  # noqa: B023
        store.undo(FileNotebook(where), ctx)
        store.finish(FileNotebook(where), ctx)
        now = served(server.connection)
        assert {name: now.of(name) for name in NAMES} == {name: newer.of(name) for name in NAMES}, f"write {number} of the undo"
        again = store.undo(FileNotebook(where), ctx)
        assert again.lockout_s == 0
        assert len(again.kept) == 2
        store.discard(FileNotebook(where), ctx)
        assert len(exactly(server.connection).collections) == 2
        nothing_is_left(server, ctx)
        if killed == killed_too == 0:
            break
    assert number > 2


def test_a_recovery_that_goes_on_after_its_client_was_killed_is_waited_for_and_removed(
    server: QdrantServer, source: Source[QdrantEvidence], tmp_path: Path, ctx: Context
) -> None:
    fresh(server)
    before = exactly(server.connection)
    notebook = FileNotebook(tmp_path / "notebook")
    passed_on = threading.Event()
    told, tell = os.pipe()
    child = os.fork()  # before there are threads; where the proxy is, it is told afterwards
    if child == 0:
        try:
            through = QdrantLive(server.connection.model_copy(update={"url": os.read(told, 200).decode()}))
            through.stage(through.plan(source, ctx), source, notebook, ctx)
        finally:
            os._exit(1)

    def killing(exchange: Exchange) -> bool:
        if "/snapshots/upload" not in exchange.path:
            return False
        os.kill(child, signal.SIGKILL)
        exchange.upstream()
        passed_on.set()
        exchange.hang_up()
        return True

    with proxy(server.connection.url) as between:
        between.rules.append(killing)
        os.write(tell, between.url.encode())
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        QdrantLive(server.connection).roll_back(notebook, ctx)
        assert passed_on.wait(60.0)
    assert exactly(server.connection) == before
    nothing_is_left(server, ctx)
