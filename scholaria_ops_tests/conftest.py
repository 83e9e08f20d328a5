"""Real servers shared by the whole suite. Everything here is made below pytest's own temporary directory."""

from __future__ import annotations

import contextlib
import logging
import signal
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from scholaria_ops.catalogue.ledger import Ledger
from scholaria_ops.catalogue.sets import BackupSet
from scholaria_ops.progress import Logged
from scholaria_ops.sandbox.fetch import fetch_tools
from scholaria_ops.sandbox.postgres import PostgresServer
from scholaria_ops.sandbox.qdrant import QdrantServer
from scholaria_ops.sandbox.redis import RedisServer
from scholaria_ops.sandbox.sample import SMALL, SampleStack, seed
from scholaria_ops.sandbox.sandbox import Sandbox
from scholaria_ops.sandbox.tools import Tools
from scholaria_ops.stores.base import Context
from scholaria_ops_tests.operations.support import services_for, take

ContextFactory = Callable[..., Context]
Ports = Callable[[], int]


def pytest_configure() -> None:
    """Where a script's "&" has SIGINT ignored, go on ignoring it, but do not hand that on: programs inherit an ignored signal,

    and give a handled one its default action. Dagster's servers, for one, then ignore SIGTERM as well.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, lambda _number, _frame: None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow modules first, the slowest first: one that begins last keeps everybody waiting."""
    seconds: Counter[Path] = Counter()
    for item in items:
        if slow := item.get_closest_marker("slow"):
            seconds[item.path] += slow.args[0] if slow.args else 10
    items.sort(key=lambda item: -seconds[item.path])


@pytest.fixture(scope="session")
def tools() -> Tools:
    """Programs of all three stores: found on this host, else downloaded once into the user's cache."""
    return fetch_tools(Logged(logging.getLogger("scholaria_ops_tests.fetch")))


@pytest.fixture(scope="session")
def sandbox(tools: Tools, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    """One sandbox for the whole run (and worker). Add servers under names of your own; stop them when you are done."""
    with Sandbox(tmp_path_factory.mktemp("sandbox"), tools, label="suite") as box:
        yield box


@pytest.fixture(scope="session")
def pg_server(sandbox: Sandbox) -> PostgresServer:
    """A shared PostgreSQL: make databases of your own in it, drop them afterwards, leave its configuration alone."""
    return sandbox.postgres(name="shared-postgres", settings={"wal_level": "logical", "max_wal_senders": "5"})


@pytest.fixture(scope="session")
def redis_server(sandbox: Sandbox) -> RedisServer:
    """A shared Redis whose snapshots by replication start at once; flush what you wrote."""
    return sandbox.redis(name="shared-redis", config={"repl-diskless-sync-delay": "0"})


@pytest.fixture(scope="session")
def qdrant_server(sandbox: Sandbox) -> QdrantServer:
    """A shared Qdrant: use collections of your own, delete them afterwards."""
    return sandbox.qdrant(name="shared-qdrant")


@dataclass(frozen=True)
class SampleServers:
    """The servers under the shared sample."""

    postgres: PostgresServer
    redis: RedisServer
    qdrant: QdrantServer


@pytest.fixture(scope="session")
def sample_servers(sandbox: Sandbox) -> SampleServers:
    """Servers of their own for the sample, so that tests which write elsewhere cannot disturb it."""
    return SampleServers(
        postgres=sandbox.postgres(name="sample-postgres"),
        redis=sandbox.redis(name="sample-redis", config={"repl-diskless-sync-delay": "0"}),
        qdrant=sandbox.qdrant(name="sample-qdrant"),
    )


@pytest.fixture(scope="session")
def sample_stack(sample_servers: SampleServers) -> SampleStack:
    """Scholaria in small, in all three stores. Read only: it is shared by the whole run."""
    return seed(sample_servers.postgres, sample_servers.redis, sample_servers.qdrant, SMALL)


@pytest.fixture(scope="session")
def pristine(sample_stack: SampleStack, tools: Tools, tmp_path_factory: pytest.TempPathFactory) -> BackupSet:
    """A sealed set of the sample. Read-only: copy it before you touch it."""
    return take(services_for(sample_stack, tools, tmp_path_factory.mktemp("pristine")), note="pristine")


@pytest.fixture
def hold_port() -> Iterator[Ports]:
    """Loopback ports on which nobody listens but a server that the test starts there (servers set SO_REUSEADDR).

    One that is only looked up may be anybody's when it is used: another worker's server, or an outgoing connection, which
    takes its port from the same range.
    """
    with contextlib.ExitStack() as held:

        def hold() -> int:
            link = held.enter_context(socket.socket())
            link.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            link.bind(("127.0.0.1", 0))
            return int(link.getsockname()[1])

        yield hold


@pytest.fixture
def context_factory(tmp_path: Path, tools: Tools) -> ContextFactory:
    """Make a Context with its own scratch directory and ledger; any field may be given."""

    def make(**fields: Any) -> Context:
        scratch = tmp_path / f"scratch-{len(list(tmp_path.glob('scratch-*')))}"
        scratch.mkdir(mode=0o700)
        ledger = Ledger(tmp_path / "state" / "ledger.jsonl")
        return Context(**{"scratch": scratch, "ledger": ledger, "tools": tools, **fields})

    return make
