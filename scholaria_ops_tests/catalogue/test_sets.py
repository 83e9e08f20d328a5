"""Listing: what is a set, what is not, and why."""

from __future__ import annotations

import contextlib
import gzip
import json
import shutil
from datetime import timedelta
from pathlib import Path

import pytest

from scholaria_ops.catalogue.manifest import Manifest, json_schema
from scholaria_ops.catalogue.sets import Catalogue, Kind, parse_sums
from scholaria_ops.errors import Refused, UsageError, VerificationFailed
from scholaria_ops_tests.catalogue.factory import NOW, make_set


def test_latest_is_the_newest_verified_whole_set_by_its_cut(tmp_path: Path) -> None:
    catalogue = Catalogue(tmp_path)
    make_set(catalogue, NOW, set_id="20991231_235959", verified=True)  # a label from a clock that was wrong
    newest = make_set(catalogue, NOW + timedelta(days=1), set_id="20260302_020000", verified=True)
    make_set(catalogue, NOW + timedelta(days=2), verified=False)
    make_set(catalogue, NOW + timedelta(days=3), missing=("qdrant",), verified=True)
    assert catalogue.find("latest").id == newest.id, "ordered by the instant of the cut; neither unverified nor partial"


def test_a_later_failed_verification_counts(tmp_path: Path) -> None:
    catalogue = Catalogue(tmp_path)
    made = make_set(catalogue, verified=True)
    catalogue.records.append(made.id, "verified", level="hash", passed=False)
    with pytest.raises(UsageError, match=r"no verified set .* \(1 unverified\)"):
        catalogue.find("latest")


def test_sets_are_found_by_id_and_by_path_and_unknown_ones_are_answered_with_what_there_is(tmp_path: Path) -> None:
    catalogue = Catalogue(tmp_path / "b")
    made = make_set(catalogue)
    assert catalogue.find(made.id).directory == made.directory
    assert catalogue.find(str(made.directory)).id == made.id
    elsewhere = tmp_path / "elsewhere" / made.directory.name
    shutil.copytree(made.directory, elsewhere)
    assert catalogue.find(str(elsewhere)).kind is Kind.SEALED
    with pytest.raises(UsageError, match=f"there is no set '20200101_000000'; the newest here is {made.id}"):
        catalogue.find("20200101_000000")


def test_f67_missing_manifest_missing_artifact_and_strays_are_each_named(tmp_path: Path) -> None:
    catalogue = Catalogue(tmp_path)
    no_manifest = make_set(catalogue, NOW)
    (no_manifest.directory / "backup_manifest.json").unlink()
    no_artifact = make_set(catalogue, NOW + timedelta(days=1))
    (no_artifact.directory / no_artifact.manifest.artifacts[0].path).unlink()
    short = make_set(catalogue, NOW + timedelta(days=2))
    path = short.directory / short.manifest.artifacts[1].path
    path.write_bytes(path.read_bytes()[:-1])
    renamed = make_set(catalogue, NOW + timedelta(days=3))
    renamed.directory.rename(tmp_path / "scholaria_backup_20300101_000000")
    (tmp_path / "lost+found").mkdir()
    (tmp_path / "scholaria_backup_yesterday").mkdir()
    (tmp_path / "scholaria_backup_20250101_000000").symlink_to(no_manifest.directory)
    told = {e.name: (e.kind, e.reason) for e in catalogue.entries()}
    assert told[no_manifest.directory.name][0] is Kind.DAMAGED
    assert "backup_manifest.json is missing" in told[no_manifest.directory.name][1]
    assert f"{no_artifact.manifest.artifacts[0].path} is missing" in told[no_artifact.directory.name][1]
    assert "has 999 bytes instead of 1,000" in told[short.directory.name][1]
    assert f"is of set {renamed.id}" in told["scholaria_backup_20300101_000000"][1]
    assert told["lost+found"] == (Kind.STRAY, "not made by this product")
    assert told["scholaria_backup_yesterday"] == (Kind.STRAY, "its name holds no valid id")
    assert told["scholaria_backup_20250101_000000"][0] is Kind.STRAY


def test_a_catalogue_that_cannot_be_read_is_an_error_not_an_empty_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Refused, match="cannot read"):
        Catalogue(tmp_path / "file").entries()


def test_f84_a_partial_set_is_listed_as_such_and_counts_for_nothing(tmp_path: Path) -> None:
    catalogue = Catalogue(tmp_path)
    partial = make_set(catalogue, missing=("redis",), verified=True)
    (entry,) = catalogue.entries()
    assert (entry.kind, entry.name) == (Kind.PARTIAL, f"scholaria_partial_{partial.id}")
    assert catalogue.sealed() == []
    with pytest.raises(UsageError):
        catalogue.find("latest")


@pytest.mark.parametrize("reference", ["../../etc", "/etc", "a\nb"])
def test_hostile_references_are_usage_errors(tmp_path: Path, reference: str) -> None:
    catalogue = Catalogue(tmp_path)
    with contextlib.suppress(UsageError):
        assert catalogue.find(reference).kind is Kind.STRAY


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a//b", "a/../../b", "a\\b"])
def test_paths_in_checksum_files_stay_inside(path: str) -> None:
    with pytest.raises(VerificationFailed):
        parse_sums(f"{'0' * 64}  {path}\n".encode(), source="SHA256SUMS")


def test_the_manifest_round_trips_and_unknown_fields_are_refused(tmp_path: Path) -> None:
    made = make_set(Catalogue(tmp_path))
    data = made.manifest.to_bytes()
    assert Manifest.from_bytes(data, source="x") == made.manifest
    content = json.loads(data)
    content["surprise"] = 1
    with pytest.raises(VerificationFailed, match="surprise"):
        Manifest.from_bytes(json.dumps(content).encode(), source="x")
    content = json.loads(data)
    content["format_version"] = 2
    with pytest.raises(VerificationFailed, match="format_version"):
        Manifest.from_bytes(json.dumps(content).encode(), source="x")


def test_the_committed_schema_is_that_of_the_code_and_describes_a_real_manifest(tmp_path: Path) -> None:
    import jsonschema

    committed = json.loads((Path(__file__).parents[2] / "docs" / "manifest.schema.json").read_text())
    assert committed == json_schema(), "run: python -m scholaria_ops.catalogue.schema > docs/manifest.schema.json"
    jsonschema.validate(json.loads(make_set(Catalogue(tmp_path)).manifest.to_bytes()), committed)


def _old_style(root: Path, qdrant: bytes) -> Path:
    directory = root / "scholaria_backup_20241001_020000"
    directory.mkdir(parents=True)
    (directory / "postgres_20241001_020000.sql.custom").write_bytes(b"PGDMP" + bytes(100))
    with gzip.open(directory / "redis_20241001_020000.rdb.gz", "wb") as out:
        out.write(b"REDIS0011" + bytes(100))
    (directory / "qdrant_snapshot.tar.gz").write_bytes(qdrant)
    (directory / "backup_manifest.json").write_text('{"backup_date": "20241001_020000", "components": ["postgres", "redis", "qdrant"]}')
    return directory


def test_an_old_style_set_with_a_saved_error_message_is_called_unrestorable(tmp_path: Path) -> None:
    _old_style(tmp_path, b'{"status":{"error":"Not found: Collection `documents` doesn\'t exist!"},"time":0.0}')
    (entry,) = Catalogue(tmp_path).entries()
    assert entry.kind is Kind.LEGACY
    assert "saved error message of the server" in entry.reason
    assert "Not found" in entry.reason


def test_a_sound_old_style_set_is_listed_without_complaint(tmp_path: Path) -> None:
    import io
    import tarfile

    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        member = tarfile.TarInfo("config.json")
        member.size = 2
        tar.addfile(member, io.BytesIO(b"{}"))
    _old_style(tmp_path, packed.getvalue())
    (entry,) = Catalogue(tmp_path).entries()
    assert (entry.kind, entry.reason) == (Kind.LEGACY, "")
