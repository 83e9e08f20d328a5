"""Artifacts that are not what they were: every check must be seen to fail, also when all checksums were recomputed.

Nothing here compares digests of files: that is done before ``inspect`` is called. What remains is what a forger, or a
disk under a recomputed checksum, could get past it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from scholaria_ops.catalogue.artifacts import Artifact
from scholaria_ops.catalogue.evidence.qdrant import QdrantEvidence
from scholaria_ops.catalogue.ledger import Ledger
from scholaria_ops.errors import VerificationFailed
from scholaria_ops.sandbox.sandbox import Sandbox
from scholaria_ops.sandbox.tools import Tools
from scholaria_ops.stores.base import Check, Context, Dump
from scholaria_ops.stores.qdrant import QdrantStore
from scholaria_ops.stores.qdrant.rest import Rest, at
from scholaria_ops.stores.qdrant.snapshot_file import Member, read_structure
from scholaria_ops_tests.conftest import ContextFactory
from scholaria_ops_tests.stores.qdrant_support import DOCUMENTS, MIXED, MIXED_CONFIG, document, fast_sandbox, mixed, upsert

POINTS = 1500
SIZE = 32


@pytest.fixture(scope="module")
def box(tools: Tools, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    with fast_sandbox(tmp_path_factory.mktemp("box"), tools) as made:
        yield made


@pytest.fixture(scope="module")
def original(box: Sandbox, tools: Tools, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Dump[QdrantEvidence]]:
    """A dump of two collections whose segments are indexed and flushed, so that no log entry heals a damaged segment."""
    import random
    import time

    server = box.qdrant(name="qdrant-mutations")
    source = random.Random(1)
    with Rest(server.connection) as rest:
        rest.put(at(DOCUMENTS), {"vectors": {"size": SIZE, "distance": "Cosine"}, "optimizers_config": {"indexing_threshold": 50}})
        upsert(rest, DOCUMENTS, [document(source, n, SIZE) for n in range(1, POINTS + 1)])
        rest.put(at(MIXED), MIXED_CONFIG)
        upsert(rest, MIXED, [mixed(source, n) for n in range(30)])
        rest.post("/collections/aliases", {"actions": [{"create_alias": {"alias_name": "docs", "collection_name": DOCUMENTS}}]})
        deadline = time.monotonic() + 120
        while rest.get(at(DOCUMENTS))["status"] != "green":
            assert time.monotonic() < deadline
            time.sleep(0.1)
    base = tmp_path_factory.mktemp("mutations")
    (base / "scratch").mkdir(mode=0o700)
    ctx = Context(scratch=base / "scratch", ledger=Ledger(base / "ledger.jsonl"), tools=tools)
    taken = QdrantStore(server.connection).dump(base, "20241001_020000", ctx)
    server.stop()
    return base, taken


class Case:
    """A private copy of the original to damage."""

    def __init__(self, base: Path, taken: Dump[QdrantEvidence], directory: Path, context_factory: ContextFactory) -> None:
        shutil.copytree(base / "qdrant_20241001_020000", directory / "qdrant_20241001_020000")
        self.directory = directory
        self.artifacts = taken.artifacts
        self.evidence = taken.evidence
        self._context = context_factory

    def artifact(self, subject: str) -> Artifact:
        return next(a for a in self.artifacts if a.subject == subject)

    def file(self, subject: str) -> Path:
        return self.directory / self.artifact(subject).path

    def inspect(self) -> dict[str, Check]:
        from scholaria_ops.connections import QdrantConnection

        nowhere = QdrantStore(QdrantConnection(url="http://127.0.0.1:9"))
        return {check.name: check for check in nowhere.inspect(self.directory, self.artifacts, self.evidence, self._context())}

    def members(self, part: str, subject: str = DOCUMENTS) -> list[Member]:
        found = [m for m in read_structure(self.file(subject), compressed=False).members if part in m.name and m.size]
        assert found, part
        return found

    def flip(self, member: Member, where: int, count: int = 1) -> None:
        """Invert some bytes of a member in the file."""
        with self.file(DOCUMENTS).open("r+b") as file:
            file.seek(member.offset + where)
            old = file.read(count)
            file.seek(member.offset + where)
            file.write(bytes(b ^ 0xFF for b in old))


@pytest.fixture
def case(original: tuple[Path, Dump[QdrantEvidence]], tmp_path: Path, context_factory: ContextFactory) -> Case:
    return Case(*original, tmp_path, context_factory)


def failed(checks: dict[str, Check]) -> set[str]:
    return {name for name, check in checks.items() if not check.passed}


def test_the_untouched_artifacts_pass(case: Case) -> None:
    assert not failed(case.inspect())


def test_f19_flipped_bytes_in_the_vectors_are_found_although_the_count_is_right(case: Case) -> None:
    """39 bytes of one stored vector: servers accept such a file, turn green and count right. The fingerprint does not."""
    largest = max(case.members("vector_storage/vectors/chunk"), key=lambda m: m.size)
    case.flip(largest, 700 * SIZE * 4, 39)
    checks = case.inspect()
    assert checks["snapshot_structure"].passed
    assert checks["snapshot_recovery"].passed
    assert checks["points"].passed
    assert "vectors" in failed(checks)
    assert checks["vectors"].differences[0].what == f"collection {DOCUMENTS}: vectors of all points"


def test_f19_one_flipped_bit_in_one_vector_is_found(case: Case) -> None:
    largest = max(case.members("vector_storage/vectors/chunk"), key=lambda m: m.size)
    with case.file(DOCUMENTS).open("r+b") as file:
        file.seek(largest.offset + 333 * SIZE * 4)
        (byte,) = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1]))
    assert failed(case.inspect()) == {"vectors"}


def test_f19_flipped_bytes_in_the_payloads_are_found(case: Case) -> None:
    largest = max(case.members("payload_storage/page_0"), key=lambda m: m.size)
    case.flip(largest, 5000, 8)
    assert failed(case.inspect()) & {"payloads", "snapshot_recovery"}


def test_f19_flipped_bytes_in_the_ids_are_found(case: Case) -> None:
    largest = max(case.members("id_tracker.mappings"), key=lambda m: m.size)
    case.flip(largest, largest.size // 2, 2)
    assert failed(case.inspect()) & {"points", "snapshot_recovery"}


@pytest.mark.parametrize("percent", [0, 10, 50, 95, 99.99])
def test_f18_a_cut_snapshot_is_found_without_a_server(case: Case, percent: float) -> None:
    whole = case.file(DOCUMENTS).read_bytes()
    case.file(DOCUMENTS).write_bytes(whole[: int(len(whole) * percent / 100)])
    with pytest.raises(VerificationFailed, match=r"cut|empty"):
        read_structure(case.file(DOCUMENTS), compressed=False)


def test_f18_a_cut_snapshot_fails_the_inspection_and_the_other_one_is_still_judged(case: Case) -> None:
    whole = case.file(DOCUMENTS).read_bytes()
    case.file(DOCUMENTS).write_bytes(whole[: len(whole) // 2])
    checks = case.inspect()
    assert failed(checks) == set(checks) - {"aliases"}
    assert "cut: it ends after" in checks["snapshot_structure"].detail
    assert DOCUMENTS in checks["vectors"].detail
    assert MIXED not in checks["vectors"].detail


def test_a_saved_error_message_is_called_one(case: Case) -> None:
    """The habit of the old scripts: the server's 404 answer stored as the backup."""
    said = '{"status":{"error":"Not found: Collection `scholaria_documents` doesn\'t exist!"},"time":0.00001}'
    case.file(DOCUMENTS).write_text(said)
    checks = case.inspect()
    assert "a saved error message (Not found: Collection" in checks["snapshot_structure"].detail
    assert "snapshot_structure" in failed(checks)


@pytest.mark.parametrize(
    ("content", "said"), [(b"", "empty"), (b"<html>x</html>", "web page"), (bytes(5000), "tar archive"), (b"x" * 900, "tar archive")]
)
def test_something_else_in_place_of_a_snapshot_is_named(case: Case, content: bytes, said: str) -> None:
    case.file(DOCUMENTS).write_bytes(content)
    with pytest.raises(VerificationFailed, match=said):
        read_structure(case.file(DOCUMENTS), compressed=False)


def test_f20_a_snapshot_of_another_collection_is_found_without_a_server(case: Case) -> None:
    shutil.copyfile(case.file(MIXED), case.file(DOCUMENTS))
    checks = case.inspect()
    assert not checks["snapshot_structure"].passed
    assert "vectors by the snapshot's own configuration" in checks["snapshot_structure"].detail


def test_f78_a_missing_snapshot_fails_every_check_of_content(case: Case) -> None:
    case.artifacts = tuple(a for a in case.artifacts if a.subject != MIXED)
    checks = case.inspect()
    assert {"snapshot_structure", "snapshot_recovery", "points", "vectors"} <= failed(checks)
    assert "mixed" in checks["points"].detail


def test_a_hostile_archive_is_refused_before_a_server_reads_it(case: Case) -> None:
    import io
    import tarfile

    for name, kind in (("../../etc/cron.d/x", tarfile.REGTYPE), ("/etc/passwd", tarfile.REGTYPE), ("0/link", tarfile.SYMTYPE)):
        raw = io.BytesIO()
        with tarfile.open(fileobj=raw, mode="w", format=tarfile.GNU_FORMAT) as archive:
            entry = tarfile.TarInfo(name)
            entry.type = kind
            entry.linkname = "/etc" if kind == tarfile.SYMTYPE else ""
            archive.addfile(entry)
        case.file(DOCUMENTS).write_bytes(raw.getvalue())
        with pytest.raises(VerificationFailed, match="hostile"):
            read_structure(case.file(DOCUMENTS), compressed=False)


def _other_alias(actions: list[dict[str, Any]]) -> None:
    actions[0]["create_alias"]["collection_name"] = MIXED


def _no_alias(actions: list[dict[str, Any]]) -> None:
    actions.clear()


def _hidden_deletion(actions: list[dict[str, Any]]) -> None:
    actions.append({"delete_alias": {"alias_name": "docs"}})


@pytest.mark.parametrize("change", [_other_alias, _no_alias, _hidden_deletion])
def test_changed_aliases_are_found(case: Case, change: Callable[[list[dict[str, Any]]], None]) -> None:
    (listing,) = (a for a in case.artifacts if a.kind == "aliases")
    content = json.loads((case.directory / listing.path).read_bytes())
    change(content["actions"])
    (case.directory / listing.path).write_text(json.dumps(content))
    case.evidence = case.evidence.model_copy(update={"collections": {}})  # nothing to recover: only the listing is judged here
    case.artifacts = (listing,)
    assert failed(case.inspect()) == {"aliases"}


def _collection(evidence: QdrantEvidence, **update: Any) -> QdrantEvidence:
    documents = evidence.collections[DOCUMENTS].model_copy(update=update)
    return evidence.model_copy(update={"collections": {DOCUMENTS: documents}})


def test_every_check_of_content_can_fail(case: Case) -> None:
    """The other way round: true artifacts against evidence in which one thing each is different."""
    case.artifacts = (case.artifact(DOCUMENTS), next(a for a in case.artifacts if a.kind == "aliases"))
    documents = case.evidence.collections[DOCUMENTS]
    first = documents.sample[0].model_copy(update={"payload_sha256": "0" * 64})
    search = documents.golden[0].model_copy(update={"hits": documents.golden[0].hits[:9]})
    config = {**documents.config, "hnsw_config": {**documents.config["hnsw_config"], "ef_construct": 1}}
    fingerprint = documents.fingerprint.model_copy(update={"payloads": "0" * 64, "vectors": "1" * 64})
    changed = _collection(
        case.evidence,
        points=POINTS + 1,
        sample=(first, *documents.sample[1:]),
        golden=(search, *documents.golden[1:]),
        config=config,
        indexes={"context_id": {"data_type": "keyword"}},
        fingerprint=fingerprint,
    )
    case.evidence = changed.model_copy(update={"aliases": {}})
    checks = case.inspect()
    assert failed(checks) == set(checks) - {"snapshot_structure", "snapshot_recovery"}
