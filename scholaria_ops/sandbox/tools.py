"""Where the stores' own programs are on this host. Finding only: nothing is ever downloaded here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Tools:
    """Programs of the stores, as found. A missing one is None until somebody needs it."""

    pg_bin_dir: Path | None = None
    redis_server: Path | None = None
    qdrant: Path | None = None
    #: Extra environment of PostgreSQL's programs (a private library directory).
    pg_env: Mapping[str, str] = field(default_factory=dict)
