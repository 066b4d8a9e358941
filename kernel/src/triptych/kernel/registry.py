"""The registry: what each tool offers, as a table over the compacted topic `<prefix>.contracts`.

It reads the topic from its beginning without a group and keeps following it. It never refuses to
start because of what a tool announced: what cannot be read is skipped with a warning.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

import aiokafka
import jsonschema_rs
from aiokafka import TopicPartition
from pydantic import ValidationError

from triptych.kernel import cloudevents
from triptych.kernel.cancellation import foreign_cancellation
from triptych.kernel.errors import UndecodableRecord
from triptych.kernel.outage import KAFKA_GONE, Outage
from triptych.kernel.service import Service
from triptych.kernel.settings import ServiceSettings
from triptych.schemas import Contract, ToolContracts, topics

LOOP = "contracts"
POLL_MS = 1_000


def _refuse_reference(uri: str) -> Any:
    raise ValueError(f"the schema refers to {uri}; schemas of contracts must stand on their own")


@dataclass(frozen=True, slots=True)
class Offer:
    """A contract, with everything that is derived from it once."""

    contract: Contract
    hash: str
    arguments: jsonschema_rs.Draft202012Validator
    result: jsonschema_rs.Draft202012Validator

    @classmethod
    def of(cls, contract: Contract) -> Offer:
        """Raises ValueError when one of the contract's schemas is not a JSON Schema."""
        return cls(
            contract=contract,
            hash=contract.hash,
            arguments=jsonschema_rs.Draft202012Validator(contract.arguments, retriever=_refuse_reference),
            result=jsonschema_rs.Draft202012Validator(contract.result, retriever=_refuse_reference),
        )


class ContractRegistry:
    """A view of the contracts of all tools. Context manager; `ready` waits until it is complete."""

    def __init__(self, service: Service, settings: ServiceSettings) -> None:
        self._service, self._settings = service, settings
        self._topic = settings.topic(topics.CONTRACTS)
        self._tools: dict[str, dict[str, Offer]] = {}
        self._ready = asyncio.Event()
        self._changed = asyncio.Condition()
        self._following: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._service.health.expect(LOOP, 60.0)
        self._service.health.depend("contracts", self.ready)
        self._following = asyncio.create_task(self._follow(), name=LOOP)
        return self

    async def __aexit__(self, *_exc: object) -> None:
        if self._following is not None:
            self._following.cancel()
            await asyncio.wait({self._following}, timeout=5.0)

    async def ready(self) -> None:
        """Wait until everything that was announced before is known."""
        await self._ready.wait()

    def get(self, operation: str) -> Offer | None:
        """What is offered under this name, or None."""
        return self._tools.get(operation.partition(".")[0], {}).get(operation)

    def knows_tool(self, tool: str) -> bool:
        """Whether this tool has announced itself, whatever it offers."""
        return tool in self._tools

    def operations(self, patterns: Iterable[str]) -> dict[str, Offer]:
        """The offers that a playbook's `tools` allow (`tool.operation`, or `tool.*`), by name."""
        allowed = frozenset(patterns)
        return {
            operation: offer
            for tool in sorted(self._tools)
            for operation, offer in sorted(self._tools[tool].items())
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

    async def _follow(self) -> None:
        """Follow the topic over as many consumers as it takes."""
        outage = Outage(self._service.log, "kafka")
        while not self._service.stopping.is_set():
            try:
                with foreign_cancellation():
                    await self._consume(outage)
            except KAFKA_GONE as error:
                self._service.health.beat(LOOP)
                await outage.wait(error, unless=self._service.stopping)
            except Exception as error:
                # Nobody waits for this task, so it tries again. Without a beat: liveness fails if that does not help.
                self._service.log.exception("the registry of contracts has failed; it reads the topic again")
                await outage.wait(error, unless=self._service.stopping)

    async def _consume(self, outage: Outage) -> None:
        consumer = aiokafka.AIOKafkaConsumer(
            bootstrap_servers=self._settings.kafka,
            client_id=f"{self._settings.instance}-contracts",
            enable_auto_commit=False,
            auto_offset_reset="earliest",
        )
        # The topic has one partition: compaction keeps the newest record of each tool in it.
        partition = TopicPartition(self._topic, 0)
        try:
            await consumer.start()
            if self._topic not in await consumer.topics():
                raise ConnectionError(f"there is no topic {self._topic} yet; `triptych up` creates it")
            consumer.assign([partition])
            await consumer.seek_to_beginning(partition)
            end = (await consumer.end_offsets([partition]))[partition]
            outage.over()
            while True:
                polled = await consumer.getmany(partition, timeout_ms=POLL_MS if self._ready.is_set() else 50)
                self._service.health.beat(LOOP)
                await self._learn(polled.get(partition, []))
                if await consumer.position(partition) >= end:
                    self._ready.set()
        finally:
            await consumer.stop()

    async def _learn(self, records: list[aiokafka.ConsumerRecord[Any, Any]]) -> None:
        for record in records:
            try:
                self._apply(record)
            except (UndecodableRecord, ValidationError, ValueError) as error:
                self._service.log.warning(
                    "announcement skipped", topic=record.topic, offset=record.offset, error=str(error)
                )
        if records:
            async with self._changed:
                self._changed.notify_all()

    def _apply(self, record: aiokafka.ConsumerRecord[Any, Any]) -> None:
        if record.value is None:
            self._tools.pop((record.key or b"").decode(errors="replace"), None)
            return
        announced = ToolContracts.model_validate_json(cloudevents.body(record.headers, record.value))
        offers = {contract.operation: Offer.of(contract) for contract in announced.contracts}
        if strange := sorted(name for name in offers if name.partition(".")[0] != announced.tool):
            raise ValueError(f"tool {announced.tool} announced {', '.join(strange)}, which belong to another tool")
        self._tools[announced.tool] = offers
