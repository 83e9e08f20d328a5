"""Read an archive in full, without a server: what is in it, table by table.

``pg_restore`` turns the archive into SQL, and this module reads that stream in blocks. Data and schema are asked for
separately: the data section consists of statements that ``pg_dump`` itself makes up, so nothing that a user wrote (the
body of a function, say) can be mistaken for the beginning of a data block. Inside a data block a line that is ``\\.``
can only be its end, because COPY doubles every backslash of the data.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

from scholaria_ops.catalogue.evidence.postgres import ArchiveInventory, SequenceValue, TableData
from scholaria_ops.errors import VerificationFailed
from scholaria_ops.files import BLOCK, hash_file
from scholaria_ops.progress import Progress
from scholaria_ops.stores.postgres.names import decode, qualified
from scholaria_ops.stores.postgres.programs import Programs, lines

TASK = "postgres: read back"
_END = b"\n\\.\n"
#: Twice as fast as ``bytes.find`` in rows of text.
_find_end = re.compile(re.escape(_END)).search
#: No statement of the data section is longer: large objects come in lines of about 32 KB, a COPY line names the columns of one table.
_MAX_LINE = 64 << 20
_IDENT = rb'("(?:[^"]|"")*"|[^".(\s]+)'
_COPY = re.compile(rb"COPY " + _IDENT + rb"\." + _IDENT + rb" .*FROM stdin;\Z", re.DOTALL)
_SETVAL = re.compile(
    rb"SELECT pg_catalog\.setval\((E?)'" + _IDENT + rb"\." + _IDENT + rb"', (-?\d+), (true|false)\);\Z",
    re.DOTALL,
)
_ENTRY = re.compile(r"\d+; \d+ \d+ (.+)")


class DataReader:
    """Takes the data section block by block; memory holds one block and what is left of a line."""

    def __init__(self, encoding: str) -> None:
        self._encoding = encoding
        self._rest = b""
        self._statement: bytes | None = None
        self._block: _Block | None = None
        self._blocks: dict[str, _Block] = {}
        self.sequences: dict[str, SequenceValue] = {}
        self.large_objects = 0
        self.large_objects_hash = hashlib.sha256()
        self.bytes = 0

    def feed(self, data: bytes) -> None:
        """Read on."""
        self.bytes += len(data)
        if self._only_more_rows(data):
            buffer, position = data, -1
        else:
            buffer, position = self._rest + data, 0
        while True:
            done = self._copy(buffer, position) if self._block else self._line(buffer, position)
            if done < 0:
                return
            position = done

    def finish(self) -> dict[str, TableData]:
        """Tables of the archive; raises :class:`VerificationFailed` if it ended in the middle of something."""
        if self._block or self._statement is not None or self._rest.strip():
            raise VerificationFailed("the archive ends in the middle of a statement", store="postgres")
        return {name: block.result() for name, block in sorted(self._blocks.items())}

    def _only_more_rows(self, data: bytes) -> bool:
        """Whether what is left of rows goes on in ``data``, rather than being their end. It is then counted: no large block is copied."""
        if self._block is None or len(data) < len(_END) or _END in self._rest + data[: len(_END)]:
            return False
        self._block.add(self._rest, 1, len(self._rest))
        return True

    def _copy(self, buffer: bytes, position: int) -> int:
        """Read rows. ``buffer[position]`` was counted before: it is the byte in front of the rows that come next (-1: none is)."""
        assert self._block is not None  # noqa: S101 - feed() decides by it
        found = _find_end(buffer, max(position, 0))
        if found:
            self._block.add(buffer, position + 1, found.start() + 1)
            self._block = None
            return found.end()
        keep = max(position, len(buffer) - len(_END))
        self._block.add(buffer, position + 1, keep + 1)
        self._rest = buffer[keep:]
        return -1

    def _line(self, buffer: bytes, position: int) -> int:
        end = buffer.find(b"\n", position)
        if end < 0:
            self._rest = buffer[position:]
            if len(self._rest) + len(self._statement or b"") > _MAX_LINE:
                raise VerificationFailed("the archive holds a statement of more than 64 MB that is no data", store="postgres")
            return -1
        line = buffer[position:end]
        if self._statement is not None:
            self._statement += b"\n" + line
        elif line.startswith((b"COPY ", b"SELECT pg_catalog.setval(")):
            self._statement = line
        elif line.startswith((b"SELECT pg_catalog.lo_open(", b"SELECT pg_catalog.lowrite(")):
            self.large_objects += line.startswith(b"SELECT pg_catalog.lo_open(")
            self.large_objects_hash.update(line)
        if self._statement is not None and self._is_complete(self._statement):
            statement, self._statement = self._statement, None
            return self._take(statement, end)
        return end + 1

    @staticmethod
    def _is_complete(statement: bytes) -> bool:
        """A quoted name may hold a newline: the statement ends where its quotes are closed."""
        quote = b'"' if statement.startswith(b"COPY ") else b"'"
        return statement.endswith(b";") and statement.count(quote) % 2 == 0

    def _take(self, statement: bytes, end: int) -> int:
        """Understand a whole statement; returns where reading goes on."""
        if copy := _COPY.match(statement):
            name = self._name(copy[1], copy[2])
            self._block = self._blocks.setdefault(name, _Block())
            self._block.hash.update(statement)
            return end  # its newline stands in front of the first row
        setval = _SETVAL.match(statement)
        if not setval:
            raise VerificationFailed(f"the archive holds a statement that is not understood: {statement[:120]!r}", store="postgres")
        schema, relation = (_unescaped(part, escaped=bool(setval[1])) for part in (setval[2], setval[3]))
        self.sequences[self._name(schema, relation)] = SequenceValue(last_value=int(setval[4]), is_called=setval[5] == b"true")
        return end + 1

    def _name(self, schema: bytes, name: bytes) -> str:
        return qualified(*(decode(_unquoted(part), self._encoding) for part in (schema, name)))


class _Block:
    """Rows of one table; several data blocks for one table add up (a partition may be loaded through its root)."""

    def __init__(self) -> None:
        self.rows = 0
        self.bytes = 0
        self.hash = hashlib.sha256()

    def add(self, buffer: bytes, start: int, end: int) -> None:
        if end > start:
            self.rows += buffer.count(b"\n", start, end)
            self.bytes += end - start
            self.hash.update(memoryview(buffer)[start:end])

    def result(self) -> TableData:
        return TableData(rows=self.rows, bytes=self.bytes, sha256=self.hash.hexdigest())


def _unquoted(part: bytes) -> bytes:
    return part[1:-1].replace(b'""', b'"') if part.startswith(b'"') else part


def _unescaped(part: bytes, *, escaped: bool) -> bytes:
    """Inside a string literal quotes are doubled, and in an ``E''`` literal backslashes too."""
    part = part.replace(b"''", b"'")
    return part.replace(b"\\\\", b"\\") if escaped else part


def read_back(archive: Path, programs: Programs, encoding: str, progress: Progress, *, sha256: str = "") -> ArchiveInventory:
    """Have ``pg_restore`` read the whole archive, and say what is in it. ``encoding`` is the dumped database's.

    Call it only with bytes that are known to be ours: reading a crafted archive can run code (in unpatched versions).
    ``sha256`` is the file's digest; it is computed if it is not given.

    Raises:
        ToolFailed: ``pg_restore`` cannot read it (cut, damaged, of a newer format, or compressed in a way it was not built for).
        VerificationFailed: it was read, but is not whole.
    """
    progress.start(TASK, unit="bytes")
    entries = sorted(
        match[1]
        for line in programs.lines_of_archive(["--list"], archive)
        if (match := _ENTRY.match(decode(line, encoding)))  # lines that begin with ; are its own remarks
    )
    schema_hash, schema_bytes = _schema(programs, archive)
    data = DataReader(encoding)
    with programs.on_archive(["--section=data", "--file=-"], archive) as running:
        for block in running.chunks(BLOCK):
            data.feed(block)
            progress.advance(TASK, len(block))
        running.finish()
    tables = data.finish()
    rows = sum(table.rows for table in tables.values())
    progress.finish(TASK, f"{rows:,} rows in {len(tables):,} tables")
    return ArchiveInventory(
        sha256=sha256 or hash_file(archive).sha256,
        read_with=str(programs.version("pg_restore")),
        tables=tables,
        sequences=dict(sorted(data.sequences.items())),
        large_objects=data.large_objects,
        large_objects_sha256=data.large_objects_hash.hexdigest(),
        entries=tuple(entries),
        schema_sha256=schema_hash,
        sql_bytes=schema_bytes + data.bytes,
    )


def _schema(programs: Programs, archive: Path) -> tuple[str, int]:
    """Digest and size of everything that is not data."""
    options = ["--create", "--section=pre-data", "--section=post-data", "--file=-"]
    with programs.on_archive(options, archive) as running:
        result = hash_schema(lines(running.chunks(BLOCK)))
        running.finish()
    return result


def hash_schema(text: Iterable[bytes]) -> tuple[str, int]:
    """Digest and size of a schema's lines, without what ``pg_restore`` says of itself at the beginning.

    Patched versions bracket their output in ``\\restrict`` and a random word; those lines are left out too.
    """
    digest, size, begun = hashlib.sha256(), 0, False
    for line in text:
        size += len(line) + 1
        begun = begun or line.startswith(b"-- Name: ")
        if begun and not line.startswith((b"\\restrict ", b"\\unrestrict ")):
            digest.update(line + b"\n")
    return digest.hexdigest(), size
