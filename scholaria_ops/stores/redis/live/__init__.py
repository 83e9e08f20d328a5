"""Restoring Redis while it serves: beside what is served, exchanged at one instant, and back again."""

from scholaria_ops.stores.redis.live.plan import RedisPlan
from scholaria_ops.stores.redis.live.rights import RESTORE_RULES
from scholaria_ops.stores.redis.live.store import RedisLive
from scholaria_ops.stores.redis.live.tasks import QueuedTask

__all__ = ["RESTORE_RULES", "QueuedTask", "RedisLive", "RedisPlan"]
