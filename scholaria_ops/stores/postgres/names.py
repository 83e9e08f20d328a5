"""Names that come from a server or an archive: one spelling for people and keys, quoting for SQL and conninfo."""

from __future__ import annotations

import re

_PLAIN = re.compile(r"[a-z_][a-z0-9_$]*\Z")

#: Server encodings whose name in Python differs from a simple guess. All of them are supersets of ASCII in every byte,
#: which is what lets an archive be cut at newlines whatever its encoding.
_CODECS = {
    "UTF8": "utf-8",
    "SQL_ASCII": "utf-8",
    "EUC_KR": "euc_kr",
    "EUC_JP": "euc_jp",
    "EUC_CN": "gb2312",
    "KOI8R": "koi8_r",
    "KOI8U": "koi8_u",
    "LATIN1": "latin-1",
    "LATIN2": "iso8859_2",
    "LATIN5": "iso8859_9",
    "LATIN9": "iso8859_15",
}


def ident(name: str) -> str:
    """A name as people and keys write it: bare if it is plain, else in double quotes (keywords are left bare)."""
    return name if _PLAIN.match(name) else quoted(name)


def quoted(name: str) -> str:
    """A name as SQL takes it, always in double quotes."""
    return '"' + name.replace('"', '""') + '"'


def qualified(schema: str, name: str) -> str:
    """``schema.name``, each part as :func:`ident` writes it."""
    return f"{ident(schema)}.{ident(name)}"


def conninfo_dbname(dbname: str) -> str:
    """``dbname='…'`` for an option that libpq would otherwise take apart (a database may be called ``a=b``)."""
    escaped = dbname.replace("\\", "\\\\").replace("'", "\\'")
    return f"dbname='{escaped}'"


def codec(encoding: str) -> str:
    """Python's codec for a server encoding, for names only; an unknown one is read as Latin-1."""
    if encoding.startswith("WIN") and encoding[3:].isdigit():
        return f"cp{encoding[3:]}"
    return _CODECS.get(encoding, "latin-1")


def decode(raw: bytes, encoding: str) -> str:
    """A name from an archive; bytes that are not of that encoding become visible escapes."""
    return raw.decode(codec(encoding), "backslashreplace")


_PART = re.compile(r'"((?:[^"]|"")*)"|([^."\s]+)')


def raw_parts(identity: str) -> list[str]:
    """The names in an identity made by :func:`qualified` and :func:`ident`, without their quotes."""
    return [match[1].replace('""', '"') if match[1] is not None else match[2] for match in _PART.finditer(identity)]
