"""The backup service: the API of Greenplum backups over a catalog in PostgreSQL.

A call: `server` listens, and `api/interceptor` runs the steps of each call. `api/backup_service` and `api/cluster_service` authorize and
validate it, open its page token (`page_token`) and read encoded rows from `postgres/catalog`. Errors (`errors`) are raised, and
`api/error_status` maps them to statuses.

An import: `cli` passes a listing to a module of `importers`, and `postgres/imports/import_backups` merges its entries into the catalog.

`composition` builds the server from the settings. docs/architecture.md describes all modules.
"""

VERSION = "0.1.0"
