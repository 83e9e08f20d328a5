"""The section of RESTORE.txt for Qdrant: commands that work with curl alone."""

from __future__ import annotations

from collections.abc import Sequence

from scholaria_ops.catalogue.artifacts import Artifact
from scholaria_ops.stores.qdrant.names import quoted

_INTRO = """\
Qdrant
------
Needs: curl, and an empty Qdrant server of the same minor version as the one that was backed up (its version stands in
backup_manifest.json under evidence), or of the next minor version. Snapshots open in no other version.

Run these in the directory of this set. Leave out the api-key header if the server has no key.

    export QDRANT_URL=http://localhost:6333
    export QDRANT_API_KEY=...
"""

_PER_SNAPSHOT = """
Collection {subject}:
{unpack}
    curl -fsS -H "api-key: $QDRANT_API_KEY" -F "snapshot=@{path}" \\
      "$QDRANT_URL/collections/{name}/snapshots/upload?priority=snapshot&wait=true&checksum={sha256}"
    curl -fsS -H "api-key: $QDRANT_API_KEY" -H "content-type: application/json" -d '{{"exact": true}}' \\
      "$QDRANT_URL/collections/{name}/points/count"
"""

_ALIASES = """
Aliases (they are not part of a collection's snapshot):

    curl -fsS -H "api-key: $QDRANT_API_KEY" -H "content-type: application/json" -d @{path} \\
      "$QDRANT_URL/collections/aliases"
"""

_OUTRO = """
Compare each count with points in backup_manifest.json. An upload leaves a copy of the file on the server; see what there
is and delete it:

    curl -fsS "$QDRANT_URL/collections/<collection>/snapshots" -H "api-key: $QDRANT_API_KEY"
    curl -fsS -X DELETE "$QDRANT_URL/collections/<collection>/snapshots/<name>" -H "api-key: $QDRANT_API_KEY"

Servers older than 1.8 ignore the checksum in these requests: run sha256sum -c SHA256SUMS first.
"""


def manual_restore(artifacts: Sequence[Artifact]) -> str:
    """How to restore these very files by hand. Every indented line is a command."""
    parts = [_INTRO]
    for artifact in sorted((a for a in artifacts if a.kind == "snapshot"), key=lambda a: a.subject):
        zipped = artifact.compression == "gzip"
        parts.append(
            _PER_SNAPSHOT.format(
                subject=" ".join(artifact.subject.split()),
                unpack=f"\n    gunzip -k {artifact.path}" if zipped else "",
                name=quoted(artifact.subject),
                sha256=artifact.raw_sha256 or artifact.sha256,
                path=artifact.path.removesuffix(".gz") if zipped else artifact.path,
            )
        )
    parts.extend(_ALIASES.format(path=a.path) for a in artifacts if a.kind == "aliases")
    parts.append(_OUTRO)
    return "".join(parts)
