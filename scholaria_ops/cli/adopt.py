"""`scholaria-ops adopt`."""

from __future__ import annotations

from typing import Annotated

import typer

from scholaria_ops.cli.catalogue import describe, entry_json
from scholaria_ops.cli.common import JsonOption, component, services
from scholaria_ops.cli.main import app
from scholaria_ops.cli.output import emit_json, out, showing_progress


@app.command()
def adopt(
    reference: Annotated[str, typer.Argument(metavar="SET", help="Id or path of an old-style set")],
    components: Annotated[
        list[str] | None, typer.Option("--component", help="postgres, redis or qdrant; may be given several times")
    ] = None,
    collection: Annotated[str, typer.Option("--collection", help="The collection of a Qdrant snapshot that does not tell it")] = "",
    as_json: JsonOption = False,
) -> None:
    """Make a regular set of an old-style one: loaded into throw-away servers, measured, sealed, verified. Touches no live store."""
    from scholaria_ops.operations.adopt import AdoptOptions
    from scholaria_ops.operations.adopt import adopt as adopt_operation

    options = AdoptOptions(components=tuple(component(c) for c in components or ()), collection=collection)
    with showing_progress() as progress:
        here = services(progress)
        found = adopt_operation(here, reference, options)
    entry = here.catalogue.find(found.set.id)
    if as_json:
        emit_json("adopt", {"set": entry_json(entry), "old": found.old, "fresh": found.fresh, "warnings": list(found.warnings)})
        return
    describe(entry)
    out.print(f"the data of {found.old}, measured now: nobody can say whether they are all that the stores held then", markup=False)
    parts = "" if not found.set.manifest.partial else "".join(f" --component {name}" for name, _ in found.set.manifest.parts())
    out.print(f"restore it: scholaria-ops restore {found.set.id}{parts}", markup=False)
