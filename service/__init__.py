"""Which backups of Greenplum clusters exist: the BackupService API over a catalog in PostgreSQL.

How a request travels: `server` listens, and hands each call to `api/interceptor`, which surrounds it and decodes the request;
`api/backup_service` checks it (`api/validation`), opens its page token (`page_token`) and asks `postgres/catalog`, whose one query goes
through `postgres/database`. Back come rows which already are protobuf. What goes wrong on the way is raised (`errors`), passes through
everything, and becomes a status in `api/status`. How a backup gets into the catalog: `importers/` read a tool's listing,
`postgres/loading` merges it into the table. `cli` is the way in to all of it.
"""

VERSION = "0.1.0"
