"""Who may change the live stores: restores need more than backups do."""

from __future__ import annotations

from pydantic import BaseModel, SecretStr

from scholaria_ops.connections import PostgresConnection, RedisConnection
from scholaria_ops.settings.field import named


class RestoreSettings(BaseModel):
    """Restores."""

    db_restore_user: str | None = named(
        "DB_RESTORE_USER",
        default=None,
        description="Role that restores: may make and rename databases and end sessions, so usually a superuser; without it, `DB_USER`",
    )
    db_restore_password: SecretStr | None = named(
        "DB_RESTORE_PASSWORD", default=None, description="Password of that role; without it, `DB_PASSWORD`"
    )

    redis_restore_username: str | None = named(
        "REDIS_RESTORE_USERNAME",
        default=None,
        description="ACL user that restores: may write, swap and empty databases; without it, `REDIS_USERNAME`",
    )
    redis_restore_password: SecretStr | None = named(
        "REDIS_RESTORE_PASSWORD", default=None, description="Password of that user; without it, `REDIS_PASSWORD`"
    )

    def restoring(self, live: PostgresConnection) -> PostgresConnection:
        """The connection to the live database, as the role that restores."""
        changed: dict[str, object] = {}
        if self.db_restore_user is not None:
            changed["user"] = self.db_restore_user
        if self.db_restore_password is not None:
            changed["password"] = self.db_restore_password
        return live.model_copy(update=changed)

    def restoring_redis(self, live: RedisConnection) -> RedisConnection:
        """The connection to the live Redis, as the ACL user that restores."""
        changed: dict[str, object] = {}
        if self.redis_restore_username is not None:
            changed["username"] = self.redis_restore_username
        if self.redis_restore_password is not None:
            changed["password"] = self.redis_restore_password
        return live.model_copy(update=changed)
