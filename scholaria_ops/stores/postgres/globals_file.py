"""The globals artifact: roles and memberships, as ``pg_dumpall --globals-only`` writes them.

It is run statement by statement instead of through ``psql``: the target always has one of the roles already (the one
that ``initdb`` made), and a role that exists must keep its password and attributes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from scholaria_ops.errors import VerificationFailed

#: What may stand between the pieces of a statement: literals, quoted names, remarks.
_PIECE = re.compile(
    r"""(?P<literal>(?<![\w$])[eE]'(?:[^'\\]|\\.|'')*' | '(?:[^']|'')*') | (?P<name>"(?:[^"]|"")*") | (?P<remark>--[^\n]*)
    | (?P<end>;) | (?P<meta>(?m:^)\\[^\n]*)""",
    re.VERBOSE | re.DOTALL,
)
_NAME = r'("(?:[^"]|"")*"|[^\s;,"]+)'
_CREATE = re.compile(rf"CREATE ROLE {_NAME}\Z")
_ABOUT_ROLE = re.compile(rf"(?:ALTER ROLE|COMMENT ON ROLE|SECURITY LABEL .*? ON ROLE) {_NAME}(?:\s|\Z)", re.DOTALL)
_MEMBERSHIP = re.compile(rf"GRANT {_NAME} TO {_NAME}(?P<with> WITH .*?)?(?: GRANTED BY (?P<grantor>{_NAME}))?\Z", re.DOTALL)
_PARAMETER = re.compile(rf"GRANT .* ON PARAMETER .* TO {_NAME}(?: WITH GRANT OPTION)?\Z", re.DOTALL)
_TABLESPACE = re.compile(r"(?:CREATE|ALTER|COMMENT ON|SECURITY LABEL .*? ON) TABLESPACE |(?:GRANT|REVOKE) .* ON TABLESPACE ", re.DOTALL)


def statements(text: str) -> Iterator[str]:
    """Statements without their semicolon; remarks and ``psql``'s own commands (``\\restrict``) are left out."""
    pieces: list[str] = []
    position = 0
    for match in _PIECE.finditer(text):
        pieces.append(text[position : match.start()])
        position = match.end()
        if match["end"]:
            if statement := "".join(pieces).strip():
                yield statement
            pieces = []
        elif not (match["remark"] or match["meta"]):
            pieces.append(match[0])
    pieces.append(text[position:])
    if "".join(pieces).strip():
        raise VerificationFailed("the globals file ends in the middle of a statement", store="postgres")


def unquoted(name: str) -> str:
    return name[1:-1].replace('""', '"') if name.startswith('"') else name


def created_roles(text: str) -> frozenset[str]:
    """Names of the roles that the file creates."""
    return frozenset(unquoted(m[1]) for s in statements(text) if (m := _CREATE.match(s)))


def has_password_hashes(text: str) -> bool:
    """Whether any role comes with the hash of its password."""
    return any(s.startswith("ALTER ROLE ") and " PASSWORD '" in s for s in statements(text))


@dataclass(frozen=True, slots=True)
class GlobalsPlan:
    """What to run on a target, what is created, what is left alone and why."""

    run: tuple[str, ...]
    created: tuple[str, ...]
    kept: tuple[str, ...]
    skipped: tuple[str, ...]


def plan(text: str, existing: frozenset[str], bootstrap: str) -> GlobalsPlan:
    """Decide per statement. ``existing`` are the target's roles, ``bootstrap`` is the first role of the *source*.

    A grant by the source's first role becomes a grant by the target's: any other grantor needs the ADMIN option, which
    a created superuser does not have (since version 16 that is an error).
    """
    run: list[str] = []
    created: list[str] = []
    kept: list[str] = []
    skipped: list[str] = []
    for statement in statements(text):
        if statement.startswith("SET "):
            run.append(statement)
        elif create := _CREATE.match(statement):
            name = unquoted(create[1])
            if name in existing:
                kept.append(name)
            else:
                created.append(name)
                run.append(statement)
        elif (about := _ABOUT_ROLE.match(statement)) or (about := _PARAMETER.match(statement)):
            if unquoted(about[1]) not in existing:
                run.append(statement)
        elif membership := _MEMBERSHIP.match(statement):
            if {unquoted(membership[1]), unquoted(membership[2])} & set(created):
                run.append(_grant(membership, bootstrap))
        elif _TABLESPACE.match(statement):
            skipped.append(" ".join(statement.split()[:3]))
        else:
            raise VerificationFailed(f"the globals file holds a statement that is not understood: {statement[:60]!r}", store="postgres")
    return GlobalsPlan(tuple(run), tuple(created), tuple(kept), tuple(skipped))


def _grant(membership: re.Match[str], bootstrap: str) -> str:
    grantor = membership["grantor"]
    text = f"GRANT {membership[1]} TO {membership[2]}{membership['with'] or ''}"
    return text if grantor is None or unquoted(grantor) == bootstrap else f"{text} GRANTED BY {grantor}"
