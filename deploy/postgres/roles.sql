-- The roles and the database, for psql as a superuser, with the three passwords in its environment.
-- What each may do is granted by `backup-service migrate`, each time it runs.
\set ON_ERROR_STOP on
\getenv owner_password BACKUPS_OWNER_PASSWORD
\getenv import_password BACKUPS_IMPORT_PASSWORD
\getenv service_password BACKUPS_SERVICE_PASSWORD

CREATE ROLE backups_owner LOGIN PASSWORD :'owner_password';      -- of migrate: owns the schema
CREATE ROLE backups_import LOGIN PASSWORD :'import_password';    -- of import: writes rows
CREATE ROLE backups_service LOGIN PASSWORD :'service_password';  -- of serve: reads
-- As the service sets them itself, but where a pooler is in between.
ALTER ROLE backups_service SET statement_timeout = '10s';
ALTER ROLE backups_service SET default_transaction_read_only = on;
CREATE DATABASE backups OWNER backups_owner;
