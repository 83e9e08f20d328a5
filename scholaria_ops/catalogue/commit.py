"""The commit protocol: how a set comes into being, and how it goes, without ever being half there.

Build below ``.staging/<id>`` → artifacts written and hashed → read back and compared (large ones as soon as they are
whole, while others are still being written) → RESTORE.txt → manifest → SHA256SUMS over all of them, last → everything
flushed → one rename into place → parent flushed. A kill at any point leaves either a staging directory (removed by the
next run) or the whole set. Deleting goes through ``.trash`` by the same kind of rename.

Whoever calls these functions holds the estate lock.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from scholaria_ops.cancel import CancelToken
from scholaria_ops.catalogue.artifacts import Artifact
from scholaria_ops.catalogue.layout import MANIFEST, RESTORE_TEXT, SUMS, Layout
from scholaria_ops.catalogue.manifest import Manifest
from scholaria_ops.catalogue.sets import BackupSet, expected_files
from scholaria_ops.errors import Refused, VerificationFailed
from scholaria_ops.files import disk_errors, fsync_dir, make_private_dir, rename_durably, write_private
from scholaria_ops.hashed import hash_unless_known


class Staging:
    """A set under construction. Made by :func:`staging`."""

    def __init__(self, layout: Layout, set_id: str) -> None:
        self._layout = layout
        self.id = set_id
        self.path = layout.staging / set_id

    def seal(self, manifest: Manifest, restore_text: str, *, cancel: CancelToken | None = None) -> BackupSet:
        """Finish the set and move it into place.

        Raises:
            VerificationFailed: a file on disk is not what its dump wrote, or a file is there that nothing names.
            DiskFull: as it says; the set stays invisible.
            Refused: a set of that name stands already.
        """
        target = self._layout.partial(self.id) if manifest.partial else self._layout.sealed(self.id)
        if target.exists():
            raise Refused(f"{target} exists already", hint="A sealed set is never replaced; take a new id.")
        sums = self._all_read_back(manifest.artifacts, cancel)
        sums[RESTORE_TEXT] = write_private(self.path / RESTORE_TEXT, restore_text.encode()).sha256
        sums[MANIFEST] = write_private(self.path / MANIFEST, manifest.to_bytes()).sha256
        self._nothing_unnamed(manifest)
        write_private(self.path / SUMS, "".join(f"{digest}  {path}\n" for path, digest in sorted(sums.items())).encode())
        for directory, _, _ in os.walk(self.path, topdown=False):
            fsync_dir(Path(directory))
        if cancel:
            cancel.check()
        rename_durably(self.path, target)
        return BackupSet.of(target, manifest)

    def read_back(self, artifact: Artifact, cancel: CancelToken | None = None) -> None:
        """Hash an artifact from the disk: what was hashed while writing may not be what the disk took.

        One that was read back before, and that nobody has touched since, is not read again.

        Raises:
            VerificationFailed: it is not what its dump wrote.
        """
        written = hash_unless_known(self.path / artifact.path, on_bytes=lambda _: cancel.check() if cancel else None)
        if (written.size, written.sha256) != (artifact.size_bytes, artifact.sha256):
            raise VerificationFailed(
                f"{artifact.path} reads back differently from what was written ({written.size:,} of {artifact.size_bytes:,} bytes)",
                hint="The disk under BACKUP_DIR is not trustworthy; check it before the next backup.",
                store=artifact.store,
            )

    def _all_read_back(self, artifacts: tuple[Artifact, ...], cancel: CancelToken | None) -> dict[str, str]:
        # The largest first; hashing releases the interpreter's lock, so two threads keep two cores busy.
        with ThreadPoolExecutor(2, thread_name_prefix="read-back") as pool:
            list(pool.map(lambda artifact: self.read_back(artifact, cancel), sorted(artifacts, key=lambda a: -a.size_bytes)))
        return {artifact.path: artifact.sha256 for artifact in artifacts}

    def _nothing_unnamed(self, manifest: Manifest) -> None:
        present = {p.relative_to(self.path).as_posix() for p in self.path.rglob("*") if not p.is_dir()}
        if strangers := present - expected_files(manifest):
            raise VerificationFailed(
                f"unexpected files in the set: {', '.join(sorted(strangers))}", hint="This is a defect; nothing was sealed."
            )


@contextlib.contextmanager
def staging(layout: Layout, set_id: str) -> Iterator[Staging]:
    """A fresh private directory to build a set in; whatever is left of it at the end of the block is removed."""
    under_construction, ours = Staging(layout, set_id), True
    try:
        with disk_errors(layout.staging):
            make_private_dir(layout.staging, exist_ok=True)
            try:
                make_private_dir(under_construction.path)
            except FileExistsError:
                ours = False
                raise
        yield under_construction
    finally:
        if ours and under_construction.path.exists():
            shutil.rmtree(under_construction.path)


def discard(layout: Layout, directory: Path) -> None:
    """Remove a set: out of sight by one rename first, then file by file. A kill in between is finished by :func:`reap`."""
    make_private_dir(layout.trash, exist_ok=True)
    grave = layout.trash / directory.name
    if grave.exists():
        shutil.rmtree(grave)
    rename_durably(directory, grave)
    shutil.rmtree(grave)


def reap(layout: Layout, *, say: Callable[[str], None] | None = None) -> list[str]:
    """Remove what killed runs left in staging and trash; returns their names."""
    removed = []
    for parent in (layout.staging, layout.trash):
        for path in sorted(parent.iterdir()) if parent.exists() else ():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
            removed.append(f"{parent.name}/{path.name}")
            if say:
                say(f"removed {parent.name}/{path.name}, left by a run that was killed")
    return removed
