"""Nothing of ours stays on a Qdrant server: not after a time limit, a cancellation, or SIGKILL. The servers are real."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path

import pytest

from scholaria_ops.cancel import CancelToken
from scholaria_ops.catalogue.ledger import Ledger
from scholaria_ops.errors import Cancelled, StoreUnavailable
from scholaria_ops.process import is_alive, pipe, process_start_time
from scholaria_ops.sandbox.qdrant import QdrantServer
from scholaria_ops.sandbox.sandbox import reap
from scholaria_ops.sandbox.tools import Tools
from scholaria_ops.stores.qdrant import QdrantStore, leftovers, snapshot
from scholaria_ops.stores.qdrant.leftovers import KIND
from scholaria_ops.stores.qdrant.rest import Rest, at
from scholaria_ops_tests.conftest import ContextFactory
from scholaria_ops_tests.stores.qdrant_support import (
    DOCUMENTS,
    Exchange,
    Proxy,
    is_download,
    is_snapshot_post,
    open_entries,
    proxy,
    snapshots_left,
    store_at,
)

SET_ID = "20241001_020000"


# -- F42 ---------------------------------------------------------------------------------------------------------------


def test_f42_a_snapshot_whose_request_timed_out_is_adopted_and_not_made_twice(
    before: Proxy, tmp_path: Path, context_factory: ContextFactory
) -> None:
    """The server makes it, but its answer comes too late."""
    over = threading.Event()

    def late(exchange: Exchange) -> bool:
        if not is_snapshot_post(exchange):
            return False
        status, headers, body = exchange.upstream()
        over.wait(120)
        exchange.answer(status, body, headers=headers)
        return True

    before.rules.append(late)
    ctx = context_factory()
    try:
        taken = store_at(before.url, timeout_s=3.0).dump(tmp_path, SET_ID, ctx)
    finally:
        over.set()
    assert taken.evidence.headline()["points"] == 120
    assert len(before.posts()) == 1
    assert open_entries(ctx) == 0


def test_f42_a_gateway_that_gives_up_on_the_request_changes_nothing(before: Proxy, tmp_path: Path, context_factory: ContextFactory) -> None:
    def gives_up(exchange: Exchange) -> bool:
        if not is_snapshot_post(exchange):
            return False
        exchange.upstream()
        exchange.answer(504, b"<html>gateway timeout</html>")
        return True

    before.rules.append(gives_up)
    assert store_at(before.url).dump(tmp_path, SET_ID, context_factory()).evidence.headline()["points"] == 120
    assert len(before.posts()) == 1


def test_f42_a_request_that_never_arrived_is_a_failure_and_leaves_no_entry(
    before: Proxy, tmp_path: Path, context_factory: ContextFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leftovers, "_ARRIVAL", timedelta(seconds=0.5))

    def lost(exchange: Exchange) -> bool:
        if not is_snapshot_post(exchange):
            return False
        exchange.hang_up()
        return True

    before.rules.append(lost)
    ctx = context_factory()
    with pytest.raises(StoreUnavailable):
        store_at(before.url).dump(tmp_path, SET_ID, ctx)
    assert open_entries(ctx) == 0, "the server says that it is not at work: nothing can come of it"


def test_a_snapshot_of_somebody_else_in_the_same_second_is_left_alone(
    live: QdrantServer, tmp_path: Path, context_factory: ContextFactory
) -> None:
    """Servers name snapshots by the second: ours would replace the other one, so the next second is waited for."""
    others: list[str] = []

    def somebody_else(exchange: Exchange) -> bool:
        if exchange.method == "GET" and exchange.path.endswith("/snapshots") and not others:
            time.sleep(1.0 - time.time() % 1.0)
            with Rest(live.connection) as rest:
                others.append(rest.post(at(DOCUMENTS, "snapshots"), wait="true")["name"])
        return False

    with proxy(live.connection.url) as between:
        between.rules.append(somebody_else)
        ctx = context_factory()
        taken = store_at(between.url).dump(tmp_path, SET_ID, ctx)
    made = taken.evidence.collections[DOCUMENTS].snapshot
    assert made
    assert made.name != others[0]
    assert snapshots_left(live.connection) == others
    assert open_entries(ctx) == 0
    with Rest(live.connection) as rest:
        rest.delete(at(DOCUMENTS, "snapshots", others[0]))


# -- F46 ---------------------------------------------------------------------------------------------------------------

_CHILD = """
import sys
from pathlib import Path
from scholaria_ops.catalogue.ledger import Ledger
from scholaria_ops.connections import QdrantConnection
from scholaria_ops.sandbox.tools import Tools
from scholaria_ops.stores.base import Context
from scholaria_ops.stores.qdrant import QdrantStore
url, base = sys.argv[1], Path(sys.argv[2])
ctx = Context(scratch=base / "scratch", ledger=Ledger(base / "ledger.jsonl"), tools=Tools(qdrant=Path(sys.argv[3])))
QdrantStore(QdrantConnection(url=url)).dump(base / "set", "20241001_020000", ctx)
"""


@pytest.mark.parametrize("point", ["before the answer", "during the download"])
def test_f46_what_a_killed_run_left_on_the_server_is_reaped_by_the_next(
    live: QdrantServer, tools: Tools, tmp_path: Path, context_factory: ContextFactory, point: str
) -> None:
    reached, go_on = threading.Event(), threading.Event()

    def stall(exchange: Exchange) -> bool:
        if not (is_snapshot_post if point == "before the answer" else is_download)(exchange):
            return False
        exchange.upstream()
        reached.set()
        go_on.wait(120)
        exchange.hang_up()
        return True

    for name in ("scratch", "set"):
        (tmp_path / name).mkdir(mode=0o700)
    with proxy(live.connection.url) as between:
        between.rules.append(stall)
        argv = [sys.executable, "-c", _CHILD, between.url, str(tmp_path), str(tools.require_qdrant())]
        with pipe(argv, cwd=Path(__file__).parents[2]) as child:
            started = process_start_time(child.child.pid)
            assert reached.wait(120), child.stderr_tail
            os.kill(child.child.pid, signal.SIGKILL)
            child.child.wait()
            assert not is_alive(child.child.pid, started)
        go_on.set()
        assert len(snapshots_left(live.connection)) == 1, "the killed run left its snapshot"
        ledger = Ledger(tmp_path / "ledger.jsonl")
        (entry,) = ledger.entries(KIND)
        assert ("name" in entry.facts) is (point == "during the download")
        between.rules.clear()
        removed = store_at(between.url).reap(context_factory(ledger=ledger))
        assert len(removed) == 1
        assert DOCUMENTS in removed[0]
        assert not ledger.entries(KIND)
        assert store_at(between.url).reap(context_factory(ledger=ledger)) == [], "a second time there is nothing to do"
    assert not snapshots_left(live.connection)
    reap(tmp_path / "scratch")


def test_f46_reaping_touches_nothing_that_is_not_ours(
    live: QdrantServer, context_factory: ContextFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An intent without a name, whose snapshot never came: an older and a much later one of somebody else stay."""
    monkeypatch.setattr(leftovers, "_ARRIVAL", timedelta(seconds=0.5))
    ctx = context_factory()
    with Rest(live.connection) as rest:
        older = rest.post(at(DOCUMENTS, "snapshots"), wait="true")["name"]
        ctx.ledger.open(KIND, url=live.connection.url, collection=DOCUMENTS, existing=[older], since="2020-01-01T00:00:00+00:00")
        ctx.ledger.open(KIND, url="http://elsewhere:6333", collection=DOCUMENTS, existing=[], since="2020-01-01T00:00:00+00:00")
        time.sleep(1.1)
        later = rest.post(at(DOCUMENTS, "snapshots"), wait="true")["name"]
        assert QdrantStore(live.connection).reap(ctx) == []
        assert sorted(snapshots_left(live.connection)) == sorted([older, later])
        assert [e.facts["url"] for e in ctx.ledger.entries(KIND)] == ["http://elsewhere:6333"]
        for name in (older, later):
            rest.delete(at(DOCUMENTS, "snapshots", name))


def test_reaping_survives_a_collection_that_is_gone(live: QdrantServer, context_factory: ContextFactory) -> None:
    ctx = context_factory()
    ctx.ledger.open(
        KIND, url=live.connection.url, collection="gone", existing=[], since="2020-01-01T00:00:00+00:00", name="gone-1.snapshot"
    )
    assert QdrantStore(live.connection).reap(ctx)
    assert open_entries(ctx) == 0


def _cancel_when(reached: threading.Event, token: CancelToken) -> None:
    reached.wait(120)
    token.cancel("asked to stop")


# -- F83 and others ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("point", ["request", "download"])
def test_f83_cancelling_breaks_off_at_once_and_leaves_nothing(
    before: Proxy, tmp_path: Path, context_factory: ContextFactory, point: str
) -> None:
    reached, done = threading.Event(), threading.Event()

    def stall(exchange: Exchange) -> bool:
        if not (is_snapshot_post if point == "request" else is_download)(exchange):
            return False
        exchange.upstream()
        reached.set()
        done.wait(120)
        exchange.hang_up()
        return True

    before.rules.append(stall)
    token = CancelToken()
    threads_before = threading.active_count()
    canceller = threading.Thread(target=_cancel_when, args=(reached, token))
    canceller.start()
    ctx = context_factory(cancel=token)
    try:
        with pytest.raises(Cancelled, match="asked to stop"):
            store_at(before.url).dump(tmp_path, SET_ID, ctx)
        cancelled_at = time.monotonic()
        assert open_entries(ctx) == 0
        assert not [t for t in threading.enumerate() if t.name.startswith("qdrant-dump")]
        assert time.monotonic() - cancelled_at < 5
    finally:
        done.set()
        canceller.join()
    assert threading.active_count() <= threads_before + 3  # the proxy's own


def test_the_clean_up_waits_for_a_snapshot_that_is_still_being_made(
    live: QdrantServer, tmp_path: Path, context_factory: ContextFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cancelled while the server is at work: the snapshot appears a moment later, and goes."""
    reached = threading.Event()

    def slow(exchange: Exchange) -> bool:
        if not is_snapshot_post(exchange):
            return False
        reached.set()
        time.sleep(1.0)
        exchange.upstream()
        return True

    monkeypatch.setattr(snapshot, "CLEANUP_S", 60.0)
    token = CancelToken()
    canceller = threading.Thread(target=_cancel_when, args=(reached, token))
    canceller.start()
    ctx = context_factory(cancel=token)
    with proxy(live.connection.url) as between:
        between.rules.append(slow)
        with pytest.raises(Cancelled):
            store_at(between.url).dump(tmp_path, SET_ID, ctx)
        canceller.join()
        assert not snapshots_left(live.connection)
        assert open_entries(ctx) == 0
