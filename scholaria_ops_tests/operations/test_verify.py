"""Verification: every byte of the set, by name; and content, also when somebody recomputed the checksums."""

from __future__ import annotations

import gzip
import io
import json
import shutil
import tarfile
from pathlib import Path

import pytest

from scholaria_ops.catalogue.sets import BackupSet, Catalogue
from scholaria_ops.operations.services import Services
from scholaria_ops.operations.verify import VerifyReport, verify
from scholaria_ops_tests.operations.conftest import ServicesFactory
from scholaria_ops_tests.operations.support import copied, flip, recompute, take


def _verify(services: Services, directory: Path, level: str = "hash") -> VerifyReport:
    entry = Catalogue(directory.parent).find(str(directory))
    assert level in {"hash", "readable"}
    return verify(services, entry, "readable" if level == "readable" else "hash")


def _told(report: VerifyReport) -> str:
    return "\n".join(f"{f.name}: {f.check.detail}" for f in report.failed)


def test_a_good_set_verifies_at_both_levels_without_its_source(services_factory: ServicesFactory, pristine: BackupSet) -> None:
    """Every live store is pointed at a closed port: verification may not need one."""
    services = services_factory(DB_PORT="1", REDIS_PORT="1", QDRANT_URL="http://127.0.0.1:1")
    services.check_directory()
    directory = copied(pristine, services.catalogue.layout.root)
    for level in ("hash", "readable"):
        report = _verify(services, directory, level)
        assert report.failed == (), _told(report)
        assert report.unjudged == ()
        assert report.bytes_read >= pristine.manifest.size_bytes
    assert {f.subject for f in report.findings} == {"set", "postgres", "redis", "qdrant"}
    newest = services.catalogue.find(pristine.id)
    assert (newest.verified_level, services.catalogue.find("latest").id) == ("readable", pristine.id)


def test_f19_one_flipped_bit_in_any_file_is_caught_by_name(services_factory: ServicesFactory, pristine: BackupSet, tmp_path: Path) -> None:
    services = services_factory()
    names = [p.relative_to(pristine.directory).as_posix() for p in pristine.directory.rglob("*") if p.is_file()]
    assert {"SHA256SUMS", "backup_manifest.json", "RESTORE.txt"} <= set(names)
    assert len(names) >= 8
    for number, name in enumerate(names):
        root = tmp_path / f"root{number}"
        root.mkdir()
        directory = copied(pristine, root)
        flip(directory / name)
        entry = Catalogue(root).find(str(directory))
        if entry.set is None and name != "backup_manifest.json":
            pytest.fail(f"{name}: a changed byte must not make the set unlistable")
        here = _with_root(services, root)
        report = verify(here, entry, "hash")
        assert not report.passed, name
        assert name in _told(report), f"{name} is not named in: {_told(report)}"
        recorded = here.catalogue.records.last(pristine.id, "verified")
        assert recorded
        assert recorded.detail["passed"] is False


def _with_root(services: Services, root: Path) -> Services:
    import dataclasses

    return dataclasses.replace(services, catalogue=Catalogue(root))


@pytest.mark.parametrize("where", [0, 1, -1])
def test_f19_the_first_second_and_last_byte_of_an_artifact(
    services_factory: ServicesFactory, pristine: BackupSet, tmp_path: Path, where: int
) -> None:
    for artifact in pristine.manifest.artifacts:
        root = tmp_path / artifact.path.replace("/", "_")
        root.mkdir()
        directory = copied(pristine, root)
        flip(directory / artifact.path, where, 0x01)
        report = _verify(_with_root(services_factory(), root), directory)
        assert artifact.path in _told(report)


def test_f69_an_edited_manifest_is_caught_also_with_recomputed_checksums(
    services_factory: ServicesFactory, pristine: BackupSet, tmp_path: Path
) -> None:
    directory = copied(pristine, tmp_path)
    path = directory / "backup_manifest.json"
    content = json.loads(path.read_text())
    content["tier"] = "monthly"
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n")
    services = _with_root(services_factory(), tmp_path)
    assert "backup_manifest.json is not what was sealed" in _told(_verify(services, directory))
    recompute(directory)
    assert "SHA256SUMS is not the file that was sealed" in _told(_verify(services, directory))


def test_f18_a_cut_artifact_is_named(services_factory: ServicesFactory, pristine: BackupSet, tmp_path: Path) -> None:
    services = _with_root(services_factory(), tmp_path)
    directory = copied(pristine, tmp_path)
    artifact = pristine.manifest.artifacts_of("postgres")[0]
    whole = (directory / artifact.path).read_bytes()
    for share in (0.10, 0.50, 0.95):
        (directory / artifact.path).write_bytes(whole[: int(len(whole) * share)])
        assert artifact.path in _told(_verify(services, directory, "readable"))


def test_f20_another_sets_valid_artifact_is_caught_also_with_recomputed_checksums(
    services_factory: ServicesFactory, pristine: BackupSet, tmp_path: Path
) -> None:
    services = services_factory()
    other = take(services)
    mine, theirs = (s.manifest.artifacts_of("postgres")[0] for s in (pristine, other))
    assert mine.sha256 != theirs.sha256
    here = _with_root(services, tmp_path)
    directory = copied(pristine, tmp_path)
    shutil.copy(other.directory / theirs.path, directory / mine.path)
    assert f"{mine.path} is not what was sealed" in _told(_verify(here, directory))
    recompute(directory)
    assert "SHA256SUMS is not the file that was sealed" in _told(_verify(here, directory))


def test_a_file_that_does_not_belong_and_one_that_is_missing_are_named(
    services_factory: ServicesFactory, pristine: BackupSet, tmp_path: Path
) -> None:
    services = _with_root(services_factory(), tmp_path)
    directory = copied(pristine, tmp_path)
    (directory / "core").write_bytes(b"x")
    (directory / "RESTORE.txt").unlink()
    told = _told(_verify(services, directory))
    assert "core does not belong to the set" in told
    assert "RESTORE.txt is missing" in told


def test_f21_bytes_that_are_not_those_that_were_sealed_reach_no_tool(
    services_factory: ServicesFactory, pristine: BackupSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = copied(pristine, tmp_path)
    artifact = pristine.manifest.artifacts_of("postgres")[0]
    flip(directory / artifact.path)
    services = _with_root(services_factory(), tmp_path)

    def never(*args: object) -> None:
        pytest.fail("an unauthenticated archive was opened")

    for store in services.stores.values():
        monkeypatch.setattr(store, "inspect", never)
    report = _verify(services, directory, "readable")
    assert any("not opened, because" in f.check.detail for f in report.unjudged)


def _old_style(root: Path, pristine: BackupSet, qdrant: bytes) -> Path:
    """A set as the old scripts laid it out, with this sample's real PostgreSQL and Redis files."""
    directory = root / "scholaria_backup_20241001_020000"
    directory.mkdir(parents=True, mode=0o700)
    for artifact, name in (
        (pristine.manifest.artifacts_of("postgres")[0], "postgres_20241001_020000.sql.custom"),
        (pristine.manifest.artifacts_of("redis")[0], "redis_20241001_020000.rdb.gz"),
    ):
        shutil.copy(pristine.directory / artifact.path, directory / name)
    (directory / "qdrant_snapshot.tar.gz").write_bytes(qdrant)
    (directory / "backup_manifest.json").write_text('{"backup_date": "20241001_020000"}')
    for path in directory.iterdir():
        path.chmod(0o600)
    return directory


def test_old_style_sets_are_verified_and_a_saved_error_message_is_named(
    services_factory: ServicesFactory, pristine: BackupSet, tmp_path: Path
) -> None:
    services = _with_root(services_factory(), tmp_path)
    directory = _old_style(tmp_path, pristine, b'{"status":{"error":"Not found: Collection documents does not exist!"},"time":1e-5}')
    report = _verify(services, directory, "readable")
    passed = {f.subject: f.check.passed for f in report.findings}
    assert passed == {"set": None, "postgres": True, "redis": True, "qdrant": False}
    assert "saved error message of the server" in _told(report)


def test_a_sound_old_style_set_verifies_and_a_damaged_one_does_not(
    services_factory: ServicesFactory, pristine: BackupSet, tmp_path: Path
) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        member = tarfile.TarInfo("documents.snapshot")
        member.size = 5000
        tar.addfile(member, io.BytesIO(bytes(5000)))
    services = _with_root(services_factory(), tmp_path)
    directory = _old_style(tmp_path, pristine, packed.getvalue())
    assert _verify(services, directory, "readable").failed == ()
    redis = directory / "redis_20241001_020000.rdb.gz"
    rdb = bytearray(gzip.decompress(redis.read_bytes()))
    rdb[len(rdb) // 2] ^= 0xFF
    redis.write_bytes(gzip.compress(bytes(rdb)))
    assert [f.subject for f in _verify(services, directory, "readable").failed] == ["redis"]
    redis.write_bytes(redis.read_bytes()[:-100])
    assert [f.subject for f in _verify(services, directory, "readable").failed] == ["redis"]
