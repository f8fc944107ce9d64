#!/bin/sh
# Starts the server, on an empty volume after making the system tables.
set -e
[ "$(id -u)" != 0 ] || exec gosu mysql "$0" "$@"
[ -d /var/lib/mysql/mysql ] || mariadb-install-db --auth-root-authentication-method=normal > /dev/null
exec "$@"
