#!/bin/sh
# Set the passwords of the roles of roles.sql, as a superuser: passwords.sh [ARGUMENTS OF PSQL]
# Each password is in the file BACKUPS_OWNER_PASSWORD_FILE (BACKUPS_IMPORT_..., BACKUPS_SERVICE_...) or in the variable
# BACKUPS_OWNER_PASSWORD. psql computes the SCRAM verifier, so that the server and its log never contain a password.
set -eu

for role in owner import service; do
  name=BACKUPS_$(echo "$role" | tr '[:lower:]' '[:upper:]')_PASSWORD
  eval "file=\${${name}_FILE:-} password=\${$name:-}"
  if [ -n "$file" ]; then password=$(cat "$file"); fi
  if [ -z "$password" ]; then
    echo "passwords.sh: set $name or ${name}_FILE" >&2
    exit 1
  fi
  # \password reads the terminal if there is one; setsid removes it, so that psql reads standard input.
  printf '%s\n%s\n' "$password" "$password" |
    PGOPTIONS='-c password_encryption=scram-sha-256' setsid --wait psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 \
      --command "\\password backups_$role" "$@" >/dev/null
done
