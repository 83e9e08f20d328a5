"""Unpack chosen members of an archive into a directory: nothing lands outside it, nothing keeps odd permissions."""

from __future__ import annotations

import contextlib
import os
import posixpath
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Protocol

from scholaria_ops.errors import SandboxError

#: Given a member's name, the relative path that it should get, or None to leave it out.
Choose = Callable[[str], str | None]


class Unpack(Protocol):
    """How one archive is laid out below the bundle's directory."""

    def __call__(self, archive: Path, into: Path) -> None: ...


def strip(prefix: str, *, into: str = "", only: tuple[str, ...] = ()) -> Choose:
    """Choose the members below ``prefix`` (or, with ``only``, just those of these names below it), put them below ``into``."""

    def choose(name: str) -> str | None:
        if not name.startswith(prefix):
            return None
        rest = name[len(prefix) :]
        if not rest or (only and rest not in only):
            return None
        return into + rest

    return choose


def unpack_zip(archive: Path, into: Path, choose: Choose, *, executable: Choose | None = None) -> int:
    """Unpack the chosen files of a zip (a wheel); returns how many. Wheels lose mode bits: ``executable`` says which get them."""
    count = 0
    with zipfile.ZipFile(archive) as source:
        for member in source.infolist():
            target = None if member.is_dir() else choose(member.filename)
            if target is None:
                continue
            runs = bool(member.external_attr >> 16 & 0o111) or (executable is not None and executable(member.filename) is not None)
            with source.open(member) as content:
                _write(into, target, content, runs)
            count += 1
    return count


def unpack_tar(archive: Path | IO[bytes], into: Path, choose: Choose) -> int:
    """Unpack the chosen files and inward links of a (compressed) tar; returns how many."""
    count = 0
    with _open_tar(archive) as source:
        for member in source:
            target = choose(member.name)
            if target is None or member.isdir():
                continue
            if member.issym():
                _link(into, target, member.linkname)
            elif member.isreg():
                content = source.extractfile(member)
                if content is None:  # pragma: no cover - isreg() says otherwise
                    raise SandboxError(f"cannot read {member.name} in {archive}")
                with content:
                    _write(into, target, content, bool(member.mode & 0o111))
            else:
                raise SandboxError(f"{member.name} in an archive is neither a file nor a link: refused")
            count += 1
    return count


@contextlib.contextmanager
def _open_tar(archive: Path | IO[bytes]) -> Iterator[tarfile.TarFile]:
    if isinstance(archive, Path):
        with tarfile.open(archive, mode="r|*") as source:
            yield source
    else:
        with tarfile.open(fileobj=archive, mode="r|*") as source:
            yield source


def _inside(into: Path, relative: str) -> Path:
    path = PurePosixPath(relative)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise SandboxError(f"an archive wants to write to {relative!r}, outside its directory: refused")
    parent = into
    for part in path.parts[:-1]:
        parent /= part
        if parent.is_symlink():
            raise SandboxError(f"an archive wants to write through the link {parent.name!r}: refused")
    target = into.joinpath(*path.parts)
    target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    return target


def _write(into: Path, relative: str, content: IO[bytes], executable: bool) -> None:
    target = _inside(into, relative)
    fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o755 if executable else 0o644)
    with os.fdopen(fd, "wb") as out:
        shutil.copyfileobj(content, out, 1 << 20)
        os.fchmod(out.fileno(), 0o755 if executable else 0o644)


def _link(into: Path, relative: str, destination: str) -> None:
    inside = posixpath.normpath(posixpath.join(posixpath.dirname(relative), destination))
    if destination.startswith("/") or inside.startswith(".."):
        raise SandboxError(f"an archive holds a link from {relative!r} to {destination!r}, outside its directory: refused")
    _inside(into, relative).symlink_to(destination)
