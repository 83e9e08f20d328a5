"""Where the stores' own programs are on this host. Finding only: nothing is ever downloaded here."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from scholaria_ops.errors import ToolFailed, ToolMissing
from scholaria_ops.process import run, which
from scholaria_ops.sandbox.identity import may_traverse, server_account
from scholaria_ops.sandbox.packages import POSTGRES, QDRANT, RCLONE, REDIS, Bundle

#: Oldest versions that are looked at. pg_dump must not be older than the server it dumps, and production is PostgreSQL 16.
MIN_POSTGRES = 16
MIN_REDIS = (7, 0)
MIN_QDRANT = (1, 7)

#: Without these a directory of PostgreSQL programs is a client's: it can dump, but not run a scratch server.
_PG_SERVER_PROGRAMS = ("postgres", "initdb")
_DEBIAN_PG = Path("/usr/lib/postgresql")
_RPM_PG = Path("/usr")


@dataclass(frozen=True)
class Tools:
    """Programs of the stores, as found. A missing one is None until somebody needs it."""

    pg_bin_dir: Path | None = None
    redis_server: Path | None = None
    qdrant: Path | None = None
    #: Extra environment of PostgreSQL's programs (a private library directory).
    pg_env: Mapping[str, str] = field(default_factory=dict)
    #: Only for large benchmarks of the offsite copy.
    rclone: Path | None = None

    def require_pg(self, name: str) -> Path:
        """The PostgreSQL program ``name`` (``pg_dump``, ``pg_restore``, ``psql``, ``initdb`` …).

        Run it with :attr:`pg_env` in its environment. Raises ToolMissing, naming the program and what to install.
        """
        package = "postgresql-16 (the server package)" if name in _PG_SERVER_PROGRAMS else "postgresql-client-16"
        hint = f"Install {package} or newer, or set PG_BIN_DIR to the directory that holds {name} of PostgreSQL {MIN_POSTGRES} or newer."
        if self.pg_bin_dir is None:
            raise ToolMissing(f"{name}: no PostgreSQL programs of version {MIN_POSTGRES} or newer found", hint=hint, store="postgres")
        program = self.pg_bin_dir / name
        if not os.access(program, os.X_OK):
            raise ToolMissing(f"{name} is not in {self.pg_bin_dir}", hint=hint, store="postgres")
        return program

    def require_redis(self) -> Path:
        """``redis-server``. Raises ToolMissing."""
        if self.redis_server is None:
            raise ToolMissing(
                f"no redis-server of version {_dotted(MIN_REDIS)} or newer found",
                hint="Install redis-server, or set REDIS_SERVER to its path.",
                store="redis",
            )
        return self.redis_server

    def require_redis_tool(self, name: str) -> Path:
        """A companion of the server (``redis-cli``, ``redis-check-rdb``, ``redis-check-aof``): beside it, else on PATH."""
        beside = self.require_redis().parent / name
        if os.access(beside, os.X_OK):
            return beside
        found = which(name)
        if found is None:
            raise ToolMissing(f"{name} is neither beside {self.redis_server} nor on PATH", hint="Install redis-tools.", store="redis")
        return found

    def require_qdrant(self) -> Path:
        """The Qdrant server program. Raises ToolMissing."""
        if self.qdrant is None:
            raise ToolMissing(
                f"no qdrant program of version {_dotted(MIN_QDRANT)} or newer found",
                hint="Download the server program of your Qdrant's version and set QDRANT_BIN to its path.",
                store="qdrant",
            )
        return self.qdrant

    def require_rclone(self) -> Path:
        """rclone, as a fast local S3 endpoint. Raises ToolMissing."""
        if self.rclone is None:
            raise ToolMissing("rclone not found", hint="Install rclone; only the large offsite benchmarks need it.")
        return self.rclone

    @property
    def pg_version(self) -> str | None:
        """Version of ``pg_dump`` (``16.15``), or None when there are no PostgreSQL programs."""
        if self.pg_bin_dir is None:
            return None
        version = _version(self.pg_bin_dir / "pg_dump", tuple(self.pg_env.items()))
        return _dotted(version) if version else None


def find_tools(*, pg_bin_dir: Path | None = None, redis_server: Path | None = None, qdrant: Path | None = None) -> Tools:
    """Find the programs: what the settings name, then PATH and the usual places (in a suitable version), then earlier downloads.

    A program that is nowhere is None in the answer. Raises ToolMissing when a *setting* names something that is absent or
    too old: a wrong setting is told, never passed over.
    """
    bin_dir, env = _find_pg(pg_bin_dir)
    return Tools(
        pg_bin_dir=bin_dir,
        pg_env=env,
        redis_server=_find_program("REDIS_SERVER", redis_server, "redis-server", MIN_REDIS, REDIS),
        qdrant=_find_program("QDRANT_BIN", qdrant, "qdrant", MIN_QDRANT, QDRANT),
        rclone=which("rclone") or _cached_program(RCLONE, "rclone"),
    )


def cache_dir() -> Path:
    """Where downloads are kept: ``$XDG_CACHE_HOME`` or ``~/.cache``, then ``scholaria-ops``.

    As root ``/var/cache/scholaria-ops`` when the unprivileged account of the scratch servers could not reach the former
    (root's home is closed to it).
    """
    own = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "scholaria-ops"
    return own if may_traverse(own, server_account()) else Path("/var/cache/scholaria-ops")


def bundled_pg(root: Path) -> tuple[Path, Mapping[str, str]]:
    """Program directory and environment of an unpacked PostgreSQL bundle."""
    libraries = [root / "lib", root / "compat"]
    return root / "bin", {"LD_LIBRARY_PATH": ":".join(str(p) for p in libraries if p.is_dir())}


def with_bundle(tools: Tools, bundle: Bundle, root: Path) -> Tools:
    """``tools`` completed by an unpacked bundle."""
    if bundle is POSTGRES:
        bin_dir, env = bundled_pg(root)
        return replace(tools, pg_bin_dir=bin_dir, pg_env=env)
    if bundle is REDIS:
        return replace(tools, redis_server=root / "bin" / "redis-server")
    if bundle is QDRANT:
        return replace(tools, qdrant=root / "bin" / "qdrant")
    return replace(tools, rclone=root / "bin" / "rclone")


def _find_pg(explicit: Path | None) -> tuple[Path | None, Mapping[str, str]]:
    if explicit is not None:
        return _explicit_pg(explicit)
    client_only: tuple[Path, Mapping[str, str]] | None = None
    for bin_dir in _pg_candidates():
        env = _private_libraries(bin_dir)
        version = _version(bin_dir / "pg_dump", tuple(env.items()))
        if version is None or version[0] < MIN_POSTGRES:
            continue
        if _has_server(bin_dir):
            return bin_dir, env
        client_only = client_only or (bin_dir, env)
    cached = cache_dir() / POSTGRES.directory
    if cached.is_dir():
        return bundled_pg(cached)
    return client_only or (None, {})


def _explicit_pg(bin_dir: Path) -> tuple[Path, Mapping[str, str]]:
    env = _private_libraries(bin_dir)
    version = _version(bin_dir / "pg_dump", tuple(env.items()))
    if version is None:
        raise ToolMissing(
            f"PG_BIN_DIR is {bin_dir}, but no working pg_dump is there", hint="Correct or unset PG_BIN_DIR.", store="postgres"
        )
    if version[0] < MIN_POSTGRES:
        raise ToolMissing(
            f"PG_BIN_DIR is {bin_dir}, which holds PostgreSQL {_dotted(version)}; {MIN_POSTGRES} or newer is needed",
            hint="Point PG_BIN_DIR at newer programs, or unset it.",
            store="postgres",
        )
    return bin_dir, env


def _pg_candidates() -> Iterator[Path]:
    """Directories that may hold PostgreSQL programs: PATH, then the distributions' own places, production's major first."""
    for entry in _path_entries():
        if os.access(entry / "pg_dump", os.X_OK):  # also False for a directory that we may not look into
            yield entry
    majors = {int(p.name): p / "bin" for p in _DEBIAN_PG.glob("[0-9]*") if p.name.isdigit()}
    majors.update({int(p.name[6:]): p / "bin" for p in _RPM_PG.glob("pgsql-[0-9]*") if p.name[6:].isdigit()})
    for major in sorted(majors, key=lambda m: (m != MIN_POSTGRES, -m)):
        yield majors[major]


def _path_entries() -> Iterator[Path]:
    for entry in dict.fromkeys(os.environ.get("PATH", os.defpath).split(os.pathsep)):
        if entry:
            yield Path(entry)


def _has_server(bin_dir: Path) -> bool:
    return all(os.access(bin_dir / name, os.X_OK) for name in _PG_SERVER_PROGRAMS)


def _private_libraries(bin_dir: Path) -> Mapping[str, str]:
    """A relocatable PostgreSQL carries its libraries beside its programs; a distribution's is linked to the system's."""
    library = bin_dir.parent / "lib"
    if bin_dir.parent in {Path("/"), Path("/usr"), Path("/usr/local")} or not any(library.glob("libpq.so*")):
        return {}
    return {"LD_LIBRARY_PATH": str(library)}


def _find_program(setting: str, explicit: Path | None, name: str, minimum: tuple[int, int], bundle: Bundle) -> Path | None:
    if explicit is not None:
        version = _version(explicit)
        if version is None:
            raise ToolMissing(f"{setting} is {explicit}, which is no working {name}", hint=f"Correct or unset {setting}.")
        if version < minimum:
            raise ToolMissing(
                f"{setting} is {explicit} of version {_dotted(version)}; {_dotted(minimum)} or newer is needed",
                hint=f"Point {setting} at a newer program, or unset it.",
            )
        return explicit
    for entry in _path_entries():
        version = _version(entry / name)
        if version is not None and version >= minimum:
            return entry / name
    return _cached_program(bundle, name)


def _cached_program(bundle: Bundle, name: str) -> Path | None:
    program = cache_dir() / bundle.directory / "bin" / name
    return program if program.exists() else None


def _version(program: Path, env: tuple[tuple[str, str], ...] = ()) -> tuple[int, ...] | None:
    """What ``program --version`` reports, or None when it is absent, not executable or does not run here."""
    try:
        stamp = program.stat().st_mtime_ns
    except OSError:
        return None
    return _asked_version(program, stamp, env) if os.access(program, os.X_OK) else None


@functools.lru_cache(maxsize=64)
def _asked_version(program: Path, _stamp: int, env: tuple[tuple[str, str], ...]) -> tuple[int, ...] | None:
    try:
        answer = run([str(program), "--version"], env=dict(env), timeout_s=20.0).stdout.decode("utf-8", "replace")
    except ToolFailed:
        return None
    found = re.search(r"(?:v=|\s)(\d+(?:\.\d+)+|\d+(?=(?:devel|beta|rc)?\d*\b))", answer)
    return tuple(int(part) for part in found[1].split(".")) if found else None


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(str(part) for part in version)
