"""What a collection holds, point by point: a digest of each point, kept in a file, so that later writes can be counted exactly."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from scholaria_ops.errors import Refused
from scholaria_ops.files import HashingWriter
from scholaria_ops.stores.live import Notebook
from scholaria_ops.stores.qdrant import canon
from scholaria_ops.stores.qdrant.live.digests import DIGEST_BYTES, Digests
from scholaria_ops.stores.qdrant.live.facts import Mark
from scholaria_ops.stores.qdrant.measure import largest_page, vector_fields
from scholaria_ops.stores.qdrant.names import file_name
from scholaria_ops.stores.qdrant.points import Point, Source, Wanted, source_of
from scholaria_ops.stores.qdrant.rest import Rest, at

#: Over REST a vector component costs 0.12 µs, over gRPC 0.02: above so many, what is compared while people wait leaves vectors out.
MAX_FLOATS = 16_000_000
_MAX_FLOATS_GRPC = 100_000_000
_LINES = 5000


@dataclass(slots=True)
class Noted:
    """Points that were read: a digest of what was read of each."""

    points: Digests = field(default_factory=Digests)
    payloads: bool = False
    vectors: bool = False
    #: Sum of the whole digests.
    total: int = 0

    @property
    def payload_sum(self) -> str | None:
        """The fingerprint of all payloads as evidence has it; None when payloads were not read, or vectors as well."""
        return canon.hexed(canon.total([self.total])) if self.payloads and not self.vectors else None

    @property
    def ids(self) -> str:
        return canon.hexed(canon.total(canon.share(raw) for raw, _ in self.points.items()))


class Noting:
    """A source of points that notes each point that passes."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self.fast_vectors = source.fast_vectors
        self.noted = Noted()

    def pages(self, wanted: Wanted) -> Iterator[list[Point]]:
        noted = self.noted = Noted(Digests(), wanted.payloads, wanted.vectors)
        for page in self._source.pages(wanted):
            for point in page:
                raw = canon.point_id(point.id)
                own = canon.share(raw, point.payload, *canon.named(point.vectors))
                noted.total += own
                noted.points.add(raw, own.to_bytes(32, "big")[:DIGEST_BYTES])
            yield page


def note(rest: Rest, collection: str, *, payloads: bool, vectors: bool) -> Noted:
    """Read all points of a collection: their ids, and as much else as is asked for."""
    config = rest.get(at(collection))["config"]
    floats = sum(one.size or 64 for one in vector_fields(config))
    source = Noting(source_of(rest, moving=True))
    for _ in source.pages(Wanted(collection, payloads, vectors, floats, largest_page(config))):
        pass
    return source.noted


def readable(rest: Rest, collection: str) -> bool:
    """Whether all vectors of a collection can be read while people wait."""
    info = rest.get(at(collection))
    floats = sum(one.size or 64 for one in vector_fields(info["config"]))
    most = _MAX_FLOATS_GRPC if source_of(rest, moving=True).fast_vectors else MAX_FLOATS
    return int(info.get("points_count") or 0) * floats <= most


def marks_file(notebook: Notebook, collection: str) -> Path:
    """Where the digests of a collection's points are written down."""
    return notebook.directory / f"{file_name(collection)}.points"


def save(noted: Noted, path: Path) -> Mark:
    """Write the digests into a private file: a line per point, the id's bytes and the digest in hexadecimal digits."""
    path.unlink(missing_ok=True)
    lines = (b"%s %s\n" % (raw.hex().encode(), own.hex().encode()) for raw, own in noted.points.items())
    with HashingWriter(path) as out:
        while block := b"".join(itertools.islice(lines, _LINES)):
            out.write(block)
    return Mark(points=len(noted.points), ids=noted.ids, file=path.name, payloads=noted.payloads, vectors=noted.vectors)


def load(path: Path, mark: Mark) -> Noted:
    """Raises Refused when the file is gone or is not what was written."""
    points = Digests()
    try:
        with path.open("rb") as lines:
            for line in lines:
                raw, own = line.split()
                points.add(bytes.fromhex(raw.decode()), bytes.fromhex(own.decode()))
    except (OSError, ValueError) as exc:
        raise Refused(f"cannot read {path}: {exc}", hint="What was written since cannot be counted.", store="qdrant") from exc
    noted = Noted(points, mark.payloads, mark.vectors)
    if len(points) != mark.points or noted.ids != mark.ids:
        raise Refused(f"{path} is damaged", hint="What was written since cannot be counted.", store="qdrant")
    return noted
