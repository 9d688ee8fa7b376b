# Creates the roles and the database. PostgreSQL's image sources this file when it has created its data directory.
( # a subshell: the arguments of the image's script are still needed
  set -- --no-psqlrc --host=/var/run/postgresql --username="$POSTGRES_USER" --dbname="$POSTGRES_DB"
  psql "$@" --file=/etc/backups/roles.sql
  password() { cut -d: -f5 "/run/secrets/$1/pgpass"; }
  BACKUPS_OWNER_PASSWORD=$(password owner) BACKUPS_IMPORT_PASSWORD=$(password import) BACKUPS_SERVICE_PASSWORD=$(password service) \
    sh /etc/backups/passwords.sh "$@"
)
