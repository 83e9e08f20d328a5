"""Sets to ship, and threads that must be gone afterwards."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from scholaria_ops.cancel import CancelToken
from scholaria_ops.offsite.base import Confirmation, Existing, FileToShip, OffsiteTarget, ShipReport
from scholaria_ops.progress import Progress, Silent

LAST = ("SHA256SUMS", "backup_manifest.json")
NAME = "scholaria_backup_20241001_020000"
MIB = 1 << 20
#: Where the set of that name stands in a test's bucket.
FOLDER = f"house/scholaria/{NAME}/"


def noise(size: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(size)


@dataclass(frozen=True)
class LocalSet:
    """A directory that looks like a sealed set."""

    directory: Path
    files: tuple[FileToShip, ...]

    @property
    def expected(self) -> dict[str, str]:
        return {f.path: f.sha256 for f in self.files}

    @property
    def size_bytes(self) -> int:
        return sum(f.size_bytes for f in self.files)

    def content(self, path: str) -> bytes:
        return (self.directory / path).read_bytes()

    def ship(
        self,
        target: OffsiteTarget,
        *,
        name: str = NAME,
        confirm: Confirmation = "readback",
        existing: Existing = "trust",
        cancel: CancelToken | None = None,
        progress: Progress | None = None,
    ) -> ShipReport:
        return target.upload_set(
            self.directory,
            name,
            self.files,
            LAST,
            confirm=confirm,
            existing=existing,
            cancel=cancel or CancelToken(),
            progress=progress or Silent(),
        )


def make_set(directory: Path, sizes: Mapping[str, int], *, seed: int = 1) -> LocalSet:
    """Write files of those sizes, and the two that commit them."""
    files = []
    contents = {path: noise(size, seed + n) for n, (path, size) in enumerate(sizes.items())}
    sums = "".join(f"{hashlib.sha256(data).hexdigest()}  {path}\n" for path, data in contents.items())
    contents["SHA256SUMS"] = sums.encode()
    contents["backup_manifest.json"] = f'{{"seed": {seed}}}'.encode()
    for path, data in contents.items():
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        (directory / path).write_bytes(data)
        files.append(FileToShip(path, len(data), hashlib.sha256(data).hexdigest()))
    return LocalSet(directory, tuple(files))


#: Small files, an empty one, names that need quoting, a folder, and one that is sent in parts.
VARIED = {
    "postgres_20241001_020000.sql.custom": 11 * MIB + 17,
    "postgres_globals_20241001_020000.sql": 2_000,
    "redis_20241001_020000.rdb.gz": 300_000,
    "qdrant_20241001_020000/질문 & answers+%41~.snapshot": 70_000,
    "qdrant_20241001_020000/aliases.json": 2,
    "RESTORE.txt": 0,
}
#: Everything in single requests: quick.
SMALL = {"a.bin": 50_000, "folder/b.bin": 7_000, "empty": 0}
#: With a file that is sent in parts.
LARGE = {"big.bin": 10 * MIB + 3, "a.bin": 9_000, "b.bin": 0}
