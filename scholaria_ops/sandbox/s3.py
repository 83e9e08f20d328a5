"""A local S3 endpoint for the demo, the tests and the benchmarks, as a process of its own."""

from __future__ import annotations

import http.client
import re
import secrets
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from scholaria_ops.errors import SandboxError
from scholaria_ops.sandbox.home import make_for
from scholaria_ops.sandbox.server import LOOPBACK, Readiness, Room, Server

Engine = Literal["moto", "rclone"]
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")


class S3Server(Server):
    """An S3 endpoint on loopback.

    ``moto`` knows versioning, object lock, lifecycle and conditional writes, keeps objects in memory and accepts any
    credentials. ``rclone`` keeps plain files and is faster, without those features. Neither rejects a wrong SHA-256.
    """

    kind = "s3"
    # The interpreter and its packages may lie where only we may go (a home directory).
    unprivileged = False
    region = "us-east-1"

    def __init__(self, room: Room, name: str, *, engine: Engine = "moto") -> None:
        super().__init__(room, name)
        self.engine: Engine = engine
        self.access_key = f"AK{secrets.token_hex(9).upper()}"
        self.secret_key = secrets.token_hex(20)

    @property
    def endpoint_url(self) -> str:
        return f"http://{LOOPBACK}:{self.port}"

    @property
    def version(self) -> str:
        """Engine and its version, for example ``moto 5.1.4``."""
        if self.engine == "moto":
            from importlib.metadata import version

            return f"moto {version('moto')}"
        return self._run([str(self._program()), "version"]).stdout.decode().splitlines()[0]

    def create_bucket(self, name: str, *, object_lock: bool = False, versioning: bool = False) -> None:
        """Make a bucket. Object lock and versioning need the ``moto`` engine; with ``rclone`` asking for them is refused."""
        if not _BUCKET.fullmatch(name):
            raise SandboxError(f"{name!r} is no bucket name", hint="Use 3 to 63 lower-case letters, digits, dots and hyphens.")
        if self.engine == "rclone":
            if object_lock or versioning:
                raise SandboxError("rclone's S3 endpoint has neither object lock nor versioning", hint='Use engine="moto".')
            (self.directory / "buckets" / name).mkdir(exist_ok=True)
            return
        headers = {"x-amz-bucket-object-lock-enabled": "true"} if object_lock else {}
        self._put(f"/{name}", headers)
        if versioning:
            body = b'<VersioningConfiguration xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Status>Enabled</Status></VersioningConfiguration>'
            self._put(f"/{name}?versioning", {}, body)

    def state(self) -> dict[str, Any]:
        return {**super().state(), "engine": self.engine, "access_key": self.access_key, "secret_key": self.secret_key}

    def adopt(self, state: Mapping[str, Any]) -> None:
        super().adopt(state)
        self.access_key, self.secret_key = state["access_key"], state["secret_key"]

    def _program(self) -> Path:
        return Path(sys.executable) if self.engine == "moto" else self._room.tools.require_rclone()

    def _arguments(self) -> list[str]:
        if self.engine == "moto":
            return ["-m", "moto.server", "-H", LOOPBACK, "-p", str(self.port)]
        return ["serve", "s3", "--addr", f"{LOOPBACK}:{self.port}", "--vfs-cache-mode", "off", str(self.directory / "buckets")]

    def _environment(self) -> dict[str, str]:
        if self.engine == "moto":
            # Objects spill into our own directory, and the server must not look for real credentials or services.
            return {"AWS_ACCESS_KEY_ID": self.access_key, "AWS_SECRET_ACCESS_KEY": self.secret_key, "AWS_EC2_METADATA_DISABLED": "true"}
        # In quotes: rclone reads a list of such pairs, itself separated by commas.
        return {"RCLONE_AUTH_KEY": f'"{self.access_key},{self.secret_key}"', "RCLONE_CONFIG": str(self.directory / "rclone.conf")}

    def _create(self) -> None:
        if self.engine == "rclone":
            make_for(self.directory / "buckets", self.account)
            self._private(self.directory / "rclone.conf")

    def _configure(self) -> None:
        return

    def _readiness(self) -> Readiness:
        try:
            self._request("GET", "/", {}, b"")
        except (OSError, http.client.HTTPException):
            return Readiness.NO
        return Readiness.YES

    def _put(self, path: str, headers: Mapping[str, str], body: bytes = b"") -> None:
        status, answer = self._request("PUT", path, headers, body)
        if status != http.client.OK:
            raise SandboxError(f"the local S3 endpoint answered {status} to PUT {path}: {answer[:300].decode('utf-8', 'replace')}")

    def _request(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> tuple[int, bytes]:
        """A request that is not signed: moto checks no signatures, and reads from the header only which service is meant."""
        scope = f"{self.access_key}/20260101/{self.region}/s3/aws4_request"
        named = {"Authorization": f"AWS4-HMAC-SHA256 Credential={scope}, SignedHeaders=host, Signature=0", **headers}
        link = http.client.HTTPConnection(LOOPBACK, self.port, timeout=10.0)
        try:
            link.request(method, path, body=body, headers=named)
            answer = link.getresponse()
            return answer.status, answer.read()
        finally:
            link.close()
