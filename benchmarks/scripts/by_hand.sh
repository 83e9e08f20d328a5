#!/usr/bin/env bash
# A backup by hand as the operators' guide has it, done right: standard tools with their defaults, one step after another.
set -euo pipefail
. "${BASH_SOURCE%/*}/common.sh"
mkdir "$OUT" && cd "$OUT"

plain() { pg pg_dump | gzip > postgres.sql.gz; }

bgsave() {
  redis BGSAVE > /dev/null
  while [[ $(redis INFO persistence) != *rdb_bgsave_in_progress:0* ]]; do sleep 0.1; done
  [[ $(redis INFO persistence) == *rdb_last_bgsave_status:ok* ]]
  gzip --stdout "$REDIS_DUMP" > redis.rdb.gz
}

snapshots() {
  local collection
  for collection in $COLLECTIONS; do
    snapshot "$collection"
    gzip "$collection.snapshot"
  done
}

sums() { sha256sum -- * > SHA256SUMS; }

check() {
  sha256sum --check --quiet SHA256SUMS
  pg pg_restore --list postgres.custom > /dev/null
  gzip --test -- *.gz
}

step custom_dump pg pg_dump --format=custom --file=postgres.custom
step plain_dump_gzip plain
step globals pg pg_dumpall --globals-only --file=globals.sql
step bgsave_gzip bgsave
step qdrant_snapshot_gzip snapshots
step sha256sum sums
step check check
