"""Take collection snapshots from a file of an old-style set: their bytes become artifacts, their evidence is measured now."""

from __future__ import annotations

import json
import tarfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from scholaria_ops.catalogue.artifacts import Artifact
from scholaria_ops.catalogue.evidence.qdrant import CollectionEvidence, QdrantEvidence
from scholaria_ops.errors import Refused, StoreError, ToolMissing, VerificationFailed
from scholaria_ops.files import BLOCK, HashingWriter, Written, make_private_dir, write_private
from scholaria_ops.stores.base import Context, Dump
from scholaria_ops.stores.qdrant.load import alias_actions
from scholaria_ops.stores.qdrant.measure import Limits, Look, measure_collection
from scholaria_ops.stores.qdrant.names import collection_of, file_name
from scholaria_ops.stores.qdrant.scratch import Scratch, program_version
from scholaria_ops.stores.qdrant.snapshot_file import opened, read_structure

_GZIP_MAGIC = b"\x1f\x8b"
#: Of a snapshot of the whole storage: which file is which collection, and the aliases.
_INDEX = "config.json"
_MAX_INDEX = 4 << 20


@dataclass(frozen=True, slots=True)
class Found:
    """A collection snapshot in an old file. ``collection`` is empty where nothing tells whose it is."""

    file: Path
    #: Name of the member of ``file``; empty if the file itself is the snapshot.
    member: str
    collection: str

    def __str__(self) -> str:
        return f"{self.member} in {self.file.name}" if self.member else self.file.name


@dataclass(frozen=True, slots=True)
class Old:
    """Everything that the Qdrant files of an old-style set hold."""

    snapshots: tuple[Found, ...]
    aliases: Mapping[str, str]


def look_into(files: Sequence[Path], ctx: Context, *, collection: str = "") -> Old:
    """Which snapshots there are, and of which collections. Reads every file once.

    Args:
        files: of an old-style set.
        collection: the name of the one snapshot that does not tell its own.

    Raises:
        VerificationFailed: a file is damaged, or holds no snapshot.
        Refused: a snapshot does not tell its collection and ``collection`` does not settle it, or two are of the same.
    """
    snapshots: list[Found] = []
    aliases: dict[str, str] = {}
    for file in files:
        found = _look_into(file, ctx)
        snapshots += found.snapshots
        aliases |= found.aliases
    nameless = [one for one in snapshots if not one.collection]
    if collection and len(nameless) == 1:
        snapshots = [replace(one, collection=one.collection or collection) for one in snapshots]
    elif nameless:
        raise Refused(
            f"{', '.join(map(str, nameless))} does not say which collection it is a snapshot of",
            hint="Name it with --collection NAME." if len(nameless) == 1 else "Name each file <collection>.snapshot.",
            store="qdrant",
        )
    elif collection and [one.collection for one in snapshots] != [collection]:
        raise Refused(
            f"the old set tells by itself that it holds {', '.join(sorted(one.collection for one in snapshots))}",
            hint=f"Leave out --collection {collection}.",
            store="qdrant",
        )
    names = sorted(one.collection for one in snapshots)
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise Refused(
            f"the old set holds more than one snapshot of {', '.join(twice)}", hint="Move all but one of them away.", store="qdrant"
        )
    return Old(tuple(sorted(snapshots, key=lambda one: one.collection)), {a: c for a, c in aliases.items() if c in names})


def _look_into(file: Path, ctx: Context) -> Old:
    _read_through(file, ctx)
    members: list[str] = []
    index: Mapping[str, object] = {}
    with _archive(file) as archive:
        for member in archive:
            ctx.cancel.check()
            name = member.name.removeprefix("./")
            if not member.isfile():
                continue
            members.append(name)
            if name.rpartition("/")[2] == _INDEX and member.size <= _MAX_INDEX and "collections_mapping" not in index:
                stream = archive.extractfile(member)
                index = _json(stream.read() if stream else b"") or index
    if _INDEX in members and any(m.startswith("0/") for m in members):
        return Old((Found(file, "", collection_of(file.name)),), {})
    inner = [m for m in members if m.endswith(".snapshot")]
    if not inner:
        raise VerificationFailed(
            f"{file.name} holds no snapshot: neither is it one, nor is there a *.snapshot in it ({len(members):,} files)",
            hint="A copy of Qdrant's storage directory cannot be taken over; start a Qdrant of that version on it and take snapshots.",
            store="qdrant",
        )
    mapping = index.get("collections_mapping")
    told = {str(f): str(c) for c, f in mapping.items()} if isinstance(mapping, dict) else {}
    named = index.get("collections_aliases")
    snapshots = tuple(Found(file, m, told.get(m.rpartition("/")[2]) or collection_of(m.rpartition("/")[2])) for m in inner)
    return Old(snapshots, {str(a): str(c) for a, c in named.items()} if isinstance(named, dict) else {})


def _read_through(file: Path, ctx: Context) -> None:
    """Have gzip's own checksum compared: an archive's reader stops where the archive ends, and never looks at it."""
    if not _compressed(file):
        return
    try:
        with opened(file, compressed=True) as content:
            while content.read(BLOCK):
                ctx.cancel.check()
    except (EOFError, OSError, zlib.error) as exc:
        raise _damaged(file, exc) from exc


def _compressed(file: Path) -> bool:
    with file.open("rb") as source:
        return source.read(2) == _GZIP_MAGIC


def _damaged(file: Path, why: object) -> VerificationFailed:
    return VerificationFailed(f"{file.name} cannot be read to its end: {why}", hint="It is damaged. Use another old set.", store="qdrant")


def _json(data: bytes) -> Mapping[str, object]:
    try:
        found = json.loads(data)
    except ValueError:
        return {}
    return found if isinstance(found, dict) and "collections_mapping" in found else {}


@contextmanager
def _archive(file: Path) -> Iterator[tarfile.TarFile]:
    """The members of an archive as a stream, compressed or not."""
    try:
        with tarfile.open(file, "r|*") as archive:
            yield archive
    except (tarfile.TarError, EOFError, OSError) as exc:
        raise _damaged(file, exc) from exc


def adopt(old: Old, into: Path, set_id: str, cut_at: datetime, source_version: str, limits: Limits, ctx: Context) -> Dump[QdrantEvidence]:
    """Copy the snapshots below ``into``, open each in a scratch server and measure it.

    Args:
        old: what :func:`look_into` found.
        into: an existing private directory.
        set_id: of the set under construction.
        cut_at: when the old set was taken, by its name.
        source_version: of the server that they are taken to come from; nothing in them tells. Empty: this host's.
        limits: how much is measured.

    Raises:
        ToolMissing: no qdrant program here opens them.
        VerificationFailed: one is damaged.
    """
    started = datetime.now(UTC)
    version = program_version(ctx.tools)
    if version is None:
        raise ToolMissing("no qdrant program on this host opens the old snapshots", hint="Install one and set QDRANT_BIN.", store="qdrant")
    directory = make_private_dir(into / f"qdrant_{set_id}")
    copies = [(one, _copied(one, directory, ctx)) for one in old.snapshots]
    artifacts: list[Artifact] = []
    collections: dict[str, CollectionEvidence] = {}
    with Scratch(ctx, largest=max((w.size for _, w in copies), default=0)) as scratch:
        for one, written in copies:
            ctx.cancel.check()
            collections[one.collection] = _measured(scratch, one, written, set_id, limits)
            artifacts.append(_artifact("snapshot", written, directory, one.collection))
    actions = json.dumps(alias_actions(old.aliases), ensure_ascii=False, indent=1).encode() + b"\n"
    artifacts.append(_artifact("aliases", write_private(directory / "aliases.json", actions), directory, ""))
    evidence = QdrantEvidence(
        server_version=source_version or version,
        cut_at=cut_at,
        collections=collections,
        aliases=dict(old.aliases),
        measured_on="snapshot",
        measured_by=version,
        seed=set_id,
    )
    told = f"version {source_version}, which the live server has" if source_version else f"version {version}, in which they opened here"
    warnings = [f"the old snapshots do not say which Qdrant made them: they are taken to be of {told}"]
    if not old.aliases:
        warnings.append("the old set holds no aliases: those of the live server go on leading to the restored collections")
    return Dump(tuple(artifacts), evidence, started, datetime.now(UTC), {"qdrant": version}, tuple(warnings))


def _copied(one: Found, directory: Path, ctx: Context) -> Written:
    target = directory / f"{file_name(one.collection)}.snapshot"
    if one.member:
        with _archive(one.file) as archive:
            for member in archive:
                if member.name.removeprefix("./") == one.member and member.isfile():
                    stream = archive.extractfile(member)
                    if stream is not None:
                        written = _written(stream, target, ctx)
                        break
            else:
                raise VerificationFailed(f"{one} is gone", hint="Somebody changed it meanwhile.", store="qdrant")
    else:
        with opened(one.file, compressed=_compressed(one.file)) as content:
            written = _written(content, target, ctx)
    try:
        read_structure(target, compressed=False)
    except VerificationFailed as exc:
        raise VerificationFailed(f"{one}: {exc.message}", hint="It is damaged. Use another old set.", store="qdrant") from exc
    return written


def _written(source: IO[bytes], target: Path, ctx: Context) -> Written:
    with HashingWriter(target) as out:
        while block := source.read(BLOCK):
            ctx.cancel.check()
            out.write(block)
    return out.result


def _measured(scratch: Scratch, one: Found, written: Written, seed: str, limits: Limits) -> CollectionEvidence:
    try:
        scratch.recover(written.path, one.collection, size=written.size, compressed=False)
        found = measure_collection(scratch.rest, scratch.source, one.collection, Look(seed), limits)
    except StoreError as exc:
        raise VerificationFailed(
            f"Qdrant {scratch.version} here does not open {one}: {exc.message}",
            hint="It is damaged, or of a Qdrant whose snapshots this one does not take: name one of its minor version in QDRANT_BIN.",
            store="qdrant",
        ) from exc
    scratch.forget(one.collection)
    return found


def _artifact(kind: str, written: Written, directory: Path, subject: str) -> Artifact:
    return Artifact(
        store="qdrant",
        kind="snapshot" if kind == "snapshot" else "aliases",
        path=f"{directory.name}/{written.path.name}",
        size_bytes=written.size,
        sha256=written.sha256,
        subject=subject,
    )
