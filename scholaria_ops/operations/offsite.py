"""Bring sets out of the house and back: ship, fetch, and what the offsite place knows."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from scholaria_ops.catalogue.commit import staging
from scholaria_ops.catalogue.layout import MANIFEST, SET_PREFIX, SUMS, check_id, id_from_name
from scholaria_ops.catalogue.manifest import Manifest
from scholaria_ops.catalogue.records import Record, parse
from scholaria_ops.catalogue.sets import BackupSet, Entry, Kind, parse_sums
from scholaria_ops.errors import ConfigError, Refused, UsageError, VerificationFailed
from scholaria_ops.files import fsync_dir, hash_file, make_private_dir, rename_durably
from scholaria_ops.offsite.base import FetchReport, FileToShip, OffsiteTarget, ShipReport
from scholaria_ops.operations.services import Services
from scholaria_ops.operations.verify import hash_check
from scholaria_ops.stores.base import Context

_NO_TARGET = "no offsite place is set"
_NO_TARGET_HINT = "Set BACKUP_S3_BUCKET (and what belongs to it; see `scholaria-ops config`)."


def target_of(services: Services) -> OffsiteTarget:
    """The offsite place in force; raises ConfigError if there is none."""
    if services.offsite is None:
        raise ConfigError(_NO_TARGET, hint=_NO_TARGET_HINT)
    return services.offsite


def sensitive(manifest: Manifest) -> tuple[str, ...]:
    """What leaves the house unencrypted and should be thought about once."""
    told = []
    if manifest.artifacts_of("postgres") and any(a.kind == "globals" for a in manifest.artifacts_of("postgres")):
        told.append("password hashes of PostgreSQL roles")
    if manifest.artifacts_of("redis"):
        told.append("sessions and queued tasks of Redis")
    return tuple(told)


@dataclass(frozen=True, slots=True)
class Shipped:
    """A set that stands offsite, confirmed."""

    report: ShipReport
    warnings: tuple[str, ...]


def ship(services: Services, entry: Entry, *, reread: bool = False, run_id: str = "") -> Shipped:
    """Copy a sealed set offsite and confirm every byte there. Repeating it finishes or confirms what is there.

    Args:
        reread: read a copy that was confirmed earlier again in full, and replace what has rotted.

    Raises:
        Refused: the set is not whole, or its newest verification failed.
        OffsiteError, OffsiteUnavailable, AuthenticationFailed, VerificationFailed: as they say.
    """
    target = target_of(services)
    if entry.kind is not Kind.SEALED or entry.set is None:
        raise Refused(f"{entry.name} is {entry.kind}: only whole sealed sets are shipped", hint=entry.reason)
    newest = entry.last("verified")
    if newest and newest.detail.get("passed") is not True:
        raise Refused(f"the newest verification of {entry.id} failed", hint="Verify it again, or ship another set; damage is not copied.")
    with services.audited("ship", entry.set.id, run_id=run_id, where=target.where, reread=reread) as audited:
        report = _upload(services, entry, entry.set, reread=reread, run_id=run_id)
        audited.note(bytes=report.size_bytes, sent_bytes=report.sent_bytes)
    told = sensitive(entry.set.manifest)
    warning = (f"the offsite copy holds {' and '.join(told)}, unencrypted: restrict who may read the bucket",) if told else ()
    return Shipped(report, (*report.warnings, *warning))


def _upload(services: Services, entry: Entry, backup_set: BackupSet, *, reread: bool, run_id: str) -> ShipReport:
    target = target_of(services)
    for line in target.reap(cancel=services.cancel):
        services.progress.say(line)
    report = target.upload_set(
        entry.directory,
        entry.directory.name,
        _files(backup_set),
        (SUMS, MANIFEST),
        confirm=services.settings.s3_confirm,
        cancel=services.cancel,
        progress=services.progress,
        existing="reread" if reread else "trust",
    )
    services.catalogue.records.append(
        backup_set.id,
        "shipped",
        run_id=run_id,
        where=report.where,
        bytes=report.size_bytes,
        sent_bytes=report.sent_bytes,
        seconds=round(report.seconds, 3),
        sending_s=round(report.sending_s, 3),
        confirmed_by="earlier run" if report.already_there and not reread else services.settings.s3_confirm,
        # Out of the house with the record: whoever rewrites the audit log here cannot rewrite this too.
        audit=services.audit_log.head().as_detail(),
    )
    push_records(services, backup_set.id)
    return report


def push_records(services: Services, set_id: str) -> None:
    """Bring the records of a set offsite too, so that the bucket alone tells its story. Does nothing without an offsite place."""
    path = services.catalogue.layout.record(set_id)
    if services.offsite is not None and path.exists():
        services.offsite.put_records(set_id, path.read_bytes(), cancel=services.cancel)


def _files(backup_set: BackupSet) -> Sequence[FileToShip]:
    directory = backup_set.directory
    sums = parse_sums((directory / SUMS).read_bytes(), source=SUMS)
    files = [FileToShip(path, (directory / path).stat().st_size, digest) for path, digest in sums.items()]
    own = hash_file(directory / SUMS)
    return [*files, FileToShip(SUMS, own.size, own.sha256)]


@dataclass(frozen=True, slots=True)
class OffsiteSet:
    """A complete set in the offsite place, with the records that lie beside it."""

    id: str
    name: str
    size_bytes: int
    records: tuple[Record, ...]

    @property
    def verified(self) -> bool:
        judged = [r for r in self.records if r.event == "verified"]
        return bool(judged) and judged[-1].detail.get("passed") is True

    @property
    def ordered_by(self) -> tuple[str, str]:
        """Instant of the cut as recorded when the set was sealed; sets without that record come first, by name."""
        sealed = next((r for r in self.records if r.event == "sealed"), None)
        return (str(sealed.detail.get("cut_at", "")) if sealed else "", self.name)


def offsite_sets(services: Services) -> list[OffsiteSet]:
    """Every complete set in the offsite place, oldest cut first. A failed listing is an error, never a short list."""
    target = target_of(services)
    records: Mapping[str, bytes] = target.get_records(cancel=services.cancel)
    found = []
    for remote in target.list_sets(cancel=services.cancel):
        set_id = id_from_name(remote.name)
        if remote.complete and set_id and remote.name.startswith(SET_PREFIX):
            found.append(OffsiteSet(set_id, remote.name, remote.size_bytes, tuple(parse(records.get(set_id, b"")))))
    return sorted(found, key=lambda s: s.ordered_by)


def offsite_id(services: Services, reference: str) -> str:
    """The id that ``latest`` (newest verified set offsite) or an id names in the offsite place."""
    if reference != "latest":
        return check_id(reference)
    verified = [s for s in offsite_sets(services) if s.verified]
    if not verified:
        raise UsageError(f"no verified set in {target_of(services).where}", hint="Ship one first, or name a set by its id.")
    return verified[-1].id


def offsite_manifest(services: Services, set_id: str) -> Manifest:
    """The manifest of an offsite set."""
    target = target_of(services)
    name = f"{SET_PREFIX}{check_id(set_id)}"
    return Manifest.from_bytes(
        target.read_small(name, MANIFEST, cancel=services.cancel), source=f"{target.where.rstrip('/')}/{name}/{MANIFEST}"
    )


def fetch(services: Services, reference: str, *, run_id: str = "", replace_damaged: bool = False) -> Entry:
    """Bring a set back from offsite into BACKUP_DIR, every byte checked, sealed by the same rename as a new one.

    With ``replace_damaged`` a set that is here already is read: a sound one is returned as it is, a damaged one makes way once
    the other is whole and checked beside it. It is kept as ``damaged-<id>``, for whoever wants to know what happened to it.

    Raises:
        UsageError: there is no such set offsite, or it is here already (something else of its name, with ``replace_damaged``).
        VerificationFailed: bytes came back that are not those that were sealed; nothing was kept.
    """
    set_id = offsite_id(services, reference)
    where = target_of(services).where
    with services.audited("fetch", set_id, run_id=run_id, where=where) as audited, services.locked(f"fetch {set_id}"):
        layout = services.catalogue.layout
        damage = ""
        if replace_damaged and layout.sealed(set_id).exists():
            here = services.catalogue.find(set_id)
            if not (damage := _damage(services, here)):
                audited.note(already_here=True)
                return here
            services.progress.say(f"{set_id} is damaged here ({damage}): it is fetched beside, and takes its place once it is checked")
        elif layout.sealed(set_id).exists():
            raise UsageError(
                f"the set {set_id} is here already",
                hint=f"`scholaria-ops verify {set_id}` tells whether it is sound. To replace a damaged one, move it away first: "
                f"mv {layout.sealed(set_id)} {layout.root}/damaged-{set_id} "
                f"(`scholaria-ops restore {set_id} --from offsite` does all that by itself)",
            )
        _merge_records(services, set_id)
        with services.context(f"fetch-{set_id}") as ctx, staging(layout, set_id) as stage:
            report = _download(services, set_id, stage.path, ctx)
            fsync_dir(stage.path)
            aside = _set_aside(services, set_id) if damage else ""
            rename_durably(stage.path, layout.sealed(set_id))
        replaced: dict[str, Any] = {"replaced": f"{aside}: {damage}"} if damage else {}
        services.catalogue.records.append(
            set_id, "fetched", run_id=run_id, where=where, bytes=report.size_bytes, seconds=round(report.seconds, 3), **replaced
        )
        audited.note(bytes=report.size_bytes, **replaced)
        # Every byte was compared with what was sealed while it was written.
        services.catalogue.records.append(
            set_id,
            "verified",
            run_id=run_id,
            level="hash",
            passed=True,
            seconds=round(report.seconds, 3),
            bytes=report.size_bytes,
            failed=[],
            unjudged=[],
        )
    return services.catalogue.find(set_id)


def at_hand(services: Services, reference: str) -> Entry:
    """An offsite set, sound in BACKUP_DIR: as it stands there, or fetched, in place of a damaged one if need be.

    Raises:
        As :func:`fetch` does.
    """
    set_id = offsite_id(services, reference)
    if services.catalogue.layout.sealed(set_id).exists():
        here = services.catalogue.find(set_id)
        if not _damage(services, here):
            services.progress.say(f"{set_id} is here already, and sound")
            return here
    return fetch(services, set_id, replace_damaged=True)


def _damage(services: Services, entry: Entry) -> str:
    """What is wrong with a set that stands here; empty if every byte is as it was sealed.

    Raises:
        UsageError: it is something else than a whole set of ours, which nothing from offsite may take the place of.
        Refused: it cannot be read, so nobody knows.
    """
    if entry.unread:
        raise Refused(f"{entry.name} here cannot be read ({entry.unread}): it may be sound", hint="Mend its permissions or the disk first.")
    if entry.kind is Kind.DAMAGED:
        return entry.reason
    if entry.kind is not Kind.SEALED:
        raise UsageError(f"{entry.name} here is {entry.kind}", hint="Move its directory away first, if it is to be replaced.")
    with services.context(f"check-{entry.id}") as ctx:
        try:
            hash_check(services, entry, ctx)
        except VerificationFailed as exc:
            return exc.message
    return ""


def _set_aside(services: Services, set_id: str) -> str:
    """Rename a damaged set out of the way; returns its new name. A kill right after leaves the set missing, never a damaged one."""
    layout = services.catalogue.layout
    names = (f"damaged-{set_id}" + (f"-{n}" if n > 1 else "") for n in count(1))
    name = next(name for name in names if not (layout.root / name).exists())
    rename_durably(layout.sealed(set_id), layout.root / name)
    services.progress.say(f"the damaged one is kept as {layout.root / name}: remove it when you need it no more")
    return name


def fetch_into(services: Services, set_id: str, parent: Path, ctx: Context) -> Path:
    """Fetch a set into a directory of that name below ``parent``, every byte checked; returns the directory."""
    directory = make_private_dir(parent / f"{SET_PREFIX}{check_id(set_id)}")
    _merge_records(services, set_id)
    _download(services, set_id, directory, ctx)
    return directory


def _merge_records(services: Services, set_id: str) -> None:
    content = target_of(services).get_records(cancel=services.cancel).get(set_id)
    if content:
        services.catalogue.records.merge(set_id, content)


def _download(services: Services, set_id: str, into: Path, ctx: Context) -> FetchReport:
    """Checksums first, judged by the record of the sealing; then every file, judged by the checksums."""
    target, name = target_of(services), f"{SET_PREFIX}{check_id(set_id)}"
    data = target.read_small(name, SUMS, cancel=ctx.cancel)
    sums = parse_sums(data, source=f"{target.where.rstrip('/')}/{name}/{SUMS}")
    sealed = services.catalogue.records.last(set_id, "sealed")
    expected = dict(sums)
    own = str(sealed.detail.get("sums_sha256", "")) if sealed else ""
    if own:
        expected[SUMS] = own
    else:
        expected[SUMS] = hashlib.sha256(data).hexdigest()
    report = target.download_set(name, into, cancel=ctx.cancel, progress=ctx.progress, expected=expected)
    missing = expected.keys() - {f.path for f in report.files}
    if missing:
        raise VerificationFailed(
            f"{', '.join(sorted(missing))} of set {set_id} is missing in {target.where}",
            hint="Use another set, and ship this one again if it still stands elsewhere.",
        )
    return report
