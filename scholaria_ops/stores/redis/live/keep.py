"""The way back: what was served before, as an RDB of its own in the notebook's directory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scholaria_ops.catalogue.artifacts import Artifact
from scholaria_ops.errors import Refused, VerificationFailed
from scholaria_ops.files import Written, fsync_dir, hash_file
from scholaria_ops.stores.base import Context
from scholaria_ops.stores.redis.artifact import GzipWriter, Raw
from scholaria_ops.stores.redis.info import look
from scholaria_ops.stores.redis.live.extract import TooLarge, extract
from scholaria_ops.stores.redis.live.journal import SWITCHED, Crossing, Journal, Kept
from scholaria_ops.stores.redis.live.link import Link
from scholaria_ops.stores.redis.live.read_back import compare_some
from scholaria_ops.stores.redis.live.staging import forget, receive_into
from scholaria_ops.stores.redis.rdb import RdbWriter, version_of
from scholaria_ops.stores.redis.restore import loaded_scratch
from scholaria_ops.stores.redis.scratch import Scratch, UnreadableRdb
from scholaria_ops.stores.redis.take import Intake, receive
from scholaria_ops.stores.redis.wire import Wire

_GZIP_LEVEL = 1
#: Any version of the RDB format: whether the scratch server reads it shows when it loads.
_ANY = 1 << 16
_SHOWN = 3


def keep(link: Link, crossing: Crossing, journal: Journal, ctx: Context) -> Kept:
    """Write the databases that were swapped out, under their own numbers and with their functions, into an RDB, and load it again.

    They lie in the spare databases, where nobody writes. The file is complete when this returns: a server has loaded what was
    written, holds as many keys in each database, and of a sample of them the very values and expiries. Anything half-written of
    an earlier attempt is replaced.

    Raises:
        VerificationFailed: what was written does not load as what was read. The data stay in the spare databases.
    """
    path = journal.path(f"redis_kept_{crossing.number}.rdb.gz")
    own_numbers = {spare: served for served, spare in crossing.pairs}
    with link.wire(ctx) as wire, link.wire(ctx) as names:
        databases = look(wire).databases
        try:
            return _key_by_key(wire, names, crossing, journal, path, own_numbers, databases, ctx)
        except (TooLarge, UnreadableRdb) as exc:
            ctx.log.info("redis: what was served before is taken from an RDB of the server's own: %s", exc)
    return _from_an_rdb(link, crossing, journal, path, own_numbers, databases, ctx)


def _key_by_key(
    wire: Wire,
    names: Wire,
    crossing: Crossing,
    journal: Journal,
    path: Path,
    own_numbers: dict[int, int],
    databases: int | None,
    ctx: Context,
) -> Kept:
    path.unlink(missing_ok=True)
    with Scratch(ctx, databases=max(databases or 16, *own_numbers.values()) + 1, label="redis-keep") as scratch:
        with scratch.spool() as spool, GzipWriter(path, level=_GZIP_LEVEL) as out:
            wire.call("SELECT", crossing.ledger)
            intake = Intake([spool.write, out.write], readable=_ANY, scratch_version=scratch.version, source_version=scratch.version)
            rdb = RdbWriter(intake, version_of(wire.call("DUMP", SWITCHED)))
            for code in journal.get_code(crossing.functions_before):
                rdb.function(code)
            extracted = extract(wire, names, own_numbers, rdb, ctx.cancel)
            rdb.end()
            written = out.finish()
        kept = Kept(artifact=_artifact(path, written, intake.raw), keys=extracted.keys)
        scratch.load()
        wrong = _wrong_numbers(scratch, kept)
        for there, number in own_numbers.items():
            if number in extracted.sample:
                wire.call("SELECT", there)
                scratch.wire.call("SELECT", number)
                wrong += compare_some(scratch.wire, wire, number, extracted.sample[number])
    _refuse(wrong, kept)
    _same_file(kept, journal)
    return kept


def _from_an_rdb(
    link: Link, crossing: Crossing, journal: Journal, path: Path, own_numbers: dict[int, int], databases: int | None, ctx: Context
) -> Kept:
    """The same by an RDB of all that the server holds, out of which a scratch server takes what is to be kept."""
    path.unlink(missing_ok=True)
    with Scratch(ctx, databases=max(databases or 16, *own_numbers, *crossing.spares) + 1, label="redis-keep", compress=False) as scratch:
        receive_into(scratch, link, ctx)
        scratch.load()
        forget(scratch, scratch.keyspace().keys() - own_numbers.keys())
        scratch.swap({db: own_numbers[db] for db in scratch.keyspace()})
        scratch.wire.call("FUNCTION", "FLUSH")
        for code in journal.get_code(crossing.functions_before):
            scratch.wire.call("FUNCTION", "LOAD", code)
        keys = scratch.keyspace()
        with GzipWriter(path, level=_GZIP_LEVEL) as out:
            intake = Intake([out.write], readable=_ANY, scratch_version=scratch.version, source_version=scratch.version)
            receive(scratch.server.connection, "disk", intake, ctx, timeout_s=24 * 3600, may_fall_back=False)
            written = out.finish()
    kept = Kept(artifact=_artifact(path, written, intake.raw), keys=keys)
    with opened(kept, journal, ctx, databases=databases) as again:
        _refuse(_wrong_numbers(again, kept), kept)
    return kept


def _artifact(path: Path, written: Written, raw: Raw) -> Artifact:
    fsync_dir(path.parent)
    return Artifact(
        store="redis",
        kind="rdb",
        path=path.name,
        size_bytes=written.size,
        sha256=written.sha256,
        compression="gzip",
        raw_size_bytes=raw.size,
        raw_sha256=raw.sha256,
        subject="what was served before the switch",
    )


def _wrong_numbers(loaded: Scratch, kept: Kept) -> list[str]:
    found = loaded.keyspace()
    return [] if found == kept.keys else [f"{found} keys by database instead of {kept.keys}"]


def _refuse(wrong: list[str], kept: Kept) -> None:
    if wrong:
        raise VerificationFailed(
            f"{kept.artifact.path}, what Redis served before, loads as something else: {'; '.join(wrong[:_SHOWN])}",
            store="redis",
            hint="It stays in the server's spare databases; look at the disk here, then run `scholaria-ops restore --recover`.",
        )


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
    path = _same_file(kept, journal)
    highest = max(keys_of(kept, journal), default=0)
    with loaded_scratch(path, kept.artifact, ctx, databases=max(databases or 16, highest + 1)) as scratch:
        yield scratch


def _same_file(kept: Kept, journal: Journal) -> Path:
    path = journal.path(kept.artifact.path)
    try:
        written = hash_file(path)
    except FileNotFoundError as exc:
        raise _lost(f"{path} is gone") from exc
    if (written.size, written.sha256) != (kept.artifact.size_bytes, kept.artifact.sha256):
        raise _lost(f"{path} is not the file that was written: its SHA-256 is {written.sha256}")
    return path


def keys_of(kept: Kept, journal: Journal) -> dict[int, int]:
    """Database → number of keys. (Where the evidence of what was kept was measured when it was written, it says so.)"""
    return journal.get_evidence(kept.evidence).per_database() if kept.evidence else kept.keys


def _lost(why: str) -> Refused:
    return Refused(f"{why}: what Redis served before cannot be served again", store="redis", hint="Restore the pre_restore safety set.")
