"""`scholaria-ops backup`."""

from __future__ import annotations

from typing import Annotated

import typer

from scholaria_ops.catalogue.manifest import TIERS
from scholaria_ops.catalogue.records import whoami
from scholaria_ops.catalogue.sets import Entry
from scholaria_ops.cli.catalogue import describe, entry_json
from scholaria_ops.cli.common import JsonOption, run, services
from scholaria_ops.cli.main import app
from scholaria_ops.cli.output import emit_json, out
from scholaria_ops.errors import OffsiteError, UsageError
from scholaria_ops.operations.backup import BackupRequest, reserve


@app.command()
def backup(
    tier: Annotated[str, typer.Option(help=f"One of {', '.join(TIERS[:-1])}")] = "manual",
    note: Annotated[str, typer.Option(help="Why it is taken; kept in the manifest")] = "",
    as_json: JsonOption = False,
) -> None:
    """Take, seal and verify one set of all three stores."""
    if tier == "pre_restore":
        raise UsageError("tier pre_restore is taken by restores only", hint=f"Use one of {', '.join(TIERS[:-1])}.")
    from scholaria_ops.pipeline.assets_backup import check_tier
    from scholaria_ops.pipeline.partitions import known_partitions
    from scholaria_ops.pipeline.runner import open_instance

    here = services()
    by = whoami()
    request = BackupRequest(tier=check_tier(tier), note=note, requested_by=by)
    with open_instance() as instance:
        set_id = reserve(here, request, taken=known_partitions(instance))
        config = {"tier": tier, "note": note, "requested_by": by}
        try:
            run_id = run("backup", partition=set_id, config={"take_backup": {"config": config}}, instance=instance)
        except OffsiteError as exc:
            # Shipping comes last: what failed is the copy, and the operator must not think that there is no set.
            stands = f"The set {set_id} stands here, sealed and verified."
            exc.hint = " ".join(part for part in (stands, exc.hint, f"Then: `scholaria-ops ship {set_id}`.") if part)
            raise
    _show(here.catalogue.find(set_id), run_id, as_json)


def _show(entry: Entry, run_id: str, as_json: bool) -> None:
    if as_json:
        emit_json("backup", {"set": entry_json(entry), "run_id": run_id})
        return
    describe(entry)
    out.print(f"\nRun in Dagster: {run_id}")
