-- The roles and the database, for psql as a superuser. The roles have no passwords yet, so that none is in a statement log:
-- set them with psql's \password, which sends only a SCRAM verifier, or with passwords.sh.
-- `backup-service migrate` grants the rights on the tables each time it runs.
\set ON_ERROR_STOP on

-- The limits add up to less than max_connections (100) without the three reserved for superusers.
CREATE ROLE backups_owner LOGIN CONNECTION LIMIT 6;     -- migrate: owns the schema
CREATE ROLE backups_import LOGIN CONNECTION LIMIT 10;   -- import: writes rows; one connection for each import at a time
CREATE ROLE backups_service LOGIN CONNECTION LIMIT 80;  -- serve: reads; BACKUPS_POOL_SIZE + 1 for each replica
-- The service sets these itself, except behind a pooler.
ALTER ROLE backups_service SET statement_timeout = '10s';
ALTER ROLE backups_service SET default_transaction_read_only = on;

CREATE DATABASE backups OWNER backups_owner;
REVOKE ALL ON DATABASE backups FROM PUBLIC;
GRANT CONNECT ON DATABASE backups TO backups_owner, backups_import, backups_service;
GRANT TEMPORARY ON DATABASE backups TO backups_import;
