"""The way back: what was served before, as an RDB of its own in the notebook's directory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from scholaria_ops.catalogue.artifacts import Artifact
from scholaria_ops.errors import Refused, VerificationFailed
from scholaria_ops.files import fsync_dir, hash_file
from scholaria_ops.stores.base import Context
from scholaria_ops.stores.redis.artifact import GzipWriter, Raw
from scholaria_ops.stores.redis.info import look
from scholaria_ops.stores.redis.live.journal import Crossing, Journal, Kept
from scholaria_ops.stores.redis.live.link import Link
from scholaria_ops.stores.redis.live.staging import forget, receive_into
from scholaria_ops.stores.redis.restore import loaded_scratch
from scholaria_ops.stores.redis.scratch import Scratch
from scholaria_ops.stores.redis.take import Intake, build_evidence, measure, origin_of, receive
from scholaria_ops.stores.redis.windows import Windows

_GZIP_LEVEL = 1


def keep(link: Link, crossing: Crossing, journal: Journal, ctx: Context) -> Kept:
    """Write the databases that were swapped out, under their own numbers and with their functions, into an RDB, and load it again.

    They lie in the spare databases, where nobody writes. The file is complete when this returns, a server has loaded it
    and holds as many keys; an undo compares all of them with the evidence, which is of what the live server sent.
    Anything half-written of an earlier attempt is replaced.
    """
    with link.wire(ctx) as wire:
        databases = look(wire).databases
    own_numbers = {spare: served for served, spare in crossing.pairs}
    with Scratch(ctx, databases=max(databases or 16, *own_numbers, *crossing.spares) + 1, label="redis-keep", compress=False) as scratch:
        taken, info = receive_into(scratch, link, ctx)
        scratch.load()
        forget(scratch, scratch.keyspace().keys() - own_numbers.keys())
        scratch.swap({db: own_numbers[db] for db in scratch.keyspace()})
        scratch.wire.call("FUNCTION", "FLUSH")
        for code in journal.get_code(crossing.functions_before):
            scratch.wire.call("FUNCTION", "LOAD", code)
        origin = origin_of(taken.received.cut_after)
        found = measure(
            scratch, Windows(origin), ctx, like=None, rules=(), expired_before_ms=int(taken.received.cut_after.timestamp() * 1000)
        )
        counts = scratch.keyspace()
        artifact, raw, form = _write(scratch, crossing, journal, ctx)
        evidence = build_evidence(taken, found, info, scratch, origin=origin, rules=(), acl=None)
    # What lies in the file is an RDB of the scratch server's, not of the live one's.
    evidence = evidence.model_copy(update={"rdb_version": _version(raw), "rdb_checksum": raw.checksum, "form": form})
    kept = Kept(artifact=artifact, evidence=journal.put_evidence(f"redis_kept_{crossing.number}.json", evidence))
    with opened(kept, journal, ctx, databases=databases) as again:
        if (loaded := again.keyspace()) != counts:
            raise VerificationFailed(
                f"{artifact.path}, what Redis served before, loads as {loaded} keys by database instead of {counts}",
                store="redis",
                hint="It stays in the server's spare databases; look at the disk here, then run `scholaria-ops restore --recover`.",
            )
    return kept


def _write(scratch: Scratch, crossing: Crossing, journal: Journal, ctx: Context) -> tuple[Artifact, Raw, str]:
    path = journal.path(f"redis_kept_{crossing.number}.rdb.gz")
    path.unlink(missing_ok=True)
    with GzipWriter(path, level=_GZIP_LEVEL) as out:
        intake = Intake([out.write], readable=1 << 16, scratch_version=scratch.version, source_version=scratch.version)
        received, _ = receive(scratch.server.connection, "disk", intake, ctx, timeout_s=24 * 3600, may_fall_back=False)
        written = out.finish()
    fsync_dir(path.parent)
    artifact = Artifact(
        store="redis",
        kind="rdb",
        path=path.name,
        size_bytes=written.size,
        sha256=written.sha256,
        compression="gzip",
        raw_size_bytes=intake.raw.size,
        raw_sha256=intake.raw.sha256,
        subject="what was served before the switch",
    )
    return artifact, intake.raw, received.form


def _version(raw: Raw) -> int:
    return int(raw.head[5:9])


def require_kept(journal: Journal) -> None:
    """Raise Refused unless what was kept is there; its content is compared when it is used."""
    kept = journal.kept
    if kept is None or not journal.path(kept.artifact.path).is_file():
        raise _lost(f"{journal.path(kept.artifact.path)} is gone" if kept else "nothing is kept")


@contextmanager
def opened(kept: Kept, journal: Journal, ctx: Context, *, databases: int | None) -> Iterator[Scratch]:
    """A scratch server that has loaded what was kept.

    Raises:
        Refused: the file is gone, or is not the one that was written.
    """
    path = journal.path(kept.artifact.path)
    try:
        written = hash_file(path)
    except FileNotFoundError as exc:
        raise _lost(f"{path} is gone") from exc
    if (written.size, written.sha256) != (kept.artifact.size_bytes, kept.artifact.sha256):
        raise _lost(f"{path} is not the file that was written: its SHA-256 is {written.sha256}")
    evidence = journal.get_evidence(kept.evidence)
    highest = max(evidence.per_database(), default=0)
    with loaded_scratch(path, kept.artifact, ctx, databases=max(databases or 16, highest + 1)) as scratch:
        yield scratch


def _lost(why: str) -> Refused:
    return Refused(f"{why}: what Redis served before cannot be served again", store="redis", hint="Restore the pre_restore safety set.")
