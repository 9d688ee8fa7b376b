-- The roles and the database, for psql as a superuser. The roles have no passwords yet, so that none is in a statement log:
-- set them with psql's \password, which sends only a SCRAM verifier, or with passwords.sh.
-- `backup-service migrate` grants the privileges on the tables each time it runs.
\set ON_ERROR_STOP on

-- The limits add up to less than max_connections (100) without the three reserved for superusers.
CREATE ROLE backups_owner LOGIN CONNECTION LIMIT 6;     -- migrate: owns the schema
CREATE ROLE backups_import LOGIN CONNECTION LIMIT 10;   -- import: writes rows; one connection for each import at a time
CREATE ROLE backups_service LOGIN CONNECTION LIMIT 80;  -- serve: reads; BACKUPS_POOL_SIZE + 1 for each replica
-- The service sets these itself, except behind a pooler.
ALTER ROLE backups_service SET statement_timeout = '10s';
ALTER ROLE backups_service SET default_transaction_read_only = on;
-- Disk space of one session for sorts. Only a superuser can change it. It does not limit temporary tables.
ALTER ROLE backups_service SET temp_file_limit = '1GB';
ALTER ROLE backups_import SET temp_file_limit = '10GB';

CREATE DATABASE backups OWNER backups_owner;
REVOKE ALL ON DATABASE backups FROM PUBLIC;
GRANT CONNECT ON DATABASE backups TO backups_owner, backups_import, backups_service;
GRANT TEMPORARY ON DATABASE backups TO backups_import;
-- Every role can connect to these by default. On a server with other users, grant CONNECT to those who need it.
REVOKE ALL ON DATABASE postgres, template1 FROM PUBLIC;

-- Functions that every role can call by default, and with which a role that only reads could fill the disk or the shared lock table.
\connect backups
DO $$
DECLARE
  name regprocedure;
BEGIN
  FOR name IN
    SELECT oid FROM pg_proc
    WHERE pronamespace = 'pg_catalog'::regnamespace
      AND proname ~ '^(lo_.*|loread|lowrite|pg_logical_emit_message|pg_(try_)?advisory_(xact_)?lock(_shared)?)$'
  LOOP
    EXECUTE format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', name);
  END LOOP;
END
$$;
