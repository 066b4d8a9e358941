"""DriftWatch for drift: compare what a tool's source offers now with the contracts that were accepted.

A compatible change is taken over and announced. A breaking change puts its operation in quarantine: calls of it are
refused, with the difference, until a person accepts it. A new operation is not offered before a person has allowed it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from triptych.kernel.errors import TriptychError
from triptych.kernel.process.log import Logger
from triptych.tools.runtime.alerts import Alerts
from triptych.tools.sdk.contract_diff import Change, Difference, compare, unaccepted_changes
from triptych.tools.sdk.contract_origin import ContractOrigin
from triptych.tools.sdk.operation import Operation
from triptych.tools.sdk.tool import Tool

KIND = "drift"


def _accepted(origin: ContractOrigin) -> Tool:
    return origin.build(origin.file.read_bytes())


class DriftWatch:
    """Compares on a schedule, and whenever somebody asks."""

    def __init__(self, tool: Tool, every_s: int, alerts: Alerts, log: Logger) -> None:
        self._tool, self._every_s, self._alerts, self._log = tool, every_s, alerts, log
        self._accepted: Mapping[str, Operation] = dict(tool.operations)
        self._reported: dict[str, str] = {}

    async def run(self) -> None:
        """Compare now and then on schedule, until cancelled."""
        if self._tool.origin is not None and self._tool.origin.is_watched:
            await self._follow_adapter()
        while self._tool.origin is not None and self._every_s:
            await self.compare_now()
            await asyncio.sleep(self._every_s)

    async def _follow_adapter(self) -> None:
        """Tell what the adapter itself has found, whenever it has looked."""
        while True:
            self._tool.compared.clear()
            self._report()
            await self._tool.compared.wait()

    def _report(self) -> None:
        found = self._tool.reworded | self._tool.quarantined
        for name, what in found.items():
            if self._reported.get(name) != what:
                self._alerts.open(name, KIND, what)
        self._alerts.close_others(KIND, found)
        self._reported = found

    async def compare_now(self) -> None:
        """Compare once. A source that does not answer unaccepted_changes nothing; the probe is there to tell."""
        origin = self._tool.origin
        if origin is None:
            return
        if origin.is_watched:
            if origin.reload is not None:
                await self._reload(origin, origin.reload)
            return
        try:
            # Built in a thread, for a document may be large, and calls go on meanwhile.
            accepted = await asyncio.to_thread(_accepted, origin)
            now = await asyncio.to_thread(origin.build, await origin.fetch())
        except (TriptychError, OSError) as error:
            self._log.warning("the contracts could not be compared with their source", error=str(error))
            return
        except Exception:  # noqa: BLE001
            # The document comes from outside, and this task must not end.
            self._log.exception("the contracts could not be compared with their source")
            return
        self._take_over(accepted)
        found = {each.operation: each for each in compare(self._tool.operations, now.operations)}
        for name in tuple(self._tool.operations):
            self._apply(name, found.get(name), now.operations.get(name))
        self._alerts.close_others(KIND, self._tool.quarantined)
        if new := sorted(name for name, each in found.items() if each.change is Change.NEW):
            self._log.info("the source offers more than was accepted", operations=new)

    async def _reload(self, origin: ContractOrigin, reload: Callable[[bytes], None]) -> None:
        """Let the adapter take over what somebody has accepted since it read the file."""
        try:
            reload(await asyncio.to_thread(origin.file.read_bytes))
        except (TriptychError, OSError, ValueError) as error:
            self._log.warning("what was accepted cannot be read", file=str(origin.file), error=str(error))

    def _take_over(self, accepted: Tool) -> None:
        """Take over what a person has accepted since this process was started."""
        for name, operation in accepted.operations.items():
            before = self._accepted.get(name)
            if before is not None and name in self._tool.operations and unaccepted_changes(before, operation):
                self._tool.operations[name] = operation
                self._tool.changed.set()
                self._log.info("an accepted contract was taken over", operation=name)
        self._accepted = accepted.operations

    def _apply(self, name: str, difference: Difference | None, now: Operation | None) -> None:
        if difference is not None and difference.breaks:
            self._tool.quarantined[name] = str(difference)
            self._alerts.open(name, KIND, str(difference))
            return
        self._tool.quarantined.pop(name, None)
        if difference is not None and now is not None:
            self._tool.replace(now)
            self._log.info("a compatible change of a contract was taken over", operation=name)
