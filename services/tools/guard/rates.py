"""Rate limits that hold across processes: a bucket in Postgres for each operation with a rate, and for the upstream."""

from __future__ import annotations

from datetime import timedelta

import asyncpg

from triptych.kernel.postgres.database import Queries
from triptych.schemas.result import ErrorCode
from triptych.tools.sdk.failure import ToolFailure
from triptych.tools.sdk.guard import Guard, Rate

UPSTREAM = "*"
"""The bucket of all operations together."""


class RateLimits:
    """The buckets of one tool. Without a pool, as in a test of one call, there is no limit."""

    def __init__(self, pool: asyncpg.Pool | None, guard: Guard) -> None:
        self._pool, self._guard = pool, guard
        self._sql = Queries.load("triptych.tools.guard", "rates.sql")

    def has_any(self, operation: str) -> bool:
        """Return whether calls of this operation are limited at all."""
        return self._pool is not None and (self._guard.rate or self._guard.of(operation).rate) is not None

    async def admit(self, operation: str) -> None:
        """Take one call from the buckets.

        Raises:
            ToolFailure: `rate_limited`, with the moment at which this call should come back.
        """
        for bucket, text in ((operation, self._guard.of(operation).rate), (UPSTREAM, self._guard.rate)):
            if text is not None and self._pool is not None:
                await self._take(self._pool, bucket, text)

    async def _take(self, pool: asyncpg.Pool, bucket: str, text: str) -> None:
        rate = Rate.of(text)
        interval = timedelta(milliseconds=rate.interval_ms)
        ahead = interval * (rate.burst - 1)
        if await pool.fetchval(self._sql["admit"], bucket, interval, ahead):
            return
        wait: timedelta = await pool.fetchval(self._sql["next_slot"], bucket, interval, ahead)
        whose = "the upstream" if bucket == UPSTREAM else bucket
        raise ToolFailure(
            ErrorCode.RATE_LIMITED,
            f"{whose} may be called {text} and is; nothing was called",
            retry_after_ms=max(1, round(wait / timedelta(milliseconds=1))),
            undone=True,
            postponed="rate",
        )
