"""What a restore may do on the live server: the ACL user it needs, and whether it has the rights."""

from __future__ import annotations

from scholaria_ops.stores.live import Objection
from scholaria_ops.stores.redis.wire import ServerError, Wire

#: What a user needs for a restore: more than for a backup, so give it only to the one who restores.
RESTORE_RULES = (
    "~* resetchannels -@all +@read +@write +@connection +@transaction +info +replconf +sync +psync +swapdb +flushdb "
    "+config|get +config|set +function|list +function|flush +function|load +bgsave +bgrewriteaof +waitaof "
    "+acl|users +acl|whoami +acl|dryrun"
)

#: One command per kind that a restore sends, as the server is asked about it.
_ASKED: tuple[tuple[str, ...], ...] = (
    ("INFO", "everything"),
    ("SELECT", "0"),
    ("SCAN", "0"),
    ("SET", "k", "v"),
    ("GET", "k"),
    ("MGET", "k"),
    ("STRLEN", "k"),
    ("TYPE", "k"),
    ("DUMP", "k"),
    ("PEXPIRETIME", "k"),
    ("MEMORY", "USAGE", "k"),
    ("UNLINK", "k"),
    ("PEXPIREAT", "k", "1"),
    ("RPUSH", "k", "v"),
    ("LRANGE", "k", "0", "1"),
    ("SADD", "k", "v"),
    ("ZADD", "k", "1", "v"),
    ("HMSET", "k", "f", "v"),
    ("XADD", "k", "*", "f", "v"),
    ("XGROUP", "CREATE", "k", "g", "0"),
    ("XCLAIM", "k", "g", "c", "0", "1-1"),
    ("RESTORE", "k", "0", "v"),
    ("MULTI",),
    ("EXEC",),
    ("SWAPDB", "0", "1"),
    ("FLUSHDB", "ASYNC"),
    ("FUNCTION", "LIST"),
    ("FUNCTION", "FLUSH"),
    ("FUNCTION", "LOAD", "code"),
    ("REPLCONF", "capa", "eof"),
    ("SYNC",),
    ("CONFIG", "GET", "databases"),
)
#: Needed only where the server's settings make it so.
POLICY = ("CONFIG", "SET", "maxmemory-policy", "noeviction")
SAVE = ("BGSAVE",)
REWRITE = ("BGREWRITEAOF",)
WAIT = ("WAITAOF", "1", "0", "1")


def restore_hint(user: str = "restore") -> str:
    """How the operator makes a user for restores."""
    return (
        f"Make a user for restores (ACL SETUSER {user} on ><password> {RESTORE_RULES}) and name it in "
        "REDIS_RESTORE_USERNAME and REDIS_RESTORE_PASSWORD."
    )


def lacking_rights(wire: Wire, further: tuple[tuple[str, ...], ...]) -> list[Objection]:
    """What this user may not do, by the server's own answer (ACL DRYRUN); nothing is carried out."""
    (who,) = wire.batch([("ACL", "WHOAMI")])
    if isinstance(who, ServerError):
        return [_cannot_ask(wire, who)]
    asked = [*_ASKED, *further]
    replies = wire.batch([("ACL", "DRYRUN", who, *command) for command in asked])
    if isinstance(replies[0], ServerError):
        return [_cannot_ask(wire, replies[0])]
    refused: list[str] = []
    unknown: list[str] = []
    for command, reply in zip(asked, replies, strict=True):
        if reply == b"OK":
            continue
        name = " ".join(command[:2]) if command[0] in {"CONFIG", "FUNCTION", "MEMORY", "XGROUP"} else command[0]
        (unknown if isinstance(reply, ServerError) and "not found" in str(reply) else refused).append(name)
    user = who.decode("utf-8", "replace")
    found = []
    if refused:
        found.append(
            Objection(message=f"the user {user} of Redis at {wire.where} may not run {', '.join(refused)}", hint=restore_hint(user))
        )
    if unknown:
        found.append(
            Objection(
                message=f"Redis at {wire.where} knows no {', '.join(unknown)}: renamed or disabled there",
                hint="Allow them on that server (see rename-command in its configuration), or restore by hand as RESTORE.txt says.",
            )
        )
    return found


def _cannot_ask(wire: Wire, reply: ServerError) -> Objection:
    return Objection(message=f"Redis at {wire.where} does not say what we may do there: {reply}", hint=restore_hint())
