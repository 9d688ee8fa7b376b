"""The development server: an embedded PostgreSQL, a migrated schema and a sample of backups."""
