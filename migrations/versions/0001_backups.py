"""Tables of backups, imports, failed runs and freshness.

`backups.wire` holds the row as one element of `ListBackupsResponse.backups` in protobuf's encoding: tag 1, length, then the fields of
`Backup`. As in every proto3 message, default values are omitted. tests/integration/test_wire.py compares it with protobuf's own encoder.

Rules for the encoder's functions:

- A body is SQL-standard (`RETURN …`) or calls built-in functions only. pg_restore computes the column with an empty search_path, so that
  a body in a string cannot call functions of this schema.
- Only IMMUTABLE built-ins are used, because PostgreSQL inlines nothing else. Hence date_part instead of extract, and
  decode(…, 'escape') instead of convert_to.
- A function never raises an error for values that the table's constraints reject, because generated columns are computed before the
  constraints are checked. Infinite times give NULL.
- Stored bytes do not change when a function is replaced. A different encoding needs a different function and a different column.
- `mod` is used because Alembic prints a percent sign twice.
"""

from alembic import op

revision = "0001"
down_revision = None

# The encoder copies texts in the database's encoding, and protobuf requires UTF-8.
REQUIRE_UTF8 = """
DO $$ BEGIN
  IF current_setting('server_encoding') <> 'UTF8' THEN
    RAISE EXCEPTION USING MESSAGE = 'the catalog needs a database with the encoding UTF8, not ' || current_setting('server_encoding');
  END IF;
END $$"""

# Times have five bytes of seven bits each, lowest first. Without the loop for them, a row takes 12 µs instead of 21.
VARINT = r"""
CREATE FUNCTION backup_wire_v1_varint(v bigint) RETURNS bytea
  LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
DECLARE
  encoded bytea := '';
BEGIN
  IF v BETWEEN 268435456 AND 34359738367 THEN
    RETURN substr(int8send(
      ((v & 127) << 32) | (((v >> 7) & 127) << 24) | (((v >> 14) & 127) << 16) | (((v >> 21) & 127) << 8) | (v >> 28) | 551911718912), 4);
  END IF;
  WHILE v > 127 LOOP
    encoded := encoded || substr(int8send(v & 127 | 128), 8);
    v := v >> 7;
  END LOOP;
  RETURN encoded || substr(int8send(v), 8);
END $$"""

# plpgsql computes the body once. Two bytes of length are enough: the constraints keep rows under 16,384 bytes.
DELIMITED = r"""
CREATE FUNCTION backup_wire_v1_delimited(tag bytea, body bytea) RETURNS bytea
  LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
DECLARE
  length bigint := octet_length(body);
BEGIN
  IF length < 128 THEN
    RETURN tag || substr(int8send(length), 8) || body;
  END IF;
  RETURN tag || substr(int8send(((length & 127 | 128) << 8) | (length >> 7)), 7) || body;
END $$"""

STRING = r"""
CREATE FUNCTION backup_wire_v1_string(tag bytea, value text) RETURNS bytea
  LANGUAGE sql IMMUTABLE PARALLEL SAFE
  RETURN tag
      || CASE WHEN octet_length(value) < 128 THEN substr(int8send(octet_length(value)), 8)
         ELSE backup_wire_v1_varint(octet_length(value)) END
      || decode(replace(value, '\', '\\'), 'escape')"""

NUMBER = r"""
CREATE FUNCTION backup_wire_v1_number(tag bytea, value bigint) RETURNS bytea
  LANGUAGE sql IMMUTABLE PARALLEL SAFE
  RETURN CASE WHEN value > 0 THEN tag || backup_wire_v1_varint(value) ELSE ''::bytea END"""

TIMESTAMP = r"""
CREATE FUNCTION backup_wire_v1_timestamp(t timestamptz) RETURNS bytea
  LANGUAGE sql IMMUTABLE PARALLEL SAFE
  RETURN backup_wire_v1_number('\x08'::bytea,
           date_part('epoch', date_trunc('second', t - '1970-01-01 00:00:00+00'::timestamptz))::bigint)
      || backup_wire_v1_number('\x10'::bytea,
           mod(date_part('microseconds', t - '1970-01-01 00:00:00+00'::timestamptz)::bigint, 1000000) * 1000)"""

# The API has no field for "partial": a method is only encoded for a backup that contains everything.
METHOD = r"""
CREATE FUNCTION backup_wire_v1_method(method text, contents text) RETURNS bytea
  LANGUAGE sql IMMUTABLE PARALLEL SAFE
  RETURN CASE
    WHEN contents = 'everything' AND method = 'base' THEN '\x4001'::bytea
    WHEN contents = 'everything' AND method = 'incremental' THEN '\x4002'::bytea
    ELSE ''::bytea END"""

BACKUP = r"""
CREATE FUNCTION backup_wire_v1(
  id text, folder_id text, created_at timestamptz, source_cluster_id text, started_at timestamptz, size bigint, method text, contents text
) RETURNS bytea
  LANGUAGE sql IMMUTABLE PARALLEL SAFE
  RETURN CASE WHEN isfinite(created_at) AND isfinite(started_at) THEN
    backup_wire_v1_delimited('\x0a'::bytea,
      backup_wire_v1_string('\x0a'::bytea, id)
      || backup_wire_v1_string('\x12'::bytea, folder_id)
      || backup_wire_v1_delimited('\x1a'::bytea, backup_wire_v1_timestamp(created_at))
      || backup_wire_v1_string('\x22'::bytea, source_cluster_id)
      || backup_wire_v1_delimited('\x2a'::bytea, backup_wire_v1_timestamp(started_at))
      || backup_wire_v1_number('\x30'::bytea, size)
      || backup_wire_v1_method(method, contents))
  END"""

# COLLATE "C": the order of a locale differs between machines, and an upgrade of its library corrupts indexes.
# A bound in the regular expression ({1,50}) would cost as much as the encoder.
# The folder "*" is rejected because a token for it reads all folders.
# The last microsecond of 9999 is excluded because asyncpg binds it as infinity.
# Sizes end at 2^53 - 1, the largest integer that the official Node.js client can decode.
BACKUPS = r"""
CREATE TABLE backups (
  id text COLLATE "C" PRIMARY KEY CONSTRAINT backups_id CHECK (id ~ '^[!-~]+$' AND octet_length(id) <= 50),
  folder_id text COLLATE "C" NOT NULL CONSTRAINT backups_folder_id CHECK (char_length(folder_id) BETWEEN 1 AND 50 AND folder_id <> '*'),
  created_at timestamptz NOT NULL,
  source_cluster_id text COLLATE "C" NOT NULL
    CONSTRAINT backups_source_cluster_id CHECK (char_length(source_cluster_id) BETWEEN 1 AND 50),
  started_at timestamptz NOT NULL,
  size bigint CONSTRAINT backups_size CHECK (size BETWEEN 0 AND 9007199254740991),
  tool text COLLATE "C" NOT NULL CONSTRAINT backups_tool CHECK (tool ~ '^[a-z]+$' AND octet_length(tool) <= 16),
  name text COLLATE "C" CONSTRAINT backups_name CHECK (octet_length(name) BETWEEN 1 AND 100),
  method text COLLATE "C" CONSTRAINT backups_method CHECK (method IN ('base', 'incremental')),
  contents text COLLATE "C" NOT NULL DEFAULT 'everything'
    CONSTRAINT backups_contents CHECK (contents IN ('everything', 'metadata only', 'data only', 'filtered')),
  database text COLLATE "C" NOT NULL DEFAULT '' CONSTRAINT backups_database CHECK (octet_length(database) <= 255),
  permanent boolean,
  needs text[] COLLATE "C" NOT NULL DEFAULT '{}' CONSTRAINT backups_needs CHECK (cardinality(needs) <= 1000),
  chain text COLLATE "C" NOT NULL DEFAULT 'complete' CONSTRAINT backups_chain CHECK (chain IN ('complete', 'broken', 'unknown')),
  missing_since timestamptz,
  wire bytea GENERATED ALWAYS AS (
    backup_wire_v1(id, folder_id, created_at, source_cluster_id, started_at, size, method, contents)) STORED,
  CONSTRAINT backups_times CHECK (
    started_at >= '1970-01-01 00:00:00+00' AND started_at <= created_at AND created_at < '9999-12-31 23:59:59.999999+00')
)"""

# A page is an index-only scan because the index includes `wire`.
BACKUPS_PAGE = "CREATE INDEX backups_page ON backups (folder_id, created_at DESC, id DESC) INCLUDE (wire)"

# A page of a cluster is an index-only scan too (docs/decisions/0010-index-of-clusters.md).
BACKUPS_CLUSTER_PAGE = """
CREATE INDEX backups_cluster_page ON backups (source_cluster_id, folder_id, created_at DESC, id DESC) INCLUDE (wire)"""

# For imports, which compare a cluster's rows with a listing.
BACKUPS_CLUSTER = "CREATE INDEX backups_cluster ON backups (source_cluster_id, tool, created_at DESC, id)"

OWNER_COLUMNS = r"""
  source_cluster_id text COLLATE "C" NOT NULL
    CONSTRAINT {table}_source_cluster_id CHECK (char_length(source_cluster_id) BETWEEN 1 AND 50),
  tool text COLLATE "C" NOT NULL CONSTRAINT {table}_tool CHECK (tool ~ '^[a-z]+$' AND octet_length(tool) <= 16),
  folder_id text COLLATE "C" NOT NULL CONSTRAINT {table}_folder_id CHECK (char_length(folder_id) BETWEEN 1 AND 50 AND folder_id <> '*'),"""

DATABASE_COLUMN = r"""
  database text COLLATE "C" NOT NULL CONSTRAINT {table}_database CHECK (octet_length(database) <= 255),"""

IMPORTS = f"""
CREATE TABLE imports ({OWNER_COLUMNS.format(table="imports")}
  imported_at timestamptz NOT NULL,
  entries bigint NOT NULL CONSTRAINT imports_entries CHECK (entries >= 0),
  skipped bigint NOT NULL CONSTRAINT imports_skipped CHECK (skipped BETWEEN 0 AND entries),
  unusable bigint NOT NULL CONSTRAINT imports_unusable CHECK (unusable BETWEEN 0 AND skipped),
  excluded bigint NOT NULL CONSTRAINT imports_excluded CHECK (excluded BETWEEN 0 AND skipped),
  PRIMARY KEY (source_cluster_id, tool)
)"""

# "running" is the state at the import. A run that is still "running" 48 hours after its start has crashed.
ATTEMPTS = f"""
CREATE TABLE attempts ({OWNER_COLUMNS.format(table="attempts")}{DATABASE_COLUMN.format(table="attempts")}
  name text COLLATE "C" NOT NULL CONSTRAINT attempts_name CHECK (octet_length(name) BETWEEN 1 AND 100),
  started_at timestamptz NOT NULL,
  state text COLLATE "C" NOT NULL CONSTRAINT attempts_state CHECK (state IN ('failed', 'running', 'crashed')),
  PRIMARY KEY (source_cluster_id, tool, database, name)
)"""

FRESHNESS = f"""
CREATE TABLE freshness ({OWNER_COLUMNS.format(table="freshness")}{DATABASE_COLUMN.format(table="freshness")}
  backups bigint NOT NULL DEFAULT 0,
  restorable bigint NOT NULL DEFAULT 0,
  partial bigint NOT NULL DEFAULT 0,
  broken bigint NOT NULL DEFAULT 0,
  unknown bigint NOT NULL DEFAULT 0,
  missing bigint NOT NULL DEFAULT 0,
  last_backup_id text COLLATE "C",
  last_created_at timestamptz,
  last_base_id text COLLATE "C",
  last_base_created_at timestamptz,
  last_partial_id text COLLATE "C",
  last_partial_created_at timestamptz,
  failed_attempts bigint,
  last_failed_name text COLLATE "C",
  last_failed_started_at timestamptz,
  running_name text COLLATE "C",
  running_started_at timestamptz,
  PRIMARY KEY (source_cluster_id, tool, database)
)"""

# One of these rows is locked for a cluster, by the hash of its id, while the cluster's rows are written.
CLUSTER_LOCKS = "CREATE TABLE cluster_locks (number bigint PRIMARY KEY)"
CLUSTER_LOCKS_ROWS = "INSERT INTO cluster_locks SELECT generate_series(0, 255)"

COMMENTS = """
COMMENT ON TABLE backups IS 'Completed backups of Greenplum clusters';
COMMENT ON COLUMN backups.created_at IS 'When the backup was completed';
COMMENT ON COLUMN backups.size IS 'Bytes, or NULL if unknown';
COMMENT ON COLUMN backups.tool IS 'The tool whose import wrote the row: walg, gpbackup, manual, …';
COMMENT ON COLUMN backups.name IS 'The name that the tool gave to the backup';
COMMENT ON COLUMN backups.method IS 'base or incremental, or NULL if the tool does not record it';
COMMENT ON COLUMN backups.contents IS 'A backup with other contents than everything is partial';
COMMENT ON COLUMN backups.database IS 'The database of a logical backup, or empty for a backup of the whole cluster';
COMMENT ON COLUMN backups.permanent IS 'True if the tool never deletes the backup by itself, or NULL if the tool does not record it';
COMMENT ON COLUMN backups.needs IS 'Names of the backups that a restore requires: the direct parent for walg, all of them for gpbackup';
COMMENT ON COLUMN backups.chain IS 'State of the chain at the last import: complete, broken or unknown';
COMMENT ON COLUMN backups.missing_since IS 'When an import first found that the listing no longer has the backup';
COMMENT ON COLUMN backups.wire IS 'The row as an element of ListBackupsResponse.backups';
COMMENT ON TABLE imports IS 'The last import of each cluster and tool, even if it changed nothing';
COMMENT ON COLUMN imports.entries IS 'Entries of the listing, including skipped ones';
COMMENT ON COLUMN imports.skipped IS 'Entries that are not backups of the catalog, for any reason';
COMMENT ON COLUMN imports.unusable IS 'Skipped entries with values that the catalog cannot hold';
COMMENT ON COLUMN imports.excluded IS 'Skipped entries that the operator left out by name';
COMMENT ON TABLE attempts IS 'The newest failed and unfinished runs of a tool, by cluster and database';
COMMENT ON TABLE freshness IS 'The last restorable backup of each cluster, tool and database, at the last import';
COMMENT ON COLUMN freshness.database IS 'Empty for backups of the whole cluster';
COMMENT ON COLUMN freshness.backups IS 'Backups of the catalog, including missing and broken ones';
COMMENT ON COLUMN freshness.restorable IS 'Backups that contain everything, have a complete chain and are not missing';
COMMENT ON COLUMN freshness.failed_attempts IS 'Failed runs since the last restorable backup, or NULL if the tool does not record them';
COMMENT ON TABLE cluster_locks IS 'Rows that imports lock, one for each cluster'"""


def upgrade() -> None:
    for statement in (
        REQUIRE_UTF8, VARINT, DELIMITED, STRING, NUMBER, TIMESTAMP, METHOD, BACKUP,
        BACKUPS, BACKUPS_PAGE, BACKUPS_CLUSTER_PAGE, BACKUPS_CLUSTER, IMPORTS, ATTEMPTS, FRESHNESS, CLUSTER_LOCKS, CLUSTER_LOCKS_ROWS,
        *COMMENTS.split(";"),
    ):  # fmt: skip
        op.execute(statement)


def downgrade() -> None:
    for table in ("cluster_locks", "freshness", "attempts", "imports", "backups"):
        op.execute(f"DROP TABLE {table}")
    for function in ("", "_method", "_timestamp", "_number", "_string", "_delimited", "_varint"):
        op.execute(f"DROP FUNCTION backup_wire_v1{function}")
