"""What a database consists of besides rows: objects, owners, grants, extensions, roles, settings."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable

from scholaria_ops.catalogue.evidence.postgres import (
    DatabaseEvidence,
    ExtensionEvidence,
    ObjectEvidence,
    Replication,
    RoleEvidence,
)
from scholaria_ops.stores.postgres import catalog_sql as sql
from scholaria_ops.stores.postgres.names import ident, qualified
from scholaria_ops.stores.postgres.session import Session

#: Casts, parentheses and white space. PostgreSQL prints ``status IN ('a', 'b')`` on a varchar column as
#: ``ANY ((ARRAY['a'::character varying, …])::text[])``; reading that back, it prints
#: ``ANY (ARRAY[('a'::character varying)::text, …])`` from then on. The same expression must have the same digest.
_CASTS = re.compile(r"::(?:\"[^\"]+\"|[a-z_][\w$.]*(?: varying| precision| with(?:out)? time zone)?)(?:\(\d+(?:,\d+)?\))?(?:\[\])*")
_PARENTHESES = str.maketrans("", "", "()")

#: Bodies are kept to the letter; everything else holds expressions that the server prints in its own way.
_VERBATIM = {"function", "procedure", "comments"}


def definition_digest(kind: str, text: str) -> str:
    """Digest of a definition (32 hexadecimal digits), the same before and after a dump and restore."""
    if not text:
        return ""
    reduced = text if kind in _VERBATIM else " ".join(_CASTS.sub("", text).translate(_PARENTHESES).split())
    return hashlib.sha256(reduced.encode()).hexdigest()[:32]


def objects(session: Session) -> dict[str, ObjectEvidence]:
    """Every schema object that is not part of an extension: ``kind identity`` → owner and digest of its definition."""
    found = {}
    for query in sql.OBJECTS:
        for kind, schema, parent, name, suffix, owner, definition in session.rows(query):
            key = f"{kind} {_identity(schema, parent, name, suffix)}"
            found[key] = ObjectEvidence(owner=owner, definition=definition_digest(kind, definition or ""))
    return dict(sorted(found.items()))


def _identity(schema: str | None, parent: str | None, name: str | None, suffix: str) -> str:
    if name is None:
        return suffix
    if parent is not None:
        return f"{qualified(schema or '', parent)} {ident(name)}"
    return (qualified(schema, name) if schema is not None else ident(name)) + suffix


def grants(session: Session) -> dict[str, str]:
    """Object → its privileges, where they differ from what such an object has from the start."""
    found = {}
    for label, entries, base in session.rows(sql.GRANTS):
        own, usual = _by_grantee(entries), _by_grantee(base)
        if own != usual:
            # The owner's full set grows with versions (MAINTAIN in 17): what is usual is called so.
            parts = [f"{g}={'all' if own[g] == usual.get(g) and g == '(owner)' else '/'.join(own[g])}" for g in sorted(own)]
            found[label] = ", ".join(parts) or "nobody"
    return dict(sorted(found.items()))


def _by_grantee(entries: Iterable[str]) -> dict[str, list[str]]:
    grantees: dict[str, set[str]] = {}
    for entry in entries:
        grantee, _, privilege = entry.rpartition("=")
        grantees.setdefault(grantee, set()).add(privilege)
    return {grantee: sorted(privileges) for grantee, privileges in grantees.items()}


def extensions(session: Session) -> dict[str, ExtensionEvidence]:
    return {name: ExtensionEvidence(version=version, schema_name=schema) for name, version, schema in session.rows(sql.EXTENSIONS)}


def roles(session: Session) -> tuple[dict[str, RoleEvidence], str]:
    """All roles of the cluster but the predefined ones, and the name of the one that ``initdb`` made."""
    memberships: dict[int, list[str]] = {}
    for member, role, admin in session.rows(sql.MEMBERSHIPS):
        memberships.setdefault(member, []).append(f"{role} (admin)" if admin else role)
    settings: dict[str, dict[str, str]] = {}
    for role, setting in session.rows(sql.SETTINGS, (0,)):
        settings.setdefault(role or "", {}).update([_setting(setting)])
    found, bootstrap = {}, ""
    for oid, name, attributes in session.rows(sql.ROLES):
        found[name] = RoleEvidence(attributes=attributes, member_of=tuple(memberships.get(oid, ())), settings=settings.get(name, {}))
        if oid == 10:  # fixed since the beginning: BOOTSTRAP_SUPERUSERID
            bootstrap = name
    return found, bootstrap


def database(session: Session) -> DatabaseEvidence:
    """Properties of the database that the session is connected to."""
    oid, name, owner, encoding, collate, ctype, collation_version, limit, size, tablespace = session.one(sql.DATABASE)
    query = sql.PROVIDER_17 if session.major >= 17 else sql.PROVIDER_15 if session.major >= 15 else sql.PROVIDER_14
    provider, locale = session.one(query)
    settings = {}
    for role, setting in session.rows(sql.SETTINGS, (oid,)):
        key, value = _setting(setting)
        settings[f"{role}/{key}" if role else key] = value
    used = {name for (name,) in session.rows("SELECT DISTINCT t.spcname FROM pg_class c JOIN pg_tablespace t ON t.oid = c.reltablespace")}
    return DatabaseEvidence(
        name=name,
        oid=oid,
        owner=owner,
        encoding=encoding,
        provider=provider,
        collate=collate,
        ctype=ctype,
        locale=locale,
        collation_version=collation_version,
        settings=settings,
        connection_limit=limit,
        tablespaces=tuple(sorted((used | {tablespace}) - {"pg_default", "pg_global"})),
        size_bytes=size,
    )


def _setting(text: str) -> tuple[str, str]:
    """Name and value of ``name=value``. A custom setting (with a dot) may hold a secret: only its digest is kept."""
    name, _, value = text.partition("=")
    if "." in name:
        return name, "sha256:" + hashlib.sha256(value.encode()).hexdigest()[:32]
    return name, value


def replication(session: Session) -> Replication:
    return Replication(**{label: tuple(name for (name,) in session.rows(query)) for label, query in sql.REPLICATION.items()})
