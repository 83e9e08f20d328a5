#!/usr/bin/env bash
# The files of one set into three fresh servers that already run: all at once, nothing compared.
set -euo pipefail
. "${BASH_SOURCE%/*}/common.sh"
cd "$SET"

database() {
  grep -v -E '^(CREATE|ALTER) ROLE postgres\b' postgres_globals_*.sql | pg psql --quiet --no-psqlrc --dbname=postgres --set=ON_ERROR_STOP=1
  pg pg_restore --create --dbname=postgres --jobs=2 --exit-on-error postgres_*.sql.custom
}

keys() {
  $FAST_GUNZIP < "$(echo redis_*.rdb.gz)" > "$REDIS_DUMP"
  chmod 644 "$REDIS_DUMP" # the server runs under another account
  [[ $(redis DEBUG RELOAD NOSAVE) == OK ]]
}

points() {
  local collection
  for collection in $COLLECTIONS; do
    http upload "$QDRANT_URL/collections/$collection/snapshots/upload?priority=snapshot&wait=true" "$(echo qdrant_*/"$collection".snapshot)"
  done
}

step pg_restore database & one=$!
step redis_reload keys & two=$!
step qdrant_upload points & three=$!
join "$one" "$two" "$three"
