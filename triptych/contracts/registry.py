"""The registry: the contracts of each tool, as a table over the compacted topic `<prefix>.contracts`.

An announcement that cannot be read does not stop the start: it is skipped with a warning.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Self

from triptych.contracts.compiled_contract import CompiledContract
from triptych.kernel.kafka import cloudevents
from triptych.kernel.kafka.compacted_topic import CompactedTopic, Record
from triptych.kernel.process.service import Service
from triptych.kernel.process.settings import ServiceSettings
from triptych.schemas import ToolContracts, codec, topics

MAX_REMEMBERED = 20_000
"""The registry knows this many contracts by their hash, the current ones among them."""


class ContractRegistry:
    """A view of the contracts of all tools. Context manager; `ready` waits until it is complete."""

    def __init__(self, service: Service, settings: ServiceSettings) -> None:
        self._tools: dict[str, dict[str, CompiledContract]] = {}
        self._remembered: OrderedDict[str, CompiledContract] = OrderedDict()
        self.changes = 0
        """How often what the tools offer has changed since this process began."""
        self._changed = asyncio.Condition()
        self._topic = CompactedTopic(service, settings, topics.CONTRACTS, self._apply, self._notify)

    async def __aenter__(self) -> Self:
        await self._topic.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._topic.__aexit__(*exc)

    async def ready(self) -> None:
        """Wait until everything that was announced before is known."""
        await self._topic.ready()

    def get(self, operation: str) -> CompiledContract | None:
        """Return the contract of an operation, or None."""
        return self._tools.get(operation.partition(".")[0], {}).get(operation)

    def remembered(self, contract_hash: str) -> CompiledContract | None:
        """Return the contract with this hash, also one that its tool has replaced since this process began."""
        return self._remembered.get(contract_hash)

    def knows_tool(self, tool: str) -> bool:
        """Return whether this tool has announced itself, also without operations."""
        return tool in self._tools

    def operations(self, patterns: Iterable[str]) -> dict[str, CompiledContract]:
        """Return the contracts that a playbook's `tools` allow (`tool.operation`, or `tool.*`), by operation."""
        allowed = frozenset(patterns)
        return {
            operation: contract
            for tool in sorted(self._tools)
            for operation, contract in sorted(self._tools[tool].items())
            if operation in allowed or f"{tool}.*" in allowed
        }

    async def wait_for_tools(self, tools: Iterable[str], timeout_s: float) -> None:
        """Wait until all these tools have announced themselves, or the time is over."""
        wanted = frozenset(tools)
        try:
            async with asyncio.timeout(timeout_s), self._changed:
                await self._changed.wait_for(lambda: wanted <= self._tools.keys())
        except TimeoutError:
            return

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    def _apply(self, record: Record) -> None:
        if record.value is None:
            gone = self._tools.pop((record.key or b"").decode(errors="replace"), None)
            self.changes += gone is not None
            return
        announced = codec.read(ToolContracts, cloudevents.record_body(record))
        contracts = {contract.operation: CompiledContract.of(contract) for contract in announced.contracts}
        if strange := sorted(name for name in contracts if name.partition(".")[0] != announced.tool):
            raise ValueError(f"tool {announced.tool} announced {', '.join(strange)}, which belong to another tool")
        self.changes += _hashes(self._tools.get(announced.tool)) != _hashes(contracts)
        self._tools[announced.tool] = contracts
        for contract in contracts.values():
            self._remembered[contract.hash] = contract
            self._remembered.move_to_end(contract.hash)
        while len(self._remembered) > MAX_REMEMBERED:
            self._remembered.popitem(last=False)


def _hashes(contracts: Mapping[str, CompiledContract] | None) -> dict[str, str] | None:
    """Return the hash of each contract, by operation. A tool that is not known differs from one without operations."""
    return None if contracts is None else {operation: contract.hash for operation, contract in contracts.items()}
