#!/bin/sh
# Sets the passwords of the roles of roles.sql, as a superuser: passwords.sh [ARGUMENTS OF PSQL]
# Each password is read from the file that BACKUPS_OWNER_PASSWORD_FILE (BACKUPS_IMPORT_..., BACKUPS_SERVICE_...) names, or from
# BACKUPS_OWNER_PASSWORD itself. psql computes the SCRAM verifier: the server, and so its log, never sees a password.
set -eu

for role in owner import service; do
  name=BACKUPS_$(echo "$role" | tr '[:lower:]' '[:upper:]')_PASSWORD
  eval "file=\${${name}_FILE:-} password=\${$name:-}"
  if [ -n "$file" ]; then password=$(cat "$file"); fi
  if [ -z "$password" ]; then
    echo "passwords.sh: set $name or ${name}_FILE" >&2
    exit 1
  fi
  # \password asks the terminal; setsid leaves none, so that it reads standard input.
  printf '%s\n%s\n' "$password" "$password" |
    PGOPTIONS='-c password_encryption=scram-sha-256' setsid --wait psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 \
      --command "\\password backups_$role" "$@" >/dev/null
done
