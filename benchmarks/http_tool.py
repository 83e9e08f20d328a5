"""What the scripts need of curl, for hosts without it: ``post URL``, ``delete URL``, ``get URL FILE``, ``upload URL FILE``."""

from __future__ import annotations

import shutil
import sys
from http.client import HTTPConnection, HTTPResponse
from itertools import chain
from pathlib import Path
from urllib.parse import urlsplit

_BLOCK = 1 << 20
_BOUNDARY = "scholaria-ops-benchmark"


def main(verb: str, url: str, *file: str) -> None:
    """Carry out one request; exits with the status line if the server refuses it."""
    parts = urlsplit(url)
    link = HTTPConnection(parts.hostname or "127.0.0.1", parts.port or 80, timeout=600.0)
    where = parts.path + (f"?{parts.query}" if parts.query else "")
    if verb == "upload":
        _upload(link, where, Path(file[0]))
    else:
        link.request({"post": "POST", "delete": "DELETE", "get": "GET"}[verb], where)
    answer = link.getresponse()
    if answer.status >= 400:
        sys.exit(f"{verb} {url}: {answer.status} {answer.reason}")
    _keep(answer, verb, file)


def _keep(answer: HTTPResponse, verb: str, file: tuple[str, ...]) -> None:
    if verb == "get":
        with Path(file[0]).open("wb") as out:
            shutil.copyfileobj(answer, out, _BLOCK)
    elif verb == "post":
        sys.stdout.buffer.write(answer.read())
    else:
        answer.read()


def _upload(link: HTTPConnection, where: str, path: Path) -> None:
    head = f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="snapshot"; filename="{path.name}"\r\n\r\n'.encode()
    tail = f"\r\n--{_BOUNDARY}--\r\n".encode()
    length = len(head) + path.stat().st_size + len(tail)
    with path.open("rb") as source:
        body = chain([head], iter(lambda: source.read(_BLOCK), b""), [tail])
        headers = {"content-type": f"multipart/form-data; boundary={_BOUNDARY}", "content-length": str(length)}
        link.request("POST", where, body=body, headers=headers)


if __name__ == "__main__":
    main(*sys.argv[1:])
