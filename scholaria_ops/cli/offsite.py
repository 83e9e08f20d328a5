"""`scholaria-ops ship` and `scholaria-ops fetch`."""

from __future__ import annotations

from typing import Annotated

import typer

from scholaria_ops.cli.catalogue import describe, entry_json
from scholaria_ops.cli.common import JsonOption, SetArgument, run, services
from scholaria_ops.cli.main import app
from scholaria_ops.cli.output import emit_json, out
from scholaria_ops.errors import UsageError
from scholaria_ops.humane import human_bytes


@app.command()
def ship(
    reference: SetArgument = "latest",
    reread: Annotated[bool, typer.Option(help="Read a copy that was confirmed earlier again in full; replace what has rotted")] = False,
    as_json: JsonOption = False,
) -> None:
    """Copy a set offsite and confirm every byte there. Repeating it finishes what was begun."""
    from scholaria_ops.operations.offsite import target_of

    here = services()
    target_of(here)
    entry = here.catalogue.find(reference)
    if entry.id is None:
        raise UsageError(f"{reference} is no backup set", hint="`scholaria-ops list` shows all sets.")
    run_id = run("offsite", partition=entry.id, config={"ship_offsite": {"config": {"reread": reread}}})
    record = here.catalogue.records.last(entry.id, "shipped")
    if as_json:
        emit_json("ship", {"set": entry.id, "run_id": run_id, "shipped": record.model_dump(mode="json") if record else None})
    elif record:
        detail = record.detail
        out.print(f"{entry.id}: {human_bytes(detail['bytes'])} at {detail['where']}, confirmed by {detail['confirmed_by']}", markup=False)
        out.print(f"sent {human_bytes(detail['sent_bytes'])} in {detail['seconds']:.1f} s; run in Dagster: {run_id}")


@app.command()
def fetch(reference: SetArgument = "latest", as_json: JsonOption = False) -> None:
    """Bring a set back from offsite into BACKUP_DIR, every byte checked."""
    from scholaria_ops.operations.offsite import offsite_id

    set_id = offsite_id(services(), reference)
    run_id = run("fetch", config={"fetch_set": {"config": {"set_id": set_id}}})
    entry = services().catalogue.find(set_id)
    if as_json:
        emit_json("fetch", {"set": entry_json(entry), "run_id": run_id})
        return
    describe(entry)
