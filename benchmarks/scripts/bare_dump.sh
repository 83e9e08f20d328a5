#!/usr/bin/env bash
# The fastest way that the tools themselves offer: all three stores at once, nothing measured, nothing checked.
set -euo pipefail
. "${BASH_SOURCE%/*}/common.sh"
mkdir "$OUT" && cd "$OUT"

rdb() { redis --rdb - 2> redis.log | $FAST_GZIP > redis.rdb.gz; }

snapshots() {
  local collection
  for collection in $COLLECTIONS; do snapshot "$collection"; done
}

step pg_dump_zstd pg pg_dump --format=custom --compress=zstd:1 --file=postgres.custom & one=$!
step redis_rdb_fast_gzip rdb & two=$!
step qdrant_snapshot snapshots & three=$!
join "$one" "$two" "$three"
