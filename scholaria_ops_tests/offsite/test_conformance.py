"""What every offsite target must do, whatever stands behind it. A new implementation adds itself to ``TARGETS``."""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from scholaria_ops.cancel import CancelToken
from scholaria_ops.catalogue.ledger import Ledger
from scholaria_ops.errors import Cancelled, Refused, UsageError, VerificationFailed
from scholaria_ops.offsite.base import MARKER, FileToShip, OffsiteTarget
from scholaria_ops.offsite.s3 import S3Target
from scholaria_ops.progress import Silent
from scholaria_ops_tests.offsite.conftest import new_bucket, options_for
from scholaria_ops_tests.offsite.support import LAST, NAME, SMALL, VARIED, LocalSet, make_set

OTHER = "scholaria_backup_20241002_020000"
CANCEL = CancelToken()

#: How to make an empty target: implementation → factory.
Factory = Callable[[pytest.FixtureRequest, Path], OffsiteTarget]


def _s3(request: pytest.FixtureRequest, tmp_path: Path) -> OffsiteTarget:
    return S3Target(options_for(new_bucket(request.getfixturevalue("s3_server"))), Ledger(tmp_path / "ledger.jsonl"))


TARGETS: dict[str, Factory] = {"s3": _s3}


@pytest.fixture(params=list(TARGETS))
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[OffsiteTarget]:
    made = TARGETS[request.param](request, tmp_path)
    yield made
    made.close()


class Counting(Silent):
    """Adds up what is reported per task."""

    def __init__(self) -> None:
        self.done: dict[str, int] = {}
        self.total: dict[str, int | None] = {}

    def start(self, task: str, *, total: int | None = None, unit: str = "bytes") -> None:
        self.total[task] = total
        self.done.setdefault(task, 0)

    def advance(self, task: str, amount: int) -> None:
        self.done[task] += amount


def fetch(target: OffsiteTarget, into: Path, local: LocalSet, *, only: list[str] | None = None) -> dict[str, str]:
    into.mkdir(mode=0o700)
    report = target.download_set(NAME, into, only=only, expected=local.expected, cancel=CANCEL, progress=Silent())
    return {f.path: f.sha256 for f in report.files}


def test_a_set_comes_back_as_it_went(target: OffsiteTarget, tmp_path: Path) -> None:
    local = make_set(tmp_path / "local", VARIED)
    counting = Counting()
    report = local.ship(target, progress=counting)
    assert (report.name, report.size_bytes, report.sent_bytes, report.already_there) == (NAME, local.size_bytes, local.size_bytes, False)
    assert {f.path: f.sha256 for f in report.files} == local.expected
    assert {f.confirmed_by for f in report.files} == {"readback"}
    assert counting.done == counting.total == dict.fromkeys(counting.done, local.size_bytes)
    assert len(counting.done) == 2

    assert fetch(target, tmp_path / "back", local) == local.expected
    for path in local.expected:
        copy = tmp_path / "back" / path
        assert copy.read_bytes() == local.content(path)
        assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "back" / "qdrant_20241001_020000").stat().st_mode) == 0o700


def test_preflight_leaves_nothing(target: OffsiteTarget) -> None:
    facts = target.preflight(cancel=CANCEL)
    assert facts.details
    assert target.list_sets(cancel=CANCEL) == []


def test_shipping_again_sends_nothing(target: OffsiteTarget, small: LocalSet) -> None:
    small.ship(target)
    again = small.ship(target)
    assert (again.already_there, again.sent_bytes, again.size_bytes) == (True, 0, small.size_bytes)
    assert {f.confirmed_by for f in again.files} == {"earlier"}


def test_rereading_a_committed_set_confirms_it_anew(target: OffsiteTarget, small: LocalSet) -> None:
    small.ship(target)
    again = small.ship(target, existing="reread")
    assert again.already_there
    assert {f.confirmed_by for f in again.files} == {"readback"}


def test_another_set_of_that_name_is_refused(target: OffsiteTarget, small: LocalSet, tmp_path: Path) -> None:
    small.ship(target)
    other = make_set(tmp_path / "other", SMALL, seed=99)
    with pytest.raises(Refused, match=NAME):
        other.ship(target)
    assert fetch(target, tmp_path / "back", small) == small.expected


def test_a_listing_tells_complete_sets_from_others(target: OffsiteTarget, small: LocalSet) -> None:
    small.ship(target)
    small.ship(target, name=OTHER)
    target.put_records("20241001_020000", b"{}\n", cancel=CANCEL)
    first, second = target.list_sets(cancel=CANCEL)
    assert (first.name, first.complete, first.files, first.size_bytes) == (NAME, True, len(small.files), small.size_bytes)
    assert second.name == OTHER
    assert first.newest.tzinfo is not None
    assert {f.path: f.size_bytes for f in target.list_files(NAME, cancel=CANCEL)} == {f.path: f.size_bytes for f in small.files}
    assert target.list_files("scholaria_backup_20990101_000000", cancel=CANCEL) == []


def test_a_damaged_local_file_is_not_shipped(target: OffsiteTarget, small: LocalSet) -> None:
    path = small.directory / "folder/b.bin"
    content = bytearray(path.read_bytes())
    content[5] ^= 1
    path.write_bytes(content)
    with pytest.raises(VerificationFailed, match=r"folder/b\.bin"):
        small.ship(target)
    assert not any(found.complete for found in target.list_sets(cancel=CANCEL))


def test_a_local_file_of_another_size_is_not_shipped(target: OffsiteTarget, small: LocalSet) -> None:
    with (small.directory / "a.bin").open("ab") as out:
        out.write(b"more")
    with pytest.raises(VerificationFailed, match=r"a\.bin"):
        small.ship(target)


def test_unreasonable_shipments_are_refused_before_anything_is_sent(target: OffsiteTarget, small: LocalSet) -> None:
    def upload(name: str = NAME, files: tuple[FileToShip, ...] = small.files, last: tuple[str, ...] = LAST) -> None:
        target.upload_set(small.directory, name, files, last, confirm="readback", cancel=CANCEL, progress=Silent())

    for name in ("", ".", "..", ".records", "a/b", "a\nb", "../x"):
        with pytest.raises(UsageError):
            upload(name=name)
    with pytest.raises(UsageError):
        upload(last=("SHA256SUMS",))
    with pytest.raises(UsageError):
        upload(last=("not there", MARKER))
    with pytest.raises(UsageError):
        upload(files=(*small.files, small.files[0]))
    with pytest.raises(VerificationFailed):
        upload(files=(*small.files, FileToShip("../../etc/passwd", 1, "00" * 32)))
    assert target.list_sets(cancel=CANCEL) == []


def test_single_files_can_be_fetched(target: OffsiteTarget, small: LocalSet, tmp_path: Path) -> None:
    small.ship(target)
    assert fetch(target, tmp_path / "back", small, only=["folder/b.bin"]) == {"folder/b.bin": small.expected["folder/b.bin"]}
    assert not (tmp_path / "back" / "a.bin").exists()


def test_fetching_what_is_not_there_is_a_usage_error(target: OffsiteTarget, small: LocalSet, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=NAME):
        fetch(target, tmp_path / "one", small)
    small.ship(target)
    with pytest.raises(UsageError, match="nonsense"):
        fetch(target, tmp_path / "two", small, only=["nonsense"])
    with pytest.raises(UsageError):
        target.read_small(NAME, "nonsense", cancel=CANCEL)
    with pytest.raises(UsageError):
        target.read_back(NAME, "nonsense", cancel=CANCEL, progress=Silent())


def test_a_fetched_file_that_is_not_what_was_expected_is_named_and_not_kept(target: OffsiteTarget, small: LocalSet, tmp_path: Path) -> None:
    small.ship(target)
    (tmp_path / "back").mkdir()
    expected = {**small.expected, "a.bin": "00" * 32}
    with pytest.raises(VerificationFailed, match=r"a\.bin"):
        target.download_set(NAME, tmp_path / "back", expected=expected, cancel=CANCEL, progress=Silent())
    assert not (tmp_path / "back" / "a.bin").exists()


def test_a_set_that_lacks_an_expected_file_or_has_one_more_is_not_fetched(target: OffsiteTarget, small: LocalSet, tmp_path: Path) -> None:
    small.ship(target)
    into = tmp_path / "back"
    into.mkdir()
    with pytest.raises(VerificationFailed, match="missing one"):
        target.download_set(NAME, into, expected={**small.expected, "missing one": "00" * 32}, cancel=CANCEL, progress=Silent())
    fewer = {path: digest for path, digest in small.expected.items() if path != "a.bin"}
    with pytest.raises(VerificationFailed, match=r"a\.bin"):
        target.download_set(NAME, into, expected=fewer, cancel=CANCEL, progress=Silent())
    assert list(into.iterdir()) == []


def test_reading_back_hashes_what_is_there(target: OffsiteTarget, tmp_path: Path) -> None:
    local = make_set(tmp_path / "local", VARIED)
    local.ship(target)
    for file in local.files:
        found = target.read_back(NAME, file.path, cancel=CANCEL, progress=Silent())
        assert (found.path, found.size_bytes, found.sha256) == (file.path, file.size_bytes, file.sha256)


def test_a_small_file_is_read_whole(target: OffsiteTarget, small: LocalSet) -> None:
    small.ship(target)
    assert target.read_small(NAME, MARKER, cancel=CANCEL) == small.content(MARKER)
    assert target.read_small(NAME, "empty", cancel=CANCEL) == b""


def test_records_are_replaced_and_come_back_whole(target: OffsiteTarget) -> None:
    assert target.get_records(cancel=CANCEL) == {}
    target.put_records("20241001_020000", b'{"n": 1}\n', cancel=CANCEL)
    target.put_records("20241001_020000", b'{"n": 1}\n{"n": 2}\n', cancel=CANCEL)
    target.put_records("20241002_020000", b"", cancel=CANCEL)
    assert target.get_records(cancel=CANCEL) == {"20241001_020000": b'{"n": 1}\n{"n": 2}\n', "20241002_020000": b""}
    with pytest.raises(UsageError):
        target.put_records("../escape", b"", cancel=CANCEL)


def test_deleting_removes_one_set_only_and_may_be_repeated(target: OffsiteTarget, small: LocalSet) -> None:
    small.ship(target)
    small.ship(target, name=OTHER)
    assert target.delete_set(NAME, cancel=CANCEL) == len(small.files)
    assert target.delete_set(NAME, cancel=CANCEL) == 0
    assert [found.name for found in target.list_sets(cancel=CANCEL)] == [OTHER]
    for name in ("", ".", ".."):
        with pytest.raises(UsageError):
            target.delete_set(name, cancel=CANCEL)


def test_a_deleted_set_can_be_shipped_again(target: OffsiteTarget, small: LocalSet) -> None:
    small.ship(target)
    target.delete_set(NAME, cancel=CANCEL)
    assert not small.ship(target).already_there


def test_cancelling_stops_a_shipment_and_the_next_one_finishes_it(target: OffsiteTarget, tmp_path: Path) -> None:
    local = make_set(tmp_path / "local", VARIED)
    token = CancelToken()

    class Stop(Silent):
        def advance(self, task: str, amount: int) -> None:
            token.cancel("the test says so")

    with pytest.raises(Cancelled, match="the test says so"):
        local.ship(target, cancel=token, progress=Stop())
    assert not any(found.complete for found in target.list_sets(cancel=CANCEL))
    assert target.reap(cancel=CANCEL) == []
    local.ship(target)
    assert fetch(target, tmp_path / "back", local) == local.expected


def test_cancelling_stops_a_fetch(target: OffsiteTarget, tmp_path: Path) -> None:
    local = make_set(tmp_path / "local", VARIED)
    local.ship(target)
    token = CancelToken()

    class Stop(Silent):
        def advance(self, task: str, amount: int) -> None:
            token.cancel("enough")

    (tmp_path / "back").mkdir()
    with pytest.raises(Cancelled, match="enough"):
        target.download_set(NAME, tmp_path / "back", cancel=token, progress=Stop())


def test_nothing_is_done_for_a_cancelled_run(target: OffsiteTarget, small: LocalSet) -> None:
    token = CancelToken()
    token.cancel("before it began")
    with pytest.raises(Cancelled):
        small.ship(target, cancel=token)
    with pytest.raises(Cancelled):
        target.list_sets(cancel=token)
    assert target.list_sets(cancel=CANCEL) == []


def test_a_closed_target_can_be_used_again(target: OffsiteTarget, small: LocalSet) -> None:
    small.ship(target)
    target.close()
    assert len(target.list_sets(cancel=CANCEL)) == 1
