"""The Qdrant store on real servers: what is dumped, how it is proven, how it comes back."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from pydantic import SecretStr

from scholaria_ops.catalogue.evidence.base import Difference
from scholaria_ops.catalogue.evidence.qdrant import QdrantEvidence
from scholaria_ops.connections import QdrantConnection
from scholaria_ops.errors import Refused, VerificationFailed
from scholaria_ops.process import run, which
from scholaria_ops.sandbox.qdrant import QdrantServer
from scholaria_ops.sandbox.sandbox import Sandbox
from scholaria_ops.sandbox.tools import Tools
from scholaria_ops.stores.base import Dump
from scholaria_ops.stores.qdrant import CHECKS, QdrantStore, has_nonce, recover_as, remove_nonce, write_nonce
from scholaria_ops.stores.qdrant.names import file_name
from scholaria_ops.stores.qdrant.rest import Rest, at
from scholaria_ops_tests.conftest import ContextFactory
from scholaria_ops_tests.stores.qdrant_support import (
    ALIASES,
    DOCUMENTS,
    EMPTY,
    MIXED,
    ODD_NAME,
    drop_everything,
    fast_sandbox,
    seed,
    snapshots_left,
    upsert,
)

KEY = "a-key-that-must-not-appear-anywhere"
SET_ID = "20241001_020000"


@pytest.fixture(scope="module")
def box(tools: Tools, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    with fast_sandbox(tmp_path_factory.mktemp("box"), tools) as made:
        yield made


@pytest.fixture(scope="module")
def live(box: Sandbox) -> Iterator[QdrantServer]:
    """A seeded live server that wants a key."""
    server = box.qdrant(name="qdrant-live", api_key=KEY)
    seed(server.connection)
    yield server
    server.stop()


@pytest.fixture(scope="module")
def target(box: Sandbox) -> Iterator[QdrantServer]:
    """An empty server to restore into; emptied again after each test that uses :func:`empty_target`."""
    server = box.qdrant(name="qdrant-target", grpc=True)
    yield server
    server.stop()


@pytest.fixture
def empty_target(target: QdrantServer) -> Iterator[QdrantServer]:
    yield target
    drop_everything(target.connection)


@dataclass(frozen=True)
class Taken:
    """A dump, and where it lies."""

    directory: Path
    dump: Dump[QdrantEvidence]


@pytest.fixture(scope="module")
def taken(live: QdrantServer, tmp_path_factory: pytest.TempPathFactory, tools: Tools) -> Taken:
    from scholaria_ops.catalogue.ledger import Ledger
    from scholaria_ops.stores.base import Context

    base = tmp_path_factory.mktemp("taken")
    (base / "scratch").mkdir(mode=0o700)
    (base / "set").mkdir(mode=0o700)
    ctx = Context(scratch=base / "scratch", ledger=Ledger(base / "ledger.jsonl"), tools=tools)
    return Taken(base / "set", QdrantStore(live.connection).dump(base / "set", SET_ID, ctx))


def names_of(differences: list[Difference]) -> list[str]:
    return [d.what for d in differences]


# -- preflight ---------------------------------------------------------------------------------------------------------


def test_preflight_tells_version_collections_aliases_and_an_upper_estimate(
    live: QdrantServer, taken: Taken, context_factory: ContextFactory
) -> None:
    facts = QdrantStore(live.connection).preflight(context_factory())
    assert facts.server_version == live.version
    assert facts.details["collections"].startswith("4 (")
    assert "문서 → 문서 & 100% #1" in facts.details["aliases"]
    assert facts.expected_bytes >= sum(a.size_bytes for a in taken.dump.artifacts)
    assert not facts.warnings


def test_preflight_without_a_qdrant_program_says_what_is_needed(live: QdrantServer, context_factory: ContextFactory) -> None:
    facts = QdrantStore(live.connection).preflight(context_factory(tools=Tools()))
    assert any("QDRANT_BIN" in w and "1.16 or 1.17" in w for w in facts.warnings)


# -- dump --------------------------------------------------------------------------------------------------------------


def test_a_dump_holds_every_collection_and_the_aliases(live: QdrantServer, taken: Taken) -> None:
    artifacts = {a.subject: a for a in taken.dump.artifacts if a.kind == "snapshot"}
    assert set(artifacts) == {DOCUMENTS, ODD_NAME, MIXED, EMPTY}
    for subject, artifact in artifacts.items():
        assert artifact.path == f"qdrant_{SET_ID}/{file_name(subject)}.snapshot"
        assert (taken.directory / artifact.path).stat().st_size == artifact.size_bytes
        assert (taken.directory / artifact.path).stat().st_mode & 0o777 == 0o600
    (listing,) = (a for a in taken.dump.artifacts if a.kind == "aliases")
    assert len(json.loads((taken.directory / listing.path).read_bytes())["actions"]) == 2
    assert not snapshots_left(live.connection)
    assert not taken.dump.warnings


def test_evidence_is_exact_and_complete(live: QdrantServer, taken: Taken) -> None:
    evidence = taken.dump.evidence
    assert dict(evidence.headline()) == {"points": 400, "collections": 4}
    assert evidence.aliases == ALIASES
    assert (evidence.measured_on, evidence.exact, evidence.server_version) == ("snapshot", True, live.version)
    documents, mixed = evidence.collections[DOCUMENTS], evidence.collections[MIXED]
    assert documents.indexes == {"context_id": {"data_type": "integer"}}
    assert len(documents.sample) == 32
    assert len(documents.golden) == 5
    assert all(len(search.hits) == 10 for search in documents.golden)
    assert {(v.name, v.kind, v.size) for v in mixed.vectors} == {("title", "dense", 12), ("tokens", "multi", 6), ("words", "sparse", None)}
    assert {search.using for search in mixed.golden} == {"title", "tokens", "words"}
    assert all(search.hits for search in mixed.golden)
    assert mixed.config["quantization_config"]["scalar"]["type"] == "int8"
    assert mixed.config["params"]["shard_number"] == 2
    assert evidence.collections[EMPTY].points == 0
    for measured in evidence.collections.values():
        assert measured.fingerprint.payloads
        assert measured.fingerprint.vectors
        assert not measured.fingerprint.note
        assert measured.snapshot
        assert measured.snapshot.server_sha256
        assert measured.snapshot.live_points_before == measured.points == measured.snapshot.live_points_after
    assert taken.dump.started_at <= evidence.cut_at <= taken.dump.finished_at


def test_evidence_survives_json_and_is_small_and_holds_no_secret(taken: Taken) -> None:
    text = taken.dump.evidence.model_dump_json()
    assert QdrantEvidence.model_validate_json(text) == taken.dump.evidence
    assert len(text) < 150_000
    assert KEY not in text


def test_golden_vectors_are_not_stored_points(taken: Taken) -> None:
    assert all(hit.score < 0.999 for search in taken.dump.evidence.collections[DOCUMENTS].golden for hit in search.hits)


def test_json_and_protocol_buffers_give_the_same_fingerprints(live: QdrantServer, taken: Taken, context_factory: ContextFactory) -> None:
    """The dump read its snapshots over gRPC; this reads the live server over REST."""
    found = QdrantStore(live.connection).probe(live, taken.dump.evidence, context_factory())
    assert live.grpc_address is None
    assert found.collections[MIXED].fingerprint == taken.dump.evidence.collections[MIXED].fingerprint
    assert QdrantStore(live.connection).compare(taken.dump.evidence, found) == []


def test_a_compressed_dump_is_what_gunzip_gives_back(
    live: QdrantServer, empty_target: QdrantServer, tmp_path: Path, context_factory: ContextFactory
) -> None:
    import gzip
    import hashlib

    store = QdrantStore(live.connection, gzip=True)
    taken = store.dump(tmp_path, SET_ID, context_factory())
    for artifact in (a for a in taken.artifacts if a.kind == "snapshot"):
        raw = gzip.decompress((tmp_path / artifact.path).read_bytes())
        assert artifact.path.endswith(".snapshot.gz")
        assert (len(raw), hashlib.sha256(raw).hexdigest()) == (artifact.raw_size_bytes, artifact.raw_sha256)
    assert all(check.passed for check in store.inspect(tmp_path, taken.artifacts, taken.evidence, context_factory()))
    store.load(tmp_path, taken.artifacts, taken.evidence, empty_target, context_factory())
    assert store.compare(taken.evidence, store.probe(empty_target, taken.evidence, context_factory())) == []


def test_without_a_qdrant_program_the_live_server_is_measured_and_the_evidence_says_so(
    live: QdrantServer, tmp_path: Path, context_factory: ContextFactory
) -> None:
    store = QdrantStore(live.connection)
    taken = store.dump(tmp_path, SET_ID, context_factory(tools=Tools()))
    assert (taken.evidence.measured_on, taken.evidence.exact, taken.evidence.measured_by) == ("live", True, live.version)
    assert any("QDRANT_BIN" in w for w in taken.warnings)
    unjudged = {c.name: c for c in store.inspect(tmp_path, taken.artifacts, taken.evidence, context_factory(tools=Tools()))}
    assert unjudged["snapshot_structure"].passed
    assert unjudged["aliases"].passed
    assert unjudged["vectors"].passed is None
    assert "1.16 or 1.17" in unjudged["vectors"].detail
    assert all(check.passed for check in store.inspect(tmp_path, taken.artifacts, taken.evidence, context_factory()))


def test_evidence_belongs_to_the_snapshot_although_the_application_writes(
    box: Sandbox, tmp_path: Path, context_factory: ContextFactory
) -> None:
    """A writer adds points throughout; the evidence is that of the file, and the inspection agrees."""
    import random
    import threading

    from scholaria_ops_tests.stores.qdrant_support import document

    server = box.qdrant(name="qdrant-written-to")
    seed(server.connection, documents=50)
    enough, number = threading.Event(), 1000

    def write() -> None:
        nonlocal number
        source = random.Random(1)
        with Rest(server.connection) as rest:
            while not enough.is_set():
                number += 1
                upsert(rest, DOCUMENTS, [document(source, number, 24)])

    writer = threading.Thread(target=write)
    writer.start()
    try:
        store = QdrantStore(server.connection)
        taken = store.dump(tmp_path, SET_ID, context_factory())
    finally:
        enough.set()
        writer.join()
    measured = taken.evidence.collections[DOCUMENTS]
    assert measured.snapshot
    assert measured.snapshot.live_points_before <= measured.points <= measured.snapshot.live_points_after < 50 + number - 1000
    assert all(check.passed for check in store.inspect(tmp_path, taken.artifacts, taken.evidence, context_factory()))
    server.stop()


# -- inspect, load, probe ----------------------------------------------------------------------------------------------


def test_inspect_agrees_with_the_evidence_without_the_source(taken: Taken, context_factory: ContextFactory) -> None:
    nowhere = QdrantStore(QdrantConnection(url="http://127.0.0.1:9", api_key=SecretStr("x")))
    checks = nowhere.inspect(taken.directory, taken.dump.artifacts, taken.dump.evidence, context_factory())
    assert tuple(check.name for check in checks) == CHECKS
    assert all(check.passed for check in checks), [c for c in checks if not c.passed]
    numbers = {check.name: check.numbers for check in checks}
    assert numbers["points"] == {"points": 400, "collections": 4}
    assert numbers["vectors"] == {"points": 400}
    assert numbers["golden_searches"] == {"searches": 5 + 5 + 15}


def test_f47_load_brings_back_everything_and_the_aliases(
    live: QdrantServer, empty_target: QdrantServer, taken: Taken, context_factory: ContextFactory
) -> None:
    store = QdrantStore(live.connection)
    loaded = store.load(taken.directory, taken.dump.artifacts, taken.dump.evidence, empty_target, context_factory())
    assert set(loaded.seconds) == {f"recover {name}" for name in taken.dump.evidence.collections} | {"aliases"}
    found = store.probe(empty_target, taken.dump.evidence, context_factory())
    assert store.compare(taken.dump.evidence, found) == []
    assert found.aliases == ALIASES
    assert not snapshots_left(empty_target.connection), "an upload leaves a copy unless it is deleted"
    with Rest(empty_target.connection) as rest:
        assert rest.get(at("context_items"))["points_count"] == 300, "the alias answers"


def test_load_refuses_a_set_that_is_not_whole(
    live: QdrantServer, empty_target: QdrantServer, taken: Taken, context_factory: ContextFactory
) -> None:
    without = tuple(a for a in taken.dump.artifacts if a.subject != MIXED)
    with pytest.raises(VerificationFailed, match="instead of"):
        QdrantStore(live.connection).load(taken.directory, without, taken.dump.evidence, empty_target, context_factory())


def test_load_refuses_a_target_that_is_not_empty(
    live: QdrantServer, empty_target: QdrantServer, taken: Taken, context_factory: ContextFactory
) -> None:
    with Rest(empty_target.connection) as rest:
        rest.put(at(MIXED), {"vectors": {"size": 2, "distance": "Dot"}})
    with pytest.raises(Refused, match="not empty: mixed"):
        QdrantStore(live.connection).load(taken.directory, taken.dump.artifacts, taken.dump.evidence, empty_target, context_factory())


def test_a_snapshot_can_be_recovered_under_another_name(
    live: QdrantServer, empty_target: QdrantServer, taken: Taken, context_factory: ContextFactory
) -> None:
    artifact = next(a for a in taken.dump.artifacts if a.subject == DOCUMENTS)
    beside = f"{DOCUMENTS}__{SET_ID}"
    with Rest(empty_target.connection) as rest:
        done = recover_as(
            rest, taken.directory / artifact.path, artifact, beside, expected_points=300, ctx=context_factory(), timeout_s=60.0
        )
        assert (done.collection, done.points) == (beside, 300)
        with pytest.raises(Refused, match="already has"):
            recover_as(rest, taken.directory / artifact.path, artifact, beside, expected_points=300, ctx=context_factory(), timeout_s=60.0)


def test_a_nonce_tells_two_servers_apart(live: QdrantServer, empty_target: QdrantServer) -> None:
    nonce = write_nonce(empty_target.connection)
    assert has_nonce(empty_target.connection, nonce)
    assert not has_nonce(live.connection, nonce)
    remove_nonce(empty_target.connection, nonce)
    assert not has_nonce(empty_target.connection, nonce)
    with pytest.raises(Refused):
        remove_nonce(live.connection, DOCUMENTS)


def test_a_collection_in_strict_mode_is_measured_within_its_limits(box: Sandbox, tmp_path: Path, context_factory: ContextFactory) -> None:
    """Exact requests and large pages may be forbidden by a collection: then other means count, and the evidence says what is missing."""
    server = box.qdrant(name="qdrant-strict")
    with Rest(server.connection) as rest:
        strict = {"enabled": True, "search_allow_exact": False, "max_query_limit": 7}
        rest.put(at("strict"), {"vectors": {"size": 3, "distance": "Dot"}, "strict_mode_config": strict})
        upsert(rest, "strict", [{"id": n, "vector": [n, 1, 2], "payload": {"n": n}} for n in range(25)])
    store = QdrantStore(server.connection)
    taken = store.dump(tmp_path, SET_ID, context_factory())
    measured = taken.evidence.collections["strict"]
    assert measured.points == 25
    assert measured.fingerprint.vectors
    assert "Exact search disabled" in measured.golden_skipped[""]
    checks = store.inspect(tmp_path, taken.artifacts, taken.evidence, context_factory())
    assert all(check.passed for check in checks), [c for c in checks if not c.passed]
    server.stop()


# -- compare -----------------------------------------------------------------------------------------------------------


def test_every_kind_of_change_on_a_restored_server_is_named(
    live: QdrantServer, empty_target: QdrantServer, taken: Taken, context_factory: ContextFactory
) -> None:
    """One change each, on a freshly loaded server: the comparison names it."""
    store, evidence = QdrantStore(live.connection), taken.dump.evidence
    store.load(taken.directory, taken.dump.artifacts, evidence, empty_target, context_factory())
    sampled = evidence.collections[DOCUMENTS].sample[0].id
    unsampled = next(n for n in range(1, 301) if n not in {p.id for p in evidence.collections[DOCUMENTS].sample})

    def differences() -> list[str]:
        return names_of(store.compare(evidence, store.probe(empty_target, evidence, context_factory())))

    with Rest(empty_target.connection) as rest:
        rest.post(at(DOCUMENTS, "points", "payload"), {"payload": {"title": "x"}, "points": [unsampled]}, wait="true")
        assert differences() == [f"collection {DOCUMENTS}: payloads of all points"]
        rest.put(at(DOCUMENTS, "points", "vectors"), {"points": [{"id": sampled, "vector": [1.0] * 24}]}, wait="true")
        found = differences()
        assert f"collection {DOCUMENTS}: vectors of all points" in found
        assert f"collection {DOCUMENTS}: point {sampled}: vector" in found
        rest.delete(at(DOCUMENTS, "index", "context_id"), wait="true")
        assert f"collection {DOCUMENTS}: payload index context_id" in differences()
        rest.call("PATCH", at(MIXED), body={"hnsw_config": {"m": 9}})
        assert f"collection {MIXED}: configuration hnsw_config.m" in differences()
        rest.post(at(ODD_NAME, "points", "delete"), {"points": [evidence.collections[ODD_NAME].sample[0].id]}, wait="true")
        assert f"collection {ODD_NAME}: points" in differences()
        rest.post("/collections/aliases", {"actions": [{"delete_alias": {"alias_name": "문서"}}]})
        assert "alias 문서" in differences()
        rest.delete(at(EMPTY))
        assert f"collection {EMPTY}: collection" in differences()


def test_an_exchanged_point_is_named_although_the_count_is_right(taken: Taken) -> None:
    evidence = taken.dump.evidence
    documents = evidence.collections[DOCUMENTS]
    other = documents.fingerprint.model_copy(update={"ids": "0" * 64})
    found = evidence.model_copy(
        update={"collections": {**evidence.collections, DOCUMENTS: documents.model_copy(update={"fingerprint": other})}}
    )
    assert names_of(QdrantStore(QdrantConnection(url="http://x")).compare(evidence, found)) == [f"collection {DOCUMENTS}: point ids"]


def test_passing_state_and_another_server_version_are_no_loss(taken: Taken) -> None:
    evidence = taken.dump.evidence
    documents = evidence.collections[DOCUMENTS]
    later = documents.model_copy(
        update={"status": "yellow", "segments": 99, "optimizer_status": "busy", "config": {**documents.config, "new_setting": None}}
    )
    found = evidence.model_copy(update={"collections": {**evidence.collections, DOCUMENTS: later}, "measured_by": "1.17.0"})
    differences = QdrantStore(QdrantConnection(url="http://x")).compare(evidence, found)
    assert [(d.what, d.severity) for d in differences] == [("server version", "note")]


def test_what_a_limit_left_out_is_a_note(live: QdrantServer, taken: Taken, context_factory: ContextFactory) -> None:
    evidence = taken.dump.evidence
    found = QdrantStore(live.connection, fingerprint_max_points=10).probe(live, evidence, context_factory())
    assert found.collections[DOCUMENTS].fingerprint.payloads is None
    assert "300 points are more than 10" in found.collections[DOCUMENTS].fingerprint.note
    assert {d.severity for d in QdrantStore(live.connection).compare(evidence, found)} == {"note"}


# -- by hand -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gzip", [False, True])
def test_the_commands_of_the_manual_bring_everything_back(
    live: QdrantServer, box: Sandbox, tmp_path: Path, context_factory: ContextFactory, gzip: bool
) -> None:
    """Every command of RESTORE.txt is run by a shell as it stands, with the variables it names, from the set's directory."""
    if which("curl") is None:
        pytest.skip("needs curl: the commands of the manual call it")
    store = QdrantStore(live.connection, gzip=gzip)
    taken = store.dump(tmp_path, SET_ID, context_factory())
    by_hand = box.qdrant(name=f"by-hand-{gzip}".lower(), api_key="another key")
    text = store.manual_restore(taken.artifacts)
    assert KEY not in text
    (tmp_path / "work").mkdir()
    env = {"QDRANT_URL": by_hand.connection.url, "QDRANT_API_KEY": "another key", "WORK": str(tmp_path / "work")}
    for command in _commands(text):
        if "<collection>" not in command:  # an example, to be filled in by a person
            run(["sh", "-ec", command], cwd=tmp_path, env=env, timeout_s=60.0)
    assert store.compare(taken.evidence, store.probe(by_hand, taken.evidence, context_factory())) == []
    by_hand.stop()


def _commands(text: str) -> list[str]:
    joined = re.sub(r" \\\n\s+", " ", text)
    return [line.strip() for line in joined.splitlines() if line.startswith("    ") and not line.strip().startswith("export ")]
