-- Creates the least-privileged role that can back up one database, and nothing else.
--
--     SCHOLARIA_BACKUP_PASSWORD=... psql -d scholaria -v role=scholaria_backup -f roles.sql
--
-- Run it as a superuser, connected to the database that is to be backed up. Running it again is harmless (it sets the
-- password again). With  -v bypass_rls=off  the role cannot read tables with row-level security; the backup then refuses
-- and names them, instead of leaving rows out.
--
-- What the role may do: connect to this database, read every table and sequence of it (also those made later), read the
-- password hashes of the cluster's roles (pg_read_all_data includes pg_authid; without them a restore elsewhere needs new
-- passwords), and export a snapshot. It may not write, create or terminate anything.
-- What it may not read: large objects. They have privileges of their own; those that exist are granted here, and the
-- preflight names later ones.

\set ON_ERROR_STOP on
\if :{?role}
\else
  \set role scholaria_backup
\endif
\if :{?bypass_rls}
\else
  \set bypass_rls on
\endif
-- From the environment, because an argument can be read by every user of the host.
\getenv password SCHOLARIA_BACKUP_PASSWORD
\if :{?password}
\else
  DO $$ BEGIN RAISE EXCEPTION 'set SCHOLARIA_BACKUP_PASSWORD to the password that the role shall have'; END $$;
\endif

-- The password is about to pass through the server as text: keep it out of the server's log and out of pg_stat_statements.
SET log_statement = 'none';
SET log_min_duration_statement = -1;
SET log_min_error_statement = 'panic';

SELECT format('CREATE ROLE %I', :'role') WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = :'role') \gexec
ALTER ROLE :"role" WITH LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION INHERIT PASSWORD :'password';
\if :bypass_rls
  ALTER ROLE :"role" BYPASSRLS;
\else
  ALTER ROLE :"role" NOBYPASSRLS;
\endif

GRANT pg_read_all_data TO :"role";
SELECT format('GRANT CONNECT ON DATABASE %I TO %I', current_database(), :'role') \gexec
SELECT format('GRANT SELECT ON LARGE OBJECT %s TO %I', oid, :'role') FROM pg_catalog.pg_largeobject_metadata ORDER BY oid \gexec

-- So that nothing of the role's own settings ends a long dump.
ALTER ROLE :"role" SET statement_timeout = 0;
ALTER ROLE :"role" SET idle_in_transaction_session_timeout = 0;
ALTER ROLE :"role" SET default_transaction_read_only = on;
