"""What tests of operations share: services over a real stack, and ways of damaging a set."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from pathlib import Path

from scholaria_ops.catalogue.layout import MANIFEST, SUMS
from scholaria_ops.catalogue.sets import BackupSet, Entry
from scholaria_ops.operations.backup import BackupRequest, backup, reserve
from scholaria_ops.operations.services import Services, make_services
from scholaria_ops.sandbox.home import MARKER, Marker
from scholaria_ops.sandbox.sample import SampleStack
from scholaria_ops.sandbox.stragglers import belonging
from scholaria_ops.sandbox.tools import Tools
from scholaria_ops.settings import load_settings


def environment(stack: SampleStack, tools: Tools, backup_dir: Path, **more: str) -> dict[str, str]:
    """The variables that an operator would set for this stack."""
    named = {"PG_BIN_DIR": tools.pg_bin_dir, "REDIS_SERVER": tools.redis_server, "QDRANT_BIN": tools.qdrant}
    return {
        **stack.environment(),
        "BACKUP_DIR": str(backup_dir),
        **{name: str(path) for name, path in named.items() if path},
        **more,
    }


def services_for(stack: SampleStack, tools: Tools, backup_dir: Path, **more: str) -> Services:
    return make_services(load_settings(environment(stack, tools, backup_dir, **more)))


def take(services: Services, note: str = "") -> BackupSet:
    """A backup of the stack, under a fresh id."""
    request = BackupRequest(note=note, requested_by="a test")
    return backup(services, reserve(services, request), request)


def copied(entry_or_set: Entry | BackupSet, root: Path, *, with_records: bool = True) -> Path:
    """A copy of a set below another BACKUP_DIR; returns its directory."""
    source = entry_or_set.directory
    target = root / source.name
    shutil.copytree(source, target)
    set_id = entry_or_set.id
    records = source.parent / ".records" / f"{set_id}.jsonl"
    if with_records and records.exists():
        (root / ".records").mkdir(exist_ok=True)
        shutil.copy(records, root / ".records" / records.name)
    return target


def flip(path: Path, offset: int | None = None, mask: int = 0x10) -> None:
    """Change one bit of a file; in the middle, unless told where."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2 if offset is None else offset] ^= mask
    path.write_bytes(bytes(data))


def flip_everywhere(path: Path, every: int = 4096) -> None:
    """Change one bit in every block: a single one may hit padding, which is no content."""
    data = bytearray(path.read_bytes())
    for offset in range(every // 2, len(data), every):
        data[offset] ^= 0x10
    path.write_bytes(bytes(data))


def recompute(directory: Path) -> None:
    """What a thorough forger does: make manifest and SHA256SUMS agree with the files as they are now."""
    manifest = json.loads((directory / MANIFEST).read_text())
    for artifact in manifest["artifacts"]:
        path = directory / artifact["path"]
        artifact["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
        artifact["size_bytes"] = path.stat().st_size
    (directory / MANIFEST).write_text(json.dumps(manifest, ensure_ascii=False, indent=1) + "\n")
    lines = []
    for line in (directory / SUMS).read_text().splitlines():
        _, _, name = line.partition("  ")
        lines.append(f"{hashlib.sha256((directory / name).read_bytes()).hexdigest()}  {name}\n")
    (directory / SUMS).write_text("".join(lines))


def sandbox_nonces(scratch: Path) -> dict[str, Path]:
    """Nonce → directory of its servers' data, for every sandbox below a scratch directory, however deep."""
    found = {}
    for directory, _, files in os.walk(scratch):  # passes over what servers and runs remove while we look
        if MARKER in files and (marker := Marker.read(Path(directory))):
            found[marker.nonce] = marker.data
    return found


def processes_of(sandboxes: dict[str, Path]) -> list[int]:
    """Processes that carry a sandbox's nonce or work below its data, asked of the kernel."""
    found = {pid for nonce in sandboxes for pid, _ in belonging(nonce, Path("/nonexistent"), ())}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                cwd = Path(str((entry / "cwd").readlink()).removesuffix(" (deleted)"))
                if any(cwd.is_relative_to(data) for data in sandboxes.values()):
                    found.add(int(entry.name))
    return sorted(found)


def leftover_processes(scratch: Path) -> list[int]:
    """Processes of sandboxes that still stand below a scratch directory."""
    return processes_of(sandbox_nonces(scratch))
