"""What a materialization shows. Numbers that plot keep one key and one type for ever: plots over sets depend on it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import dagster as dg

from scholaria_ops.catalogue.evidence.base import StoreName
from scholaria_ops.catalogue.manifest import Manifest
from scholaria_ops.humane import human_bytes

Metadata = dict[str, Any]
#: The headline count of each store, as its plot is called.
_MAIN_COUNT: Mapping[StoreName, str] = {"postgres": "rows", "redis": "keys", "qdrant": "points"}


def table(rows: Iterable[Mapping[str, str | int | float | bool]]) -> Any:
    """A table as Dagster shows it; columns in the order of the first row."""
    records = [dg.TableRecord(dict(row)) for row in rows]
    columns = [dg.TableColumn(name, _column_type(value)) for name, value in (records[0].data.items() if records else ())]
    return dg.MetadataValue.table(records, schema=dg.TableSchema(columns=columns))


def _column_type(value: object) -> str:
    if isinstance(value, bool):
        return "bool"
    return {int: "int", float: "float"}.get(type(value), "string")


def store_metadata(manifest: Manifest, store: StoreName) -> Metadata:
    """Numbers and files of one store's part of a set."""
    part = manifest.part(store)
    if part is None:
        return {}
    artifacts = manifest.artifacts_of(store)
    size = sum(a.size_bytes for a in artifacts)
    seconds = (part.finished_at - part.started_at).total_seconds()
    headline = part.evidence.headline()
    shown: Metadata = {
        "size_bytes": size,
        "duration_s": round(seconds, 3),
        "throughput_mb_s": round(size / 1e6 / seconds, 3) if seconds > 0 else 0.0,
        _MAIN_COUNT[store]: int(headline.get(_MAIN_COUNT[store], 0)),
        "source": part.source,
        "server_version": part.evidence.server_version,
        "cut_at": dg.MetadataValue.timestamp(part.evidence.cut_at),
        "files": table({"file": a.path, "size": human_bytes(a.size_bytes), "sha256": a.sha256} for a in artifacts),
    }
    if part.warnings:
        shown["warnings"] = dg.MetadataValue.md("\n".join(f"* {w}" for w in part.warnings))
    return shown


def set_metadata(manifest: Manifest, place: str) -> Metadata:
    """Numbers, component table and summary of a whole set that stands at ``place`` (a directory, or a bucket's address)."""
    counts = manifest.counts()
    seconds = manifest.duration_s
    return {
        "summary": dg.MetadataValue.md(summary(manifest, place)),
        "path": dg.MetadataValue.path(place),
        "tier": manifest.tier,
        "size_bytes": manifest.size_bytes,
        "duration_s": round(seconds, 3),
        "throughput_mb_s": round(manifest.size_bytes / 1e6 / seconds, 3) if seconds > 0 else 0.0,
        "skew_s": round(manifest.skew_s, 3),
        **{name: int(counts[name]) for name in ("rows", "keys", "points") if name in counts},
        "cut_at": dg.MetadataValue.timestamp(manifest.cut_at),
        "requested_by": manifest.origin.requested_by,
        "note": manifest.origin.note or "–",
        "components": table(component_rows(manifest)),
    }


def component_rows(manifest: Manifest) -> list[dict[str, str | int | float | bool]]:
    """One row per store: what an operator compares first."""
    rows: list[dict[str, str | int | float | bool]] = []
    for name, part in manifest.parts():
        size = sum(a.size_bytes for a in manifest.artifacts_of(name))
        rows.append(
            {
                "store": name,
                "content": ", ".join(f"{value:,} {what}" for what, value in part.evidence.headline().items()),
                "size": human_bytes(size),
                "seconds": round((part.finished_at - part.started_at).total_seconds(), 2),
                "server": part.evidence.server_version,
                "source": part.source,
            }
        )
    return rows


def summary(manifest: Manifest, place: str) -> str:
    """A set on one page, in Markdown."""
    lines = [
        f"### Backup set {manifest.id}",
        "",
        f"**{manifest.tier}**, {human_bytes(manifest.size_bytes)} in {manifest.duration_s:.1f} s, cuts {manifest.skew_s:.2f} s apart, "
        f"asked for by {manifest.origin.requested_by}" + (f": {manifest.origin.note}" if manifest.origin.note else ""),
        "",
        "| store | content | size | seconds |",
        "|---|---|---|---|",
        *(f"| {r['store']} | {r['content']} | {r['size']} | {r['seconds']} |" for r in component_rows(manifest)),
        "",
        f"It stands at `{place}`",
    ]
    warnings = [f"* {name}: {w}" for name, part in manifest.parts() for w in part.warnings]
    return "\n".join([*lines, *(["", "Worth knowing:", "", *warnings] if warnings else [])])
