"""Questions to PostgreSQL's system catalogues, versions 14 and later. No table of any application is named here.

Every query of :data:`OBJECTS` returns ``kind, schema, parent, name, suffix, owner, definition``; ``parent`` is the table
of a constraint, trigger, rule or policy. Members of extensions are left out: ``CREATE EXTENSION`` brings them back.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import LiteralString

_USER_SCHEMA = "n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'"


def _no_member(catalogue: LiteralString, oid: LiteralString, kinds: LiteralString = "'e'") -> LiteralString:
    return (
        "NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = '" + catalogue + "'::regclass AND d.objid = " + oid + ""
        " AND d.objsubid = 0 AND d.deptype IN (" + kinds + "))"
    )


DATABASE = """
SELECT d.oid, d.datname, pg_get_userbyid(d.datdba), pg_encoding_to_char(d.encoding), d.datcollate, d.datctype, d.datcollversion,
       d.datconnlimit, pg_database_size(d.oid), t.spcname
FROM pg_database d JOIN pg_tablespace t ON t.oid = d.dattablespace WHERE d.datname = current_database()
"""

#: ``provider, locale`` of the current database by the server's major version.
PROVIDER_14: LiteralString = "SELECT 'libc', NULL::text"
PROVIDER_15: LiteralString = """
SELECT CASE datlocprovider WHEN 'c' THEN 'libc' WHEN 'i' THEN 'icu' ELSE 'builtin' END, daticulocale
FROM pg_database WHERE datname = current_database()
"""
PROVIDER_17: LiteralString = PROVIDER_15.replace("daticulocale", "datlocale")

#: One row per relation with rows of its own that pg_dump carries (or, for a materialized view, makes anew).
TABLES: LiteralString = (
    """
SELECT c.oid, n.nspname, c.relname, c.relkind::text, c.relispartition, c.relpersistence = 'u', c.relispopulated,
       pg_total_relation_size(c.oid), pg_table_size(c.oid), rn.nspname, r.relname, cfg.condition,
       (SELECT array_agg(a.attname::text) FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped)
FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_class r ON c.relispartition AND r.oid = pg_partition_root(c.oid)
LEFT JOIN pg_namespace rn ON rn.oid = r.relnamespace
LEFT JOIN (SELECT u.relation, u.condition FROM pg_extension e, unnest(e.extconfig, e.extcondition) AS u(relation, condition)) cfg
       ON cfg.relation = c.oid
WHERE c.relkind IN ('r', 'm') AND """
    + _USER_SCHEMA
    + " AND (cfg.relation IS NOT NULL OR "
    + _no_member("pg_class", "c.oid")
    + ") ORDER BY pg_table_size(c.oid) DESC, n.nspname, c.relname"
)

#: Tables to hold while they are dumped and measured (materialized views cannot be locked).
LOCKABLE: LiteralString = (
    "SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind IN ('r', 'p') AND "
    + _USER_SCHEMA
    + " AND (EXISTS (SELECT FROM pg_extension e WHERE c.oid = ANY (e.extconfig)) OR "
    + _no_member("pg_class", "c.oid")
    + ") ORDER BY c.oid"
)

SEQUENCES: LiteralString = (
    """
SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'S' AND """
    + _USER_SCHEMA
    + """ AND (EXISTS (SELECT FROM pg_extension e WHERE c.oid = ANY (e.extconfig)) OR """
    + _no_member("pg_class", "c.oid")
    + ") ORDER BY 1, 2"
)

#: Rows that no dump carries: of tables that belong to an extension and that it did not declare as configuration ...
UNDUMPED: LiteralString = """
SELECT n.nspname, c.relname, e.extname::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_depend d ON d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e'
JOIN pg_extension e ON e.oid = d.refobjid AND d.refclassid = 'pg_extension'::regclass
WHERE c.relkind IN ('r', 'p') AND NOT coalesce(c.oid = ANY (e.extconfig), false) ORDER BY 1, 2
"""
#: ... and of tables that live on another server.
FOREIGN_TABLES: LiteralString = (
    "SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind = 'f' AND "
    + _USER_SCHEMA
    + " ORDER BY 1, 2"
)

EXTENSIONS = "SELECT e.extname, e.extversion, n.nspname FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace ORDER BY 1"

_SCHEMAS: LiteralString = (
    "SELECT 'schema', NULL::text, NULL::text, n.nspname::text, '', pg_get_userbyid(n.nspowner)::text, '' FROM pg_namespace n WHERE "
    + _USER_SCHEMA
    + " AND "
    + _no_member("pg_namespace", "n.oid")
)

_RELATIONS: LiteralString = (
    """
SELECT CASE c.relkind WHEN 'r' THEN 'table' WHEN 'p' THEN 'table' WHEN 'f' THEN 'foreign table' WHEN 'v' THEN 'view'
                      WHEN 'm' THEN 'materialized view' WHEN 'c' THEN 'type' ELSE 'sequence' END,
       n.nspname::text, NULL::text, c.relname::text, '', pg_get_userbyid(c.relowner)::text,
       CASE WHEN c.relkind IN ('v', 'm') THEN concat_ws(E'\\n', array_to_string(c.reloptions, ','), pg_get_viewdef(c.oid))
            WHEN c.relkind = 'S' THEN (
              SELECT concat_ws(' ', format_type(s.seqtypid, NULL), s.seqstart, s.seqincrement, s.seqmin, s.seqmax, s.seqcache, s.seqcycle)
              FROM pg_sequence s WHERE s.seqrelid = c.oid)
              || coalesce((SELECT ' owned by ' || d.refobjid::regclass::text || '.' || a.attname
                           FROM pg_depend d JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
                           WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype IN ('a', 'i')
                             AND d.refclassid = 'pg_class'::regclass LIMIT 1), '')
            ELSE concat_ws(E'\\n', c.relkind, c.relpersistence, c.relrowsecurity, c.relforcerowsecurity, c.relreplident,
              array_to_string(c.reloptions, ','), CASE WHEN c.relkind = 'p' THEN pg_get_partkeydef(c.oid) END,
              pg_get_expr(c.relpartbound, c.oid),
              (SELECT 'inherits ' || string_agg(i.inhparent::regclass::text, ', ' ORDER BY i.inhseqno)
               FROM pg_inherits i WHERE i.inhrelid = c.oid),
              (SELECT string_agg(concat_ws(' ', quote_ident(a.attname), format_type(a.atttypid, a.atttypmod), a.attnotnull,
                                           a.attidentity, a.attgenerated, a.attstorage, pg_get_expr(ad.adbin, ad.adrelid),
                                           CASE WHEN a.attcollation <> t.typcollation THEN a.attcollation::regcollation::text END),
                                 E'\\n' ORDER BY a.attnum)
               FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
               LEFT JOIN pg_attrdef ad ON ad.adrelid = a.attrelid AND ad.adnum = a.attnum
               WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped)) END
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p', 'f', 'v', 'm', 'S', 'c') AND """
    + _USER_SCHEMA
    + " AND "
    + _no_member("pg_class", "c.oid")
    # The row type of a composite type is a member through its type.
    + " AND (c.relkind <> 'c' OR "
    + _no_member("pg_type", "c.reltype")
    + ")"
)

#: NOT NULL constraints (a catalogue entry since version 18) belong to the columns; action constraints of foreign keys
#: on partitions get made-up names.
_CONSTRAINTS: LiteralString = (
    """
SELECT 'constraint', n.nspname::text, coalesce(c.relname, t.typname)::text, o.conname::text, '', '',
       concat_ws(' ', pg_get_constraintdef(o.oid), o.convalidated)
FROM pg_constraint o JOIN pg_namespace n ON n.oid = o.connamespace
LEFT JOIN pg_class c ON c.oid = o.conrelid LEFT JOIN pg_type t ON t.oid = o.contypid
WHERE o.contype IN ('c', 'f', 'p', 'u', 'x') AND NOT (o.contype = 'f' AND o.conparentid <> 0) AND """
    + _USER_SCHEMA
    + " AND (c.oid IS NULL OR "
    + _no_member("pg_class", "c.oid")
    + ") AND (t.oid IS NULL OR "
    + _no_member("pg_type", "t.oid")
    + ")"
)

_INDEXES: LiteralString = (
    """
SELECT 'index', n.nspname::text, NULL::text, c.relname::text, '', '',
       concat_ws(' ', pg_get_indexdef(i.indexrelid), i.indisclustered, i.indisreplident)
FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE (i.indisvalid OR c.relkind = 'I') AND """
    + _USER_SCHEMA
    + " AND "
    + _no_member("pg_class", "i.indrelid")
)

INVALID_INDEXES: LiteralString = (
    "SELECT n.nspname, c.relname FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_namespace n ON n.oid = c.relnamespace"
    " WHERE NOT i.indisvalid AND c.relkind = 'i' AND " + _USER_SCHEMA + " ORDER BY 1, 2"
)

_OF_TABLES: LiteralString = (
    """
SELECT x.kind, n.nspname::text, c.relname::text, x.name, '', '', x.definition FROM (
    SELECT 'trigger' AS kind, tgrelid AS relation, tgname::text AS name, concat_ws(' ', pg_get_triggerdef(oid), tgenabled) AS definition
    FROM pg_trigger WHERE NOT tgisinternal AND tgparentid = 0
  UNION ALL
    SELECT 'rule', ev_class, rulename::text, concat_ws(' ', pg_get_ruledef(oid), ev_enabled) FROM pg_rewrite WHERE rulename <> '_RETURN'
  UNION ALL
    SELECT 'policy', polrelid, polname::text, concat_ws(E'\\n', polcmd, polpermissive,
           (SELECT string_agg(CASE r WHEN 0 THEN 'PUBLIC' ELSE pg_get_userbyid(r)::text END, ',' ORDER BY 1) FROM unnest(polroles) r),
           pg_get_expr(polqual, polrelid), pg_get_expr(polwithcheck, polrelid)) FROM pg_policy
) x JOIN pg_class c ON c.oid = x.relation JOIN pg_namespace n ON n.oid = c.relnamespace WHERE """
    + _USER_SCHEMA
    + " AND "
    + _no_member("pg_class", "c.oid")
)

_FUNCTIONS: LiteralString = (
    """
SELECT CASE p.prokind WHEN 'a' THEN 'aggregate' WHEN 'p' THEN 'procedure' ELSE 'function' END, n.nspname::text, NULL::text,
       p.proname::text, '(' || pg_get_function_identity_arguments(p.oid) || ')', pg_get_userbyid(p.proowner)::text,
       CASE WHEN p.prokind <> 'a' THEN pg_get_functiondef(p.oid)
            ELSE (SELECT concat_ws(' ', a.aggkind, a.aggtransfn, a.aggfinalfn, a.aggcombinefn, a.aggtranstype::regtype, a.agginitval)
                  FROM pg_aggregate a WHERE a.aggfnoid = p.oid) END
FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace WHERE """
    + _USER_SCHEMA
    + " AND "
    + _no_member("pg_proc", "p.oid", "'e', 'i'")
)

_TYPES: LiteralString = (
    """
SELECT CASE t.typtype WHEN 'd' THEN 'domain' ELSE 'type' END, n.nspname::text, NULL::text, t.typname::text, '',
       pg_get_userbyid(t.typowner)::text,
       CASE t.typtype
         WHEN 'e' THEN (SELECT string_agg(quote_literal(e.enumlabel), ',' ORDER BY e.enumsortorder)
                        FROM pg_enum e WHERE e.enumtypid = t.oid)
         WHEN 'd' THEN concat_ws(' ', format_type(t.typbasetype, t.typtypmod), t.typnotnull, t.typdefault)
         WHEN 'r' THEN (SELECT concat_ws(' ', format_type(g.rngsubtype, NULL), g.rngsubdiff::regproc, g.rngcanonical::regproc)
                        FROM pg_range g WHERE g.rngtypid = t.oid)
         ELSE concat_ws(' ', t.typlen, t.typinput::regproc, t.typoutput::regproc) END
FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace
WHERE t.typtype IN ('e', 'd', 'r', 'b') AND NOT EXISTS (SELECT FROM pg_type el WHERE el.typarray = t.oid) AND """
    + _USER_SCHEMA
    + " AND "
    + _no_member("pg_type", "t.oid")
)

_EVENT_TRIGGERS: LiteralString = """
SELECT 'event trigger', NULL::text, NULL::text, e.evtname::text, '', pg_get_userbyid(e.evtowner)::text,
       concat_ws(' ', e.evtevent, e.evtenabled, array_to_string(e.evttags, ','), e.evtfoid::regproc)
FROM pg_event_trigger e WHERE """ + _no_member("pg_event_trigger", "e.oid")

_STATISTICS: LiteralString = (
    """
SELECT 'statistics', n.nspname::text, NULL::text, s.stxname::text, '', pg_get_userbyid(s.stxowner)::text, pg_get_statisticsobjdef(s.oid)
FROM pg_statistic_ext s JOIN pg_namespace n ON n.oid = s.stxnamespace WHERE """
    + _USER_SCHEMA
    + " AND "
    + _no_member("pg_statistic_ext", "s.oid")
)

#: Rarer kinds, by the server's own name for them. 16384 is the first object id that is not the system's.
_OTHERS: LiteralString = """
SELECT i.type, NULL::text, NULL::text, NULL::text, i.identity, CASE WHEN o.owner = 0 THEN '' ELSE pg_get_userbyid(o.owner)::text END, ''
FROM (SELECT 'pg_cast'::regclass AS class, oid, 0::oid AS owner FROM pg_cast
      UNION ALL SELECT 'pg_operator'::regclass, oid, oprowner FROM pg_operator
      UNION ALL SELECT 'pg_opclass'::regclass, oid, opcowner FROM pg_opclass
      UNION ALL SELECT 'pg_opfamily'::regclass, oid, opfowner FROM pg_opfamily
      UNION ALL SELECT 'pg_collation'::regclass, oid, collowner FROM pg_collation
      UNION ALL SELECT 'pg_conversion'::regclass, oid, conowner FROM pg_conversion
      UNION ALL SELECT 'pg_ts_config'::regclass, oid, cfgowner FROM pg_ts_config
      UNION ALL SELECT 'pg_ts_dict'::regclass, oid, dictowner FROM pg_ts_dict
      UNION ALL SELECT 'pg_ts_parser'::regclass, oid, 0 FROM pg_ts_parser
      UNION ALL SELECT 'pg_ts_template'::regclass, oid, 0 FROM pg_ts_template
      UNION ALL SELECT 'pg_language'::regclass, oid, lanowner FROM pg_language
      UNION ALL SELECT 'pg_am'::regclass, oid, 0 FROM pg_am
      UNION ALL SELECT 'pg_transform'::regclass, oid, 0 FROM pg_transform
      UNION ALL SELECT 'pg_foreign_data_wrapper'::regclass, oid, fdwowner FROM pg_foreign_data_wrapper
      UNION ALL SELECT 'pg_foreign_server'::regclass, oid, srvowner FROM pg_foreign_server
      UNION ALL SELECT 'pg_user_mapping'::regclass, umid, 0 FROM pg_user_mappings
      UNION ALL SELECT 'pg_publication'::regclass, oid, pubowner FROM pg_publication
) o, pg_identify_object(o.class, o.oid, 0) i
WHERE o.oid >= 16384 AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = o.class AND d.objid = o.oid AND d.deptype IN ('e', 'i'))
"""

_COMMENTS: LiteralString = """
SELECT 'comments', NULL::text, NULL::text, 'all', '', '', string_agg(x.line, E'\\n' ORDER BY x.line COLLATE "C")
FROM (SELECT i.type || ' ' || i.identity || ': ' || c.description AS line
      FROM pg_description c, pg_identify_object(c.classoid, c.objoid, c.objsubid) i
      WHERE c.objoid >= 16384 AND NOT EXISTS (SELECT FROM pg_depend d
          WHERE d.classid = c.classoid AND d.objid = c.objoid AND d.objsubid = 0 AND d.deptype = 'e')
        AND (i.schema IS NULL OR i.schema !~ '^pg_') AND i.type <> 'extension') x
HAVING count(*) > 0
"""

OBJECTS: tuple[LiteralString, ...] = (
    _SCHEMAS,
    _RELATIONS,
    _CONSTRAINTS,
    _INDEXES,
    _OF_TABLES,
    _FUNCTIONS,
    _TYPES,
    _EVENT_TRIGGERS,
    _STATISTICS,
    _OTHERS,
    _COMMENTS,
)

#: ``kind, identity, owner, entries, base``: privileges that are stored, and those that the object had from the start.
#: An entry is ``grantee=PRIVILEGE`` with ``*`` for the right to grant on; the owner appears as ``(owner)``.
_ENTRIES: LiteralString = """ARRAY(SELECT CASE WHEN e.grantee = 0 THEN 'PUBLIC' WHEN e.grantee = g.owner THEN '(owner)'
        ELSE pg_get_userbyid(e.grantee)::text END || '=' || e.privilege_type || CASE WHEN e.is_grantable THEN '*' ELSE '' END
        FROM aclexplode("""

GRANTS: LiteralString = (
    "SELECT i.type || ' ' || i.identity, "
    + _ENTRIES
    + "g.acl) e), "
    + _ENTRIES
    + """coalesce((SELECT p.initprivs FROM pg_init_privs p
            WHERE p.objoid = g.oid AND p.classoid = g.class AND p.objsubid = g.sub), acldefault(g.code, g.owner))) e)
FROM (SELECT 'pg_class'::regclass AS class, oid, 0 AS sub, relowner AS owner, relacl AS acl,
             (CASE relkind WHEN 'S' THEN 's' ELSE 'r' END)::"char" AS code FROM pg_class WHERE relkind IN ('r', 'p', 'v', 'm', 'S', 'f')
      UNION ALL SELECT 'pg_class'::regclass, c.oid, a.attnum, c.relowner, a.attacl, 'c'
                FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid WHERE a.attnum > 0 AND NOT a.attisdropped
      UNION ALL SELECT 'pg_proc'::regclass, oid, 0, proowner, proacl, 'f' FROM pg_proc
      UNION ALL SELECT 'pg_namespace'::regclass, oid, 0, nspowner, nspacl, 'n' FROM pg_namespace
                WHERE nspname !~ '^pg_(toast|temp)'
      UNION ALL SELECT 'pg_type'::regclass, oid, 0, typowner, typacl, 'T' FROM pg_type
      UNION ALL SELECT 'pg_language'::regclass, oid, 0, lanowner, lanacl, 'l' FROM pg_language
      UNION ALL SELECT 'pg_foreign_data_wrapper'::regclass, oid, 0, fdwowner, fdwacl, 'F' FROM pg_foreign_data_wrapper
      UNION ALL SELECT 'pg_foreign_server'::regclass, oid, 0, srvowner, srvacl, 'S' FROM pg_foreign_server
      UNION ALL SELECT 'pg_largeobject'::regclass, oid, 0, lomowner, lomacl, 'L' FROM pg_largeobject_metadata
) g, pg_identify_object(g.class, g.oid, g.sub) i
WHERE g.acl IS NOT NULL AND i.schema IS DISTINCT FROM 'information_schema' AND i.identity <> 'information_schema'
UNION ALL
SELECT 'database', """
    + _ENTRIES
    + "g.datacl) e), "
    + _ENTRIES
    + """acldefault('d', g.datdba)) e)
FROM (SELECT datacl, datdba, datdba AS owner FROM pg_database WHERE datname = current_database() AND datacl IS NOT NULL) g
UNION ALL
SELECT concat_ws(' ', 'default privileges of', pg_get_userbyid(g.owner), 'in ' || n.nspname, 'on', g.code), """
    + _ENTRIES
    + """g.acl) e), ARRAY[]::text[]
FROM (SELECT defaclrole AS owner, defaclnamespace, defaclobjtype AS code, defaclacl AS acl FROM pg_default_acl) g
LEFT JOIN pg_namespace n ON n.oid = g.defaclnamespace
"""
)

ROLES: LiteralString = """
SELECT r.oid, r.rolname::text, concat_ws(' ',
         CASE WHEN r.rolsuper THEN 'SUPERUSER' END, CASE WHEN NOT r.rolinherit THEN 'NOINHERIT' END,
         CASE WHEN r.rolcreaterole THEN 'CREATEROLE' END, CASE WHEN r.rolcreatedb THEN 'CREATEDB' END,
         CASE WHEN r.rolcanlogin THEN 'LOGIN' ELSE 'NOLOGIN' END, CASE WHEN r.rolreplication THEN 'REPLICATION' END,
         CASE WHEN r.rolbypassrls THEN 'BYPASSRLS' END,
         CASE WHEN r.rolconnlimit <> -1 THEN 'CONNECTION LIMIT ' || r.rolconnlimit END,
         'VALID UNTIL ' || r.rolvaliduntil::text)
FROM pg_roles r WHERE r.rolname !~ '^pg_' ORDER BY 2
"""

MEMBERSHIPS: LiteralString = """
SELECT m.member, pg_get_userbyid(m.roleid)::text, bool_or(m.admin_option) FROM pg_auth_members m GROUP BY 1, 2 ORDER BY 2
"""

#: ``role or NULL, setting`` for one database, or for the whole cluster (``0``).
SETTINGS: LiteralString = """
SELECT CASE WHEN s.setrole = 0 THEN NULL ELSE pg_get_userbyid(s.setrole)::text END, u.setting
FROM pg_db_role_setting s, unnest(s.setconfig) AS u(setting) WHERE s.setdatabase = %s ORDER BY 1, 2
"""

REPLICATION: Mapping[str, LiteralString] = {
    "slots": "SELECT slot_name::text FROM pg_replication_slots WHERE database = current_database() ORDER BY 1",
    "publications": "SELECT pubname::text FROM pg_publication ORDER BY 1",
    "subscriptions": "SELECT subname::text FROM pg_subscription s JOIN pg_database d ON d.oid = s.subdbid"
    " WHERE d.datname = current_database() ORDER BY 1",
}

#: Pages of large objects without the zeros at their end, which a restore may store differently.
LARGE_OBJECTS: LiteralString = r"""
SELECT sum(hashtextextended(loid::text || ':' || pageno::text || ':' || encode(rtrim(data, '\x00'::bytea), 'hex') COLLATE "C", 0))::text
FROM pg_largeobject WHERE length(rtrim(data, '\x00'::bytea)) > 0
"""
