"""The table of backups, whose column `wire` is the row as the API sends it, and what is known of each import.

`wire` holds one element of `ListBackupsResponse.backups` in protobuf's encoding: tag 1, length, then the fields of `Backup`; as always
in proto3, a default value is left out. tests/integration/test_wire.py holds it to protobuf's own encoder.

The encoder's functions are SQL-standard (`RETURN …`) or call built-ins only: a body in a string would name functions that are not
on the empty search_path under which pg_restore computes the column. They use IMMUTABLE built-ins only (hence date_part, and
decode(…, 'escape') in place of convert_to), or PostgreSQL could not inline them. They never raise on what the table's constraints
refuse, since a stored column is computed before its row is checked: so infinite times give NULL. Stored bytes stay when a function is
replaced: another encoding is another function, and another column. (mod, for Alembic prints a percent sign twice.)
"""

from alembic import op

revision = "0001"
down_revision = None

# The encoder's texts are bytes of the database's encoding, and protobuf's are UTF-8.
REQUIRE_UTF8 = """
DO $$ BEGIN
  IF current_setting('server_encoding') <> 'UTF8' THEN
    RAISE EXCEPTION USING MESSAGE = 'the catalog needs a database in UTF8, and this one is in ' || current_setting('server_encoding');
  END IF;
END $$"""

# Times take five bytes, seven bits in each, the lowest first; with them at once rather than in a loop, a row takes 12 µs and not 21.
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

# plpgsql, which computes the body once. Two bytes of length do: no row that the constraints let in has more than 16,383.
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

BACKUP = r"""
CREATE FUNCTION backup_wire_v1(
  id text, folder_id text, created_at timestamptz, source_cluster_id text, started_at timestamptz, size bigint
) RETURNS bytea
  LANGUAGE sql IMMUTABLE PARALLEL SAFE
  RETURN CASE WHEN isfinite(created_at) AND isfinite(started_at) THEN
    backup_wire_v1_delimited('\x0a'::bytea,
      backup_wire_v1_string('\x0a'::bytea, id)
      || backup_wire_v1_string('\x12'::bytea, folder_id)
      || backup_wire_v1_delimited('\x1a'::bytea, backup_wire_v1_timestamp(created_at))
      || backup_wire_v1_string('\x22'::bytea, source_cluster_id)
      || backup_wire_v1_delimited('\x2a'::bytea, backup_wire_v1_timestamp(started_at))
      || backup_wire_v1_number('\x30'::bytea, size))
  END"""

# COLLATE "C": an order by a locale's rules differs between machines, and an upgrade of their library breaks its indexes.
# A bound in the regular expression ({1,50}) would cost as much as the encoder.
# A folder cannot be called "*": in a token that means all folders.
# The last microsecond of 9999 is left out, since asyncpg binds it as infinity.
BACKUPS = r"""
CREATE TABLE backups (
  id text COLLATE "C" PRIMARY KEY CONSTRAINT backups_id CHECK (id ~ '^[!-~]+$' AND octet_length(id) <= 50),
  folder_id text COLLATE "C" NOT NULL CONSTRAINT backups_folder_id CHECK (char_length(folder_id) BETWEEN 1 AND 50 AND folder_id <> '*'),
  created_at timestamptz NOT NULL,
  source_cluster_id text COLLATE "C" NOT NULL
    CONSTRAINT backups_source_cluster_id CHECK (char_length(source_cluster_id) BETWEEN 1 AND 50),
  started_at timestamptz NOT NULL,
  size bigint NOT NULL CONSTRAINT backups_size CHECK (size >= 0),
  tool text COLLATE "C" NOT NULL CONSTRAINT backups_tool CHECK (tool ~ '^[a-z]+$' AND octet_length(tool) <= 16),
  wire bytea GENERATED ALWAYS AS (backup_wire_v1(id, folder_id, created_at, source_cluster_id, started_at, size)) STORED,
  CONSTRAINT backups_times CHECK (
    started_at >= '1970-01-01 00:00:00+00' AND started_at <= created_at AND created_at < '9999-12-31 23:59:59.999999+00')
)"""

# A page is an index-only scan: INCLUDE spares it the table.
BACKUPS_PAGE = "CREATE INDEX backups_page ON backups (folder_id, created_at DESC, id DESC) INCLUDE (wire)"

# An import compares a cluster's rows with a listing.
BACKUPS_CLUSTER = "CREATE INDEX backups_cluster ON backups (source_cluster_id, tool, created_at DESC, id)"

IMPORTS = r"""
CREATE TABLE imports (
  source_cluster_id text COLLATE "C" NOT NULL
    CONSTRAINT imports_source_cluster_id CHECK (char_length(source_cluster_id) BETWEEN 1 AND 50),
  tool text COLLATE "C" NOT NULL CONSTRAINT imports_tool CHECK (tool ~ '^[a-z]+$' AND octet_length(tool) <= 16),
  folder_id text COLLATE "C" NOT NULL CONSTRAINT imports_folder_id CHECK (char_length(folder_id) BETWEEN 1 AND 50 AND folder_id <> '*'),
  imported_at timestamptz NOT NULL,
  entries bigint NOT NULL CONSTRAINT imports_entries CHECK (entries >= 0),
  skipped bigint NOT NULL CONSTRAINT imports_skipped CHECK (skipped BETWEEN 0 AND entries),
  backups bigint NOT NULL CONSTRAINT imports_backups CHECK (backups >= 0),
  last_backup_id text COLLATE "C",
  last_created_at timestamptz,
  PRIMARY KEY (source_cluster_id, tool)
)"""

COMMENTS = """
COMMENT ON TABLE backups IS 'Completed backups of Greenplum clusters';
COMMENT ON COLUMN backups.created_at IS 'When the backup was completed';
COMMENT ON COLUMN backups.size IS 'Bytes';
COMMENT ON COLUMN backups.tool IS 'Who wrote the row: walg, gpbackup, manual, …';
COMMENT ON COLUMN backups.wire IS 'The row as an element of ListBackupsResponse.backups';
COMMENT ON TABLE imports IS 'The last import of each cluster and tool, also if it changed nothing';
COMMENT ON COLUMN imports.entries IS 'Entries of the listing, with those skipped';
COMMENT ON COLUMN imports.backups IS 'Backups of this cluster and tool that the catalog had after the import';
COMMENT ON COLUMN imports.last_backup_id IS 'The last of them to be completed'"""


def upgrade() -> None:
    for statement in (
        REQUIRE_UTF8, VARINT, DELIMITED, STRING, NUMBER, TIMESTAMP, BACKUP,
        BACKUPS, BACKUPS_PAGE, BACKUPS_CLUSTER, IMPORTS, *COMMENTS.split(";"),
    ):  # fmt: skip
        op.execute(statement)


def downgrade() -> None:
    op.execute("DROP TABLE imports")
    op.execute("DROP TABLE backups")
    op.execute("DROP FUNCTION backup_wire_v1")
    op.execute("DROP FUNCTION backup_wire_v1_timestamp")
    op.execute("DROP FUNCTION backup_wire_v1_number")
    op.execute("DROP FUNCTION backup_wire_v1_string")
    op.execute("DROP FUNCTION backup_wire_v1_delimited")
    op.execute("DROP FUNCTION backup_wire_v1_varint")
