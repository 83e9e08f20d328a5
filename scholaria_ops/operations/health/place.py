"""The place where sets live: access, room, what killed runs left, the lock."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from scholaria_ops.catalogue.layout import Layout
from scholaria_ops.catalogue.lock import current_holder
from scholaria_ops.errors import OpsError
from scholaria_ops.humane import human_bytes
from scholaria_ops.operations.forecast import DiskForecast
from scholaria_ops.operations.health.findings import Finding, ok
from scholaria_ops.operations.prune_state import PruneState
from scholaria_ops.operations.restore.journal import Journals
from scholaria_ops.operations.restore.recover import dead_end
from scholaria_ops.operations.scratch import OWNER
from scholaria_ops.operations.services import Services
from scholaria_ops.sandbox.home import MARKER, Home

#: A staging or trash entry younger than this may belong to a run that is at work right now.
_AT_WORK = timedelta(hours=6)
#: Room for fewer predicted sets than this is worth a warning.
_COMFORTABLE_SETS = 3


def directory(services: Services) -> Iterator[Finding]:
    """Whether BACKUP_DIR is there, readable, writable, and closed to others. Never makes it."""
    root = services.catalogue.layout.root
    setting = "Create it for the user who runs this, or point BACKUP_DIR elsewhere."
    try:
        names = os.listdir(root)  # noqa: PTH208 - only whether it can be listed is asked
        mode = root.stat().st_mode
        with tempfile.TemporaryFile(dir=root):
            pass
    except OSError as exc:
        yield Finding("directory", "critical", f"{root} cannot be used: {exc.strerror or type(exc).__name__}", next_step=setting)
        return
    if mode & 0o077:
        yield Finding(
            "directory",
            "warning",
            f"{root} is open to other users (mode {mode & 0o777:04o}); sets hold password hashes and sessions",
            next_step=f"chmod 0700 {root}",
        )
        return
    yield ok("directory", f"{root} can be read and written", entries=len(names))


def space(disk: DiskForecast) -> Iterator[Finding]:
    """Whether the next sets have room, by the sizes of those before."""
    free, wanted = disk.free_bytes, disk.predicted_next_bytes
    if free is None:
        yield Finding("space", "critical", f"free space cannot be told: {disk.trouble}", next_step="Check BACKUP_DIR and its file system.")
        return
    if wanted is None:
        yield ok("space", f"{human_bytes(free)} are free; no set has told yet what the next one needs", free_bytes=free)
        return
    numbers = {"free_bytes": free, "next_set_bytes": wanted, "sets_that_fit": disk.sets_that_fit or 0}
    said = f"{human_bytes(free)} are free, the next set is expected to need {human_bytes(wanted)}"
    step = "Free space there, shorten the retention (`scholaria-ops prune` shows what would go), or move BACKUP_DIR to a larger disk."
    if not disk.fits:
        yield Finding("space", "critical", said, next_step=step, numbers=numbers)
    elif (disk.sets_that_fit or 0) < _COMFORTABLE_SETS and wanted:
        yield Finding("space", "warning", said, next_step=step, numbers=numbers)
    else:
        yield Finding("space", "ok", said, numbers=numbers)


def leftovers(services: Services, now: datetime) -> Iterator[Finding]:
    """Staging, trash and scratch entries whose run is dead, and the journals of unfinished work."""
    layout = services.catalogue.layout
    step = "The next run that takes the lock removes it; if none does, look why no backup runs."
    # While somebody holds the lock, what stands in staging and trash is his.
    busy = current_holder(layout.lock) is not None
    found = False
    for parent in (layout.staging, layout.trash):
        for path in _inside(parent):
            age = now - _modified(path)
            if busy and age < _AT_WORK:
                continue
            found = True
            yield Finding("leftovers", "warning", f"{parent.name}/{path.name} was left by a run that was killed", _modified(path), step)
    for path in _inside(services.settings.scratch_root):
        if not _owned(path) and now - _modified(path) > timedelta(minutes=10):
            found = True
            yield Finding("leftovers", "warning", f"scratch directory {path} was left by a run that was killed", _modified(path), step)
    for finding in _journals(layout, busy=busy):
        found = True
        yield finding
    if not found:
        yield ok("leftovers", "nothing was left behind")


def _journals(layout: Layout, *, busy: bool) -> Iterator[Finding]:
    try:
        journal = PruneState(layout).journal()
    except OpsError as exc:
        yield Finding("leftovers", "critical", exc.message, next_step=f"{exc.hint} Nothing is pruned until then.")
        return
    if journal is not None and not busy:
        yield Finding(
            "leftovers",
            "warning",
            f"a prune by {journal.by} did not finish its {len(journal.removals)} removals",
            journal.begun_at,
            "The next prune finishes it: `scholaria-ops prune --apply`.",
        )
    yield from _restores(layout, busy=busy)


def _restores(layout: Layout, *, busy: bool) -> Iterator[Finding]:
    """Restores that were cut off: live stores may stand between two times."""
    try:
        unfinished = Journals(layout).unfinished()
    except OpsError as exc:
        yield Finding("leftovers", "critical", exc.message, next_step=f"{exc.hint}")
        return
    for journal in unfinished if not busy else ():
        yield Finding(
            "leftovers",
            "critical",
            f"the restore {journal.id} of the set {journal.set_id} was begun and not ended ({journal.phase})",
            journal.begun_at,
            f"`scholaria-ops restore --recover` takes it back or finishes it. {dead_end(journal.id)}",
        )


def _inside(parent: Path) -> list[Path]:
    return sorted(parent.iterdir()) if parent.is_dir() else []


def _modified(path: Path) -> datetime:
    return datetime.fromtimestamp(path.lstat().st_mtime, UTC)


def _owned(directory: Path) -> bool:
    """Whether a living process holds the directory (by the lock that its owner keeps), or it was left standing on purpose."""
    home = Home.open(directory)
    if home is not None and home.marker.kept and not home.marker.expired:
        return True
    for held in (directory / OWNER, directory / MARKER):
        if not held.exists():
            continue
        fd = os.open(held, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(fd)
    return False


def lock(services: Services, now: datetime) -> Iterator[Finding]:
    """Who holds the lock of BACKUP_DIR, and whether that is longer than any run should take."""
    holder = current_holder(services.catalogue.layout.lock)
    if holder is None:
        yield ok("lock", "free")
        return
    since = datetime.fromisoformat(holder.since)
    limit = timedelta(hours=services.settings.health_lock_max_h)
    held = (now - since).total_seconds()
    if now - since > limit:
        yield Finding(
            "lock",
            "critical",
            f"{holder} holds the lock for {held / 3600:.1f} h; no backup can be taken meanwhile",
            since,
            "Look at its run in Dagster and stop it there; the lock goes with its process.",
            {"held_s": held},
        )
    else:
        yield ok("lock", f"held by {holder}", held_s=held)
