"""RESTORE.txt: how to restore the RDB by hand, past the trap that an append-only file is."""

from __future__ import annotations

from collections.abc import Sequence

from scholaria_ops.catalogue.artifacts import Artifact

_TEXT = """\
Redis
=====

The file {path} is an exact Redis snapshot (RDB), compressed with gzip. It holds all databases,
every key with its absolute expiry, and functions. It does not hold ACL users, configuration or passwords: keep
redis.conf and the ACL file. The restored server must be at least as new as the one the snapshot was taken from.

A server with "appendonly yes" IGNORES dump.rdb and starts empty, without a word. So it is started once without its
append-only file, told to write one from the restored data, and only then started as usual. All old data of this
server are replaced: keep a copy of its directory until you have looked at the result.

Set these four for your server (REDIS_DIR is its data directory, "CONFIG GET dir"; REDIS_CONF its configuration), and
put its password, if it has one, into REDISCLI_AUTH:

    REDIS_DIR=/var/lib/redis
    REDIS_CONF=/etc/redis/redis.conf
    REDIS_PORT=6379
    export REDISCLI_AUTH=

1. Stop Redis (for example: systemctl stop redis-server, or docker compose stop redis). Check that it is gone:

    ! redis-cli -p "$REDIS_PORT" PING

2. Move the old data aside and put the snapshot in their place (from the directory of this file):

    mkdir "$REDIS_DIR/before-restore"
    for old in dump.rdb appendonly.aof appendonlydir; do
      if [ -e "$REDIS_DIR/$old" ]; then mv "$REDIS_DIR/$old" "$REDIS_DIR/before-restore/"; fi
    done
    gunzip -c {path} > "$REDIS_DIR/dump.rdb"
    test "$(sha256sum < "$REDIS_DIR/dump.rdb" | cut -d' ' -f1)" = {raw_sha256}

   The file must be readable and writable by the account that Redis runs under (chown redis: "$REDIS_DIR/dump.rdb").

3. Start Redis by hand, under that account, without its append-only file and without saving, and look at what it loaded:

    redis-server "$REDIS_CONF" --dir "$REDIS_DIR" --dbfilename dump.rdb --appendonly no --save "" --daemonize yes
    until redis-cli -p "$REDIS_PORT" PING | grep -q PONG; do sleep 0.2; done
    redis-cli -p "$REDIS_PORT" INFO keyspace

4. Have it write an append-only file from these data, wait until that is done, and stop it:

    redis-cli -p "$REDIS_PORT" CONFIG SET appendonly yes
    while redis-cli -p "$REDIS_PORT" INFO persistence | grep -qE "aof_rewrite_(in_progress|scheduled):1"; do sleep 0.2; done
    redis-cli -p "$REDIS_PORT" INFO persistence | grep aof_last_bgrewrite_status:ok
    redis-cli -p "$REDIS_PORT" SHUTDOWN NOSAVE
    while redis-cli -p "$REDIS_PORT" PING >/dev/null 2>&1; do sleep 0.2; done

5. Start Redis as usual and compare with the numbers in backup_manifest.json (keys that expired since are gone):

    redis-cli -p "$REDIS_PORT" INFO keyspace

If maxmemory is set with an eviction policy, make sure that it is larger than before: Redis evicts restored keys otherwise.
"""


def manual_restore(artifacts: Sequence[Artifact]) -> str:
    """The section for this set's RDB (there is one per set)."""
    return "\n".join(_TEXT.format(path=a.path, raw_sha256=a.raw_sha256) for a in artifacts if a.kind == "rdb")
