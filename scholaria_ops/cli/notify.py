"""`scholaria-ops notify`."""

from __future__ import annotations

from typing import Annotated

import typer

from scholaria_ops.cli.common import JsonOption, services, when
from scholaria_ops.cli.main import app
from scholaria_ops.cli.output import emit_json, out, plain, print_table
from scholaria_ops.errors import ConfigError, UsageError
from scholaria_ops.operations.alerts import Attempt, alerts_of
from scholaria_ops.operations.notify.delivery import send_test, store_of
from scholaria_ops.operations.notify.sending import NotDelivered
from scholaria_ops.operations.notify.targets import Target, heartbeat_of, targets_of
from scholaria_ops.operations.services import Services


@app.command()
def notify(
    action: Annotated[str, typer.Argument(metavar="ACTION", help="`test` sends a message to each target; `list` shows them")],
    target: Annotated[str, typer.Option("--target", metavar="TEXT", help="Only targets whose name holds this")] = "",
    as_json: JsonOption = False,
) -> None:
    """Who is told of troubles, whether they can be reached, and what became of the last alerts."""
    if action not in {"test", "list"}:
        raise UsageError(f"notify knows no {action!r}", hint="`scholaria-ops notify test` or `scholaria-ops notify list`.")
    here = services()
    wanted = [t for t in targets_of(here.settings) if target in t.name]
    if action == "list":
        _list(here, wanted, as_json)
        return
    if not wanted:
        known = ", ".join(t.name for t in targets_of(here.settings))
        raise ConfigError(
            f"no target's name holds {target!r}: there are {known}" if known else "nobody is told of anything",
            hint="Set BACKUP_NOTIFY_EMAIL or BACKUP_NOTIFY_WEBHOOK.",
        )
    here.check_directory()
    _test(here, wanted, as_json)


def _test(here: Services, wanted: list[Target], as_json: bool) -> None:
    attempts: list[Attempt] = []
    for one in wanted:
        attempts.append(send_test(here, one))
        if not as_json:
            _line(attempts[-1])
    if as_json:
        emit_json("notify", {"attempts": [a.model_dump(mode="json") for a in attempts]})
    failed = [a.target for a in attempts if not a.delivered]
    if failed:
        raise NotDelivered(
            f"{len(failed)} of {len(attempts)} did not take it: {', '.join(failed)}", hint="Correct what they answered (above)."
        )


def _line(attempt: Attempt) -> None:
    mark = "[green]delivered[/]" if attempt.delivered else "[bold red]failed[/]"
    out.print(f"{mark} {plain(attempt.target)}" + (f": {plain(attempt.error)}" if attempt.error else ""))


def _list(here: Services, wanted: list[Target], as_json: bool) -> None:
    beat = heartbeat_of(here.settings)
    names = [t.name for t in (*wanted, *([beat] if beat else []))]
    newest = {a.target: a for a in alerts_of(here.catalogue.layout).attempts()}
    waiting = [(item, name) for item in store_of(here).read().items for name in item.waiting]
    if as_json:
        targets = [{"target": n, "last": newest[n].model_dump(mode="json") if n in newest else None} for n in names]
        shown = [{"target": n, "subject": i.message.subject, "attempts": i.waiting[n].attempts} for i, n in waiting]
        emit_json("notify", {"targets": targets, "waiting": shown, "on": sorted(here.settings.notify_levels)})
        return
    if not names:
        out.print("Nobody is told of anything: set BACKUP_NOTIFY_EMAIL or BACKUP_NOTIFY_WEBHOOK.")
        return
    print_table(["target", "last attempt", "result", "subject"], [_row(n, newest.get(n)) for n in names])
    for item, name in waiting:
        out.print(f"[yellow]waits[/] {plain(name)}: {plain(item.message.subject)} ({item.waiting[name].attempts} attempts)")


def _row(name: str, last: Attempt | None) -> list[str]:
    if last is None:
        return [plain(name), "–", "–", "–"]
    return [plain(name), when(last.at), "delivered" if last.delivered else f"[bold red]failed[/]: {plain(last.error)}", plain(last.subject)]
