"""Verify a set that the old shell scripts wrote. There is no evidence to compare with: what can be read, is read."""

from __future__ import annotations

import hashlib
import os
import tarfile
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Literal

from scholaria_ops.catalogue.evidence.base import STORE_NAMES, StoreName
from scholaria_ops.catalogue.legacy import LegacySet, head_of, saved_error_message
from scholaria_ops.errors import ToolFailed, ToolMissing, VerificationFailed
from scholaria_ops.stores.base import Check, Context
from scholaria_ops.stores.postgres.archive import read_back
from scholaria_ops.stores.postgres.programs import Programs
from scholaria_ops.stores.redis.artifact import unpack
from scholaria_ops.stores.redis.scratch import Scratch

_GZIP_MAGIC = b"\x1f\x8b"
_BLOCK = 1 << 20
_DUMP_END = b"PostgreSQL database dump complete"


def verify_legacy(
    legacy: LegacySet, level: str, ctx: Context, *, stores: Collection[StoreName] = STORE_NAMES
) -> Iterator[tuple[StoreName | Literal["set"], Check]]:
    """Checks of an old-style set. Its own checksums, where the scripts wrote any, are honoured."""
    yield "set", _own_checksums(legacy)
    readers: Mapping[StoreName, Callable[[Path, Context], str]] = {"postgres": _postgres, "redis": _redis, "qdrant": _qdrant}
    for name in stores:
        paths = legacy.files_of(name)
        if not paths:
            yield name, Check("present", False, "the set has no file of this store: it cannot be restored")
        for path in paths:
            ctx.cancel.check()
            if message := saved_error_message(head_of(path)):
                told = f"{path.name} is a saved error message of the server: it cannot be restored. It says: {message}"
                yield name, Check("readable", False, told)
            elif level == "readable":
                yield name, _read(path, readers[name], ctx)


def _own_checksums(legacy: LegacySet) -> Check:
    """``SHA256SUMS`` or ``*.sha256`` files beside the artifacts, if there are any."""
    lines: dict[str, str] = {}
    for path in (*legacy.directory.glob("*.sha256"), *legacy.directory.glob("SHA256SUMS"), *legacy.directory.glob("checksums*")):
        for line in path.read_text(errors="replace").splitlines():
            digest, _, name = line.partition(" ")
            if len(digest) == 64 and name.strip():
                lines[Path(name.strip().lstrip("*")).name] = digest
    wrong = [n for n, digest in lines.items() if not (legacy.directory / n).is_file() or _sha256(legacy.directory / n) != digest]
    if wrong:
        return Check("checksums", False, f"not what was written: {', '.join(sorted(wrong))}")
    if not lines:
        return Check("checksums", None, "the old scripts wrote no checksums with this set: silent damage cannot be ruled out")
    return Check("checksums", True, f"{len(lines)} files as they were written")


def _sha256(path: Path) -> str:
    with path.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


def _read(path: Path, reader: Callable[[Path, Context], str], ctx: Context) -> Check:
    if not _ours_alone(path):
        # Nothing vouches for these bytes but the file system: a dump can carry code, so somebody else's is not opened.
        return Check("readable", None, f"{path.name} is not opened: others than you and root could have written it (check owner and mode)")
    try:
        return Check("readable", True, reader(path, ctx))
    except ToolMissing as exc:
        return Check("readable", None, f"{exc.message} {exc.hint}".strip())
    except (VerificationFailed, ToolFailed) as exc:
        return Check("readable", False, exc.message)
    except (OSError, EOFError, zlib.error, tarfile.TarError) as exc:
        return Check("readable", False, f"{path.name} cannot be read to its end: {exc}")


def _ours_alone(path: Path) -> bool:
    """Whether only root and we could have written the file and its directory."""
    trusted = {0, os.geteuid()}
    return all((st := p.stat()).st_uid in trusted and not st.st_mode & 0o022 for p in (path, path.parent))


def _postgres(path: Path, ctx: Context) -> str:
    if head_of(path).startswith(b"PGDMP") and not path.name.endswith(".gz"):
        found = read_back(path, Programs(ctx.tools, ctx.cancel), "UTF8", ctx.progress)
        return f"{sum(t.rows for t in found.tables.values()):,} rows in {len(found.tables)} tables, read to the end"
    size, tail = 0, b""
    for block in _content(path, ctx):
        size += len(block)
        tail = (tail + block)[-4096:]
    if _DUMP_END not in tail:
        raise VerificationFailed(f"{path.name} does not end as a plain dump does: it is cut")
    return f"{size:,} bytes of SQL, read to the end"


def _redis(path: Path, ctx: Context) -> str:
    with Scratch(ctx, label="legacy-redis") as scratch:
        with scratch.spool() as spool:
            for block in _content(path, ctx):
                spool.write(block)
        return f"{scratch.load():,} keys loaded"


def _qdrant(path: Path, ctx: Context) -> str:
    members = 0
    with tarfile.open(path, "r|*") as archive:
        for member in archive:
            ctx.cancel.check()
            stream = archive.extractfile(member) if member.isfile() else None
            while stream and stream.read(_BLOCK):
                ctx.cancel.check()
            members += 1
    if not members:
        raise VerificationFailed(f"{path.name} is an empty archive")
    return f"an archive of {members} members, read to the end; its points were not counted (the old scripts kept nothing to compare with)"


def _content(path: Path, ctx: Context) -> Iterator[bytes]:
    with path.open("rb") as source:
        packed = source.read(2) == _GZIP_MAGIC
        source.seek(0)
        if not packed:
            while block := source.read(_BLOCK):
                ctx.cancel.check()
                yield block
            return
    yield from unpack(path, cancel=ctx.cancel)
