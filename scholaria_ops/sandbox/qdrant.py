"""A scratch Qdrant server."""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from scholaria_ops.connections import QdrantConnection
from scholaria_ops.sandbox.server import LOOPBACK, Readiness, Room, Server, free_port


class QdrantServer(Server):
    """Qdrant's REST endpoint on a free port, without telemetry or web interface; gRPC only when it is asked for."""

    kind = "qdrant"

    def __init__(
        self,
        room: Room,
        name: str,
        *,
        api_key: str = "",
        config: Mapping[str, str] | None = None,
        extra_args: Sequence[str] = (),
        grpc: bool = False,
    ) -> None:
        super().__init__(room, name)
        self._grpc = grpc
        self._grpc_port: int | None = None
        self._api_key = api_key
        self._config = dict(config or {})
        self._extra_args = tuple(extra_args)
        self._about: str | None = None

    @property
    def connection(self) -> QdrantConnection:
        return QdrantConnection(url=f"http://{LOOPBACK}:{self.port}", api_key=SecretStr(self._api_key), grpc_port=self._grpc_port)

    @property
    def version(self) -> str:
        """Server version, for example ``1.16.3``."""
        if self._about is None:
            self._about = str(json.loads(self._get("/")[1])["version"])
        return self._about

    @property
    def grpc_address(self) -> str | None:
        """Where points can be read in bulk (``host:port``), when the server was made with ``grpc=True``."""
        return f"{LOOPBACK}:{self._grpc_port}" if self._grpc_port else None

    def state(self) -> dict[str, Any]:
        return {
            **super().state(),
            "api_key": self._api_key,
            "config": self._config,
            "extra_args": list(self._extra_args),
            "grpc": self._grpc,
            "grpc_port": self._grpc_port,
        }

    def adopt(self, state: Mapping[str, Any]) -> None:
        super().adopt(state)
        self._grpc_port = state.get("grpc_port")

    def _program(self) -> Path:
        return self._room.tools.require_qdrant()

    def _arguments(self) -> list[str]:
        return ["--config-path", str(self.directory / "config.yaml"), *self._extra_args]

    def _create(self) -> None:
        return

    def _configure(self) -> None:
        self._grpc_port = free_port() if self._grpc else None
        config: dict[str, Any] = {
            "log_level": "INFO",
            "telemetry_disabled": True,
            "storage": {
                "storage_path": str(self.directory / "storage"),
                "snapshots_path": str(self.directory / "snapshots"),
                "temp_path": str(self.directory / "tmp"),
            },
            "service": {
                "host": LOOPBACK,
                "http_port": self.port,
                "grpc_port": self._grpc_port,
                "enable_static_content": False,
                # In the file, which is private: an environment can be read by every process of the same account.
                "api_key": self._api_key or None,
            },
        }
        # JSON is YAML.
        self._private(self.directory / "config.yaml", json.dumps(config).encode())

    def _environment(self) -> dict[str, str]:
        """``config`` as Qdrant's own variables: ``SERVICE__MAX_REQUEST_SIZE_MB`` (the prefix may be given or not)."""
        return {f"QDRANT__{name.upper().removeprefix('QDRANT__')}": value for name, value in self._config.items()}

    def _readiness(self) -> Readiness:
        try:
            status, _ = self._get("/readyz")
            if status == http.client.NOT_FOUND:  # servers older than that route
                status, _ = self._get("/")
        except (OSError, http.client.HTTPException):
            return Readiness.NO
        return Readiness.YES if status == http.client.OK else Readiness.BUSY

    def _get(self, path: str) -> tuple[int, bytes]:
        link = http.client.HTTPConnection(LOOPBACK, self.port, timeout=5.0)
        try:
            link.request("GET", path, headers={"api-key": self._api_key} if self._api_key else {})
            answer = link.getresponse()
            return answer.status, answer.read()
        finally:
            link.close()

    def _forget(self) -> None:
        self._about = None
