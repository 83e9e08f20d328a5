"""Nothing of an archive lands outside its directory."""

from __future__ import annotations

import io
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest

from scholaria_ops.errors import SandboxError
from scholaria_ops.sandbox.unpack import strip, unpack_tar, unpack_zip


def everything(name: str) -> str | None:
    return name


def tar(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as out:
        for info, content in members:
            info.size = len(content)
            out.addfile(info, io.BytesIO(content))
    return path


def member(name: str, *, kind: bytes = tarfile.REGTYPE, target: str = "", mode: int = 0o644) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, target, mode
    return info


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/etc/evil"])
def test_a_member_outside_is_refused(tmp_path: Path, name: str) -> None:
    into = tmp_path / "into"
    into.mkdir()
    archive = tar(tmp_path / "a.tgz", (member(name), b"x"))
    with pytest.raises(SandboxError, match="outside"):
        unpack_tar(archive, into, everything)
    zipped = tmp_path / "a.zip"
    with zipfile.ZipFile(zipped, "w") as out:
        out.writestr(name, "x")
    with pytest.raises(SandboxError, match="outside"):
        unpack_zip(zipped, into, everything)
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize("target", ["/etc/passwd", "../../outside"])
def test_a_link_to_the_outside_is_refused(tmp_path: Path, target: str) -> None:
    archive = tar(tmp_path / "a.tgz", (member("lib/link", kind=tarfile.SYMTYPE, target=target), b""))
    with pytest.raises(SandboxError, match="outside"):
        unpack_tar(archive, tmp_path, everything)


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    into = tmp_path / "into"
    (into / "real").mkdir(parents=True)
    archive = tar(tmp_path / "a.tgz", (member("link", kind=tarfile.SYMTYPE, target="real"), b""), (member("link/file"), b"x"))
    with pytest.raises(SandboxError, match="through the link"):
        unpack_tar(archive, into, everything)


@pytest.mark.parametrize("kind", [tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.LNKTYPE])
def test_only_files_and_links_are_unpacked(tmp_path: Path, kind: bytes) -> None:
    archive = tar(tmp_path / "a.tgz", (member("odd", kind=kind, target="x"), b""))
    with pytest.raises(SandboxError, match="refused"):
        unpack_tar(archive, tmp_path, everything)


def test_a_file_is_never_overwritten(tmp_path: Path) -> None:
    archive = tar(tmp_path / "a.tgz", (member("same"), b"1"), (member("same"), b"2"))
    into = tmp_path / "into"
    into.mkdir()
    with pytest.raises(FileExistsError):
        unpack_tar(archive, into, everything)


def test_modes_are_ours_and_only_chosen_members_come(tmp_path: Path) -> None:
    into = tmp_path / "into"
    into.mkdir()
    archive = tar(
        tmp_path / "a.tgz",
        (member("p/bin/tool", mode=0o4777), b"tool"),
        (member("p/lib/x.so.1", mode=0o600), b"library"),
        (member("p/lib/x.so", kind=tarfile.SYMTYPE, target="x.so.1"), b""),
        (member("q/other"), b"other"),
    )
    assert unpack_tar(archive, into, strip("p/")) == 3
    assert stat.S_IMODE((into / "bin" / "tool").stat().st_mode) == 0o755
    assert stat.S_IMODE((into / "lib" / "x.so.1").stat().st_mode) == 0o644
    assert (into / "lib" / "x.so").read_bytes() == b"library"
    assert not (into / "other").exists()
