"""A stand-in for a connection pooler: clients on one side, sessions of a real server on the other, in transaction or in session mode.

It speaks as much of the protocol as it must: it lets everybody in with a process id of its own, and passes on messages up to
the server's "ready for query".
"""

from __future__ import annotations

import contextlib
import os
import queue
import socket
import threading
from collections.abc import Iterator
from typing import Literal

import psycopg

from scholaria_ops.connections import PostgresConnection

Server = psycopg.Connection[tuple[object, ...]]
_SSL_REQUEST, _GSS_REQUEST = 80877103, 80877104
_TOLD = (
    "server_version",
    "client_encoding",
    "server_encoding",
    "standard_conforming_strings",
    "integer_datetimes",
    "DateStyle",
    "TimeZone",
)


def _exactly(link: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        if not (more := link.recv(size - len(data))):
            raise ConnectionError
        data += more
    return data


def _message(link: socket.socket) -> tuple[bytes, bytes]:
    """A message's type, and all of its bytes."""
    head = _exactly(link, 5)
    return head[:1], head + _exactly(link, int.from_bytes(head[1:], "big") - 4)


def _packed(kind: bytes, body: bytes) -> bytes:
    return kind + (len(body) + 4).to_bytes(4, "big") + body


def _let_in(client: socket.socket, server: Server) -> None:
    while True:
        size = int.from_bytes(_exactly(client, 4), "big")
        if int.from_bytes(_exactly(client, size - 4)[:4], "big") not in {_SSL_REQUEST, _GSS_REQUEST}:
            break
        client.sendall(b"N")
    told = b"".join(_packed(b"S", f"{name}\0{server.info.parameter_status(name)}\0".encode()) for name in _TOLD)
    client.sendall(_packed(b"R", bytes(4)) + told + _packed(b"K", (4_000_000).to_bytes(4, "big") + bytes(4)) + _packed(b"Z", b"I"))


def _serve(client: socket.socket, free: queue.Queue[Server], mode: str) -> None:
    server: Server | None = free.get(timeout=10)
    assert server
    kind, data = b"", b""
    with client, contextlib.suppress(ConnectionError):
        _let_in(client, server)
        data = b"I"
        while True:
            if mode == "transaction" and server and data.endswith(b"I"):  # no transaction is open there
                free.put(server)
                server = None
            kind, data = _message(client)
            if kind == b"X":
                break
            server = server or free.get(timeout=10)
            with socket.socket(fileno=os.dup(server.fileno())) as link:
                link.setblocking(True)
                link.sendall(data)
                asked = kind in {b"Q", b"S"}  # else the server has nothing to answer yet
                while asked:
                    kind, data = _message(link)
                    client.sendall(data)
                    asked = kind != b"Z"
                link.setblocking(False)  # as libpq has it
            data = data if kind == b"Z" else b""
    if server:
        free.put(server)


@contextlib.contextmanager
def pooler(
    target: PostgresConnection, mode: Literal["transaction", "session"], sessions: int
) -> Iterator[tuple[PostgresConnection, list[Server]]]:
    """Where the pooler listens, and its sessions, which take turns: the one that waits longest is first."""
    free: queue.Queue[Server] = queue.Queue()
    password = target.password.get_secret_value()
    listener = socket.create_server(("127.0.0.1", 0))
    made = [
        psycopg.connect(
            host=target.host,
            port=target.port,
            dbname=target.dbname,
            user=target.user,
            password=password,
            sslmode="disable",
            autocommit=True,
        )
        for _ in range(sessions)
    ]
    for server in made:
        free.put(server)

    def listen() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=_serve, args=(listener.accept()[0], free, mode), daemon=True).start()

    threading.Thread(target=listen, daemon=True).start()
    try:
        yield target.model_copy(update={"host": "127.0.0.1", "port": listener.getsockname()[1], "sslmode": "disable"}), made
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        for server in made:
            server.close()
