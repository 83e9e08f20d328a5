"""Private, durable files."""

from __future__ import annotations

import errno
import hashlib
import os
import resource
import signal
import stat
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from scholaria_ops import hashed
from scholaria_ops.errors import DiskFull
from scholaria_ops.files import HashingWriter, Written, append_durably, disk_errors, hash_file, make_private_dir, write_private
from scholaria_ops.hashed import hash_unless_known


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o777])
def test_f86_permissions_are_private_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    old = os.umask(umask)
    try:
        directory = make_private_dir(tmp_path / "a" / "b")
        file = write_private(directory / "f", b"x").path
        append_durably(directory / "g", b"line")
    finally:
        os.umask(old)
    assert [_mode(p) for p in (tmp_path / "a", directory, file, directory / "g")] == [0o700, 0o700, 0o600, 0o600]


def test_hash_while_writing_agrees_with_reading_back(tmp_path: Path) -> None:
    blocks = [os.urandom(100_000), b"", os.urandom(1)]
    seen: list[int] = []
    with HashingWriter(tmp_path / "f", on_bytes=seen.append) as out:
        for block in blocks:
            out.write(block)
    assert out.result == hash_file(tmp_path / "f")
    assert out.result.sha256 == hashlib.sha256(b"".join(blocks)).hexdigest()
    assert sum(seen) == 100_001


def test_an_existing_file_is_never_written_over(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("old")
    with pytest.raises(FileExistsError), HashingWriter(tmp_path / "f"):
        pass
    assert (tmp_path / "f").read_text() == "old"


def test_a_failed_writer_leaves_no_file(tmp_path: Path) -> None:

    def fail() -> None:
        with HashingWriter(tmp_path / "f") as out:
            out.write(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_f07_a_full_disk_is_a_permanent_error_with_numbers(tmp_path: Path) -> None:
    """The kernel's own refusal, by a limit on file sizes (which any user may set for itself)."""
    old_limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    old_handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, old_limit[1]))
        with (
            pytest.raises(DiskFull, match=r"at least [\d,]+ bytes needed, [\d,]+ bytes free") as caught,
            HashingWriter(tmp_path / "f") as out,
        ):
            out.write(bytes(2_000_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old_limit)
        signal.signal(signal.SIGXFSZ, old_handler)
    assert not caught.value.retryable
    assert list(tmp_path.iterdir()) == []


def test_other_errors_are_not_mistaken_for_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), disk_errors(tmp_path):
        raise OSError(errno.EACCES, "no")


def test_a_torn_line_does_not_swallow_the_next_one(tmp_path: Path) -> None:
    path = tmp_path / "log"
    append_durably(path, b"one")
    path.write_bytes(path.read_bytes() + b'{"to')
    append_durably(path, b"two")
    assert path.read_bytes().splitlines() == [b"one", b'{"to', b"two"]


def test_a_file_is_hashed_again_only_if_it_may_have_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_private(tmp_path / "f", b"one").path
    read: list[Path] = []

    def reading(path: Path, **_: object) -> Written:
        read.append(path)
        return hash_file(path)

    monkeypatch.setattr(hashed, "hash_file", reading)
    monkeypatch.setattr(hashed, "SETTLED_S", 60.0)
    assert hash_unless_known(path).sha256 == hash_unless_known(path).sha256 == hashlib.sha256(b"one").hexdigest()
    assert len(read) == 2, "written a moment ago: a change in the same tick of the clock would not show"
    monkeypatch.setattr(hashed, "SETTLED_S", -1.0)
    seen: list[int] = []
    assert hash_unless_known(path).size == hash_unless_known(path, on_bytes=seen.append).size == 3
    assert (len(read), seen) == (3, [3])
    before = path.stat()
    while path.stat().st_ctime_ns == before.st_ctime_ns:  # a tick of the kernel's clock may last ten milliseconds
        path.write_bytes(b"two")
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert hash_unless_known(path).sha256 == hashlib.sha256(b"two").hexdigest(), "the time of the last write was put back"
    monkeypatch.setattr(hashed, "_BELIEVED_S", 0.0)
    hash_unless_known(path)
    assert len(read) == 5
    monkeypatch.setattr(hashed, "_BELIEVED_S", 900.0)
    directory = tmp_path / "staging"
    directory.mkdir()
    path.rename(directory / "f")
    hash_unless_known(directory / "f")  # a rename of the file itself may count as a change
    done = len(read)
    moved = directory.rename(tmp_path / "elsewhere") / "f"
    assert hash_unless_known(moved) == Written(moved, 3, hashlib.sha256(b"two").hexdigest())
    assert len(read) == done, "a set is sealed by a rename of its directory"


def test_a_file_system_that_counts_in_seconds_is_given_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_private(tmp_path / "f", b"one").path
    now = time.time()
    monkeypatch.setattr(hashed, "time", SimpleNamespace(time=lambda: now))

    def changed(ago_s: float, *, fraction: int) -> os.stat_result:
        at = int(now - ago_s) * 1_000_000_000 + fraction
        found = path.stat()
        return os.stat_result(list(found)[:10], {"st_ctime": at / 1e9, "st_ctime_ns": at, "st_mtime_ns": at})

    assert [hashed.settled(changed(ago, fraction=0)) for ago in (0, 1, 4)] == [False, False, True]
    assert hashed.settled(changed(1.5, fraction=5))
