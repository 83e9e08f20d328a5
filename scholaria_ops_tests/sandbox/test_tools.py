"""Programs are found where they are, in a suitable version; a wrong setting is told, never passed over."""

from __future__ import annotations

from pathlib import Path

import pytest

from scholaria_ops.errors import ToolMissing
from scholaria_ops.sandbox import tools as module
from scholaria_ops.sandbox.packages import POSTGRES, QDRANT, REDIS
from scholaria_ops.sandbox.tools import Tools, find_tools


@pytest.fixture(autouse=True)
def bare_host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A host with nothing on it: no PATH, no distribution packages, no cache."""
    (tmp_path / "path").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    monkeypatch.setattr(module, "_DEBIAN_PG", tmp_path / "debian")
    monkeypatch.setattr(module, "_RPM_PG", tmp_path / "rpm")
    monkeypatch.setattr(module, "cache_dir", lambda: tmp_path / "cache")


def program(path: Path, says: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho '{says}'\n")
    path.chmod(0o755)
    return path


def postgres(bin_dir: Path, version: str, *, server: bool = True) -> Path:
    for name in ("pg_dump", "psql", *(("postgres", "initdb") if server else ())):
        program(bin_dir / name, f"{name} (PostgreSQL) {version}")
    return bin_dir


def test_nothing_found_is_told_when_it_is_needed_with_what_to_install() -> None:
    found = find_tools()
    assert found == Tools()
    with pytest.raises(ToolMissing, match=r"pg_dump.*PG_BIN_DIR"):
        found.require_pg("pg_dump")
    with pytest.raises(ToolMissing, match=r"initdb.*server package"):
        found.require_pg("initdb")
    with pytest.raises(ToolMissing, match=r"redis-server.*REDIS_SERVER"):
        found.require_redis()
    with pytest.raises(ToolMissing, match=r"qdrant.*QDRANT_BIN"):
        found.require_qdrant()
    with pytest.raises(ToolMissing, match="rclone"):
        found.require_rclone()
    assert found.pg_version is None


def test_an_old_postgres_on_path_is_passed_over(tmp_path: Path) -> None:
    postgres(tmp_path / "path", "15.18 (Debian 15.18-0+deb12u1)")
    assert find_tools().pg_bin_dir is None
    newer = postgres(tmp_path / "debian" / "17" / "bin", "17.2")
    assert find_tools().pg_bin_dir == newer
    assert find_tools().pg_version == "17.2"


def test_productions_major_is_preferred_among_the_distributions(tmp_path: Path) -> None:
    for major in ("15", "16", "17", "18"):
        postgres(tmp_path / "debian" / major / "bin", f"{major}.1")
    assert find_tools().pg_bin_dir == tmp_path / "debian" / "16" / "bin"


def test_a_suitable_postgres_on_path_comes_first(tmp_path: Path) -> None:
    postgres(tmp_path / "path", "17beta2")
    postgres(tmp_path / "debian" / "16" / "bin", "16.9")
    assert find_tools().pg_bin_dir == tmp_path / "path"


def test_programs_that_can_run_a_server_beat_a_clients(tmp_path: Path) -> None:
    postgres(tmp_path / "path", "16.9", server=False)
    assert find_tools().pg_bin_dir == tmp_path / "path"
    cached = postgres(tmp_path / "cache" / POSTGRES.directory / "bin", "16.15")
    (cached.parent / "lib").mkdir()
    found = find_tools()
    assert found.pg_bin_dir == cached
    assert found.pg_env == {"LD_LIBRARY_PATH": str(cached.parent / "lib")}


def test_a_client_without_the_server_says_what_is_missing(tmp_path: Path) -> None:
    found = find_tools(pg_bin_dir=postgres(tmp_path / "mine", "16.2", server=False))
    assert found.require_pg("psql") == tmp_path / "mine" / "psql"
    with pytest.raises(ToolMissing, match=r"initdb is not in"):
        found.require_pg("initdb")


def test_a_setting_wins_and_brings_its_own_libraries(tmp_path: Path) -> None:
    postgres(tmp_path / "path", "16.9")
    mine = postgres(tmp_path / "opt" / "bin", "16.2")
    (tmp_path / "opt" / "lib").mkdir()
    (tmp_path / "opt" / "lib" / "libpq.so.5").touch()
    found = find_tools(pg_bin_dir=mine)
    assert found.pg_bin_dir == mine
    assert found.pg_env == {"LD_LIBRARY_PATH": str(tmp_path / "opt" / "lib")}


def test_a_wrong_setting_is_told(tmp_path: Path) -> None:
    postgres(tmp_path / "path", "16.9")
    with pytest.raises(ToolMissing, match=r"PG_BIN_DIR is .* no working pg_dump"):
        find_tools(pg_bin_dir=tmp_path / "nowhere")
    with pytest.raises(ToolMissing, match=r"PostgreSQL 15\.3; 16 or newer"):
        find_tools(pg_bin_dir=postgres(tmp_path / "old", "15.3"))
    with pytest.raises(ToolMissing, match=r"REDIS_SERVER is .* no working redis-server"):
        find_tools(redis_server=tmp_path / "nowhere")
    with pytest.raises(ToolMissing, match=r"of version 6\.2\.7; 7\.0 or newer"):
        find_tools(redis_server=program(tmp_path / "redis6", "Redis server v=6.2.7 sha=0 bits=64"))
    with pytest.raises(ToolMissing, match=r"QDRANT_BIN is .* of version 1\.6\.1"):
        find_tools(qdrant=program(tmp_path / "qdrant16", "qdrant 1.6.1"))


def test_redis_and_qdrant_are_looked_for_on_path_then_in_the_cache(tmp_path: Path) -> None:
    program(tmp_path / "path" / "redis-server", "Redis server v=6.0.16 sha=0")
    cached_redis = program(tmp_path / "cache" / REDIS.directory / "bin" / "redis-server", "Redis server v=7.4.1")
    cached_qdrant = program(tmp_path / "cache" / QDRANT.directory / "bin" / "qdrant", "qdrant 1.16.3")
    found = find_tools()
    assert (found.redis_server, found.qdrant) == (cached_redis, cached_qdrant)
    newer = program(tmp_path / "path" / "redis-server", "Redis server v=7.2.5 sha=00000000:0 malloc=jemalloc-5.3.0")
    assert find_tools().redis_server == newer
    assert find_tools().require_redis_tool("redis-server") == newer


def test_a_program_that_does_not_run_here_is_passed_over(tmp_path: Path) -> None:
    broken = program(tmp_path / "path" / "qdrant", "")
    broken.write_bytes(b"\x7fELF for another machine")
    assert find_tools().qdrant is None


def test_the_cache_is_where_the_servers_account_can_reach_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    from scholaria_ops.sandbox.identity import may_traverse, server_account

    assert may_traverse(module.cache_dir(), server_account())
    monkeypatch.setattr(module, "server_account", lambda: None)
    assert module.cache_dir() == tmp_path / "scholaria-ops"
