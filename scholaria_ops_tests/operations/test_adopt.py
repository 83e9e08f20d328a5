"""Old-style sets become regular ones: measured in real servers, proven from then on, and never passed off as more than they are."""

from __future__ import annotations

import gzip
import os
import shutil
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from scholaria_ops.catalogue.sets import BackupSet, Kind
from scholaria_ops.errors import Cancelled, DiskFull, OpsError, Refused, UsageError, VerificationFailed
from scholaria_ops.operations import adopt as adopting
from scholaria_ops.operations.adopt import AdoptOptions, adopt
from scholaria_ops.operations.rehearse import rehearse
from scholaria_ops.operations.services import Services
from scholaria_ops.sandbox.sample import SampleStack
from scholaria_ops.sandbox.tools import Tools
from scholaria_ops_tests.conftest import SampleServers
from scholaria_ops_tests.operations import old_style
from scholaria_ops_tests.operations.conftest import ServicesFactory
from scholaria_ops_tests.operations.old_style import OLD_ID, OLD_NAME
from scholaria_ops_tests.operations.support import environment, leftover_processes

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="session")
def old_set(sample_stack: SampleStack, sample_servers: SampleServers, tools: Tools, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An old-style set of the sample. Read only: copy it."""
    root = tmp_path_factory.mktemp("old")
    return old_style.make(root, tools, sample_stack.postgres_admin, sample_servers.redis, sample_stack.qdrant)


@pytest.fixture
def services(services_factory: ServicesFactory) -> Services:
    made = services_factory()
    made.check_directory()
    return made


@pytest.fixture
def copy(services: Services, old_set: Path) -> Path:
    """The old-style set in the test's own BACKUP_DIR."""
    return Path(shutil.copytree(old_set, services.catalogue.layout.root / OLD_NAME))


def nothing_left(services: Services, *, sets: int = 1) -> None:
    """No set, no half of one, no server."""
    layout = services.catalogue.layout
    assert [e.kind for e in services.catalogue.entries()] == [Kind.LEGACY] * sets
    assert not layout.staging.exists() or not any(layout.staging.iterdir())
    assert leftover_processes(services.settings.scratch_root) == []
    scratch = services.settings.scratch_root
    assert not scratch.exists() or not any(scratch.iterdir())


def fingerprints(backup_set: BackupSet) -> object:
    part = backup_set.manifest.qdrant
    assert part
    return {name: (c.points, c.fingerprint, c.config, c.indexes) for name, c in part.evidence.collections.items()}


def test_an_old_style_set_becomes_a_regular_one_that_a_rehearsal_proves(services: Services, copy: Path, pristine: BackupSet) -> None:
    before = {p.name: p.read_bytes() for p in copy.iterdir()}
    found = adopt(services, OLD_ID, AdoptOptions())
    assert {p.name: p.read_bytes() for p in copy.iterdir()} == before, "the old set stays as it is"
    entry = services.catalogue.find(found.set.id)
    assert (entry.kind, entry.verified_level, bool(entry.held)) == (Kind.SEALED, "readable", True)
    manifest = found.set.manifest
    assert manifest.counts() == pristine.manifest.counts()
    origin = manifest.origin.adopted
    assert origin is not None
    assert (origin.name, origin.names_of("postgres")) == (OLD_NAME, (f"postgres_{OLD_ID}.sql.custom",))
    assert manifest.postgres
    assert pristine.manifest.postgres
    told = {d.what for d in services.stores["postgres"].compare(pristine.manifest.postgres.evidence, manifest.postgres.evidence)}
    assert {w for w in told if not w.startswith(("role ", "other roles"))} == set(), "every row, object, owner and grant"
    assert manifest.postgres.evidence.cut_at == datetime(2024, 10, 1, 2, tzinfo=UTC)
    assert "postgres" not in manifest.postgres.evidence.roles, "the throw-away server's superuser is nobody of theirs"
    assert fingerprints(found.set) == fingerprints(pristine), "every point, payload and vector"
    report = rehearse(services, found.set.id)
    assert report.verdict == "proven", report
    assert adopt(services, OLD_ID, AdoptOptions()).set.id == found.set.id, "a second time nothing is done"
    assert not adopt(services, str(copy), AdoptOptions()).fresh
    assert sorted(e.name for e in services.catalogue.entries()) == [OLD_NAME, found.set.directory.name]


def test_a_plain_dump_and_a_collections_own_snapshot_are_taken_over_too(
    services: Services,
    sample_stack: SampleStack,
    sample_servers: SampleServers,
    tools: Tools,
    pristine: BackupSet,
) -> None:
    directory = old_style.make(
        services.catalogue.layout.root, tools, sample_stack.postgres_admin, sample_servers.redis, sample_stack.qdrant, plain_sql=True
    )
    with tarfile.open(directory / "qdrant_snapshot.tar.gz") as tar:
        member = next(m for m in tar if m.name.startswith(sample_stack.collection))
        stream = tar.extractfile(member)
        assert stream
        (directory / "qdrant_snapshot.tar.gz").write_bytes(gzip.compress(stream.read(), 1))
    with pytest.raises(Refused, match="does not say which collection") as refused:
        adopt(services, OLD_ID, AdoptOptions())
    assert f"scholaria-ops adopt {OLD_ID} --collection NAME" in refused.value.hint
    assert sample_stack.collection in refused.value.hint, "the live names are there to choose from"
    nothing_left(services)
    found = adopt(services, OLD_ID, AdoptOptions(collection=sample_stack.collection))
    assert found.set.manifest.postgres
    assert pristine.manifest.postgres
    was, now = pristine.manifest.postgres.evidence, found.set.manifest.postgres.evidence
    told = {d.what for d in services.stores["postgres"].compare(was, now)}
    assert {w for w in told if not w.startswith(("role ", "other roles", "database", "grant"))} == set(), told
    assert now.database.owner == was.database.owner
    assert any("plain SQL" in w for w in found.warnings)
    assert list(fingerprints(found.set)) == [sample_stack.collection]  # type: ignore[call-overload]
    assert rehearse(services, found.set.id).verdict == "proven"


def test_a_saved_error_message_is_refused_and_the_rest_restorable_by_name(services: Services, copy: Path) -> None:
    (copy / "qdrant_snapshot.tar.gz").write_bytes(b'{"status":{"error":"Not found: Collection documents does not exist!"}}')
    with pytest.raises(Refused, match="saved error message") as refused:
        adopt(services, OLD_ID, AdoptOptions())
    assert refused.value.hint.endswith(f"scholaria-ops restore {OLD_ID} --component postgres --component redis")
    nothing_left(services)
    found = adopt(services, OLD_ID, AdoptOptions(components=("postgres", "redis")))
    assert (found.set.kind, list(found.set.manifest.missing)) == (Kind.PARTIAL, ["qdrant"])
    assert services.catalogue.find(found.set.id).kind is Kind.PARTIAL


def test_a_set_that_lies_elsewhere_and_was_not_verified_in_time_is_verified_later(
    services: Services, old_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its path, outside BACKUP_DIR; stopped between sealing and verifying."""

    def stopped(*_args: object, **_more: object) -> None:
        raise Cancelled("a test")

    with monkeypatch.context() as patch:
        patch.setattr("scholaria_ops.operations.adopt.verify", stopped)
        with pytest.raises(Cancelled):
            adopt(services, str(old_set), AdoptOptions(components=("redis",)))
    (entry,) = services.catalogue.entries()
    assert not entry.verified_at
    found = adopt(services, str(old_set), AdoptOptions(components=("redis",)))
    assert (found.set.id, found.fresh) == (entry.id, False)
    assert services.catalogue.find(found.set.id).verified_at
    assert len(services.catalogue.entries()) == 1


def _cut(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 6 // 10])


def _flipped_inside(path: Path) -> None:
    """Damage below a compression that is whole itself."""
    data = bytearray(gzip.decompress(path.read_bytes()))
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(gzip.compress(bytes(data)))


def _newer(path: Path) -> None:
    data = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(b"REDIS0099" + data[9:]))


def _tail(path: Path) -> None:
    """What ``redis-cli --rdb -`` leaves behind the end."""
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()) + b"f" * 40))


def _no_snapshot(path: Path) -> None:
    old_style.write_tar(path, {"storage/collections/documents/config.json": b"{}"})


def _anybodys(path: Path) -> None:
    path.chmod(0o666)


@pytest.mark.parametrize(
    ("file", "damage", "error", "said"),
    [
        (f"postgres_{OLD_ID}.sql.custom", _cut, VerificationFailed, "postgres: "),
        (f"redis_{OLD_ID}.rdb.gz", _cut, VerificationFailed, "redis: "),
        (f"redis_{OLD_ID}.rdb.gz", _flipped_inside, VerificationFailed, "redis: "),
        (f"redis_{OLD_ID}.rdb.gz", _newer, OpsError, "version"),
        (f"redis_{OLD_ID}.rdb.gz", _tail, VerificationFailed, ""),
        ("qdrant_snapshot.tar.gz", _cut, VerificationFailed, "qdrant"),
        ("qdrant_snapshot.tar.gz", _no_snapshot, VerificationFailed, "holds no snapshot"),
        (f"redis_{OLD_ID}.rdb.gz", Path.unlink, Refused, "no Redis file"),
        (f"postgres_{OLD_ID}.sql.custom", _anybodys, Refused, "could have written it"),
    ],
)
def test_bad_files_are_named_and_nothing_half_done_stays(
    services: Services, copy: Path, file: str, damage: Callable[[Path], object], error: type[OpsError], said: str
) -> None:
    damage(copy / file)
    with pytest.raises(error) as raised:
        adopt(services, OLD_ID, AdoptOptions())
    assert said in f"{raised.value.message} {raised.value.store or ''}"
    assert raised.value.hint
    nothing_left(services)


def test_a_damaged_snapshot_inside_a_whole_archive_is_found(services: Services, copy: Path) -> None:
    path = copy / "qdrant_snapshot.tar.gz"
    with tarfile.open(path) as tar:
        held = {m.name: stream.read() for m in tar if (stream := tar.extractfile(m))}
    name = sorted(held)[0]
    old_style.write_tar(path, {**held, name: held[name][: len(held[name]) // 2]})
    with pytest.raises(VerificationFailed, match="cut") as raised:
        adopt(services, OLD_ID, AdoptOptions())
    assert name in raised.value.message
    nothing_left(services)


def test_too_little_room_is_said_before_anything_is_read(services: Services, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scholaria_ops.operations.adopt.shutil.disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(DiskFull, match="1 are free"):
        adopt(services, OLD_ID, AdoptOptions())
    monkeypatch.undo()
    nothing_left(services)


def test_a_set_that_is_none_of_the_old_ones_is_refused(services: Services, pristine: BackupSet) -> None:
    with pytest.raises(UsageError, match="no old-style set") as raised:
        adopt(services, str(pristine.directory), AdoptOptions())
    assert f"scholaria-ops restore {pristine.id}" in raised.value.hint


def test_stopped_midway_nothing_remains(services: Services, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told to stop once the throw-away servers are up and data are in them; it does not come to its end before."""
    look_again = adopting._Job._still_the_same

    def stop() -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not list(services.catalogue.layout.staging.glob("*/qdrant_*/*.snapshot")):
            time.sleep(0.01)
        services.cancel.cancel("a test")

    def when_told(job: adopting._Job) -> None:
        stopper.join()
        look_again(job)

    monkeypatch.setattr(adopting._Job, "_still_the_same", when_told)
    stopper = threading.Thread(target=stop)
    stopper.start()
    with pytest.raises(Cancelled):
        adopt(services, OLD_ID, AdoptOptions())
    stopper.join()
    nothing_left(services)


#: The command, but it waits before its end for whoever is to kill it.
_WAITING = """
import time
from scholaria_ops.cli import main
from scholaria_ops.operations import adopt
adopt._Job._still_the_same = lambda _: time.sleep(600)
main()
"""


def test_killed_midway_the_next_run_clears_up(
    services: Services, copy: Path, sample_stack: SampleStack, tools: Tools, tmp_path: Path
) -> None:
    """SIGKILL leaves servers and a staging directory; whoever takes the lock next ends and removes them."""
    settings = tmp_path / "ops.env"
    settings.write_text("".join(f"{k}={v}\n" for k, v in environment(sample_stack, tools, copy.parent).items()))
    argv = [sys.executable, "-c", _WAITING, "--env-file", str(settings), "adopt", OLD_ID]
    child = subprocess.Popen(argv, env=os.environ, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(services.catalogue.layout.staging.glob("*/qdrant_*/*.snapshot")):
        assert time.monotonic() < deadline
        assert child.poll() is None
        time.sleep(0.01)
    child.kill()
    child.wait()
    assert leftover_processes(services.settings.scratch_root)
    with services.locked("a test"):
        pass
    nothing_left(services)
    assert adopt(services, OLD_ID, AdoptOptions()).fresh
