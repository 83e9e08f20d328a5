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
{work}"""

_WORK = """\
    export WORK=/var/tmp

WORK is a directory with room for the largest snapshot, uncompressed.
"""

_PER_SNAPSHOT = """
Collection {subject}:
{unpack}
    curl -fsS -H "api-key: $QDRANT_API_KEY" -F "snapshot=@{file}" \\
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
    """How to restore these very files by hand. Every indented line is a command of a POSIX shell."""
    snapshots = sorted((a for a in artifacts if a.kind == "snapshot"), key=lambda a: a.subject)
    parts = [_INTRO.format(work=_WORK if any(a.compression == "gzip" for a in snapshots) else "")]
    for artifact in snapshots:
        zipped = artifact.compression == "gzip"
        file = "$WORK/" + artifact.path.rpartition("/")[2].removesuffix(".gz") if zipped else artifact.path
        parts.append(
            _PER_SNAPSHOT.format(
                subject=" ".join(artifact.subject.split()),
                unpack=f'\n    gunzip -c {artifact.path} > "{file}"' if zipped else "",
                name=quoted(artifact.subject),
                sha256=artifact.raw_sha256 or artifact.sha256,
                file=file,
            )
        )
    parts.extend(_ALIASES.format(path=a.path) for a in artifacts if a.kind == "aliases")
    parts.append(_OUTRO)
    return "".join(parts)
