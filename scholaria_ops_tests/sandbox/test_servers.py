"""Servers start, serve, restart with their data, crash, and end without a trace."""

from __future__ import annotations

import http.client
import json
import os
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import redis
from pydantic import SecretStr
from redis.backoff import NoBackoff
from redis.retry import Retry

from scholaria_ops.cancel import CancelToken
from scholaria_ops.connections import QdrantConnection, RedisConnection
from scholaria_ops.errors import Cancelled, SandboxError, ToolMissing
from scholaria_ops.process import is_alive
from scholaria_ops.sandbox.home import Marker
from scholaria_ops.sandbox.identity import server_account
from scholaria_ops.sandbox.postgres import PostgresServer
from scholaria_ops.sandbox.redis import RedisServer
from scholaria_ops.sandbox.sandbox import Sandbox
from scholaria_ops.sandbox.server import Server
from scholaria_ops.sandbox.tools import Tools
from scholaria_ops_tests.sandbox.helpers import marker_of, processes_of, programs_of

STARTERS: dict[str, Callable[[Sandbox], Server]] = {
    "postgres": lambda box: box.postgres(),
    "redis": lambda box: box.redis(config={"appendonly": "yes"}),
    "qdrant": lambda box: box.qdrant(api_key="a-key"),
    "s3": lambda box: box.s3(),
}


@pytest.fixture(scope="module")
def box(tools: Tools, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    with Sandbox(tmp_path_factory.mktemp("servers"), tools) as made:
        yield made


@pytest.fixture(scope="module")
def pg(box: Sandbox) -> PostgresServer:
    return box.postgres(name="pg")


def client(to: RedisConnection) -> redis.Redis:
    where: dict[str, Any] = {"unix_socket_path": str(to.unix_socket)} if to.unix_socket else {"host": to.host, "port": to.port}
    return redis.Redis(password=to.password.get_secret_value(), retry=Retry(NoBackoff(), 0), **where)


def qdrant(to: QdrantConnection, method: str, path: str, body: Any = None) -> Any:
    host, _, port = to.url.removeprefix("http://").partition(":")
    link = http.client.HTTPConnection(host, int(port), timeout=30)
    link.request(method, path, json.dumps(body) if body is not None else None, {"api-key": to.api_key.get_secret_value()})
    answer = link.getresponse()
    content = answer.read()
    return answer.status, json.loads(content) if answer.status == http.client.OK else content


def test_postgres_serves_with_the_applications_extensions_and_its_own_identity(box: Sandbox, pg: PostgresServer) -> None:
    with pg.connect() as connection:
        connection.execute('CREATE EXTENSION "uuid-ossp"')
        connection.execute("CREATE EXTENSION pg_trgm")
        row = connection.execute("SELECT uuid_generate_v4() IS NOT NULL, similarity('한국어', '한국') > 0").fetchone()
        collation = connection.execute("SELECT datcollate, pg_encoding_to_char(encoding) FROM pg_database WHERE datname = 'postgres'")
        assert collation.fetchone() == ("C.UTF-8", "UTF8")
    assert row == (True, True)
    assert pg.version.split(".")[0].isdigit()
    other = box.postgres(name="pg-other")
    assert other.system_identifier != pg.system_identifier
    other.stop()


def test_postgres_wants_the_password_and_listens_on_loopback_only(pg: PostgresServer) -> None:
    import psycopg

    to = pg.connection
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(host=to.host, port=to.port, user="postgres", dbname="postgres", password="wrong")
    with pg.connect() as connection:
        assert connection.execute("SHOW listen_addresses").fetchone() == ("127.0.0.1",)
        assert connection.execute("SHOW password_encryption").fetchone() == ("scram-sha-256",)


def test_postgres_runs_unprivileged(pg: PostgresServer) -> None:
    assert pg.daemon is not None
    owner = Path(f"/proc/{pg.daemon.pid}").stat().st_uid
    account = server_account()
    assert owner == (account.uid if account else os.getuid())
    assert owner != 0


def test_settings_reach_postgres(box: Sandbox) -> None:
    server = box.postgres(name="pg-logical", settings={"wal_level": "logical", "max_wal_senders": "4", "application_name": "it's"})
    with server.connect() as connection:
        assert connection.execute("SHOW wal_level").fetchone() == ("logical",)
    server.stop()


def test_servers_on_unix_sockets_listen_on_no_port(box: Sandbox) -> None:
    pg, rd = box.postgres(name="pg-socket", tcp=False), box.redis(name="redis-socket", tcp=False)
    with pg.connect() as connection:
        assert connection.execute("SHOW listen_addresses").fetchone() == ("",)
    assert client(rd.connection).ping()
    assert client(rd.connection).config_get("port") == {"port": "0"}
    pg.stop()
    rd.stop()


def test_a_deep_base_directory_still_gives_usable_sockets(tools: Tools, tmp_path: Path) -> None:
    deep = tmp_path / ("x" * 60) / ("y" * 60)
    deep.mkdir(parents=True)
    with Sandbox(deep, tools) as box:
        server = box.redis(tcp=False)
        assert client(server.connection).ping()
        sockets = Path(str(server.connection.unix_socket)).parent
    assert not sockets.exists()


def test_redis_starts_from_an_rdb(box: Sandbox, tmp_path: Path) -> None:
    source = box.redis(name="rdb-source")
    client(source.connection).set("k", "v")
    client(source.connection).save()
    dump = tmp_path / "copy.rdb"
    dump.write_bytes((source.directory / "data" / "dump.rdb").read_bytes())
    dump.chmod(0o600)
    copied = box.redis(name="rdb-copied", rdb=dump)
    assert client(copied.connection).get("k") == b"v"
    written = box.redis(name="rdb-written", rdb=lambda path: path.write_bytes(dump.read_bytes()))
    assert client(written.connection).get("k") == b"v"
    with pytest.raises(SandboxError, match="append-only"):
        box.redis(name="rdb-refused", rdb=dump, config={"appendonly": "yes"})
    for server in (source, copied, written):
        server.stop()


def test_a_damaged_rdb_is_told_with_the_servers_own_words(box: Sandbox, tmp_path: Path) -> None:
    dump = tmp_path / "bad.rdb"
    dump.write_bytes(b"REDIS0011" + b"\x00" * 40)
    with pytest.raises(SandboxError, match=r"(?s)log:.*RDB"):
        box.redis(name="rdb-damaged", rdb=dump)


def test_qdrant_wants_its_key_and_offers_no_grpc(box: Sandbox) -> None:
    server = box.qdrant(name="qdrant-key", api_key="secret-key")
    assert qdrant(server.connection, "GET", "/collections")[0] == 200
    wrong = server.connection.model_copy(update={"api_key": SecretStr("wrong")})
    assert qdrant(wrong, "GET", "/collections")[0] == 401
    assert "gRPC endpoint disabled" in server.log.read_text()
    assert server.version.count(".") == 2
    server.stop()


def test_s3_makes_buckets_with_object_lock(box: Sandbox) -> None:
    import boto3

    server = box.s3(name="s3-lock")
    server.create_bucket("plain-bucket")
    server.create_bucket("locked-bucket", object_lock=True)
    s3 = boto3.client(
        "s3",
        endpoint_url=server.endpoint_url,
        region_name=server.region,
        aws_access_key_id=server.access_key,
        aws_secret_access_key=server.secret_key,
    )
    assert {b["Name"] for b in s3.list_buckets()["Buckets"]} == {"locked-bucket", "plain-bucket"}
    assert s3.get_object_lock_configuration(Bucket="locked-bucket")["ObjectLockConfiguration"]["ObjectLockEnabled"] == "Enabled"
    server.stop()


def test_secrets_are_in_no_argument_list(box: Sandbox, pg: PostgresServer) -> None:
    rd, qd = box.redis(name="argv-redis"), box.qdrant(name="argv-qdrant", api_key="argv-key")
    secrets = (pg.connection.password, rd.connection.password, qd.connection.api_key)
    servers: tuple[Server, ...] = (pg, rd, qd)
    for server, secret in zip(servers, secrets, strict=True):
        assert server.daemon is not None
        assert secret.get_secret_value().encode() not in Path(f"/proc/{server.daemon.pid}/cmdline").read_bytes()
    rd.stop()
    qd.stop()


@pytest.mark.parametrize("crash", [False, True], ids=["restart", "crash"])
def test_data_survive_a_restart_and_a_crash(box: Sandbox, crash: bool) -> None:
    suffix = "crash" if crash else "calm"
    pg = box.postgres(name=f"pg-{suffix}", fsync=True)
    rd = box.redis(name=f"redis-{suffix}", config={"appendonly": "yes", "appendfsync": "always"})
    qd = box.qdrant(name=f"qdrant-{suffix}")
    with pg.connect() as connection:
        connection.execute("CREATE TABLE t AS SELECT generate_series(1, 100) AS n")
    client(rd.connection).set("k", "v")
    qdrant(qd.connection, "PUT", "/collections/c", {"vectors": {"size": 2, "distance": "Dot"}})
    before = (pg.system_identifier, rd.run_id)
    servers: tuple[Server, ...] = (pg, rd, qd)
    for server in servers:
        old = server.daemon
        if crash:
            server.kill()
            assert not server.running
            server.start()
        else:
            server.restart()
        assert server.running
        assert old is not None
        assert server.daemon != old
        assert not is_alive(old.pid, old.start_time)
    with pg.connect() as connection:
        assert connection.execute("SELECT count(*) FROM t").fetchone() == (100,)
    assert client(rd.connection).get("k") == b"v"
    assert [c["name"] for c in qdrant(qd.connection, "GET", "/collections")[1]["result"]["collections"]] == ["c"]
    assert pg.system_identifier == before[0]
    assert rd.run_id != before[1]
    for server in servers:
        server.stop()


@pytest.mark.parametrize("kind", STARTERS)
def test_a_port_that_somebody_took_meanwhile_is_given_up(tools: Tools, tmp_path: Path, kind: str) -> None:
    with Sandbox(tmp_path, tools) as box:
        server = STARTERS[kind](box)
        server.stop()
        with socket.socket() as squatter:
            squatter.bind(("127.0.0.1", 0))
            squatter.listen()
            server.port = squatter.getsockname()[1]
            server.start()
            assert server.running
            assert server.port != squatter.getsockname()[1]


def test_two_sandboxes_stand_side_by_side(tools: Tools, tmp_path: Path) -> None:
    with Sandbox(tmp_path, tools, label="one") as one, Sandbox(tmp_path, tools, label="two") as two:
        first, second = one.redis(), two.redis()
        client(first.connection).set("k", "one")
        assert client(second.connection).get("k") is None
        with pytest.raises(redis.AuthenticationError):
            client(second.connection.model_copy(update={"password": first.connection.password})).ping()
        assert first.made_by_sandbox != second.made_by_sandbox
        two.close()
        assert client(first.connection).get("k") == b"one"
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_cannot_start_says_why_and_leaves_nothing(tools: Tools, tmp_path: Path) -> None:
    with Sandbox(tmp_path, tools) as box:
        with pytest.raises(SandboxError, match="no_such_parameter"):
            box.postgres(settings={"no_such_parameter": "1"})
        with pytest.raises(SandboxError, match="no_such_directive"):
            box.redis(config={"no_such_directive": "1"})
        with pytest.raises(SandboxError, match="locale"):
            box.postgres(name="elsewhere", locale="xx_YY.utf8")
        nonce, data = box.nonce, box.servers["postgres"].directory.parent
        assert [s for s in box.servers.values() if s.running] == []
    assert not data.exists()
    assert list(tmp_path.iterdir()) == []
    assert nonce


def test_waiting_for_a_server_ends_when_cancelled(tools: Tools, tmp_path: Path) -> None:
    cancel = CancelToken()
    with Sandbox(tmp_path, tools, cancel=cancel) as box:
        cancel.cancel("enough")
        with pytest.raises(Cancelled):
            box.redis()
        assert not box.servers["redis"].running


def test_leaving_by_an_exception_ends_servers_and_removes_directories(tools: Tools, tmp_path: Path) -> None:
    box = Sandbox(tmp_path, tools, ephemeral=False)

    def fail_inside() -> None:
        with box:
            box.redis()
            box.qdrant()
            found.append((marker_of(box.directory), programs_of(box.directory), box.directory))
            assert len(processes_of(found[0][0], found[0][1])) == 2
            raise ZeroDivisionError

    found: list[tuple[Marker, set[str], Path]] = []
    with pytest.raises(ZeroDivisionError):
        fail_inside()
    marker, programs, directory = found[0]
    assert processes_of(marker, programs) == []
    assert not directory.exists()
    assert not marker.data.exists()


def test_a_killed_postgres_leaves_no_shared_memory(tools: Tools, tmp_path: Path) -> None:
    def segments() -> set[str]:
        return {line.split()[1] for line in Path("/proc/sysvipc/shm").read_text().splitlines()[1:]}

    with Sandbox(tmp_path, tools) as box:
        server = box.postgres()
        mine = (server.data / "postmaster.pid").read_text().splitlines()[6].split()[1]
        assert mine in segments()
        server.kill()
        assert mine not in segments()


def test_a_kept_sandbox_is_attached_to_and_ended_by_another(tools: Tools, tmp_path: Path) -> None:
    with Sandbox(tmp_path, tools, label="demo", ephemeral=False) as box:
        pg, rd = box.postgres(), box.redis()
        client(rd.connection).set("k", "v")
        identifier = pg.system_identifier
    again = Sandbox.attach(tmp_path, tools, label="demo")
    servers = again.servers
    assert set(servers) == {"postgres", "redis"}
    found_pg, found_rd = servers["postgres"], servers["redis"]
    assert isinstance(found_pg, PostgresServer)
    assert isinstance(found_rd, RedisServer)
    assert found_pg.running
    assert found_pg.system_identifier == identifier
    assert client(found_rd.connection).get("k") == b"v"
    found_pg.restart()
    assert found_pg.system_identifier == identifier
    again.close()
    assert not pg.running
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(SandboxError, match="no sandbox"):
        Sandbox.attach(tmp_path, tools)


@pytest.mark.parametrize("name", ["", "s", "../out", "a/b", "with space"])
def test_a_servers_name_is_no_path(box: Sandbox, name: str) -> None:
    with pytest.raises(SandboxError, match="name"):
        box.redis(name=name)


def test_a_configuration_value_cannot_smuggle_in_another_line(box: Sandbox) -> None:
    with pytest.raises(SandboxError, match="one line"):
        box.redis(name="smuggle", config={"maxmemory": "1mb\nrequirepass x"})
    with pytest.raises(SandboxError, match="one line"):
        box.postgres(name="smuggle-pg", settings={"work_mem": "1MB'\nport = 1"})


def test_a_missing_program_is_told_before_anything_is_left(tmp_path: Path) -> None:
    with Sandbox(tmp_path, Tools()) as box:
        with pytest.raises(ToolMissing, match="redis-server"):
            box.redis()
        with pytest.raises(ToolMissing, match=r"postgres.*PG_BIN_DIR"):
            box.postgres()
        data = box.servers["redis"].directory.parent
    assert not data.exists()
    assert list(tmp_path.iterdir()) == []


def test_a_sandbox_may_be_used_and_closed_in_another_thread(tools: Tools, tmp_path: Path) -> None:
    def use() -> str:
        with Sandbox(tmp_path, tools) as box:
            return box.redis().version

    with ThreadPoolExecutor(2) as pool:
        assert all(job.result() for job in [pool.submit(use), pool.submit(use)])
    assert list(tmp_path.iterdir()) == []
