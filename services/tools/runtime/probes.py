"""Probe the upstream of a tool: call one read on a schedule, so that a failure shows before an agent meets it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from triptych.kernel.errors import ConfigurationError
from triptych.schemas.base import Json
from triptych.schemas.contract import Contract, Cost
from triptych.schemas.result import Result
from triptych.tools.runtime.alerts import Alerts
from triptych.tools.sdk.guard import ProbeGuard
from triptych.tools.sdk.tool import Tool

KIND = "probe"
NOTHING = "there is nothing to probe: name a read under guard.probe.operation"

Ask = Callable[[str, dict[str, Json]], Awaitable[Result]]


class ProbeFailedError(Exception):
    """The last probe failed; readiness says so."""


class Probe:
    """The probe of one tool; `ask` makes one call of an operation."""

    def __init__(self, tool: Tool, guard: ProbeGuard, alerts: Alerts, ask: Ask) -> None:
        """Raises ConfigurationError: the operation that is named is not there, or no read."""
        self._guard, self._alerts, self._ask = guard, alerts, ask
        self.operation = _operation(tool, guard)
        self._failure: str | None = None

    async def run(self) -> None:
        """Probe now and then on schedule, until cancelled."""
        while self.operation is not None and self._guard.every_s:
            await self.probe_now()
            await asyncio.sleep(self._guard.every_s)

    async def probe_now(self) -> str:
        """Probe once, and say in a sentence how it went."""
        if self.operation is None:
            return NOTHING
        began = time.monotonic()
        result = await self._ask(self.operation, self._guard.arguments)
        took_ms = round((time.monotonic() - began) * 1_000)
        if result.error is None:
            self._failure = None
            self._alerts.close(self.operation, KIND, always=True)
            return f"{self.operation} answered {result.status.value} within {took_ms} ms"
        self._failure = f"{self.operation} failed with {result.error.code.value}: {result.error.message}"
        self._alerts.open(self.operation, KIND, self._failure)
        return self._failure

    async def is_well(self) -> None:
        """Raises ProbeFailedError when the last probe failed."""
        if self._failure is not None:
            raise ProbeFailedError(self._failure)


def _operation(tool: Tool, guard: ProbeGuard) -> str | None:
    """Return the operation that is named, else the first read that costs nothing and needs no arguments."""
    if guard.operation is not None:
        name = f"{tool.name}.{guard.operation}"
        found = tool.operations.get(name)
        if found is None or found.contract.effect.writes:
            raise ConfigurationError(f"tools.{tool.name}.guard.probe.operation: {guard.operation} is not a read")
        return name
    return next((name for name, each in tool.operations.items() if _may_be_probed(each.contract)), None)


def _may_be_probed(contract: Contract) -> bool:
    return not contract.effect.writes and contract.cost == Cost() and not contract.arguments.get("required")
