"""What a restore would do, before anything is done. The dry run is this plan, and only a plan is ever executed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from pydantic import AwareDatetime, Field

from scholaria_ops.cancel import CancelToken
from scholaria_ops.catalogue.evidence.base import STORE_NAMES, StoreName
from scholaria_ops.catalogue.layout import SUMS
from scholaria_ops.catalogue.manifest import Adopted, Manifest
from scholaria_ops.catalogue.sets import BackupSet, Catalogue, Entry, Kind
from scholaria_ops.errors import Cancelled, OpsError, Refused, UsageError, VerificationFailed
from scholaria_ops.files import hash_file, make_private_dir, replace_durably
from scholaria_ops.operations.preflight import preflight
from scholaria_ops.operations.restore.agreed import Agreed
from scholaria_ops.operations.restore.fence import MISSING_PROGRAM, fence_of
from scholaria_ops.operations.restore.journal import Journals, require_settled
from scholaria_ops.operations.restore.live import LiveStores
from scholaria_ops.operations.restore.options import RestoreOptions
from scholaria_ops.operations.restore.tasks import planned_effects
from scholaria_ops.operations.services import Services
from scholaria_ops.operations.verify import hash_check, is_ours
from scholaria_ops.stores.base import Context
from scholaria_ops.stores.live import Effect, Objection, Source, StorePlan


class RestorePlan(Agreed):
    """The plan of one restore. Its digest covers every word of it, the moment it was made included."""

    set_id: str
    #: Where the set lies, if not in BACKUP_DIR (there its id tells it, wherever that is mounted).
    outside: Path | None = None
    tier: str
    cut_at: AwareDatetime
    #: SHA-256 of the set's SHA256SUMS: the very bytes that were looked at.
    sums_sha256: str
    made_at: AwareDatetime
    valid_until: AwareDatetime
    components: tuple[StoreName, ...]
    options: RestoreOptions
    #: Per store what its own plan says, in the store's own fields.
    stores: dict[StoreName, dict[str, Any]]
    fence: tuple[str, ...]
    after: tuple[str, ...]
    #: Consequences that no store can see alone.
    effects: tuple[Effect, ...] = ()
    objections: tuple[Objection, ...] = ()
    #: Stores of which no safety set can be taken now → why.
    unsaved: Mapping[StoreName, str] = Field(default_factory=dict)
    #: The old-style set that the set was made from, if it was.
    adopted: Adopted | None = None
    #: Seconds that staging should take by what an earlier restore of the same stores took here, and which one; 0: there was none.
    measured_s: float = 0.0
    measured_by: str = ""

    def files_of(self, store: StoreName) -> tuple[str, ...]:
        """The files that a store is restored from, as the operator knows them: of the old-style set, if it was one."""
        return (self.adopted.names_of(store) if self.adopted else ()) or self.store_plans()[store].artifacts

    def store_plans(self) -> dict[StoreName, StorePlan]:
        """The part of each store's plan that all of them have."""
        common = StorePlan.model_fields.keys()
        return {n: StorePlan.model_validate({k: v for k, v in self.stores[n].items() if k in common}) for n in self.components}

    @property
    def all_objections(self) -> tuple[tuple[str, Objection], ...]:
        """Every reason against the plan, with whom it concerns. A need that is not met is one."""
        found = [("restore", o) for o in self.objections]
        for name, plan in self.store_plans().items():
            found += [(name, o) for o in plan.objections]
            found += [
                (name, Objection(message=f"{n.what}: {n.needed_bytes:,} bytes needed, {n.free_bytes or 0:,} free", hint="Make room first."))
                for n in plan.needs
                if not n.met
            ]
        return tuple(found)

    @property
    def expected_s(self) -> float:
        """Seconds until the restored data are served: as measured here, else by the speed of another machine, stores side by side."""
        return self.measured_s or max((p.expected_s for p in self.store_plans().values()), default=0.0)

    @property
    def expected_lockout_s(self) -> float:
        return sum(p.expected_lockout_s for p in self.store_plans().values())


def choose(services: Services, reference: str, ctx: Context) -> Entry:
    """The set that ``reference`` names, its bytes checked.

    Raises:
        UsageError: there is none, or it is not one that can be restored.
        VerificationFailed: its bytes are not those that were sealed; the hint names the next older sound set.
    """
    entry = services.catalogue.find(reference)
    if entry.set is None:
        raise UsageError(
            f"{entry.name} cannot be restored: it is {entry.kind}",
            hint=f"Take it over first: scholaria-ops adopt {entry.id}" if entry.legacy else entry.reason or "Choose a sealed set.",
        )
    try:
        hash_check(services, entry, ctx)
    except VerificationFailed as exc:
        older = next_older_sound(services, entry, ctx)
        exc.hint = (
            f"The next older sound set is {older.id} (cut {older.set.manifest.cut_at:%Y-%m-%d %H:%M} UTC): scholaria-ops restore {older.id}"
            if older and older.set
            else "No older set here is sound: try the offsite copies, `scholaria-ops restore SET --from offsite`."
        )
        raise
    return entry


def next_older_sound(services: Services, entry: Entry, ctx: Context) -> Entry | None:
    """The newest verified set that is older than ``entry`` and whose bytes are right, looked at now."""
    older = [e for e in services.catalogue.sealed() if e.verified_at and e.ordered_by < entry.ordered_by]
    for candidate in reversed(older):
        try:
            hash_check(services, candidate, ctx)
        except VerificationFailed as exc:
            services.progress.say(f"{candidate.id} is not sound either: {exc.message}")
        else:
            return candidate
    return None


def plan_restore(
    services: Services, live: LiveStores, reference: str, options: RestoreOptions, *, meanwhile: Callable[[], object] | None = None
) -> RestorePlan:
    """Look at the set and at the live stores and say what a restore would do. Changes nothing.

    Args:
        reference: ``latest`` (newest verified), an id or a path.
        meanwhile: is done by the calling thread while others wait for the stores.

    Raises:
        UsageError, VerificationFailed: as :func:`choose` says.
        StoreUnavailable, AuthenticationFailed: a live store cannot be asked.
        Refused: another restore has not come to its end.
    """
    require_settled(Journals(services.catalogue.layout))
    with services.context("restore-plan") as ctx:
        entry = choose(services, reference, ctx)
        backup_set = _set_of(entry)
        names = _components(backup_set, options.components)
        plans = _store_plans(live, backup_set, names, ctx, meanwhile)
        postgres = backup_set.manifest.postgres if "postgres" in names else None
        effects = [
            *_adopted_effects(backup_set.manifest, names),
            *planned_effects(live, plans, postgres.evidence if postgres else None, services.settings.postgres, ctx),
        ]
        unsaved, cramped = _unsaved(services, names, ctx) if options.safety else ({}, ())
    now = services.now()
    measured_s, measured_by = _measured(services, backup_set, names)
    return RestorePlan(
        measured_s=measured_s,
        measured_by=measured_by,
        set_id=backup_set.id,
        outside=None if is_ours(services, entry) else entry.directory.absolute(),
        tier=backup_set.manifest.tier,
        cut_at=backup_set.manifest.cut_at,
        sums_sha256=hash_file(entry.directory / SUMS).sha256,
        made_at=now,
        valid_until=now + timedelta(seconds=services.settings.restore_plan_valid_s),
        components=names,
        options=options,
        stores={name: plan.model_dump(mode="json") for name, plan in plans.items()},
        fence=fence_of(services.settings).describe(),
        after=_after(services),
        effects=tuple(effects),
        objections=(*_objections(backup_set, services), *cramped, *_unstoppable(services)),
        unsaved=unsaved,
        adopted=backup_set.manifest.origin.adopted,
    )


def _store_plans(
    live: LiveStores, backup_set: BackupSet, names: tuple[StoreName, ...], ctx: Context, meanwhile: Callable[[], object] | None
) -> dict[StoreName, StorePlan]:
    """All stores are looked at side by side. The first failure stops the others and is raised."""
    token = CancelToken()

    def plan_one(name: StoreName) -> StorePlan:
        scratch = ctx.scratch / name
        scratch.mkdir(mode=0o700)
        try:
            made: StorePlan = live[name].store.plan(source_of(backup_set, name), replace(ctx, scratch=scratch, cancel=token))
        except BaseException as exc:
            token.cancel(f"{name}: {exc}")
            raise
        return made

    with ctx.cancel.on_cancel(lambda: token.cancel(ctx.cancel.reason)), ThreadPoolExecutor(len(STORE_NAMES), "plan") as pool:
        futures = {name: pool.submit(plan_one, name) for name in names}
        try:
            if meanwhile:
                meanwhile()
            wait(futures.values())
        except BaseException:
            token.cancel("the plan is not wanted any more")  # a signal comes to this thread alone
            raise
    failures = [f for future in futures.values() if (f := future.exception()) is not None]
    ctx.cancel.check()
    if failures:
        raise next((f for f in failures if not isinstance(f, Cancelled)), failures[0])
    return {name: future.result() for name, future in futures.items()}


def _unsaved(services: Services, names: Iterable[StoreName], ctx: Context) -> tuple[dict[StoreName, str], tuple[Objection, ...]]:
    """What a safety set would lack, and that there is no room for it. A dead store is a reason to restore, not one against it."""
    looked = preflight(replace(services, stores={n: services.stores[n] for n in names}), ctx)
    if cancelled := next((e for e in looked.refusals.values() if isinstance(e, Cancelled)), None):
        raise cancelled
    room = looked.room
    cramped = (
        (Objection(message=f"no room to save what is replaced: {room.message}", hint=room.hint or "", option="--no-safety"),)
        if room
        else ()
    )
    return {name: error.message for name, error in looked.refusals.items()}, cramped


def _measured(services: Services, backup_set: BackupSet, names: tuple[StoreName, ...]) -> tuple[float, str]:
    """How long staging these stores should take by the newest restore of the same stores whose set is still here; and its id."""
    for journal in reversed(Journals(services.catalogue.layout).all()):
        took = journal.seconds.get("stage", 0.0)
        if took and set(journal.stores) == set(names):
            try:
                entry = services.catalogue.find(journal.set_id)
            except OpsError:
                continue
            if entry.set is not None and (before := _bytes(entry.set, names)):
                return round(took * _bytes(backup_set, names) / before, 1), journal.id
    return 0.0, ""


def _bytes(backup_set: BackupSet, names: Iterable[StoreName]) -> int:
    return sum(a.raw_size_bytes or a.size_bytes for name in names for a in backup_set.manifest.artifacts_of(name))


def _set_of(entry: Entry) -> BackupSet:
    if entry.set is None:  # pragma: no cover - choose() has looked
        raise UsageError(f"{entry.name} is no set")
    return entry.set


def source_of(backup_set: BackupSet, name: StoreName) -> Source[Any]:
    """One store's part of a set."""
    part = backup_set.manifest.part(name)
    if part is None:
        raise UsageError(f"the set {backup_set.id} has no {name}: {backup_set.manifest.missing.get(name, '')}")
    return Source(backup_set.id, backup_set.directory, backup_set.manifest.artifacts_of(name), part.evidence)


def _components(backup_set: BackupSet, asked: Iterable[StoreName]) -> tuple[StoreName, ...]:
    asked = set(asked)
    have = [name for name, _ in backup_set.manifest.parts()]
    if absent := sorted(asked - set(have)):
        raise UsageError(
            f"the set {backup_set.id} has no {', '.join(absent)}", hint=f"It has {', '.join(have)}; `scholaria-ops list` shows others."
        )
    if backup_set.kind is Kind.PARTIAL and not asked:
        raise UsageError(
            f"{backup_set.directory.name} is a partial set: it has only {', '.join(have)}",
            hint="Restore it store by store, with --component.",
        )
    return tuple(name for name in STORE_NAMES if name in (asked or set(have)))


def _objections(backup_set: BackupSet, services: Services) -> tuple[Objection, ...]:
    ahead = backup_set.manifest.cut_at - services.now()
    if ahead > timedelta(minutes=5):
        return (
            Objection(
                message=f"the set's cut lies {ahead} in the future", hint="Set this host's clock right: expiries would come out wrong."
            ),
        )
    return ()


def _unstoppable(services: Services) -> Iterator[Objection]:
    if trouble := fence_of(services.settings).trouble:
        yield Objection(message=trouble, hint=f"{MISSING_PROGRAM} BACKUP_FENCE=none restores while the writers work.")


def _adopted_effects(manifest: Manifest, names: Iterable[StoreName]) -> Iterator[Effect]:
    """What nobody can know of an old-style set, said where the restore is weighed."""
    if (adopted := manifest.origin.adopted) is None:
        return
    yield Effect(
        kind="note",
        what=f"the data of {adopted.name}",
        detail=f"no evidence was taken with them: they are compared with what was measured at their adoption, as {manifest.id}; "
        "whether they are all that the stores held then, nobody can say",
    )
    for name in names:
        part = manifest.part(name)
        yield from (Effect(kind="note", what=f"{name} of {adopted.name}", detail=line) for line in (part.warnings if part else ()))


def _after(services: Services) -> tuple[str, ...]:
    settings = services.settings
    lines = [
        "sequences go on above every id that the live database gave out, that Qdrant knows or that queued tasks speak of: "
        "none is given out twice"
    ]
    if settings.restore_hook:
        lines.append(f"after the switch, before the writers start: {settings.restore_hook}")
    if settings.health_url:
        lines.append(f"{settings.health_url} is asked until it answers 200, for at most {settings.health_timeout_s:.0f} s")
    lines.append("a fresh backup is asked for")
    return tuple(lines)


class Plans:
    """The restore plan shown last, kept so that its digest can be executed."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._path = catalogue.layout.state / "restore-plan.json"

    def show(self, plan: RestorePlan) -> None:
        make_private_dir(self._path.parent, exist_ok=True)
        replace_durably(self._path, plan.model_dump_json().encode())

    def shown(self, digest: str, now: datetime) -> RestorePlan:
        """The plan of that digest (or of its first 12 or more characters), unless it has expired.

        Raises:
            UsageError: it is not the plan that was shown last.
            Refused: it has expired.
        """
        try:
            plan = RestorePlan.model_validate_json(self._path.read_bytes())
        except FileNotFoundError:
            plan = None
        except ValueError:
            raise Refused(f"{self._path} cannot be understood", hint="Make a new plan.") from None
        if plan is None or len(digest) < 12 or not plan.digest.startswith(digest):
            raise UsageError(
                f"{digest!r} is not the digest of the restore plan shown last: perhaps somebody has made another plan since",
                hint="Make a plan, read it, execute that one.",
            )
        require_fresh(plan, now)
        return plan


def require_fresh(plan: RestorePlan, now: datetime) -> None:
    """Raise Refused if the plan has expired: live stores move on, and what it says would no longer be true."""
    if now > plan.valid_until:
        raise Refused(f"the plan of {plan.made_at:%H:%M:%S} UTC has expired", hint="Make a new plan and read it.")


def require_unspent(plan: RestorePlan, journals: Journals) -> None:
    """Raise Refused if the plan was carried out already: what was written since would be lost, and stands in no plan."""
    if spent := next((j for j in journals.all() if j.plan_digest == plan.digest), None):
        raise Refused(f"this plan was carried out already, as the restore {spent.id}", hint="Make a new plan and read it.")


def require_same_settings(plan: RestorePlan, services: Services) -> None:
    """Raise Refused unless the writers and the hook are treated as the plan says: it may be carried out by another process."""
    if plan.fence != fence_of(services.settings).describe() or plan.after != _after(services):
        raise Refused(
            "what is done to the writers, or after the switch, is set otherwise than when the plan was made",
            hint="Make a new plan and read it; BACKUP_FENCE, BACKUP_RESTORE_HOOK and BACKUP_HEALTH_URL are what it depends on.",
        )


def refuse_objections(plan: RestorePlan) -> None:
    """Raise Refused with every reason against the plan."""
    if against := plan.all_objections:
        lines = "\n".join(f"  {who}: {o.message}\n    → {o.hint}" + (f" ({o.option})" if o.option else "") for who, o in against)
        raise Refused(f"the set {plan.set_id} is not restored:\n{lines}", hint="Nothing was touched.")


def typed_plans(plan: RestorePlan, live: LiveStores) -> Mapping[StoreName, StorePlan]:
    """Each store's plan in the store's own type."""
    return {name: live[name].plan_type.model_validate(plan.stores[name]) for name in plan.components}
