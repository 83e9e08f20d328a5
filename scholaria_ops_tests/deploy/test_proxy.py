"""The proxy example: nginx understands it, asks for a password, and lets no other site's page use one that a browser keeps."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import ssl
import threading
from base64 import b64encode
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from scholaria_ops.process import run, which
from scholaria_ops_tests.conftest import Ports
from scholaria_ops_tests.deploy.support import DEPLOY, UNITS, environment_of, read_unit, service_manager
from scholaria_ops_tests.offsite.tls import self_signed

PROXY = DEPLOY / "proxy"


def test_the_proxy_speaks_to_the_ports_of_the_units() -> None:
    text = (PROXY / "nginx.conf").read_text()
    full = environment_of(read_unit(UNITS / "scholaria-ops-web@.service")["Service"])["WEB_PORT"]
    readonly = environment_of(read_unit(UNITS / "scholaria-ops-web-readonly@.service")["Service"])["READONLY_PORT"]
    servers = dict(re.findall(r"server_name (\w+)\.example\.org;.*?proxy_pass http://127\.0\.0\.1:(\d+);", text, re.DOTALL))
    assert servers["ops"] == full
    assert servers["backups"] == readonly


def test_every_server_that_shows_something_asks_for_a_password_and_guards_graphql() -> None:
    text = re.sub(r"(?m)^\s*#.*$", "", (PROXY / "nginx.conf").read_text())
    servers = [block for block in re.split(r"(?m)^server ", text)[1:] if "proxy_pass" in block]
    assert len(servers) == 2
    for block in servers:
        assert "listen 443 ssl" in block
        assert "auth_basic_user_file" in block
        graphql = re.search(r"location /graphql \{(.*?)proxy_pass", block, re.DOTALL)
        assert graphql
        assert graphql[1].count("return 403") == 2
    names = {n for line in re.findall(r"server_name (.*);", text) for n in line.split()}
    assert set(re.findall(r"https://(\S+)\s+0;", text)) == names


class _Upstream(BaseHTTPRequestHandler):
    """Says who it is and what it was sent; plays no part that is judged here."""

    def do_GET(self) -> None:
        body = (
            f"{self.connection.getsockname()[1]} {self.headers.get('Authorization', 'none')} {self.headers.get('Upgrade', 'none')}".encode()
        )
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        self.do_GET()

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextlib.contextmanager
def _upstream() -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Upstream)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _ask(port: int, host: str, path: str = "/", *, password: str = "", method: str = "GET", **headers: str) -> tuple[int, str]:
    unverified = ssl.create_default_context()
    unverified.check_hostname, unverified.verify_mode = False, ssl.CERT_NONE
    connection = http.client.HTTPSConnection("127.0.0.1", port, context=unverified, timeout=30)
    sent: Mapping[str, str] = {"Host": host, **{k.replace("_", "-"): v for k, v in headers.items()}}
    if password:
        sent = {**sent, "Authorization": "Basic " + b64encode(f"alice:{password}".encode()).decode()}
    with contextlib.closing(connection):
        connection.request(method, path, headers=dict(sent))
        answer = connection.getresponse()
        return answer.status, answer.read().decode()


def test_nginx_itself_asks_passes_on_and_refuses(tmp_path: Path, hold_port: Ports) -> None:
    nginx, openssl = which("nginx"), which("openssl")
    if nginx is None or openssl is None:
        pytest.skip("nginx (or openssl) is not on this machine; the checks above have looked at the same file")
    certificate, key = self_signed(tmp_path)
    (tmp_path / "password").write_text("correct horse\n")
    with (tmp_path / "password").open("rb") as given:
        hashed = run([str(openssl), "passwd", "-6", "-stdin"], stdin=given).stdout.decode()
    port, plain = hold_port(), hold_port()
    with _upstream() as full, _upstream() as readonly, service_manager(tmp_path) as services:
        text = (PROXY / "nginx.conf").read_text()
        for there, here in {
            "/etc/ssl/scholaria-ops/fullchain.pem": str(certificate),
            "/etc/ssl/scholaria-ops/privkey.pem": str(key),
            "/etc/nginx/scholaria-ops-proxy.conf": str(PROXY / "nginx-proxy.conf"),
            "/etc/nginx/scholaria-ops-": f"{tmp_path}/",
            "listen 443 ssl http2": f"listen 127.0.0.1:{port} ssl http2",
            "listen 80": f"listen 127.0.0.1:{plain}",
            "127.0.0.1:3000": f"127.0.0.1:{full}",
            "127.0.0.1:3001": f"127.0.0.1:{readonly}",
        }.items():
            assert there in text
            text = text.replace(there, here)
        for name in ("operators", "readers"):
            (tmp_path / f"{name}.htpasswd").write_text(f"alice:{hashed}")
        temporary = "\n".join(f"{kind}_temp_path {tmp_path}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
        as_root = "user root;\n" if os.geteuid() == 0 else ""  # the workers read the passwords below pytest's closed directory
        head = f"{as_root}daemon off;\npid {tmp_path}/nginx.pid;\nerror_log stderr;\nevents {{}}\n"
        (tmp_path / "nginx.conf").write_text(f"{head}http {{\naccess_log off;\n{temporary}\n{text}\n}}\n")
        words = [str(nginx), "-e", "stderr", "-c", str(tmp_path / "nginx.conf")]
        run([*words, "-t"])
        services.start("nginx", words, {}, tmp_path)

        def answers() -> bool:
            with contextlib.suppress(OSError):
                return _ask(port, "ops.example.org")[0] == 401
            return False

        services.wait("nginx asks for a password", answers)
        assert _ask(port, "ops.example.org", password="wrong")[0] == 401
        assert _ask(port, "ops.example.org", password="correct horse") == (200, f"{full} none none")
        assert _ask(port, "backups.example.org", password="correct horse") == (200, f"{readonly} none none")

        def graphql(method: str, **headers: str) -> tuple[int, str]:
            return _ask(port, "ops.example.org", "/graphql", password="correct horse", method=method, **headers)

        assert graphql("POST", Origin="https://ops.example.org", Sec_Fetch_Site="same-origin") == (200, f"{full} none none")
        assert graphql("POST", Origin="https://elsewhere.example")[0] == 403
        assert graphql("GET", Sec_Fetch_Site="cross-site")[0] == 403
        assert graphql("GET", Connection="upgrade", Upgrade="websocket") == (200, f"{full} none websocket")
        services.stop("nginx", whole_group=False, limit_s=30)
