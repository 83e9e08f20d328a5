"""Composition: from settings to the objects that operations work with."""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from scholaria_ops.cancel import CancelToken
from scholaria_ops.catalogue import audit
from scholaria_ops.catalogue.commit import reap
from scholaria_ops.catalogue.evidence.base import StoreName
from scholaria_ops.catalogue.ledger import Ledger
from scholaria_ops.catalogue.lock import Holder, Listener, Unheard, estate_lock
from scholaria_ops.catalogue.sets import Catalogue
from scholaria_ops.errors import OpsError, Refused
from scholaria_ops.files import make_private_dir
from scholaria_ops.offsite.base import OffsiteTarget
from scholaria_ops.offsite.s3 import S3Options, S3Target
from scholaria_ops.operations.auditing import Actor, Audited, clean, error_detail, outcome_of
from scholaria_ops.operations.restore.kept import kept_on_qdrant
from scholaria_ops.operations.scratch import reap_scratch, scratch_directory
from scholaria_ops.operations.waiting import Told
from scholaria_ops.progress import Progress, Silent
from scholaria_ops.sandbox.tools import Tools, find_tools
from scholaria_ops.settings import Settings
from scholaria_ops.stores.base import Context, Store
from scholaria_ops.stores.postgres.store import PostgresStore
from scholaria_ops.stores.qdrant.store import QdrantStore
from scholaria_ops.stores.redis.store import RedisStore

AnyStore = Store[Any, Any]


@dataclass(frozen=True)
class Services:
    """Everything an operation needs. Made by :func:`make_services`; tests make their own."""

    settings: Settings
    catalogue: Catalogue
    stores: Mapping[StoreName, AnyStore]
    tools: Tools
    ledger: Ledger
    #: Where copies go outside the house; None if nothing is set.
    offsite: OffsiteTarget | None = None
    cancel: CancelToken = field(default_factory=CancelToken)
    progress: Progress = field(default_factory=Silent)
    log: logging.Logger = field(default_factory=lambda: logging.getLogger("scholaria_ops"))
    #: Who asks, for the audit log.
    actor: Actor = field(default_factory=Actor)
    #: Seconds to wait for the estate lock, and who hears of a wait besides ``progress``.
    lock_wait_s: float = 0.0
    waits: Listener = field(default_factory=Unheard)

    def now(self) -> datetime:
        return datetime.now(UTC)

    @contextlib.contextmanager
    def locked(self, what: str, *, until: datetime | None = None) -> Iterator[Holder]:
        """Hold the estate lock, after removing what killed runs left on this disk.

        ``until`` is when the work would come too late (its plan expires): it is not waited for longer.

        Raises:
            Busy: another run holds it, and is not waited for any longer.
            Cancelled: told to stop while it waited.
            Refused: BACKUP_DIR cannot be made or written.
        """
        self.check_directory()
        wait_s = self.lock_wait_s if until is None else min(self.lock_wait_s, (until - self.now()).total_seconds())
        listener = Told(self.progress, self.waits)
        with estate_lock(self.catalogue.layout.lock, what, wait_s=wait_s, cancel=self.cancel, listener=listener) as holder:
            reap(self.catalogue.layout, say=self.progress.say)
            for line in reap_scratch(self.settings.scratch_root):
                self.progress.say(line)
            yield holder

    @contextlib.contextmanager
    def context(self, label: str, **more: Any) -> Iterator[Context]:
        """A store context with a scratch directory of its own, removed at the end."""
        for line in reap_scratch(self.settings.scratch_root):
            self.progress.say(line)
        with scratch_directory(self.settings.scratch_root, label) as scratch:
            yield Context(
                scratch=scratch, ledger=self.ledger, tools=self.tools, cancel=self.cancel, progress=self.progress, log=self.log, **more
            )

    @property
    def audit_log(self) -> audit.AuditLog:
        return audit.AuditLog(self.catalogue.layout.audit)

    def audit(self, verb: str, set_id: str, outcome: audit.Outcome, *, run_id: str = "", **detail: Any) -> audit.Entry:
        """Write one entry into the audit log; secrets in ``detail`` are replaced.

        Raises:
            Refused, DiskFull: it could not be written.
        """
        told = clean(detail, self.settings.secrets)
        by, how = self.actor.by, self.actor.how
        return self.audit_log.append(verb, set_id, outcome, by=by, how=how, run_id=run_id or self.actor.run_id, detail=told)

    @contextlib.contextmanager
    def audited(self, verb: str, set_id: str, *, run_id: str = "", **detail: Any) -> Iterator[Audited]:
        """Record the begin and the outcome of the block, whatever it is; see :mod:`scholaria_ops.operations.auditing`.

        Raises:
            Refused: BACKUP_DIR, or the audit log in it, cannot be written; the block did not run.
        """
        self.check_directory()
        self.audit(verb, set_id, "begun", run_id=run_id, **detail)
        entry = Audited(set_id)
        try:
            yield entry
        except BaseException as exc:
            try:
                self.audit(verb, entry.set_id, outcome_of(exc), run_id=run_id, **{**entry.detail, **error_detail(exc)})
            except OpsError as untold:
                # The error of the work itself is the one to be told.
                exc.add_note(f"and the audit log could not be written: {untold}")
            raise
        self.audit(verb, entry.set_id, entry.outcome, run_id=run_id, **entry.detail)

    def check_directory(self) -> None:
        """Make BACKUP_DIR if needed and see that it can be written."""
        root = self.catalogue.layout.root
        try:
            make_private_dir(root, exist_ok=True)
            make_private_dir(self.catalogue.layout.state, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.catalogue.layout.state):
                pass
        except OSError as exc:
            raise Refused(
                f"BACKUP_DIR {root} cannot be written: {exc.strerror}",
                hint="Create it for the user who runs this, or point BACKUP_DIR elsewhere.",
            ) from exc


def make_services(
    settings: Settings,
    *,
    cancel: CancelToken | None = None,
    progress: Progress | None = None,
    log: logging.Logger | None = None,
    actor: Actor | None = None,
    lock_wait_s: float | None = None,
    waits: Listener | None = None,
) -> Services:
    """Services for real stores, as the settings name them. Connects to nothing yet.

    ``lock_wait_s`` is in place of what commands wait for the estate lock.
    """
    catalogue = Catalogue(settings.backup_dir)
    stores: dict[StoreName, AnyStore] = {
        "postgres": PostgresStore(
            settings.postgres,
            pg_dump_compression=settings.pg_compression,
            lock_timeout_s=settings.pg_lock_timeout_s,
            fingerprint_max_bytes=settings.fingerprint_max_bytes,
            restore_jobs=settings.pg_restore_jobs,
        ),
        "redis": RedisStore(settings.redis, sync_mode=settings.redis_sync),
        "qdrant": QdrantStore(
            settings.qdrant,
            fingerprint_max_points=settings.qdrant_fingerprint_max_points,
            kept=lambda: kept_on_qdrant(catalogue.layout),
        ),
    }
    ledger = Ledger(catalogue.layout.ledger)
    return Services(
        settings=settings,
        catalogue=catalogue,
        stores=stores,
        tools=find_tools(pg_bin_dir=settings.pg_bin_dir, redis_server=settings.redis_server, qdrant=settings.qdrant_bin),
        ledger=ledger,
        offsite=_offsite(settings, ledger),
        cancel=cancel or CancelToken(),
        progress=progress or Silent(),
        log=log or logging.getLogger("scholaria_ops"),
        actor=actor or Actor(),
        lock_wait_s=settings.lock_wait_s if lock_wait_s is None else lock_wait_s,
        waits=waits or Unheard(),
    )


def _offsite(settings: Settings, ledger: Ledger) -> OffsiteTarget | None:
    if not settings.s3_bucket:
        return None
    options = S3Options(
        bucket=settings.s3_bucket,
        prefix=settings.s3_prefix,
        endpoint_url=settings.s3_endpoint_url,
        region=settings.aws_region,
        storage_class=settings.s3_storage_class,
        access_key=settings.aws_access_key_id,
        secret_key=settings.aws_secret_access_key,
        session_token=settings.aws_session_token,
        checksums=settings.s3_checksums,
        concurrency=settings.s3_concurrency,
    )
    return S3Target(options, ledger)
