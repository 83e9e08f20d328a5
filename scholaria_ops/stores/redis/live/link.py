"""How the live server is reached during a restore."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

from scholaria_ops.cancel import CancelToken
from scholaria_ops.connections import RedisConnection
from scholaria_ops.stores.base import Context
from scholaria_ops.stores.redis.load import make_durable
from scholaria_ops.stores.redis.sync import SyncMode
from scholaria_ops.stores.redis.wire import Wire, connect


@dataclass(frozen=True, slots=True)
class Link:
    """The live server's address, our patience (seconds of silence), and how it makes an RDB for us."""

    connection: RedisConnection
    timeout_s: float
    sync_mode: SyncMode

    @property
    def where(self) -> str:
        return self.connection.where

    def wire(self, ctx: Context) -> AbstractContextManager[Wire]:
        return connect(self.connection, timeout_s=self.timeout_s, cancel=ctx.cancel)

    def durable(self, ctx: Context) -> tuple[float, tuple[str, ...]]:
        """Wait until a restart would serve what is served now; returns seconds and warnings."""
        return make_durable(self.connection, ctx, timeout_s=self.timeout_s)


def to_the_end(ctx: Context) -> Context:
    """For what must be carried through although the run was cancelled: taking back."""
    return replace(ctx, cancel=CancelToken())
