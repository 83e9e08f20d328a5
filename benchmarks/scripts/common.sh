# Sourced by the scripts beside it. Where everything is comes through the environment (PG_BIN, PG_LIBS, PG*, REDIS_*, QDRANT_URL,
# COLLECTIONS, PYTHON, HTTP_TOOL, FAST_GZIP); passwords only as PGPASSWORD and REDISCLI_AUTH, which the tools read themselves.
umask 077

# PostgreSQL's tools may carry libraries of their own, which no other program may see.
pg() {
  local tool=$1
  shift
  if [[ -n ${PG_LIBS:-} ]]; then LD_LIBRARY_PATH=$PG_LIBS "$PG_BIN/$tool" "$@"; else "$PG_BIN/$tool" "$@"; fi
}

redis() { "$REDIS_CLI" -h "$REDIS_HOST" -p "$REDIS_PORT" "$@"; }

# Prints "<name> <seconds>" for the command that follows the name.
step() {
  local name=$1 began=$EPOCHREALTIME
  shift
  "$@"
  echo "step $name $(awk -v a="$began" -v b="$EPOCHREALTIME" 'BEGIN { printf "%.3f", b - a }')"
}

# http post|delete URL → body on standard output; http get URL FILE; http upload URL FILE (multipart field "snapshot")
http() {
  if [[ -n ${HTTP_TOOL:-} ]]; then
    "$PYTHON" "$HTTP_TOOL" "$@"
    return
  fi
  case $1 in
    post) curl --silent --show-error --fail --request POST "$2" ;;
    delete) curl --silent --show-error --fail --request DELETE "$2" > /dev/null ;;
    get) curl --silent --show-error --fail --output "$3" "$2" ;;
    upload) curl --silent --show-error --fail --request POST --form "snapshot=@$3" "$2" > /dev/null ;;
  esac
}

# One snapshot: made, downloaded to <collection>.snapshot, removed from the server.
snapshot() {
  local at="$QDRANT_URL/collections/$1/snapshots" name
  name=$(http post "$at?wait=true" | sed -E 's/.*"name":"([^"]+)".*/\1/')
  http get "$at/$name" "$1.snapshot"
  http delete "$at/$name?wait=true"
}

# Waits for the processes given by id and fails with the first that failed.
join() {
  local failed=0 pid
  for pid in "$@"; do wait "$pid" || failed=$?; done
  return "$failed"
}
