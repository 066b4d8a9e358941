"""Follow a compacted topic: a table that each process has a copy of, such as the contracts of tools.

It reads the topic from its beginning, without a group, and goes on reading. A record that cannot be understood is
skipped with a warning and never stops anybody.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Self, TypeAlias

import aiokafka
from aiokafka import TopicPartition
from pydantic import ValidationError

from triptych.kernel.concurrency.cancellation import foreign_cancellation
from triptych.kernel.errors import UndecodableRecord
from triptych.kernel.kafka.bus import REQUEST_MAX_BYTES
from triptych.kernel.kafka.clients import Consumer, ConsumerWatch
from triptych.kernel.kafka.record_batches import check_readable
from triptych.kernel.process.outage import KAFKA_GONE, Outage
from triptych.kernel.process.service import Service
from triptych.kernel.process.settings import ServiceSettings
from triptych.schemas.base import shortened

LARGE_BYTES = 65_536
"""After a record of this size others get a turn."""
POLL_MS = 1_000
CATCHING_UP_MS = 50

Record: TypeAlias = "aiokafka.ConsumerRecord[Any, Any]"


class CompactedTopic:
    """Feeds every record, old and new, to `apply`. Context manager; `ready` waits until all the old ones are in."""

    def __init__(
        self,
        service: Service,
        settings: ServiceSettings,
        noun: str,
        apply: Callable[[Record], None],
        changed: Callable[[], Awaitable[None]] | None = None,
        *,
        required: bool = True,
    ) -> None:
        """`apply` may raise UndecodableRecord or ValueError; `changed` is told after each batch.

        A process whose topic is not `required` is ready without it.
        """
        self._service, self._settings, self._noun = service, settings, noun
        self._topic = settings.topic(noun)
        self._apply, self._changed, self._required = apply, changed, required
        self._ready = asyncio.Event()
        self._following: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._service.health.expect(self._noun, 60.0)
        if self._required:
            self._service.health.depend(self._noun, self.ready)
        self._following = asyncio.create_task(self._follow(), name=self._noun)
        return self

    async def __aexit__(self, *_exc: object) -> None:
        if self._following is not None:
            self._following.cancel()
            await asyncio.wait({self._following}, timeout=5.0)

    async def ready(self) -> None:
        """Wait until everything that was there at the start is known."""
        await self._ready.wait()

    async def _follow(self) -> None:
        """Follow the topic over as many consumers as it takes."""
        outage = Outage(self._service.log, "kafka")
        while not self._service.stopping.is_set():
            try:
                with foreign_cancellation():
                    await self._consume(outage)
            except KAFKA_GONE as error:
                self._service.health.beat(self._noun)
                await outage.wait(error, unless=self._service.stopping)
            except Exception as error:
                # No other task waits for this one, so it tries again. Without a beat: liveness fails if that does not
                # help.
                self._service.log.exception("a topic could not be followed; it is read again", topic=self._topic)
                await outage.wait(error, unless=self._service.stopping)

    async def _consume(self, outage: Outage) -> None:
        consumer = Consumer(
            bootstrap_servers=self._settings.kafka,
            client_id=f"{self._settings.instance}-{self._noun}",
            enable_auto_commit=False,
            auto_offset_reset="earliest",
        )
        # The topic has one partition: compaction keeps the newest record of each key in it.
        partition = TopicPartition(self._topic, 0)
        try:
            async with ConsumerWatch(lambda: consumer):
                await self._read(consumer, partition, outage)
        finally:
            await consumer.stop()

    async def _read(self, consumer: Consumer, partition: TopicPartition, outage: Outage) -> None:
        await consumer.start()
        if self._topic not in await consumer.topics():
            raise ConnectionError(f"there is no topic {self._topic} yet; `triptych up` creates it")
        consumer.assign([partition])
        await consumer.seek_to_beginning(partition)
        end = (await consumer.end_offsets([partition]))[partition]
        outage.over()
        while True:
            polled = await consumer.getmany(partition, timeout_ms=POLL_MS if self._ready.is_set() else CATCHING_UP_MS)
            self._service.health.beat(self._noun)
            await self._learn(polled.get(partition, []))
            if await consumer.position(partition) >= end:
                self._ready.set()

    async def _learn(self, records: list[Record]) -> None:
        for record in records:
            try:
                _check_size(record)
                check_readable(record)
                self._apply(record)
            except (UndecodableRecord, ValidationError, ValueError) as error:
                why = shortened(str(error))
                self._service.log.warning("record skipped", topic=record.topic, offset=record.offset, error=why)
            if len(record.value or b"") > LARGE_BYTES:
                self._service.health.beat(self._noun)
                await asyncio.sleep(0)
        if records and self._changed is not None:
            await self._changed()


def _check_size(record: Record) -> None:
    """Refuse what none of us can have published, unread.

    Raises:
        UndecodableRecord: it is too large. A few bytes of a compressed batch swell to this.
    """
    size_bytes = len(record.key or b"") + len(record.value or b"")
    if size_bytes > REQUEST_MAX_BYTES:
        message = f"the record has {size_bytes:,} bytes, and may have {REQUEST_MAX_BYTES:,}"
        raise UndecodableRecord("record_too_large", message)
