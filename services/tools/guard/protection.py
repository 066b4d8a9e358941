"""Protect the upstream of a tool: breaker, bulkhead and rate limit, in this order.

Each of them refuses a call before anything is done, and says so in `details.postponed`. So no attempt is used up.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Self

import asyncpg

from triptych.kernel.errors import ConfigurationError
from triptych.schemas.result import ErrorCode, Result
from triptych.schemas.task import BreakerMode
from triptych.tools.guard.breaker import TRIPPING, AdmittedCall, Breaker, BreakerOpenError
from triptych.tools.guard.rates import RateLimits
from triptych.tools.sdk.failure import ToolFailure
from triptych.tools.sdk.guard import BreakerPolicy, Guard
from triptych.tools.sdk.tool import Tool

FULL_MS = 200
"""A call that finds a bulkhead full comes back after this time and the executor's backoff."""


class Permit:
    """The permit of one call to its upstream: an async context manager.

    Set `result` to what the call gave: the breaker learns from it.
    """

    def __init__(self, operation: str, breaker: Breaker, load: Bulkheads, rates: RateLimits) -> None:
        self._operation, self._breaker, self._load, self._rates = operation, breaker, load, rates
        self._admission: AdmittedCall
        self.result: Result | None = None

    async def __aenter__(self) -> Self:
        """Raises ToolFailure: not now."""
        try:
            self._admission = self._breaker.admit()
        except BreakerOpenError as error:
            raise _open(self._operation, self._breaker, error) from None
        try:
            self._load.enter(self._operation)
            if self._rates.has_any(self._operation):
                try:
                    await self._rates.admit(self._operation)
                except BaseException:
                    self._load.leave(self._operation)
                    raise
        except BaseException:
            self._breaker.forget(self._admission)
            raise
        return self

    async def __aexit__(self, *_exc: object) -> None:
        self._load.leave(self._operation)
        if self.result is None:
            self._breaker.forget(self._admission)
        else:
            failure = self.result.error
            self._breaker.record(self._admission, failed=failure is not None and failure.code in TRIPPING)


class Bulkheads:
    """The bulkheads of a tool: they count the calls under way and limit them."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self._under_way: Counter[str] = Counter()

    def enter(self, operation: str) -> None:
        """Raises ToolFailure: a bulkhead is full."""
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

    def leave(self, operation: str) -> None:
        self._under_way[operation] -= 1


class Protection:
    """The breakers, bulkheads and rates of one tool in one process."""

    def __init__(self, operations: Iterable[str], policy: BreakerPolicy, guard: Guard, rates: RateLimits) -> None:
        self.breakers = {name: Breaker(policy) for name in operations}
        self._load, self._rates = Bulkheads(guard), rates

    @classmethod
    def of(cls, tool: Tool, pool: asyncpg.Pool | None = None) -> Self:
        """Return the protection that the tool and the environment ask for.

        Raises:
            ConfigurationError: they ask for something that is not there.
        """
        guard, policy = tool.guard.overridden(), tool.breaker
        if unknown := sorted(name for name in guard.operations if f"{tool.name}.{name}" not in tool.operations):
            raise ConfigurationError(f"tools.{tool.name}.guard.operations: there is no {', '.join(unknown)}")
        if guard.breaker is not None:
            policy = BreakerPolicy(guard.breaker.failures, guard.breaker.open_ms)
        return cls(tool.operations, policy, guard, RateLimits(pool, guard))

    def hold(self, mode: BreakerMode, operation: str | None, by: str) -> None:
        """Hold one breaker, or all of them, as a person has said."""
        for name, breaker in self.breakers.items():
            if operation in {None, name}:
                breaker.force(mode, by)

    def admit(self, operation: str) -> Permit:
        """Return the permit of one call. To enter it raises ToolFailure when the call must wait."""
        return Permit(operation, self.breakers[operation], self._load, self._rates)


def _open(operation: str, breaker: Breaker, error: BreakerOpenError) -> ToolFailure:
    why = f"held open by {breaker.forced_by}" if breaker.mode is BreakerMode.OPEN else "open after repeated failures"
    return ToolFailure(
        ErrorCode.UNAVAILABLE,
        f"the breaker of {operation} is {why}; nothing was called",
        retry_after_ms=error.retry_after_ms,
        undone=True,
        postponed="breaker",
    )
