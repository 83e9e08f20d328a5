"""The commit protocol: before or after, never between."""

from __future__ import annotations

import signal
import stat
import sys
import time
from pathlib import Path

import pytest

from scholaria_ops.catalogue import commit
from scholaria_ops.catalogue.commit import discard, reap, staging
from scholaria_ops.catalogue.manifest import Manifest
from scholaria_ops.catalogue.sets import Catalogue, Kind
from scholaria_ops.errors import Refused, VerificationFailed
from scholaria_ops.files import hash_file, make_private_dir
from scholaria_ops.process import run, start_daemon
from scholaria_ops_tests.catalogue.factory import NOW, fill, make_set

ID = "20260301_020000"

#: Seals a set in a process of its own, which kills itself right before its n-th durable step.
KILLED_SEAL = """
import os, signal, sys
from pathlib import Path
from scholaria_ops import files
from scholaria_ops.catalogue import commit
from scholaria_ops.catalogue.commit import staging
from scholaria_ops.catalogue.layout import Layout
from scholaria_ops_tests.catalogue.factory import NOW, fill

limit, done = int(sys.argv[2]), 0

def dying(call):
    def step(*args, **kwargs):
        global done
        done += 1
        if done == limit:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*args, **kwargs)
    return step

os.fsync, Path.rename = dying(os.fsync), dying(Path.rename)
with staging(Layout(Path(sys.argv[1])), "20260301_020000") as stage:
    stage.seal(fill(stage, NOW), "how to restore")
print(done)
"""


def _seal_killed_at(root: Path, step: int) -> tuple[int, str]:
    finished = run([sys.executable, "-c", KILLED_SEAL, str(root), str(step)], check=False, env={"PYTHONPATH": str(Path.cwd())})
    return finished.returncode, finished.stdout.decode().strip()


@pytest.mark.slow(7)
def test_f06_killed_at_each_step_the_catalogue_is_as_before_or_as_after(tmp_path: Path) -> None:
    code, steps = _seal_killed_at(tmp_path / "whole", 10_000)
    assert code == 0
    assert int(steps) >= 10, "the protocol has at least: three artifacts, text, manifest, sums, directories, rename, parents"
    seen = set()
    for step in range(1, int(steps) + 1):
        root = tmp_path / str(step)
        code, _ = _seal_killed_at(root, step)
        assert code == -signal.SIGKILL
        catalogue = Catalogue(root)
        before = [(e.name, e.kind) for e in catalogue.entries()]
        assert before in ([], [(f"scholaria_backup_{ID}", Kind.SEALED)]), f"step {step}: {before}"
        reap(catalogue.layout)
        assert not any(catalogue.layout.staging.iterdir())
        assert [(e.name, e.kind) for e in catalogue.entries()] == before, "reaping touches no set"
        seen.add(len(before))
    assert seen == {0, 1}, "some kills came before the rename, some after"


def test_a_sealed_set_passes_sha256sum_and_is_private(tmp_path: Path) -> None:
    sealed = make_set(Catalogue(tmp_path))
    assert run(["sha256sum", "--strict", "-c", "SHA256SUMS"], cwd=sealed.directory).returncode == 0
    modes = {stat.S_IMODE(p.stat().st_mode) for p in sealed.directory.rglob("*") if p.is_file()}
    assert modes == {0o600}
    assert {stat.S_IMODE(p.stat().st_mode) for p in (sealed.directory, *sealed.directory.rglob("*")) if p.is_dir()} == {0o700}


def test_what_reads_back_differently_is_not_sealed(tmp_path: Path) -> None:
    catalogue = Catalogue(tmp_path)

    def seal() -> None:
        with staging(catalogue.layout, ID) as stage:
            manifest = fill(stage, NOW)
            path = stage.path / manifest.artifacts[1].path
            path.write_bytes(path.read_bytes()[:-1] + b"!")
            stage.seal(manifest, "text")

    with pytest.raises(VerificationFailed, match=r"redis_.* reads back differently"):
        seal()
    assert catalogue.entries() == []
    assert list(catalogue.layout.staging.iterdir()) == []


def test_f08_disk_full_while_the_manifest_is_written_leaves_the_set_invisible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel refuses the manifest's bytes: the limit on file sizes lies between the artifacts' size and the manifest's."""
    import resource

    catalogue = Catalogue(tmp_path)
    make_set(catalogue, set_id="20260228_020000")
    monkeypatch.setattr(Manifest, "to_bytes", lambda _: bytes(3_000_000))
    old, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, old[1]))
        with pytest.raises(Exception, match=r"no space left while writing backup_manifest\.json"):
            make_set(catalogue, set_id=ID)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)
    assert [e.id for e in catalogue.entries()] == ["20260228_020000"]
    assert list(catalogue.layout.staging.iterdir()) == []


def test_a_standing_set_is_never_replaced(tmp_path: Path) -> None:
    catalogue = Catalogue(tmp_path)
    sealed = make_set(catalogue, set_id=ID)
    digest = hash_file(sealed.directory / "SHA256SUMS").sha256
    with pytest.raises(Refused, match="exists already"):
        make_set(catalogue, set_id=ID)
    assert hash_file(sealed.directory / "SHA256SUMS").sha256 == digest


def test_a_file_that_nothing_names_stops_the_seal(tmp_path: Path) -> None:
    catalogue = Catalogue(tmp_path)

    def seal() -> None:
        with staging(catalogue.layout, ID) as stage:
            manifest = fill(stage, NOW)
            (stage.path / "core.1234").write_bytes(b"x")
            stage.seal(manifest, "text")

    with pytest.raises(VerificationFailed, match=r"core\.1234"):
        seal()


def test_a_killed_discard_is_finished_by_the_next_run(tmp_path: Path) -> None:
    catalogue = Catalogue(tmp_path)
    first, second = make_set(catalogue, set_id=ID), make_set(catalogue, set_id="20260301_020001")
    discard(catalogue.layout, first.directory)
    assert [e.id for e in catalogue.entries()] == [second.id]
    catalogue.layout.trash.mkdir(exist_ok=True)
    second.directory.rename(catalogue.layout.trash / second.directory.name)  # as if killed right after the rename
    assert reap(catalogue.layout) == [f".trash/{second.directory.name}"]
    assert catalogue.entries() == []


def test_f83_interrupted_while_the_staging_directory_is_made_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = Catalogue(tmp_path).layout

    def interrupted(path: Path, *, exist_ok: bool = False) -> None:
        make_private_dir(path, exist_ok=exist_ok)
        if path.name == ID:
            raise KeyboardInterrupt

    monkeypatch.setattr(commit, "make_private_dir", interrupted)
    with pytest.raises(KeyboardInterrupt), staging(layout, ID):
        pass
    assert list(layout.staging.iterdir()) == []
    monkeypatch.undo()
    with staging(layout, ID) as first:
        with pytest.raises(FileExistsError), staging(layout, ID):
            pass
        assert first.path.is_dir(), "somebody else's is left alone"


def test_f83_a_terminated_seal_leaves_nothing_in_staging(tmp_path: Path) -> None:
    """SIGTERM as Dagster or systemd send it, turned into an exception as the command line does."""
    code = """
import signal, sys, time
from pathlib import Path
from scholaria_ops.catalogue.commit import staging
from scholaria_ops.catalogue.layout import Layout
from scholaria_ops_tests.catalogue.factory import NOW, fill
def stop(*_): raise KeyboardInterrupt
signal.signal(signal.SIGTERM, stop)
with staging(Layout(Path(sys.argv[1])), "20260301_020000") as stage:
    fill(stage, NOW)
    Path(sys.argv[2]).touch()
    time.sleep(600)
"""
    daemon = start_daemon(
        [sys.executable, "-c", code, str(tmp_path / "b"), str(tmp_path / "ready")],
        log=tmp_path / "log",
        env={"PYTHONPATH": str(Path.cwd())},
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "ready").exists():
        assert time.monotonic() < deadline, (tmp_path / "log").read_text()
        time.sleep(0.02)
    daemon.stop(grace_s=100)
    assert list((tmp_path / "b" / ".staging").iterdir()) == []
