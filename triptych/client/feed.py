"""A feed: outcomes (and dead letters, if wanted) as they are published, read without a consumer group.

Where it starts is settled when it is opened, so that nothing submitted afterwards is missed.
Partitions added while it is open are seen by the next feed.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from typing import Any, Self

import aiokafka
from aiokafka.errors import KafkaError
from pydantic import ValidationError

from triptych.client.address import Address
from triptych.client.errors import KafkaUnreachableError, TopicMissingError
from triptych.kernel.errors import UndecodableRecord
from triptych.kernel.kafka import cloudevents
from triptych.kernel.kafka.clients import Admin, Consumer, dead_task
from triptych.schemas import DeadLetter, Outcome, codec
from triptych.schemas import topics as t

POLL_MS = 500
CONNECT_TIMEOUT_MS = 10_000
_TOLD_CHARS = 200

_MESSAGES: dict[str, type[Outcome | DeadLetter]] = {t.OUTCOMES: Outcome, t.DEAD_LETTERS: DeadLetter}
_log = logging.getLogger(__name__)


class Feed:
    """Async context manager and async iterator of messages. It ends only when opened with `to_end`."""

    def __init__(self, address: Address, nouns: Sequence[str], *, from_start: bool, to_end: bool = False) -> None:
        self._address = address
        self._messages = {address.topic(noun): _MESSAGES[noun] for noun in nouns}
        self._from_start, self._to_end = from_start, to_end
        self._ends: dict[aiokafka.TopicPartition, int] = {}
        self._ready: deque[Outcome | DeadLetter] = deque()
        self._consumer: Consumer | None = None

    async def __aenter__(self) -> Self:
        consumer = Consumer(
            bootstrap_servers=self._address.kafka,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            request_timeout_ms=CONNECT_TIMEOUT_MS,
        )
        try:
            await consumer.start()
            await self._assign(consumer)
        except KafkaError as error:
            await consumer.stop()
            raise KafkaUnreachableError(self._address.kafka, error) from error
        except BaseException:
            await consumer.stop()
            raise
        self._consumer = consumer
        return self

    async def __aexit__(self, *_exc: object) -> None:
        if self._consumer is not None:
            await self._consumer.stop()

    async def _assign(self, consumer: Consumer) -> None:
        partitions = await self._partitions()
        consumer.assign(partitions)
        starts = await consumer.beginning_offsets(partitions)
        ends = await consumer.end_offsets(partitions)
        for partition in partitions:
            consumer.seek(partition, (starts if self._from_start else ends)[partition])
        if self._to_end:
            self._ends = {partition: end for partition, end in ends.items() if end > starts[partition]}

    async def _partitions(self) -> list[aiokafka.TopicPartition]:
        admin = Admin(bootstrap_servers=self._address.kafka, request_timeout_ms=CONNECT_TIMEOUT_MS)
        try:
            await admin.start()
            described = await admin.describe_topics(list(self._messages))
        finally:
            await admin.close()
        for topic in described:
            if topic["error_code"]:
                raise TopicMissingError(topic["topic"], self._address.kafka)
        return [
            aiokafka.TopicPartition(topic["topic"], each["partition"])
            for topic in described
            for each in topic["partitions"]
        ]

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Outcome | DeadLetter:
        if self._consumer is None:
            raise RuntimeError("the feed is not open; use it as `async with client.feed() as feed`")
        while not self._ready:
            if self._to_end and not self._ends:
                raise StopAsyncIteration
            if (died := dead_task(self._consumer)) is not None:
                raise KafkaUnreachableError(self._address.kafka, died) from died
            polled = await self._consumer.getmany(timeout_ms=POLL_MS)
            for records in polled.values():
                self._ready.extend(message for record in records if (message := self._decode(record)))
            for partition, end in tuple(self._ends.items()):
                if await self._consumer.position(partition) >= end:
                    del self._ends[partition]
        return self._ready.popleft()

    def _decode(self, record: aiokafka.ConsumerRecord[Any, Any]) -> Outcome | DeadLetter | None:
        """Decode a message; None for a record of other software that is not a message of ours."""
        try:
            return codec.read(self._messages[record.topic], cloudevents.record_body(record), limits=codec.STORED)
        except (ValidationError, codec.InvalidJson, UndecodableRecord) as error:
            said = str(error).replace("\n", " ")[:_TOLD_CHARS]
            _log.warning("%s[%d]@%d is not readable: %s", record.topic, record.partition, record.offset, said)
            return None
