"""`scholaria-ops metrics`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from scholaria_ops.cli.common import JsonOption, services
from scholaria_ops.cli.main import app
from scholaria_ops.cli.output import emit_json, err
from scholaria_ops.errors import Refused, UsageError
from scholaria_ops.files import replace_durably

_LOOPBACK = "127.0.0.1"


@app.command()
def metrics(
    textfile: Annotated[
        Path | None, typer.Option("--textfile", metavar="FILE", help="Write this file for node_exporter instead, by one rename")
    ] = None,
    serve: Annotated[
        str, typer.Option("--serve", metavar="HOST:PORT", help="Answer scrapes there until stopped; a port alone means 127.0.0.1")
    ] = "",
    as_json: JsonOption = False,
) -> None:
    """Ages, sizes, times and failures for Prometheus, computed at this moment."""
    from prometheus_client import generate_latest

    from scholaria_ops.operations.metrics import registry_of
    from scholaria_ops.operations.standing import take_standing

    if (textfile is not None) + bool(serve) + as_json > 1:
        raise UsageError("--textfile, --serve and --json exclude each other", hint="Choose one.")
    here = services()
    registry, collector = registry_of(lambda: take_standing(here))
    if serve:
        _serve(registry, *address(serve))
        return
    if as_json:
        samples = [s for family in registry.collect() for s in family.samples]
        _complain(collector.error)
        emit_json("metrics", {"samples": [{"name": s.name, "labels": dict(s.labels), "value": s.value} for s in samples]})
        return
    text = generate_latest(registry)
    if textfile is not None:
        _write(textfile, text)
    else:
        sys.stdout.write(text.decode())
        sys.stdout.flush()
    # What was written says scholaria_up 0; whoever started this by hand or by a timer learns it too.
    _complain(collector.error)


def _complain(error: Exception | None) -> None:
    if error is not None:
        raise error


def _write(path: Path, text: bytes) -> None:
    try:
        # The exporter runs as another user, and there is nothing secret in it.
        replace_durably(path, text, mode=0o644)
    except OSError as exc:
        raise Refused(f"cannot write {path}: {exc.strerror}", hint="Name a file in the directory that node_exporter collects.") from exc


def address(text: str) -> tuple[str, int]:
    """Host and port of ``HOST:PORT``, ``[HOST]:PORT``, ``:PORT`` or ``PORT``."""
    host, _, port = text.rpartition(":")
    if not port.isdigit() or not 0 < int(port) < 1 << 16:
        raise UsageError(f"{text!r} is no HOST:PORT", hint="For example --serve 127.0.0.1:9188.")
    return host.strip("[]") or _LOOPBACK, int(port)


def _serve(registry: Any, host: str, port: int) -> None:
    from prometheus_client import start_http_server

    try:
        server, thread = start_http_server(port, host, registry)
    except OSError as exc:
        raise Refused(f"cannot listen on {host}:{port}: {exc.strerror}", hint="Choose another port, or stop what holds it.") from exc
    err.print(f"metrics at http://{f'[{host}]' if ':' in host else host}:{port}/metrics until stopped", markup=False)
    try:
        thread.join()
    finally:
        server.shutdown()
        server.server_close()
