"""What the tools offer: as the running stack has announced it, or as the configuration says."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass
from pathlib import Path

import aiokafka
from aiokafka.errors import KafkaError
from pydantic import ValidationError

from triptych.client import Address, KafkaUnreachableError, NoStackError, TopicMissingError
from triptych.commands.common.options import DEFAULT_CONFIG, broker, configuration
from triptych.embedded.config import StackConfig
from triptych.kernel.errors import TriptychError, UndecodableRecord
from triptych.kernel.kafka import cloudevents
from triptych.kernel.kafka.clients import Consumer
from triptych.kernel.kafka.record_batches import UnreadableRecord
from triptych.schemas import Contract, ToolContracts, codec, topics

_TIMEOUT_MS = 10_000


@dataclass(frozen=True, slots=True)
class Offered:
    """One tool, with the contracts of its operations, or what keeps them from being known."""

    tool: str
    contracts: tuple[Contract, ...] = ()
    problem: str | None = None


def offers(data: Path, kafka: str | None, prefix: str | None, config: Path | None) -> list[Offered]:
    """Return all tools by name: of the configuration if one is named or nothing runs, else as they were announced.

    Raises:
        KafkaUnreachableError: the stack that is meant does not answer.
        TopicMissingError: it has no topics of this prefix.
    """
    if config is None:
        try:
            address = broker(data, kafka, prefix)
        except NoStackError:
            config = configuration(DEFAULT_CONFIG)
        else:
            return sorted(asyncio.run(_announced(address)), key=lambda offered: offered.tool)
    return configured(StackConfig.load(config))


def configured(config: StackConfig) -> list[Offered]:
    """Build the tools of a configuration in this process. One that cannot be built says why."""
    from triptych.tools import Source  # noqa: PLC0415 - the tools' runtime is slow to import
    from triptych.tools.runtime.process import load_tool  # noqa: PLC0415

    found = []
    for name, table in sorted(config.table.tools.items()):
        if table.path is not None:
            sys.path.insert(0, str(config.directory / table.path))
        try:
            tool = load_tool(table.adapter, Source(name, table.options, config.directory))
        except TriptychError as error:
            found.append(Offered(name, problem=str(error)))
        else:
            found.append(Offered(name, tool.contracts.contracts))
    return found


async def _announced(address: Address) -> list[Offered]:
    consumer = Consumer(
        bootstrap_servers=address.kafka,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        request_timeout_ms=_TIMEOUT_MS,
    )
    partition = aiokafka.TopicPartition(f"{address.topic_prefix}.{topics.CONTRACTS}", 0)
    found: dict[str, Offered] = {}
    try:
        await consumer.start()
        if partition.topic not in await consumer.topics():
            raise TopicMissingError(partition.topic, address.kafka)
        consumer.assign([partition])
        end = (await consumer.end_offsets([partition]))[partition]
        await consumer.seek_to_beginning(partition)
        while await consumer.position(partition) < end:
            for record in (await consumer.getmany(partition, timeout_ms=1_000)).get(partition, []):
                _learn(found, record)
    except KafkaError as error:
        raise KafkaUnreachableError(address.kafka, error) from error
    finally:
        await consumer.stop()
    return list(found.values())


def _learn(found: dict[str, Offered], record: aiokafka.ConsumerRecord[bytes, bytes]) -> None:
    name = (record.key or b"").decode(errors="replace")
    if record.value is None and not isinstance(record, UnreadableRecord):
        found.pop(name, None)
        return
    try:
        announced = codec.read(ToolContracts, cloudevents.record_body(record))
    except (UndecodableRecord, codec.InvalidJson, ValidationError) as error:
        found[name] = Offered(name, problem=f"its announcement cannot be read: {error}")
    else:
        found[announced.tool] = Offered(announced.tool, announced.contracts)
