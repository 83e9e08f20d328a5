"""The derived index: the same answers as without it after every kind of change, and no trust in it where that matters."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from scholaria_ops.catalogue import index as index_module
from scholaria_ops.catalogue.commit import discard
from scholaria_ops.catalogue.layout import MANIFEST, SUMS
from scholaria_ops.catalogue.manifest import Manifest
from scholaria_ops.catalogue.sets import BackupSet, Catalogue, Entry, Kind
from scholaria_ops.errors import VerificationFailed
from scholaria_ops.files import make_private_dir
from scholaria_ops_tests.catalogue.factory import NOW, make_set, records_as_taken

DAY = timedelta(days=1)


@pytest.fixture
def sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[BackupSet]:
    """Twelve sets with records, and an index of them; files count as settled at once, so that it is used."""
    monkeypatch.setattr(index_module, "_SETTLED_NS", -(10**12))
    monkeypatch.setattr(index_module, "WORTHWHILE", 1)
    catalogue = Catalogue(tmp_path)
    make_private_dir(catalogue.layout.state)
    made = [make_set(catalogue, NOW + n * DAY, tier="daily", missing=("redis",) if n == 3 else ()) for n in range(12)]
    for one in made:
        lines = records_as_taken(one.id, one.head.cut_at, shipped=True, rehearsed=True)
        catalogue.layout.record(one.id).write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    catalogue.entries()
    assert catalogue.layout.index.exists()
    return made


def told(entries: list[Entry]) -> list[Any]:
    """All that a listing says, without the bulk of the records."""
    return [
        (
            e.name,
            e.kind,
            e.reason,
            e.unread,
            e.doubt,
            e.set and e.set.head,
            [(r.at, r.event, r.by) for r in e.records],
            (e.verified_at, e.verified_level, e.offsite_at, e.proven_at, e.held),
        )
        for e in entries
    ]


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The manifests that are read from now on."""
    found: list[str] = []
    plain = Manifest.read.__func__  # type: ignore[attr-defined]

    def read(cls: type[Manifest], path: Path) -> Manifest:
        found.append(path.parent.name)
        return plain(cls, path)  # type: ignore[no-any-return]

    monkeypatch.setattr(Manifest, "read", classmethod(read))
    return found


def test_what_stands_unchanged_is_not_read_again(sets: list[BackupSet], tmp_path: Path, reads: list[str]) -> None:
    listed = Catalogue(tmp_path).entries()
    assert reads == []
    assert told(listed) == told(Catalogue(tmp_path).entries(afresh=True))
    assert len(reads) == 12
    assert listed[0].set is not None
    assert listed[0].set.manifest == sets[0].manifest, "the whole manifest is there for whoever asks"


def _add(sets: list[BackupSet], catalogue: Catalogue) -> None:
    make_set(catalogue, NOW + 20 * DAY)


def _remove(sets: list[BackupSet], catalogue: Catalogue) -> None:
    discard(catalogue.layout, sets[2].directory)


def _edit_manifest(sets: list[BackupSet], catalogue: Catalogue) -> None:
    path = sets[4].directory / MANIFEST
    path.write_text(path.read_text().replace('"tier": "daily"', '"tier": "other"'))


def _edit_behind_the_clock(sets: list[BackupSet], catalogue: Catalogue) -> None:
    """Same length, same time of content: the time of the inode still tells."""
    path = sets[4].directory / MANIFEST
    before = path.stat()
    edited = path.read_bytes().replace(b'"daily"', b'"weird"', 1)
    while path.stat().st_ctime_ns == before.st_ctime_ns:  # a tick of the kernel's clock may last ten milliseconds
        with path.open("r+b") as out:
            out.write(edited)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def _replace_manifest(sets: list[BackupSet], catalogue: Catalogue) -> None:
    path = sets[5].directory / MANIFEST
    fresh = path.with_name("fresh")
    fresh.write_bytes(path.read_bytes().replace(b'"note": ""', b'"note": "n"'))
    fresh.rename(path)


def _drop_sums(sets: list[BackupSet], catalogue: Catalogue) -> None:
    (sets[6].directory / SUMS).unlink()


def _cut_artifact(sets: list[BackupSet], catalogue: Catalogue) -> None:
    (sets[7].directory / sets[7].manifest.artifacts[0].path).write_bytes(b"x")


def _drop_artifact(sets: list[BackupSet], catalogue: Catalogue) -> None:
    (sets[7].directory / sets[7].manifest.artifacts[0].path).unlink()


def _rename(sets: list[BackupSet], catalogue: Catalogue) -> None:
    sets[8].directory.rename(catalogue.layout.sealed("20300101_000000"))


def _swap(sets: list[BackupSet], catalogue: Catalogue) -> None:
    aside = catalogue.layout.root / ".aside"
    sets[8].directory.rename(aside)
    sets[9].directory.rename(sets[8].directory)
    aside.rename(sets[9].directory)


def _append(sets: list[BackupSet], catalogue: Catalogue) -> None:
    catalogue.records.append(sets[1].id, "verified", level="hash", passed=False)
    catalogue.records.append(sets[2].id, "held", why="audit")


def _strange_line(sets: list[BackupSet], catalogue: Catalogue) -> None:
    path = catalogue.layout.record(sets[1].id)
    path.write_bytes(path.read_bytes() + b'{"event": "sealed-for-ever"}\n')


def _unread_manifest(sets: list[BackupSet], catalogue: Catalogue) -> None:
    for one in sets[::2]:
        (one.directory / MANIFEST).unlink()
        (one.directory / MANIFEST).mkdir()  # reading it is an error for everybody, root included


def _unread_records(sets: list[BackupSet], catalogue: Catalogue) -> None:
    for one in sets[::2]:
        catalogue.layout.record(one.id).unlink()
        catalogue.layout.record(one.id).mkdir()


CHANGES = [
    _add,
    _remove,
    _edit_manifest,
    _edit_behind_the_clock,
    _replace_manifest,
    _drop_sums,
    _cut_artifact,
    _drop_artifact,
    _rename,
    _swap,
    _append,
    _strange_line,
    _unread_manifest,
    _unread_records,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda c: c.__name__.strip("_").replace("_", " "))
def test_after_any_change_the_listing_is_what_it_is_without_an_index(
    sets: list[BackupSet], tmp_path: Path, change: Callable[[list[BackupSet], Catalogue], None]
) -> None:
    before = told(Catalogue(tmp_path).entries())
    change(sets, Catalogue(tmp_path))
    afresh = told(Catalogue(tmp_path).entries(afresh=True))
    assert afresh != before, "the change is one that shows"
    for look in ("the first", "the one after, from an index that was written since"):
        assert told(Catalogue(tmp_path).entries()) == afresh, look


def test_half_a_directory_that_cannot_be_read_is_named_half_by_half(sets: list[BackupSet], tmp_path: Path) -> None:
    _unread_manifest(sets, Catalogue(tmp_path))
    unread = [e.name for e in Catalogue(tmp_path).entries() if e.unread]
    assert unread == [s.directory.name for s in sets[::2]]


@pytest.mark.parametrize(
    "damage",
    [lambda _: b"", lambda d: d[: len(d) // 2], lambda d: d.replace(b'"daily"', b'"d4ily"', 1), lambda _: b"[]", lambda d: bytes(len(d))],
    ids=["empty", "cut", "one byte", "another document", "zeroes"],
)
def test_a_damaged_index_is_as_good_as_none_and_is_made_anew(
    sets: list[BackupSet], tmp_path: Path, reads: list[str], damage: Callable[[bytes], bytes]
) -> None:
    path = Catalogue(tmp_path).layout.index
    right = told(Catalogue(tmp_path).entries())
    path.write_bytes(damage(path.read_bytes()))
    assert told(Catalogue(tmp_path).entries()) == right
    assert len(reads) == 12
    assert told(Catalogue(tmp_path).entries()) == right
    assert len(reads) == 12, "it was made anew"


def test_an_index_that_lies_hides_no_set_and_decides_no_removal(sets: list[BackupSet], tmp_path: Path) -> None:
    """Forged with a right checksum: listings may be wrong then, a set can still not vanish, and reading afresh sees the truth."""
    catalogue = Catalogue(tmp_path)
    body = catalogue.layout.index.read_bytes().partition(b"\n")[2]
    content = json.loads(body)
    del content["heads"][sets[0].directory.name]
    content["heads"][sets[1].directory.name]["head"]["tier"] = "weekly"
    body = json.dumps(content).encode()
    catalogue.layout.index.write_bytes(index_module._header(body) + b"\n" + body)
    assert [e.name for e in catalogue.entries()] == [s.directory.name for s in sets]
    lied = catalogue.entries()[1].set
    assert lied is not None
    assert lied.head.tier == "weekly"
    with pytest.raises(VerificationFailed, match="not the one that was listed"):
        _ = lied.manifest
    truth = catalogue.entries(afresh=True)[1].set
    assert truth is not None
    assert truth.head.tier == "daily"
    assert catalogue.find(sets[1].id).set == truth
    assert catalogue.find("latest").set == catalogue.entries(afresh=True)[-1].set


def test_the_named_set_has_its_records_whole_and_a_listed_one_without_the_bulk(sets: list[BackupSet], tmp_path: Path) -> None:
    catalogue = Catalogue(tmp_path)
    named, listed = catalogue.find(sets[0].id), catalogue.entries()[0]
    assert named.last("verified").detail["checks"]  # type: ignore[union-attr]
    assert "checks" not in listed.last("verified").detail  # type: ignore[union-attr]
    assert listed.last("rehearsed").detail["stores"]["redis"]["rto_s"] == 9.5  # type: ignore[union-attr]


def test_files_that_changed_a_moment_ago_are_not_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads: list[str]) -> None:
    monkeypatch.setattr(index_module, "WORTHWHILE", 1)
    monkeypatch.setattr(index_module, "_SETTLED_NS", 3600 * 10**9)
    catalogue = Catalogue(tmp_path)
    make_private_dir(catalogue.layout.state)
    make_set(catalogue)
    catalogue.entries()
    catalogue.entries()
    assert len(reads) == 2


def test_a_catalogue_that_may_only_be_read_is_listed_without_an_index(
    sets: list[BackupSet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalogue = Catalogue(tmp_path)
    catalogue.layout.index.unlink()
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert [e.kind for e in catalogue.entries()].count(Kind.SEALED) == 11
    assert not catalogue.layout.index.exists()


def test_a_small_catalogue_has_no_index(tmp_path: Path) -> None:
    catalogue = Catalogue(tmp_path)
    make_private_dir(catalogue.layout.state)
    make_set(catalogue)
    catalogue.entries()
    assert not catalogue.layout.index.exists()
