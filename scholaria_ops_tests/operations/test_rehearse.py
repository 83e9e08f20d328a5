"""The proof: restored somewhere else and found equal, or not called proven."""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import time
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest

from scholaria_ops.catalogue.sets import BackupSet, Catalogue
from scholaria_ops.errors import Refused, StoreError, UsageError, VerificationFailed
from scholaria_ops.operations.isolation import check_isolation
from scholaria_ops.operations.rehearse import rehearse
from scholaria_ops.operations.second_opinion import second_opinion
from scholaria_ops.operations.services import Services
from scholaria_ops.process import start_daemon
from scholaria_ops.sandbox.postgres import PostgresServer
from scholaria_ops.sandbox.sample import SampleStack
from scholaria_ops.sandbox.sandbox import Sandbox, reap
from scholaria_ops.sandbox.tools import Tools
from scholaria_ops_tests.conftest import SampleServers
from scholaria_ops_tests.operations.conftest import ServicesFactory
from scholaria_ops_tests.operations.support import (
    copied,
    environment,
    flip,
    flip_everywhere,
    leftover_processes,
    processes_of,
    recompute,
    sandbox_nonces,
)


@pytest.fixture
def services(services_factory: ServicesFactory, pristine: BackupSet) -> Services:
    """A BACKUP_DIR that holds a copy of the pristine set."""
    made = services_factory()
    made.check_directory()
    copied(pristine, made.catalogue.layout.root)
    return made


def test_a_good_set_is_proven_by_content_and_timed(services: Services, pristine: BackupSet, sample_stack: SampleStack) -> None:
    report = rehearse(services, pristine.id)
    assert report.verdict == "proven", [s.detail for s in report.stores]
    counts = {name: value for s in report.stores for name, value in s.counts.items()}
    assert counts["rows"] == sum(sample_stack.rows.values())
    assert counts["points"] == sum(sample_stack.points.values())
    assert report.rto_s > 0
    assert report.rpo_s > 0
    for store in report.stores:
        assert {"start", "load", "probe"} <= store.seconds.keys()
    entry = services.catalogue.find(pristine.id)
    assert entry.proven_at == report.at
    assert list(services.settings.scratch_root.iterdir()) == []


def test_an_ordinary_client_counts_again_and_would_notice(services: Services, pristine: BackupSet, tools: Tools, tmp_path: Path) -> None:
    """Empty servers under the evidence of a full set: every store's second opinion differs."""
    manifest = pristine.manifest
    assert manifest.postgres
    assert manifest.redis
    assert manifest.qdrant
    with Sandbox(tmp_path / "box", tools) as box:
        postgres, redis, qdrant = box.postgres(), box.redis(), box.qdrant()
        with postgres.connect() as link:
            link.execute("CREATE DATABASE scholaria")
        with postgres.connect("scholaria") as link:
            link.execute("CREATE TABLE rag_topic (id int)")
        (lost,) = second_opinion(postgres, manifest.postgres.evidence)
        assert (lost.what, lost.found) == ("table public.rag_topic: rows by an ordinary client", "0")
        assert {d.found for d in second_opinion(redis, manifest.redis.evidence)} == {"0"}
        with pytest.raises(StoreError, match="cannot count"):
            second_opinion(qdrant, manifest.qdrant.evidence)


def test_a_byte_that_is_not_what_was_sealed_stops_it_before_any_tool_reads_it(services: Services, pristine: BackupSet) -> None:
    directory = services.catalogue.layout.sealed(pristine.id)
    flip(directory / pristine.manifest.artifacts_of("postgres")[0].path)
    with pytest.raises(VerificationFailed, match="postgres_"):
        rehearse(services, pristine.id)
    assert services.catalogue.find(pristine.id).proven_at is None


def _forged(services: Services, pristine: BackupSet, change: dict[str, bytes | None]) -> Services:
    """A BACKUP_DIR whose copy was changed and whose checksums were recomputed, without the record of the sealing."""
    root = services.catalogue.layout.root.parent / "forged"
    root.mkdir()
    directory = copied(pristine, root, with_records=False)
    for name, content in change.items():
        path = directory / name
        if content is None:
            flip_everywhere(path)
        else:
            path.write_bytes(content)
    recompute(directory)
    return dataclasses.replace(services, catalogue=Catalogue(root))


@pytest.mark.parametrize("store", ["postgres", "redis", "qdrant"])
@pytest.mark.parametrize("how", ["emptied", "flipped"])
def test_f78_an_emptied_or_mutated_artifact_fails_it_even_with_recomputed_checksums(
    services: Services, pristine: BackupSet, store: str, how: str
) -> None:
    name = next(a.path for a in pristine.manifest.artifacts if a.store == store and a.kind in {"dump", "rdb", "snapshot"})
    forged = _forged(services, pristine, {name: b"" if how == "emptied" else None})
    report = rehearse(forged, pristine.id)
    assert report.verdict == "failed"
    assert [s.store for s in report.stores if s.verdict == "failed"] == [store]
    assert forged.catalogue.find(pristine.id).proven_at is None


def test_f77_a_live_store_is_refused_as_a_target(services: Services, sample_servers: SampleServers) -> None:
    """The sandbox's own servers, declared to be the live ones."""
    for name, server in (("postgres", sample_servers.postgres), ("redis", sample_servers.redis), ("qdrant", sample_servers.qdrant)):
        with pytest.raises(Refused, match="is the live"):
            check_isolation(name, services.settings, server)  # type: ignore[arg-type]


def test_f77_what_the_sandbox_did_not_make_is_refused_whatever_it_is(services: Services) -> None:
    with pytest.raises(Refused, match="only to servers that it started itself"):
        check_isolation("postgres", services.settings, object())


def test_without_a_server_that_can_judge_it_is_unproven(services: Services, pristine: BackupSet) -> None:
    without = dataclasses.replace(services, tools=dataclasses.replace(services.tools, qdrant=None))
    report = rehearse(without, pristine.id)
    assert report.verdict == "unproven"
    assert "qdrant" in report.needs
    assert {s.store: s.verdict for s in report.stores} == {"postgres": "proven", "redis": "proven", "qdrant": "unproven"}
    assert services.catalogue.find(pristine.id).proven_at is None


def test_kept_servers_answer_until_their_time_is_over(services: Services, pristine: BackupSet) -> None:
    report = rehearse(services, pristine.id, keep=timedelta(seconds=3))
    assert report.kept_file
    assert report.kept_file.stat().st_mode & 0o777 == 0o600
    lines = report.kept_file.read_text().splitlines()
    programs = [next(word for word in line.split() if "=" not in word) for line in lines]
    assert programs == ["psql", "redis-cli", "curl"], "in this order, whichever server was up first"
    line = lines[0]
    words = dict(zip(line.split(), line.split()[1:], strict=False))
    with psycopg.connect(
        host=words["-h"], port=words["-p"], user=words["-U"], password=line.split()[0].partition("=")[2], dbname="scholaria"
    ) as link:
        row = link.execute("SELECT count(*) FROM rag_topic LIMIT 5").fetchone()
    assert row
    assert row[0] > 0
    nonces = sandbox_nonces(services.settings.scratch_root)
    assert len(processes_of(nonces)) >= 3
    deadline = time.monotonic() + 120
    while report.kept_file.exists():
        assert time.monotonic() < deadline
        time.sleep(0.5)
        reap(services.settings.scratch_root)
    assert processes_of(nonces) == []


def test_what_is_no_set_cannot_be_rehearsed(services: Services) -> None:
    with pytest.raises(UsageError):
        rehearse(services, "20200101_000000")


#: Its servers stay until it is killed.
KILLED = """
import sys, time
from pathlib import Path
from scholaria_ops.operations.rehearse import rehearse
from scholaria_ops.operations.services import make_services
from scholaria_ops.settings import load_settings
from scholaria_ops.sandbox.sandbox import Sandbox
Sandbox.__exit__ = lambda *_: time.sleep(600)
services = make_services(load_settings(env_file=Path(sys.argv[1])))
print("begin", flush=True)
rehearse(services, "latest" if len(sys.argv) < 3 else sys.argv[2])
"""


def test_f79_killed_during_a_rehearsal_the_next_run_ends_its_servers(
    services: Services, pristine: BackupSet, sample_stack: SampleStack, tools: Tools, tmp_path: Path
) -> None:
    env_file = tmp_path / "ops.env"
    values = environment(sample_stack, tools, services.settings.backup_dir)
    env_file.write_text("".join(f"{k}={v}\n" for k, v in values.items()))
    env_file.chmod(0o600)
    daemon = start_daemon([sys.executable, "-c", KILLED, str(env_file), pristine.id], log=tmp_path / "log", cwd=Path(__file__).parents[2])
    scratch = services.settings.scratch_root
    deadline = time.monotonic() + 120
    while len(leftover_processes(scratch)) < 3:
        assert daemon.alive, (tmp_path / "log").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(daemon.pid, signal.SIGKILL)
    while daemon.alive:
        time.sleep(0.02)
    nonces = sandbox_nonces(scratch)
    assert processes_of(nonces), "killed alone: its servers are orphans now"
    with services.locked("the next run"):
        assert processes_of(nonces) == []
    assert list(scratch.iterdir()) == []


def test_a_server_with_another_identity_passes(services: Services, tools: Tools, tmp_path: Path) -> None:
    with Sandbox(tmp_path / "box", tools) as box:
        server = box.postgres(name="other")
        assert isinstance(server, PostgresServer)
        check_isolation("postgres", services.settings, server)
