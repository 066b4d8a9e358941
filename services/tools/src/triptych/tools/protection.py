"""What stands between a call and its upstream: the breaker, the bulkhead and the rate, in this order.

Each of them refuses before anything is done, and says so (`details.postponed`), so that no attempt is used up.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Self

import asyncpg

from triptych.kernel.errors import ConfigurationError
from triptych.schemas.result import ErrorCode, Result
from triptych.schemas.task import BreakerMode
from triptych.tools.breaker import TRIPPING, Breaker, BreakerOpenError, BreakerPolicy
from triptych.tools.failure import ToolFailure
from triptych.tools.guard import Guard
from triptych.tools.rates import Rates
from triptych.tools.tool import Tool

FULL_MS = 200
"""Who finds a bulkhead full comes back after this, and what the executor's backoff adds."""


@dataclass(slots=True)
class Passage:
    """A call that was let through; `came_back` is what the breaker learns from it."""

    came_back: Result | None = None


class Protection:
    """The breakers, bulkheads and rates of one tool in one process."""

    def __init__(self, operations: Iterable[str], policy: BreakerPolicy, guard: Guard, rates: Rates) -> None:
        self.breakers = {name: Breaker(policy) for name in operations}
        self._guard, self._rates = guard, rates
        self._under_way: Counter[str] = Counter()

    @classmethod
    def of(cls, tool: Tool, pool: asyncpg.Pool | None = None) -> Self:
        """What the tool and the environment ask for.

        Raises:
            ConfigurationError: they ask for something that is not there.
        """
        guard, policy = tool.guard.overridden(), tool.breaker
        if unknown := sorted(name for name in guard.operations if f"{tool.name}.{name}" not in tool.operations):
            raise ConfigurationError(f"tools.{tool.name}.guard.operations: there is no {', '.join(unknown)}")
        if guard.breaker is not None:
            policy = BreakerPolicy(guard.breaker.failures, guard.breaker.open_ms)
        return cls(tool.operations, policy, guard, Rates(pool, guard))

    def hold(self, mode: BreakerMode, operation: str | None, by: str) -> None:
        """Do what a person says to a breaker, or to all of them."""
        for name, breaker in self.breakers.items():
            if operation in {None, name}:
                breaker.force(mode, by)

    @asynccontextmanager
    async def admit(self, operation: str) -> AsyncIterator[Passage]:
        """Let a call through.

        Raises:
            ToolFailure: not now.
        """
        breaker = self.breakers[operation]
        try:
            admission = breaker.admit()
        except BreakerOpenError as error:
            raise _open(operation, breaker, error) from None
        passage = Passage()
        try:
            self._enter(operation)
            try:
                if self._rates.has_any(operation):
                    await self._rates.admit(operation)
                yield passage
            finally:
                self._under_way[operation] -= 1
        finally:
            if passage.came_back is None:
                breaker.forget(admission)
            else:
                failure = passage.came_back.error
                breaker.record(admission, failed=failure is not None and failure.code in TRIPPING)

    def _enter(self, operation: str) -> None:
        limit, total = self._guard.of(operation).concurrency, self._guard.concurrency
        full = limit is not None and self._under_way[operation] >= limit
        if full or (total is not None and self._under_way.total() >= total):
            whose, most = (operation, limit) if full else ("the upstream", total)
            raise ToolFailure(
                ErrorCode.UNAVAILABLE,
                f"{whose} has {most} calls under way, the most it may have; nothing was called",
                retry_after_ms=FULL_MS,
                undone=True,
                postponed="bulkhead",
            )
        self._under_way[operation] += 1


def _open(operation: str, breaker: Breaker, error: BreakerOpenError) -> ToolFailure:
    why = f"held open by {breaker.forced_by}" if breaker.mode is BreakerMode.OPEN else "open after repeated failures"
    return ToolFailure(
        ErrorCode.UNAVAILABLE,
        f"the breaker of {operation} is {why}; nothing was called",
        retry_after_ms=error.retry_after_ms,
        undone=True,
        postponed="breaker",
    )
