"""Redis: dumped through its own replication stream, measured by loading what was dumped."""

from scholaria_ops.stores.redis.store import RedisStore

__all__ = ["RedisStore"]
