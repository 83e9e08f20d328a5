"""What follows a switch: ids that are never given out twice, the operators' hook, and a look at whether all of it fits together."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from scholaria_ops.catalogue.evidence.base import StoreName
from scholaria_ops.catalogue.evidence.correspondence import Correspondence, worded
from scholaria_ops.catalogue.evidence.postgres import PostgresEvidence
from scholaria_ops.catalogue.sets import BackupSet
from scholaria_ops.errors import OpsError, StoreError, ToolFailed
from scholaria_ops.operations.backup import STARTED_BY_SENSOR, BackupRequest, reserve
from scholaria_ops.operations.correspondence import correspondence
from scholaria_ops.operations.restore.ids import ids_given_out, raise_sequences
from scholaria_ops.operations.restore.tasks import Waiting, references, report_lines, without_row
from scholaria_ops.operations.services import Services
from scholaria_ops.process import run
from scholaria_ops.stores.base import Context
from scholaria_ops.stores.postgres.measure import alembic_revision
from scholaria_ops.stores.postgres.session import open_session

_POLL_S = 1.0
_ANSWER_S = 10.0


class HookFailed(StoreError):
    """The operators' command after the switch failed; the restore is taken back."""

    code = "restore_hook"


@dataclass(frozen=True, slots=True)
class Aftermath:
    """What was found after the switch. ``warnings`` want somebody's attention; the restore itself succeeded."""

    correspondence: Correspondence | None = None
    #: The same, when the set was taken.
    baseline: Correspondence | None = None
    revision: str | None = None
    healthy: bool | None = None
    #: Id of the backup that was asked for; empty if that was not possible.
    fresh_backup: str = ""
    warnings: tuple[str, ...] = ()


@dataclass
class After:
    """The steps after the switch, before and after the writers run again."""

    services: Services
    ctx: Context
    #: Sequence → the largest id that the database which is replaced has given out.
    given_out: dict[str, int] = field(default_factory=dict)
    #: The queued tasks that there will be.
    tasks: Callable[[], Waiting | None] = lambda: None
    told: list[str] = field(default_factory=list)

    def before_switch(self, stores: Sequence[StoreName]) -> None:
        """Remember which ids the live database has given out: queued tasks, points and people may know them."""
        if "postgres" not in stores:
            return
        self.given_out, untold = ids_given_out(self.services)
        self.told += untold

    def before_writers(self, backup_set: BackupSet, stores: Sequence[StoreName]) -> None:
        """Raise sequences above every id that is known, then run the hook.

        Raises:
            HookFailed: the hook did; nothing that it did elsewhere is taken back.
            StoreError: a sequence could not be raised.
        """
        waiting = self._waiting()
        if "postgres" in stores:
            self._raise_sequences(waiting)
        elif "qdrant" in stores:  # points that came back may bear ids that were never given out here
            self._raise_sequences_if_possible(waiting)
        self._judge_tasks(waiting)
        argv = shlex.split(self.services.settings.restore_hook)
        if not argv:
            return
        try:
            run(
                argv,
                cancel=self.services.cancel,
                timeout_s=self.services.settings.restore_hook_timeout_s,
                secrets=self.services.settings.secrets,
            )
        except ToolFailed as exc:
            raise HookFailed(
                f"the command after the switch failed: {exc.message}", hint="BACKUP_RESTORE_HOOK names it; run it by hand to see more."
            ) from exc
        self.services.progress.say(f"ran {argv[0]}")

    def _waiting(self) -> Waiting | None:
        try:
            return self.tasks()
        except OpsError as exc:
            self.services.cancel.check()
            self.told.append(f"queued tasks could not be read, and the ids that they speak of may be given out again: {exc.message}")
            return None

    def _judge_tasks(self, found: Waiting | None) -> None:
        """Name the queued tasks whose rows are not there. They are told, not touched: what they are worth is for people to say."""
        try:
            if found:
                missing = without_row(self.services.settings.postgres_restore, found.tasks, cancel=self.services.cancel)
                self.told += report_lines(missing, found)
        except OpsError as exc:
            self.services.cancel.check()
            self.told.append(f"queued tasks could not be compared with the rows: {exc.message}")
        for line in self.told:
            self.services.progress.say(line)

    def _raise_sequences_if_possible(self, waiting: Waiting | None) -> None:
        try:
            self._raise_sequences(waiting)
        except OpsError as exc:
            self.services.cancel.check()
            self.told.append(f"ids that points bear may be given out again: {exc.message}")

    def _raise_sequences(self, waiting: Waiting | None = None) -> None:
        queued = references(waiting.tasks) if waiting else ()
        if waiting and (unread := waiting.total - len(waiting.tasks)) > 0:
            self.told.append(f"{unread:,} queued tasks were not read: ids that they alone speak of may be given out again")
        done, untold = raise_sequences(self.services, self.given_out, queued)
        self.told += untold
        for line in done:
            self.services.progress.say(line)

    def look(self, backup_set: BackupSet, stores: Sequence[StoreName]) -> Aftermath:
        """See whether the stores fit together and the application is well. Changes nothing, and may go on while the stores
        finish. Never raises for what it finds: that is said in the result.
        """
        warnings = list(self.told)
        found = self._correspondence(warnings)
        baseline = backup_set.manifest.correspondence
        if found is not None and (worse := found.worse_than(baseline)):
            grown = ", ".join(worded(kind, n, "more") for kind, n in worse.items())
            warnings.append(f"rows and points fit together less well than when the set was taken: {grown}")
        revision = self._revision(backup_set, stores, warnings)
        healthy = self._healthy(warnings)
        return Aftermath(found, baseline, revision, healthy, warnings=tuple(warnings))

    def _correspondence(self, warnings: list[str]) -> Correspondence | None:
        try:
            return correspondence(self.services.settings.postgres, self.services.settings.qdrant, cancel=self.services.cancel)
        except OpsError as exc:
            warnings.append(f"rows and points could not be compared: {exc.message}")
            return None

    def _revision(self, backup_set: BackupSet, stores: Sequence[StoreName], warnings: list[str]) -> str | None:
        if "postgres" not in stores or backup_set.manifest.postgres is None:
            return None
        evidence: PostgresEvidence = backup_set.manifest.postgres.evidence
        try:
            with open_session(self.services.settings.postgres, cancel=self.services.cancel) as session:
                now = alembic_revision(session)
        except OpsError as exc:
            warnings.append(f"the migration revision could not be read: {exc.message}")
            return None
        if now != evidence.alembic_revision:
            warnings.append(f"the database is at migration {now}; the set was taken at {evidence.alembic_revision}")
        return now

    def _healthy(self, warnings: list[str]) -> bool | None:
        url = self.services.settings.health_url
        if not url:
            return None
        import httpx

        deadline = time.monotonic() + self.services.settings.health_timeout_s
        said = "no answer"
        while time.monotonic() < deadline:
            try:
                answer = httpx.get(url, timeout=_ANSWER_S)
            except httpx.HTTPError as exc:
                said = str(exc) or type(exc).__name__
            else:
                if answer.status_code == httpx.codes.OK:
                    return True
                said = f"status {answer.status_code}"
            self.services.cancel.wait(_POLL_S)
        warnings.append(
            f"{url} did not answer 200 within {self.services.settings.health_timeout_s:.0f} s ({said}): look at the application;"
            " `scholaria-ops restore --undo` goes back"
        )
        return False

    def ask_for_backup(self, backup_set: BackupSet, found: Aftermath) -> Aftermath:
        """Ask for a fresh backup, once the restore is done; returns ``found`` with its id, or with why there is none."""
        request = BackupRequest(note=f"after restoring {backup_set.id}", requested_by=STARTED_BY_SENSOR["restore"])
        try:
            return replace(found, fresh_backup=reserve(self.services, request))
        except OpsError as exc:
            return replace(found, warnings=(*found.warnings, f"a fresh backup could not be asked for: {exc.message}"))
