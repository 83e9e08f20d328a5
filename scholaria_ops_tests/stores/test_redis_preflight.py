"""What a backup of Redis refuses beforehand, each by name, and the least-privileged user that is enough."""

from __future__ import annotations

import datetime as dt
import ipaddress
import os
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import SecretStr

from scholaria_ops.cancel import CancelToken
from scholaria_ops.connections import RedisConnection
from scholaria_ops.errors import AuthenticationFailed, Cancelled, DiskFull, OpsError, Refused, StoreError, StoreUnavailable, ToolMissing
from scholaria_ops.progress import Silent
from scholaria_ops.sandbox.redis import RedisServer
from scholaria_ops.sandbox.sandbox import Sandbox
from scholaria_ops.sandbox.tools import Tools
from scholaria_ops.stores.redis import RedisStore
from scholaria_ops.stores.redis import preflight as preflight_module
from scholaria_ops.stores.redis.info import ServerInfo, newer_than_local, rdb_version_written_by
from scholaria_ops.stores.redis.preflight import refuse_unfit
from scholaria_ops.stores.redis.wire import ACL_RULES, acl_hint
from scholaria_ops_tests.conftest import ContextFactory, Ports
from scholaria_ops_tests.stores.redis_support import Script, commands, failed, fill, scripted, take, wait_until


@pytest.fixture
def box(tools: Tools, tmp_path: Path) -> Iterator[Sandbox]:
    with Sandbox(tmp_path / "box", tools) as opened:
        yield opened


def preflight_error(connection: RedisConnection, context_factory: ContextFactory) -> OpsError:
    with pytest.raises(OpsError) as caught:
        RedisStore(connection, timeout_s=30).preflight(context_factory())
    return caught.value


def test_facts_of_a_healthy_server(box: Sandbox, context_factory: ContextFactory) -> None:
    server = box.redis(config={"save": "3600 1", "appendonly": "yes"})
    fill(server)
    facts = RedisStore(server.connection).preflight(context_factory())
    assert facts.server_version == server.version
    assert facts.expected_bytes > 100_000
    assert facts.details["keys"] == "330 in 2 database(s)"
    assert facts.details["RDB by way of"].startswith("disk (")
    assert facts.warnings == ()


def test_nobody_there_is_unavailable_and_may_be_tried_again(context_factory: ContextFactory, hold_port: Ports) -> None:
    error = preflight_error(RedisConnection(host="127.0.0.1", port=hold_port()), context_factory)
    assert isinstance(error, StoreUnavailable)
    assert error.retryable
    assert "127.0.0.1" in error.message


def test_a_wrong_password_is_permanent_and_tried_once(box: Sandbox, context_factory: ContextFactory) -> None:
    server = box.redis()
    wrong = server.connection.model_copy(update={"password": SecretStr("not-the-password")})
    errors = [preflight_error(wrong, context_factory)]
    errors.append(preflight_error(server.connection.model_copy(update={"username": "nobody", "password": SecretStr("x")}), context_factory))
    errors.append(preflight_error(server.connection.model_copy(update={"password": SecretStr("")}), context_factory))
    for error in errors:
        assert isinstance(error, AuthenticationFailed), error
        assert not error.retryable
        assert "not-the-password" not in f"{error}{error.__cause__}"
    (stats,) = commands(server, ("INFO", "errorstats"))
    assert b"WRONGPASS:count=2" in stats


def test_a_password_for_a_server_without_one_is_named(context_factory: ContextFactory) -> None:
    script = Script([], auth=b"-ERR AUTH <password> called without any password configured for the default user.\r\n")
    with scripted(script) as connection:
        error = preflight_error(connection.model_copy(update={"password": SecretStr("p")}), context_factory)
    assert isinstance(error, AuthenticationFailed)


def test_something_that_is_no_redis_is_named(context_factory: ContextFactory) -> None:
    script = Script([], auth=b"HTTP/1.1 400 Bad Request\r\n\r\n")
    with scripted(script) as connection:
        error = preflight_error(connection.model_copy(update={"password": SecretStr("p")}), context_factory)
    assert "does not speak the Redis protocol" in error.message


def limited(server: RedisServer, rules: str) -> RedisConnection:
    commands(server, ("ACL", "SETUSER", "backup", "reset", "on", ">pw", *rules.split()))
    return server.connection.model_copy(update={"username": "backup", "password": SecretStr("pw")})


def test_the_least_privileged_user_of_the_hint_is_enough(box: Sandbox, tmp_path: Path, context_factory: ContextFactory) -> None:
    server = box.redis(config={"repl-diskless-sync-delay": "0"})
    fill(server)
    connection = limited(server, ACL_RULES)
    facts = RedisStore(connection).preflight(context_factory())
    assert "unknown" not in facts.details["save points"]
    backup = take(connection, context_factory(), tmp_path / "set")
    assert backup.evidence.total_keys == 330
    assert backup.evidence.acl_users_not_kept == ("backup", "default")
    assert failed(backup.check(context_factory())) == []
    for forbidden in (
        ("SET", "x", "y"),
        ("GET", "x"),
        ("KEYS", "*"),
        ("FLUSHALL",),
        ("CONFIG", "SET", "maxmemory", "1"),
        ("DEBUG", "SLEEP", "0"),
    ):
        with pytest.raises(OpsError, match=r"may not run|DEBUG command not allowed"):
            commands(connection, forbidden)


@pytest.mark.parametrize("missing", ["+sync", "+info", "+replconf", "+ping"])
def test_a_missing_permission_is_named_with_the_line_that_gives_it(box: Sandbox, context_factory: ContextFactory, missing: str) -> None:
    server = box.redis(config={"repl-diskless-sync-delay": "0"})
    error = preflight_error(limited(server, ACL_RULES.replace(missing, "")), context_factory)
    assert isinstance(error, Refused)
    assert missing[1:].upper() in error.message
    assert error.hint == acl_hint()
    assert "ACL SETUSER backup on" in error.hint


def test_what_may_not_be_asked_is_said_to_be_unknown(box: Sandbox, tmp_path: Path, context_factory: ContextFactory) -> None:
    server = box.redis(config={"repl-diskless-sync-delay": "0", "databases": "20"})
    commands(server, ("SELECT", 19), ("SET", "high", "1"))
    connection = limited(server, ACL_RULES.replace("+config|get", "").replace("+acl|users", ""))
    facts = RedisStore(connection).preflight(context_factory())
    assert facts.details["save points"] == "unknown (CONFIG not permitted)"
    assert facts.details["RDB by way of"].startswith("socket")
    assert len(facts.warnings) == 2
    backup = take(connection, context_factory(), tmp_path / "set")
    assert backup.evidence.databases is None
    assert backup.evidence.acl_users_not_kept is None
    assert backup.evidence.per_database() == {19: 1}
    assert failed(backup.check(context_factory())) == []


def test_preflight_starts_nothing_on_the_server(box: Sandbox, context_factory: ContextFactory) -> None:
    server = box.redis(config={"save": "3600 1"})
    RedisStore(server.connection).preflight(context_factory())
    stats, replication = commands(server, ("INFO", "stats"), ("INFO", "replication"))
    assert b"total_forks:0" in stats
    assert b"sync_full:0" in stats
    assert b"connected_slaves:0" in replication


def test_cluster_mode_is_refused(box: Sandbox, context_factory: ContextFactory, hold_port: Ports) -> None:
    server = box.redis(config={"cluster-enabled": "yes", "cluster-port": str(hold_port())})
    error = preflight_error(server.connection, context_factory)
    assert isinstance(error, Refused)
    assert "cluster mode" in error.message


def test_a_renamed_sync_is_named(box: Sandbox, context_factory: ContextFactory) -> None:
    server = box.redis(config={"rename-command": "SYNC hidden"})
    error = preflight_error(server.connection, context_factory)
    assert isinstance(error, Refused)
    assert "knows no SYNC command" in error.message
    assert "rename-command" in error.hint


def test_a_replica_that_lost_its_master_is_refused(box: Sandbox, context_factory: ContextFactory, hold_port: Ports) -> None:
    server = box.redis()
    commands(server, ("REPLICAOF", "127.0.0.1", hold_port()))
    error = preflight_error(server.connection, context_factory)
    assert isinstance(error, Refused)
    assert "link to its master is down" in error.message


def test_a_replica_in_good_health_can_be_backed_up(box: Sandbox, tmp_path: Path, context_factory: ContextFactory) -> None:
    master = box.redis(name="master", config={"repl-diskless-sync-delay": "0"})
    replica = box.redis(name="replica", config={"repl-diskless-sync-delay": "0"})
    fill(master)
    secret = master.connection.password.get_secret_value()
    commands(replica, ("CONFIG", "SET", "masterauth", secret), ("REPLICAOF", "127.0.0.1", master.port))
    wait_until(lambda: b"master_link_status:up" in commands(replica, ("INFO", "replication"))[0])
    backup = take(replica, context_factory(), tmp_path / "set")
    assert backup.evidence.role == "replica"
    assert backup.evidence.total_keys == 330


BASE = {"redis_version": "7.4.1", "role": "master", "redis_mode": "standalone"}


@pytest.mark.parametrize(
    ("fields", "modules", "kind", "words"),
    [
        ({"loading": "1"}, (), StoreUnavailable, "still loading"),
        ({"redis_mode": "sentinel"}, (), Refused, "Sentinel"),
        ({"cluster_enabled": "1"}, (), Refused, "cluster mode"),
        ({"role": "slave", "master_link_status": "down"}, (), Refused, "link to its master is down"),
        ({}, ("ReJSON", "search"), Refused, "ReJSON, search"),
    ],
)
def test_unfit_servers_are_refused_by_name(fields: dict[str, str], modules: tuple[str, ...], kind: type[OpsError], words: str) -> None:
    with pytest.raises(kind, match=words):
        refuse_unfit(ServerInfo({**BASE, **fields}, {}, modules, {}), "somewhere")


@pytest.mark.parametrize(
    ("fields", "rdb", "newer"),
    [
        ({"redis_version": "6.2.14"}, 9, False),
        ({"redis_version": "7.0.15"}, 10, False),
        ({"redis_version": "7.2.4", "valkey_version": "8.0.1"}, 11, False),
        ({"redis_version": "7.4.2"}, 12, True),
        ({"redis_version": "9.0.0"}, None, True),
        ({"redis_version": "7.2.4", "valkey_version": "9.0.0"}, None, True),
    ],
)
def test_f34_versions_newer_than_the_local_server_are_known(fields: dict[str, str], rdb: int | None, newer: bool) -> None:
    info = ServerInfo(fields, {}, (), {})
    assert rdb_version_written_by(info) == rdb
    assert newer_than_local(info, "7.2.4") is newer


def test_f34_a_newer_server_is_refused_before_anything_is_asked_of_it(context_factory: ContextFactory) -> None:
    script = Script([], info="redis_version:99.1.0\r\nrole:master\r\nused_memory:10\r\n")
    with scripted(script) as connection:
        error = preflight_error(connection, context_factory)
    assert isinstance(error, Refused)
    assert "99.1.0" in error.message
    assert "redis-server 7" in error.message
    assert b"SYNC" not in script.seen


def test_a_missing_redis_server_is_named(box: Sandbox, context_factory: ContextFactory, tools: Tools) -> None:
    server = box.redis()
    with pytest.raises(ToolMissing, match="redis-server"):
        RedisStore(server.connection).preflight(context_factory(tools=replace(tools, redis_server=None)))


def test_too_little_memory_or_disk_here_is_refused(context_factory: ContextFactory) -> None:
    script = Script(
        [],
        info="redis_version:7.0.0\r\nrole:master\r\nused_memory:1000\r\nused_memory_dataset:99999999999999\r\n",
        sync=b"-ERR pending output\r\n",
    )
    with scripted(script) as connection:
        error = preflight_error(connection, context_factory)
    assert isinstance(error, Refused)
    assert "bytes of disk" in error.message
    with pytest.raises(Refused, match="bytes of memory"):
        preflight_module._refuse_memory(1 << 60)


def test_a_container_s_memory_limit_counts(tmp_path: Path) -> None:
    whole = preflight_module.available_memory(tmp_path)
    assert whole > 1 << 20
    for name, text in (("memory.max", "5000000\n"), ("memory.current", "3000000\n"), ("memory.stat", "anon 1\ninactive_file 500000\n")):
        (tmp_path / name).write_text(text)
    assert preflight_module.available_memory(tmp_path) == 2_500_000
    (tmp_path / "memory.max").write_text("max\n")
    assert preflight_module.available_memory(tmp_path) > 2_500_000


class _Stop(Silent):
    """Cancels the run at the first byte of a task."""

    def __init__(self, token: CancelToken, task: str) -> None:
        self.token, self.task = token, task

    def advance(self, task: str, amount: int) -> None:
        if task == self.task:
            self.token.cancel("SIGTERM")


@pytest.mark.parametrize("where", ["redis: dump", "redis: evidence", "at the cut", "while the server waits"])
def test_f83_cancelling_a_dump_leaves_nothing(box: Sandbox, tmp_path: Path, context_factory: ContextFactory, where: str) -> None:
    delay = "5" if where == "while the server waits" else "0"
    server = box.redis(config={"repl-diskless-sync-delay": delay})
    fill(server)
    token = CancelToken()
    ctx = context_factory(
        cancel=token, progress=_Stop(token, where), at_the_cut=lambda: token.cancel("SIGTERM") if where == "at the cut" else None
    )
    if where == "while the server waits":
        import threading

        threading.Timer(0.5, token.cancel, ("SIGTERM",)).start()
    with pytest.raises(Cancelled):
        take(server, ctx, tmp_path / "set")
    assert list((tmp_path / "set").iterdir()) == []
    assert list(ctx.scratch.iterdir()) == []
    wait_until(lambda: b"connected_slaves:0" in commands(server, ("INFO", "replication"))[0])


def test_f07_a_full_disk_is_told_and_leaves_no_artifact(box: Sandbox, tmp_path: Path, context_factory: ContextFactory) -> None:
    import resource
    import signal

    server = box.redis(config={"repl-diskless-sync-delay": "0"})
    fill(server)
    commands(server, *(("SET", f"random:{i}", os.urandom(60_000)) for i in range(40)))
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))
    try:
        with pytest.raises((DiskFull, StoreError)) as caught:
            take(server, context_factory(), tmp_path / "set")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert isinstance(caught.value, DiskFull)
    assert "no space left" in caught.value.message
    assert list((tmp_path / "set").iterdir()) == []


def test_f86_the_artifact_is_private_whatever_the_umask(box: Sandbox, tmp_path: Path, context_factory: ContextFactory) -> None:
    server = box.redis(config={"repl-diskless-sync-delay": "0"})
    old = os.umask(0)
    try:
        backup = take(server, context_factory(), tmp_path / "set")
    finally:
        os.umask(old)
    assert stat.S_IMODE((backup.directory / backup.artifact.path).stat().st_mode) == 0o600
    assert backup.evidence.headline() == {"keys": 0, "databases": 0}
    assert failed(backup.check(context_factory())) == []


def test_unix_sockets_and_tls_are_spoken(box: Sandbox, tmp_path: Path, context_factory: ContextFactory, hold_port: Ports) -> None:
    server = box.redis(config={"repl-diskless-sync-delay": "0"})
    fill(server)
    certificate, key = _self_signed(server)
    port = hold_port()
    commands(
        server,
        ("CONFIG", "SET", "tls-cert-file", str(certificate), "tls-key-file", str(key), "tls-ca-cert-file", str(certificate)),
        ("CONFIG", "SET", "tls-auth-clients", "no", "tls-port", port),
    )
    trusting = server.connection.model_copy(update={"port": port, "tls": True, "ca_file": tmp_path / "ca.pem"})
    (tmp_path / "ca.pem").write_bytes(certificate.read_bytes())
    for form in ("socket", "disk"):
        backup = take(trusting, context_factory(), tmp_path / form, sync_mode=form)
        assert backup.evidence.total_keys == 330
    with pytest.raises(StoreError, match="is not trusted"):
        RedisStore(trusting.model_copy(update={"ca_file": None})).preflight(context_factory())
    over_unix = box.redis(name="unix", tcp=False, config={"repl-diskless-sync-delay": "0"})
    fill(over_unix)
    assert over_unix.connection.unix_socket is not None
    assert take(over_unix, context_factory(), tmp_path / "unix").evidence.total_keys == 330


def _self_signed(server: RedisServer) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 in the server's own directory, readable by its account."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "scratch")])
    today = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(today - dt.timedelta(days=1))
        .not_valid_after(today + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    paths = (server.directory / "tls.crt", server.directory / "tls.key")
    pem, pkcs8, plain = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    for path, data in zip(paths, (certificate.public_bytes(pem), key.private_bytes(pem, pkcs8, plain)), strict=True):
        path.write_bytes(data)
        if server.account is not None:
            os.chown(path, server.account.uid, server.account.gid)
    return paths
