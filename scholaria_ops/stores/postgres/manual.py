"""PostgreSQL's section of RESTORE.txt: the very commands, tried out by a test."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from scholaria_ops.catalogue.artifacts import Artifact
from scholaria_ops.stores.postgres.inspect import require

_TEXT = """\
You need psql, createdb and pg_restore of PostgreSQL, {major}{zstd}, and a superuser of the target server:

    export PGHOST=localhost PGPORT=5432 PGUSER=postgres PGPASSWORD=...

1. Roles. The file creates the roles of the old server, with their passwords if it holds any. "already exists" is
   harmless: such a role keeps its name, but gets the old attributes. The role you work with is left alone.

    grep -vE "^(CREATE|ALTER) ROLE \\"?$PGUSER\\"?[ ;]" {globals} | sed -E 's/ GRANTED BY [^;]+;/;/' | psql -q -d postgres

2. The database. Either under its old name, on a server that has no database of that name (settings and grants of the
   database itself come along):

    pg_restore --create --exit-on-error --jobs=2 --dbname=postgres {dump}

   or beside another one, under a name of your choice:

    createdb --template=template0 {side}
    pg_restore --exit-on-error --jobs=2 --dbname={side} {dump}

   A database made so has none of the old one's owner, settings and grants: everybody may connect. They are in the dump,
   under the old database's name; once the new database bears that name, bring them back:

    pg_restore --create --schema-only --file=- {dump} > database.sql
    grep -E '^(ALTER DATABASE|ALTER ROLE .* IN DATABASE|(GRANT|REVOKE) .* ON DATABASE)' database.sql | psql -q -d postgres

   "invalid locale name" with the first way means that the server lacks the old server's locale: take the second way.
   "role ... does not exist" means that step 1 was left out. A missing extension has to be installed on the server.

3. Statistics, without which queries are slow at first (use the name that you chose):

    psql -q -d {database} -c ANALYZE

The expected rows of every table stand in backup_manifest.json under postgres / evidence / tables.
"""


def manual_restore(artifacts: Sequence[Artifact], major: int | None = None) -> str:
    """Commands for the files of a set, to be run in its directory. File and database names are quoted for the shell."""
    dump, globals_ = require(artifacts, "dump"), require(artifacts, "globals")
    zstd = " (built with zstd, as the official packages are)" if dump.compression == "zstd" else ""
    return _TEXT.format(
        major=f"{major} or newer" if major else "of at least the major version named above",
        zstd=zstd,
        dump=shlex.quote(dump.path),
        globals=shlex.quote(globals_.path),
        database=shlex.quote(dump.subject),
        side=shlex.quote(f"{dump.subject}_restored"),
    )
