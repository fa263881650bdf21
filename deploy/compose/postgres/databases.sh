#!/bin/sh
# On the first start only: makes a database for each service whose address is a secret of this container, and a role that
# can open this database only.
set -eu
for address in /run/secrets/*_db_uri; do
    service=$(basename "$address" _db_uri)
    PASSWORD=$(sed 's,.*://[^:]*:\([^@]*\)@.*,\1,' "$address")
    export PASSWORD
    psql --quiet --set=ON_ERROR_STOP=1 --username=postgres --dbname=postgres \
        --set=role="$service" --set=database="${service}_db" <<'SQL'
\getenv password PASSWORD
CREATE ROLE :"role" LOGIN PASSWORD :'password';
CREATE DATABASE :"database" OWNER :"role";
REVOKE CONNECT ON DATABASE :"database" FROM PUBLIC;
SQL
done
