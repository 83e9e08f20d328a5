"""`scholaria-ops list` and `scholaria-ops show`."""

from __future__ import annotations

from typing import Any

from scholaria_ops.catalogue.sets import Entry, Kind
from scholaria_ops.cli.common import JsonOption, SetArgument, services, when
from scholaria_ops.cli.main import app
from scholaria_ops.cli.output import emit_json, out, plain, print_table
from scholaria_ops.humane import human_bytes


@app.command(name="list")
def list_(as_json: JsonOption = False) -> None:
    """All sets, oldest first, and every stray or damaged directory with the reason."""
    here = services()
    entries = here.catalogue.entries()
    if as_json:
        emit_json("list", {"directory": str(here.catalogue.layout.root), "sets": [entry_json(e) for e in entries]})
        return
    if not entries:
        out.print(f"{here.catalogue.layout.root} holds no sets yet. Take one with `scholaria-ops backup`.")
        return
    print_table(
        ["id", "kind", "tier", "size", "age", "verified", "offsite", "proven", "remark"],
        [_row(e) for e in entries],
        right=["size"],
    )


def _row(entry: Entry) -> list[str]:
    head = entry.set.head if entry.set else None
    size = head.size_bytes if head else entry.legacy.size_bytes if entry.legacy else None
    remark = entry.reason or (f"without {', '.join(head.missing)}" if head and head.missing else head.note if head else "")
    if entry.held:
        remark = f"held: {entry.held}" + (f"; {remark}" if remark else "")
    colour = {Kind.DAMAGED: "[bold red]damaged[/]", Kind.PARTIAL: "[yellow]partial[/]"}.get(entry.kind, str(entry.kind))
    return [
        entry.id or plain(entry.name),
        colour,
        head.tier if head else "–",
        human_bytes(size) if size is not None else "–",
        when(head.cut_at) if head else "–",
        (f"{when(entry.verified_at)} ({entry.verified_level})" if entry.verified_at else _failed(entry)),
        when(entry.offsite_at),
        when(entry.proven_at),
        plain(remark),
    ]


def _failed(entry: Entry) -> str:
    record = entry.last("verified")
    return "[bold red]FAILED[/]" if record else "–"


@app.command()
def show(reference: SetArgument = "latest", as_json: JsonOption = False) -> None:
    """One set: what is in it, how it was taken, and everything learnt about it since."""
    entry = services().catalogue.find(reference)
    if as_json:
        content = entry_json(entry)
        content["manifest"] = entry.set.manifest.model_dump(mode="json") if entry.set else None
        content["records"] = [r.model_dump(mode="json") for r in entry.records]
        emit_json("show", {"set": content})
        return
    describe(entry)
    if entry.records:
        out.print("")
        print_table(
            ["when (UTC)", "event", "by", "detail"],
            [[f"{r.at:%Y-%m-%d %H:%M:%S}", r.event, r.by, plain(_brief(r.detail))] for r in entry.records],
        )


def _brief(detail: dict[str, Any]) -> str:
    return ", ".join(f"{k} {v}" for k, v in detail.items() if isinstance(v, (str, int, float)) and v != "" and k != "sums_sha256")


def describe(entry: Entry) -> None:
    """A set for people."""
    if entry.set is None:
        out.print(f"{entry.directory}: {entry.kind}" + (f", {entry.reason}" if entry.reason else ""), markup=False)
        return
    manifest = entry.set.manifest
    out.print(f"[bold]{manifest.id}[/] {entry.kind}, {manifest.tier}, {human_bytes(manifest.size_bytes)} in {manifest.duration_s:.1f} s")
    rows = []
    for name, part in manifest.parts():
        size = sum(a.size_bytes for a in manifest.artifacts_of(name))
        content = ", ".join(f"{v:,} {k}" for k, v in part.evidence.headline().items())
        seconds = (part.finished_at - part.started_at).total_seconds()
        rows.append([name, content, human_bytes(size), f"{seconds:.1f}", plain(part.evidence.server_version), plain(part.source)])
    print_table(["store", "content", "size", "seconds", "server", "source"], rows, right=["size", "seconds"])
    for name, reason in manifest.missing.items():
        out.print(f"[yellow]missing[/] {name}: {plain(reason)}")
    out.print(f"cut      {manifest.cut_at:%Y-%m-%d %H:%M:%S} UTC, stores {manifest.skew_s:.2f} s apart")
    out.print(f"verified {f'{when(entry.verified_at)} ({entry.verified_level})' if entry.verified_at else _failed(entry)}")
    out.print(f"offsite  {when(entry.offsite_at)}")
    if entry.held:
        out.print(f"held     {entry.held}", markup=False)
    out.print(f"proven   {when(entry.proven_at)}")
    out.print(f"by       {manifest.origin.requested_by}{f': {manifest.origin.note}' if manifest.origin.note else ''}", markup=False)
    out.print(f"path     {entry.directory}", markup=False)
    for name, part in manifest.parts():
        for warning in part.warnings:
            out.print(f"[yellow]note[/]     {name}: {plain(warning)}")


def entry_json(entry: Entry) -> dict[str, Any]:
    """Stable form of one catalogue line."""
    head = entry.set.head if entry.set else None
    return {
        "id": entry.id,
        "name": entry.name,
        "kind": str(entry.kind),
        "path": str(entry.directory),
        "reason": entry.reason,
        "tier": head.tier if head else None,
        "cut_at": head.cut_at if head else None,
        "size_bytes": head.size_bytes if head else entry.legacy.size_bytes if entry.legacy else None,
        "counts": head.counts if head else None,
        "skew_s": head.skew_s if head else None,
        "duration_s": head.duration_s if head else None,
        "missing": dict(head.missing) if head else None,
        "verified_at": entry.verified_at,
        "verified_level": entry.verified_level or None,
        "offsite_at": entry.offsite_at,
        "proven_at": entry.proven_at,
        "held": entry.held or None,
        "unread": entry.unread or None,
    }
