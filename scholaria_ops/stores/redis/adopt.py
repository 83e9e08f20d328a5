"""Take an RDB from a file of an old-style set: its very bytes become an artifact, and its evidence is measured now."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

from scholaria_ops.catalogue.artifacts import Artifact
from scholaria_ops.catalogue.evidence.redis import RedisEvidence
from scholaria_ops.errors import Refused, VerificationFailed
from scholaria_ops.files import BLOCK, Written
from scholaria_ops.stores.base import Context, Dump
from scholaria_ops.stores.redis.artifact import GzipWriter, Raw, rdb_version, read_header, unpack
from scholaria_ops.stores.redis.info import look
from scholaria_ops.stores.redis.scratch import Scratch
from scholaria_ops.stores.redis.sync import Received
from scholaria_ops.stores.redis.take import Taken, build_evidence, measure, origin_of
from scholaria_ops.stores.redis.windows import Windows

_GZIP_LEVEL = 1
#: ``REDIS`` and four digits.
_VERSION_BYTES = 9
#: An RDB that is further away from what the set's name says was probably not made for it.
_FAR = timedelta(hours=1)


def adopt(path: Path, into: Path, set_id: str, named_at: datetime, ctx: Context) -> Dump[RedisEvidence]:
    """Copy an old RDB below ``into`` as this product writes it, load it, and measure every key.

    Args:
        path: the old file, compressed by gzip or not.
        into: an existing private directory.
        set_id: of the set under construction.
        named_at: when the old set was taken, by its name. The RDB itself knows better, where it tells.

    Raises:
        Refused: the RDB is of a newer version than the redis-server here reads.
        VerificationFailed: it is damaged, cut, or something else.
    """
    started = datetime.now(UTC)
    with Scratch(ctx, label="redis-adopt") as scratch:
        raw, written = _copied(path, into / f"redis_{set_id}.rdb.gz", scratch, ctx)
        scratch.load()
        aux = read_header(raw.head).aux
        cut = _made_at(aux) or named_at
        # The windows begin now: everything that has expired since the cut lies in the first one.
        origin = origin_of(started)
        found = measure(scratch, Windows(origin), ctx, like=None, rules=(), expired_before_ms=int(cut.timestamp() * 1000))
        taken = Taken(raw, Received("disk", raw.size, cut, cut))
        info = look(scratch.wire, config=False)
        evidence = build_evidence(taken, found, info, scratch, origin=origin, rules=(), acl=None)
    used = aux.get("used-mem", "")
    evidence = evidence.model_copy(
        update={
            # What the file says of the server that wrote it, not the scratch server's.
            "server_version": aux.get("redis-ver") or f"unknown (RDB version {evidence.rdb_version})",
            "run_id": "",
            **({"used_memory_bytes": int(used)} if used.isdigit() else {}),
        }
    )
    artifact = Artifact(
        store="redis",
        kind="rdb",
        path=written.path.name,
        size_bytes=written.size,
        sha256=written.sha256,
        compression="gzip",
        raw_size_bytes=raw.size,
        raw_sha256=raw.sha256,
        subject="all databases",
    )
    warnings = tuple(_warnings(path, evidence, cut, named_at, known=_made_at(aux) is not None))
    return Dump((artifact,), evidence, started, datetime.now(UTC), {"redis-server": evidence.measured_with}, warnings)


def _copied(path: Path, target: Path, scratch: Scratch, ctx: Context) -> tuple[Raw, Written]:
    raw = Raw()
    readable = scratch.rdb_version
    with GzipWriter(target, level=_GZIP_LEVEL) as out:
        with scratch.spool() as spool:
            for block in _content(path, ctx):
                checked = raw.size >= _VERSION_BYTES
                raw.add(block)
                if not checked and raw.size >= _VERSION_BYTES:
                    _refuse_newer(path, rdb_version(raw.head), readable, scratch.version)
                spool.write(block)
                out.write(block)
        if not raw.whole:
            raise VerificationFailed(
                f"{path.name} does not end as an RDB does: it is cut, or has something behind its end",
                hint="Nothing of it was taken over. Use another old set.",
                store="redis",
            )
        return raw, out.finish()


def _content(path: Path, ctx: Context) -> Iterator[bytes]:
    with path.open("rb") as source:
        packed = source.read(2) == b"\x1f\x8b"
        source.seek(0)
        while not packed and (block := source.read(BLOCK)):
            ctx.cancel.check()
            yield block
    if packed:
        yield from unpack(path, cancel=ctx.cancel)


def _refuse_newer(path: Path, found: int, readable: int, version: str) -> None:
    if found > readable:
        raise Refused(
            f"{path.name} is of RDB version {found}; redis-server {version} here reads up to {readable}",
            hint="Install a redis-server here that is at least as new as the one that wrote it, and name it in REDIS_SERVER. "
            "The live server must be as new, too.",
            store="redis",
        )


def _made_at(aux: Mapping[str, str]) -> datetime | None:
    """When the server wrote the RDB (``ctime``: seconds since the epoch, so no zone is in doubt)."""
    told = aux.get("ctime", "")
    return datetime.fromtimestamp(int(told), UTC) if told.isdigit() and int(told) > 0 else None


def _warnings(path: Path, evidence: RedisEvidence, cut: datetime, named_at: datetime, *, known: bool) -> Iterator[str]:
    if not evidence.rdb_checksum:
        yield f"{path.name} has no checksum of its own: flipped bytes in it could not be found"
    if not known:
        yield f"{path.name} does not say when it was made: the time of the set's name is taken"
    elif abs(cut - named_at) > _FAR:
        yield (
            f"{path.name} was made at {cut:%Y-%m-%d %H:%M:%S} UTC, {_hours(cut - named_at)} than the set's name says: it may be a file of "
            "another day, or the old scripts ran in another zone than BACKUP_TIMEZONE"
        )
    gone = sum(row.keys for row in evidence.keys if row.expires_before is not None and row.expires_before <= evidence.window_origin)
    if gone:
        yield f"{gone:,} of {evidence.total_keys:,} keys have expired since then: they will not come back"
    yield "the old scripts kept no ACL users, nor which server the keys came from"


def _hours(apart: timedelta) -> str:
    hours = abs(apart) / timedelta(hours=1)
    return f"{hours:,.1f} h {'later' if apart > timedelta() else 'earlier'}"
